"""The identities of `bnlab verify`: both sides of an equation, computed in different ways, and their difference.

First equations that hold up to rounding, in float64; then laws that hold on average, for wide random nets and for
batches drawn from a population. Legend: B batch, C channels, H W space, m values per channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.core.registry import MODELS, NORMS
from bnlab.core.seeds import stream
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.core.state import State, gradient_at, line, loss_at, objective, staircase
from bnlab.core.theory import gradient_growth
from bnlab.net.build import Net
from bnlab.net.wrap import Tap, TrainingTap
from bnlab.probes.lipschitz import terms

LOSS = objective("cross_entropy", "mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One checked equation: its two sides, their difference, and the largest one accepted."""

    name: str
    left: str
    right: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # false when it is NaN


def identities() -> Iterator[Identity]:
    """Every identity, checked when the iterator reaches it."""
    for dims in (1, 2):
        for steps in (1, 2, 10):
            yield reference_is_torch(dims, steps)
        yield derivative_is_the_limit(dims)
    yield gradients_shrink("mlp")
    yield gradients_shrink("cnn")
    yield weights_are_orthogonal_to_their_gradient()
    yield weights_grow_by_pythagoras()
    yield a_line_begins_at_the_loss()
    yield nothing_precedes_the_first_site()
    for batch in (8, 16, 32, 64, 128):
        yield gradients_grow("relu", batch)
    yield gradients_grow("linear", 32)
    yield gradients_do_not_grow_without_norm()
    for values in (32, 128):
        yield means_scatter(values)
        yield deviations_scatter(values)


def scalars(name: str, left: Tensor | float, right: Tensor | float, tolerance: float, error: float = 0.0) -> Identity:
    """Two numbers and their relative difference, or `error` if it is larger."""
    a, b = float(left), float(right)
    difference = max(abs(a / b - 1), error)
    return Identity(name=name, left=f"{a:.6g}", right=f"{b:.6g}", error=difference, tolerance=tolerance)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / (1 + b.abs().max())).item()


def small_mlp(eps: float) -> tuple[Net, Tensor, Tensor]:
    net = random_net("mlp", "relu", "batch", (8,), 0, depth=3, width=12, eps=eps)
    return with_batch(net, (16, 8))


def small_cnn(eps: float) -> tuple[Net, Tensor, Tensor]:
    net = random_net(
        "cnn", "relu", "batch", (2, 6, 6), 0, channels=[4, 5], strides=1, kernel=3, head="average", eps=eps
    )
    return with_batch(net, (10, 2, 6, 6))


def with_batch(net: Net, shape: tuple[int, ...]) -> tuple[Net, Tensor, Tensor]:
    generator = stream(0, "data", "verify", *shape)
    net.module.double()
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return net, x, torch.randint(10, shape[:1], generator=generator)


def random_net(
    model: str, activation: Any, norm: str, shape: tuple[int, ...], seed: int, *, eps: float, **options: Any
) -> Net:
    settings = {"eps": eps, "momentum": 0.1, "affine": True} if norm != "none" else {}
    model_spec = ModelSpec(
        name=model, activation=activation, init="he", init_scale=1.0, init_std=0.01, bias="auto", options=options
    )
    norm_spec = NormSpec(name=norm, layers="all", every=1, position="before", options=settings)
    net = MODELS.build(model, options, shape, 10, model_spec, norm_spec, seed)
    assert isinstance(net, Net)
    return net


def reference_is_torch(dims: int, steps: int) -> Identity:
    """Our batch norm, written from the formula, against torch's: outputs, gradients at the input and at gamma and beta,
    running statistics, over `steps` training steps and then in evaluation mode. The largest difference, relative to
    torch's scale."""
    generator = stream(0, "data", "reference", dims)
    options = {"eps": 1e-5, "momentum": 0.1, "affine": True}
    ours: nn.Module = NORMS.build("batch_reference", options, 6, 2 * (dims - 1)).double()
    torchs: nn.Module = NORMS.build("batch", options, 6, 2 * (dims - 1)).double()
    shape = (8, 6) if dims == 1 else (8, 6, 5, 4)
    worst = 0.0
    for step in range(steps + 1):
        if step == steps:  # evaluation mode
            ours.eval()
            torchs.eval()
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 1
        weights = torch.randn(shape, generator=generator, dtype=torch.float64)
        sides = []
        for norm in (ours, torchs):
            inputs = x.clone().requires_grad_()
            out = norm(inputs)
            grads = torch.autograd.grad((out * weights).sum(), [inputs, *norm.parameters()])
            sides.append([out.detach(), *grads, *(buffer.double() for buffer in norm.buffers())])
            with torch.no_grad():
                for param, grad in zip(norm.parameters(), grads[1:], strict=True):
                    param.sub_(0.01 * grad)
        worst = max([worst, *(relative(a, b) for a, b in zip(*sides, strict=True))])
    return Identity(
        name=f"our batch norm is torch's, {dims}d, {steps} step{'s' * (steps > 1)}",
        left="y, dy, running statistics by the formula",
        right=f"torch.nn.BatchNorm{dims}d",
        error=worst,
        tolerance=1e-11,
    )


