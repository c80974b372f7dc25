"""Laws that hold on average: of wide random nets, and of batches drawn from a population."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.core.seeds import stream
from bnlab.core.theory import gradient_growth
from bnlab.net.wrap import TrainingTap
from bnlab.verify.base import Identity, random_net, scalars


def gradients_grow(activation: str, batch: int) -> Identity:
    """The squared norm of the gradient at the pre-activations of a wide random net, growth per layer, against Yang
    et al. 2019, theorem 8. Geometric mean over 4 nets of width 512, in float32."""
    measured = measured_growth(activation, batch, norm="batch")
    return scalars(
        f"gradient growth with batch norm, {activation}, batch {batch}",
        torch.tensor(measured),
        torch.tensor(gradient_growth(batch, activation)),
        0.03,
    )


def gradients_do_not_grow_without_norm() -> Identity:
    """Without a norm, He's initialization keeps the gradient's norm (He et al. 2015, section 2.2)."""
    measured = measured_growth("relu", 64, norm="none")
    return scalars("gradient growth without a norm, relu, He", torch.tensor(measured), torch.tensor(1.0), 0.05)


def means_scatter(values: int) -> Identity:
    """The means of batches of m scatter by sigma / sqrt(m) (Luo et al. 2019): 4,000 batches from a skewed
    population."""
    batches, sigma, _ = draw_batches(values)
    return scalars(
        f"scatter of batch means, {values} values", batches.mean(dim=1).std(), torch.tensor(sigma / values**0.5), 0.05
    )


def deviations_scatter(values: int) -> Identity:
    """Their standard deviations scatter by sigma sqrt((rho + 2) / 4m), rho the excess kurtosis (Luo et al. 2019)."""
    batches, sigma, rho = draw_batches(values)
    expected = sigma * ((rho + 2) / (4 * values)) ** 0.5
    measured = batches.std(dim=1, correction=0).std()
    return scalars(f"scatter of batch standard deviations, {values} values", measured, torch.tensor(expected), 0.1)


def draw_batches(values: int) -> tuple[Tensor, float, float]:
    """4,000 batches [4000, m] of a rectified-and-shifted normal variable, its standard deviation and excess
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
    top, where the growth is not yet what it becomes."""
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
