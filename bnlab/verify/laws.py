"""Laws of `bnlab verify` that hold on average: for wide random nets, and for batches drawn from a population. Legend:
B batch, m values per channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.core.seeds import stream
from bnlab.core.theory import gradient_growth
from bnlab.net.wrap import TrainingTap
from bnlab.verify.checks import Identity, scalars
from bnlab.verify.equations import random_net


def on_average() -> Iterator[Identity]:
    """Every law, checked when the iterator reaches it."""
    for batch in (8, 16, 32, 64, 128):
        yield gradients_grow("relu", batch)
    yield gradients_grow("linear", 32)
    yield gradients_do_not_grow_without_norm()
    for values in (32, 128):
        yield means_scatter(values)
        yield deviations_scatter(values)


def gradients_grow(activation: str, batch: int) -> Identity:
    """The squared norm of the gradient at the pre-activations of a wide random net, growth per layer, against Yang
    et al. 2019, theorem 8. Geometric mean over 4 nets of width 512, in float32."""
    measured = measured_growth(activation, batch, norm="batch")
    name = f"gradient growth with batch norm, {activation}, batch {batch}"
    return scalars(name, measured, gradient_growth(batch, activation), 0.03)


def gradients_do_not_grow_without_norm() -> Identity:
    """Without a norm, He's initialization keeps the gradient's norm (He et al. 2015, section 2.2)."""
    measured = measured_growth("relu", 64, norm="none")
    return scalars("gradient growth without a norm, relu, He", measured, 1.0, 0.05)


def means_scatter(values: int) -> Identity:
    """The means of batches of m scatter by sigma / sqrt(m) (Luo et al. 2019): 4,000 batches from a skewed
    population."""
    batches, sigma, _ = draw_batches(values)
    return scalars(f"scatter of batch means, {values} values", batches.mean(dim=1).std(), sigma / values**0.5, 0.05)


def deviations_scatter(values: int) -> Identity:
    """Their standard deviations scatter by sigma sqrt((rho + 2) / 4m), rho the excess kurtosis (Luo et al. 2019)."""
    batches, sigma, rho = draw_batches(values)
    expected = sigma * ((rho + 2) / (4 * values)) ** 0.5
    measured = batches.std(dim=1, correction=0).std()
    return scalars(f"scatter of batch standard deviations, {values} values", measured, expected, 0.1)


def draw_batches(values: int) -> tuple[Tensor, float, float]:
    """4,000 batches [4000, m] of a shifted and rectified normal variable, its standard deviation and excess
    kurtosis."""
    x = torch.randn(4000, values, generator=stream(0, "noise", "scatter", values), dtype=torch.float64)
    population = F.relu(torch.randn(10**6, generator=stream(0, "noise", "population"), dtype=torch.float64) + 1)
    centred = population - population.mean()
    variance = centred.square().mean().item()
    return F.relu(x + 1), variance**0.5, centred.pow(4).mean().item() / variance**2 - 3


def measured_growth(
    activation: str, batch: int, norm: str, *, nets: int = 4, width: int = 512, depth: int = 30
) -> float:
    """Geometric mean over nets and layers of |delta_l|^2 / |delta_(l+1)|^2, less 5 layers at the input and 8 at the
    top, where the growth per layer has not converged."""
    logs = []
    for seed in range(nets):
        net = random_net("mlp", activation, norm, (width,), seed, depth=depth, width=width, eps=1e-8)
        x = torch.randn(batch, width, generator=stream(seed, "data", "growth", batch))
        weights = torch.randn(batch, 10, generator=stream(seed, "data", "growth weights", batch))
        tap = TrainingTap(net, deltas=True)
        with tap:
            out = net.module(x)
        (out * weights).sum().backward()
        squares = torch.stack([tap.training.delta_norms[index] for index in range(5, depth - 8)]).square()
        logs.append(squares.log().diff().neg().mean().item())
    return math.exp(sum(logs) / len(logs))