def derivative_is_the_limit(dims: int) -> Identity:
    """The gradient through batch statistics against central differences, in one random direction."""
    generator = stream(0, "data", "derivative", dims)
    norm: nn.Module = NORMS.build("batch_reference", {"eps": 1e-5, "momentum": 0.1, "affine": True}, 4, 2 * (dims - 1))
    norm.double()
    shape = (7, 4) if dims == 1 else (3, 4, 3, 2)
    x, direction, weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))

    def value(at: Tensor) -> Tensor:
        return (torch.sin(norm(at)) * weights).sum()

    inputs = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(inputs), [inputs])
    step = 1e-5
    with torch.no_grad():
        difference = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    slope = (grad * direction).sum()
    return scalars(f"gradient through batch statistics, {dims}d", slope, difference, 1e-7)


def gradients_shrink(model: str) -> Identity:
    """Theorem 4.1 of Santurkar et al. 2018, as the equality at the end of its proof: what a batch norm takes out of the
    gradient, for every channel of every normed layer of a live net. Left by autograd, right by the formula that the
    probe `lipschitz` measures; the largest relative difference."""
    net, x, y = small_mlp(eps=1e-3) if model == "mlp" else small_cnn(eps=1e-3)
    with Tap(net) as tap:
        loss = LOSS(net.module(x), y)
    worst, left, right = 0.0, 0.0, 0.0
    for site, pre, act_in in zip(net.sites, tap.sites.pre, tap.sites.act_in, strict=True):
        if isinstance(site.norm, nn.BatchNorm1d | nn.BatchNorm2d):
            below, above = torch.autograd.grad(loss, [pre, act_in], retain_graph=True)
            of = terms(pre.detach(), below, above, site.norm.weight.detach(), site.norm.eps)
            expected = of.raw - of.mean - of.corr
            alive = of.raw > 0  # no gradient arrives at a dead channel
            worst = max(worst, (of.left[alive] / expected[alive] - 1).abs().max().item())
            left, right = left + of.left.sum().item(), right + expected.sum().item()
    return Identity(
        name=f"theorem 4.1 as an equality, {model}",
        left=f"|dL/dy|^2 = {left:.6g}",
        right=f"{right:.6g}",
        error=worst,
        tolerance=1e-11,
    )


def weights_are_orthogonal_to_their_gradient() -> Identity:
    """A batch norm cancels the scale of the weights before it, so <w, dL/dw> = 0 (Arora, Li & Lyu 2018, lemma 2.1).
    With eps = 1e-12, since eps alone breaks it. The largest |cosine| over the normed layers of an MLP and a CNN."""
    cosines = []
    for net, x, y in (small_mlp(eps=1e-12), small_cnn(eps=1e-12)):
        _, grads = gradient_at(net.module, State.of(net.module), x, y, LOSS)
        for site in net.sites:
            if site.norm is not None:
                weight, grad = net.params[site.params[0]].detach().flatten(), grads[site.params[0]].flatten()
                cosines.append((weight @ grad / (weight.norm() * grad.norm())).abs().item())
    worst = max(cosines)
    return Identity(
        name="weights before a batch norm are orthogonal to their gradient",
        left=f"|cos(w, dL/dw)| = {worst:.1e}",
        right="0",
        error=worst,
        tolerance=1e-9,
    )


def weights_grow_by_pythagoras() -> Identity:
    """Hence a step of gradient descent adds the squares: |w'|^2 = |w|^2 + lr^2 |dL/dw|^2."""
    net, x, y = small_mlp(eps=1e-12)
    state, lr = State.of(net.module), 0.5
    _, grads = gradient_at(net.module, state, x, y, LOSS)
    after = line(state, grads, -lr)
    name = net.sites[1].params[0]
    left = after.params[name].square().sum()
    right = state.params[name].square().sum() + lr**2 * grads[name].square().sum()
    return scalars("a step adds the squares of weight and update", left, right, 1e-9)


def a_line_begins_at_the_loss() -> Identity:
    """The loss along the gradient, at distance 0, is the training loss, and the net's buffers are unchanged."""
    net, x, y = small_cnn(eps=1e-5)
    state = State.of(net.module)
    loss, grads = gradient_at(net.module, state, x, y, LOSS)
    at_zero = loss_at(net.module, line(state, grads, 0.0), x, y, LOSS).detach()
    moved = max(relative(buffer.double(), state.buffers[name].double()) for name, buffer in net.module.named_buffers())
    error = max(moved, (loss - at_zero).abs().item())
    return scalars("the loss along a line begins at the loss", at_zero, LOSS(net.module(x), y).detach(), 1e-14, error)


def nothing_precedes_the_first_site() -> Identity:
    """Internal covariate shift (Santurkar et al. 2018, definition 2.1) of the first layer is 0, since no layer
    before it can move; that of the second is not, or the measure would be blind."""
    net, x, y = small_mlp(eps=1e-5)
    before = State.of(net.module)
    _, grads = gradient_at(net.module, before, x, y, LOSS)
    after = line(before, grads, -0.1)
    states = list(staircase(before, after, [site.params for site in net.sites]))
    shifts = []
    for site, state in zip(net.sites[:2], states[:2], strict=True):
        _, moved = gradient_at(net.module, state, x, y, LOSS)
        shifts.append((moved[site.params[0]] - grads[site.params[0]]).norm().item())
    return Identity(
        name="no internal covariate shift at the first layer",
        left=f"|G - G'| = {shifts[0]:g}, at the second layer {shifts[1]:.2g}",
        right="0",
        error=shifts[0] if shifts[1] > 1e-6 else math.inf,
        tolerance=0.0,
    )


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
