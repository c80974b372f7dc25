"""Equations of `bnlab verify` that hold up to rounding, in float64: both sides, computed in different ways, and their
difference. Legend: B batch, C channels, H W space, m values per channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.core.registry import MODELS, NORMS
from bnlab.core.seeds import stream
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.core.state import Loss, State, gradient_at, line, loss_at, staircase
from bnlab.net.build import Net
from bnlab.net.stack import Stack, stacked
from bnlab.net.wrap import NormTap, Tap, Wrapped
from bnlab.norms.base import tensors_of
from bnlab.probes.lipschitz import terms
from bnlab.verify.checks import Identity, largest, relative, scalars

LOSS = Loss("cross_entropy", "mean")
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def up_to_rounding() -> Iterator[Identity]:
    """Every equation, checked when the iterator reaches it."""
    for dims in (1, 2):
        for steps in (1, 2, 10):
            yield reference_is_torch(dims, steps)
        yield derivative_is_the_limit(dims)
        yield outputs_have_the_moments_of_gamma_and_beta(dims)
        yield folding_leaves_evaluation_unchanged(dims)
    for model in ("mlp", "cnn"):
        yield gamma_and_beta_are_learned(model)
        yield gradients_shrink(model)
        yield gradients_below_are_orthogonal(model)
        yield gradients_fall_as_weights_grow(model)
    yield weights_are_orthogonal_to_their_gradient()
    yield weights_grow_by_pythagoras()
    yield a_line_begins_at_the_loss()
    yield nothing_precedes_the_first_site()
    yield nets_of_a_stack_are_nets_alone()


def small_mlp(eps: float) -> tuple[Net, Tensor, Tensor]:
    return with_batch(random_net("mlp", "relu", "batch", (8,), 0, depth=3, width=12, eps=eps), (16, 8))


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
        worst = largest(worst, *(relative(a, b) for a, b in zip(*sides, strict=True)))
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
    return scalars(f"gradient through batch statistics, {dims}d", (grad * direction).sum(), difference, 1e-7)


def outputs_have_the_moments_of_gamma_and_beta(dims: int) -> Identity:
    """Of z = gamma (y - mu) / sqrt(var + eps) + beta the mean over a batch is beta, and the biased variance is
    gamma^2 var / (var + eps), not gamma^2 (Ioffe & Szegedy 2015, algorithm 1). Of torch's norm and ours, for channels
    whose variances go from far below eps to far above; the largest relative difference."""
    generator, eps = stream(0, "data", "moments", dims), 1e-2
    shape, over = ((64, 5), (0,)) if dims == 1 else ((8, 5, 3, 4), (0, 2, 3))
    scale = torch.logspace(-3, 2, 5, dtype=torch.float64).view(1, 5, *(1 for _ in shape[2:]))
    y = scale * (3 + torch.randn(shape, generator=generator, dtype=torch.float64))
    gamma, beta = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = gamma.square() / (1 + eps / y.var(dim=over, correction=0))
    worst = 0.0
    for name in ("batch", "batch_reference"):
        norm = NORMS.build(name, {"eps": eps, "momentum": 0.1, "affine": True}, 5, 2 * (dims - 1)).double()
        with torch.no_grad():
            norm.weight.copy_(gamma)
            norm.bias.copy_(beta)
            z = norm(y)
        ratio = z.var(dim=over, correction=0) / expected
        worst = largest(worst, relative(z.mean(dim=over), beta), (ratio - 1).abs().max().item())
    return Identity(
        name=f"outputs of a batch norm have mean beta and variance gamma^2 var / (var + eps), {dims}d",
        left=f"variances over the expected: {ratio.min():.6g} to {ratio.max():.6g}",
        right="1",
        error=worst,
        tolerance=1e-9,
    )


def folding_leaves_evaluation_unchanged(dims: int) -> Identity:
    """In evaluation a batch norm is affine, with s = gamma / sqrt(running variance + eps) the same as the map before it
    with the weights s W and the biases beta + s (b - running mean) (Jacob et al. 2018, section 3.2): the outputs of a
    net after some training forwards, and those of the same net with folded weights and its norms passed by."""
    net, x, _ = small_mlp(eps=1e-2) if dims == 1 else small_cnn(eps=1e-2)
    norms: dict[int, Any] = dict(net.norms)
    with torch.no_grad():
        for norm in norms.values():
            norm.weight.copy_(torch.randn(norm.weight.shape, generator=stream(0, "data", "folding", dims)))
            norm.bias.copy_(norm.weight.flip(0) + 0.5)
        for _ in range(3):
            net.module(x + 1)
        net.module.eval()
        expected = net.module(x)
        for index, norm in norms.items():
            affine: Any = net.sites[index].affine
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            affine.weight.mul_(scale.view(-1, *(1 for _ in affine.weight.shape[1:])))
            bias = -norm.running_mean if affine.bias is None else affine.bias - norm.running_mean
            affine.bias = nn.Parameter(norm.bias + scale * bias)
        with Wrapped(net.norms.values(), lambda place, forward: torch.clone):
            folded = net.module(x)
    return Identity(
        name=f"folding batch norms into {'linear maps' if dims == 1 else 'convolutions'} leaves evaluation unchanged",
        left=f"|outputs| = {folded.norm():.6g}",
        right=f"{expected.norm():.6g}",
        error=relative(folded, expected),
        tolerance=1e-12,
    )


def gamma_and_beta_are_learned(model: str) -> Identity:
    """A batch norm has two parameters a channel, gamma and beta. Three steps of gradient descent on all parameters of a
    net move these by -lr times their gradients. Its running mean and variance are no parameters: they move towards
    those of each batch by the momentum (Ioffe & Szegedy 2015, algorithms 1 and 2). The largest difference; infinite
    where a norm has another parameter."""
    net, x, y = small_mlp(eps=1e-5) if model == "mlp" else small_cnn(eps=1e-5)
    lr, momentum, optimizer = 0.1, 0.1, torch.optim.SGD(net.module.parameters(), lr=0.1)
    expected = {
        index: {name: x.detach().clone() for name, x in tensors_of(net.norms[index]).items()} for index in net.norms
    }
    for step in range(3):
        optimizer.zero_grad()
        with NormTap(net) as tap:
            torch.autograd.backward(LOSS(net.module(x + step), y))
        for index, norm in net.norms.items():
            values = tap.seen[index].detach().transpose(0, 1).flatten(1)  # [C, m]
            for name, param in norm.named_parameters():
                assert param.grad is not None
                expected[index][name] -= lr * param.grad
            for name, of_batch in (("running_mean", values.mean(dim=1)), ("running_var", values.var(dim=1))):
                expected[index][name] += momentum * (of_batch - expected[index][name])
        optimizer.step()
    found = {index: tensors_of(norm) for index, norm in net.norms.items()}
    learned = sum(param.numel() for norm in net.norms.values() for param in norm.parameters())
    channels = sum(len(of["running_mean"]) for of in found.values())
    pairs = [(of[name], expected[index][name]) for index, of in found.items() for name in of if of[name].ndim]
    return Identity(
        name=f"gamma and beta are learned, one of each a channel; mean and variance are computed from batches, {model}",
        left=f"{learned} parameters",
        right=f"2 for each of {channels} channels",
        error=largest(*(relative(*pair) for pair in pairs)) if learned == 2 * channels else math.inf,
        tolerance=1e-12,
    )


def at_batch_norms(model: str, eps: float) -> Iterator[tuple[BatchNorm, Tensor, Tensor, Tensor]]:
    """Every batch norm of a small net, what it sees, and the loss's gradient below and above it."""
    net, x, y = small_mlp(eps) if model == "mlp" else small_cnn(eps)
    with Tap(net) as tap:
        loss = LOSS(net.module(x), y)
    for site, pre, act_in in zip(net.sites, tap.sites.pre, tap.sites.act_in, strict=True):
        if isinstance(site.norm, BatchNorm):
            below, above = torch.autograd.grad(loss, [pre, act_in], retain_graph=True)
            yield site.norm, pre.detach(), below, above


def gradients_below_are_orthogonal(model: str) -> Identity:
    """Of the gradient below a batch norm, dL/dy = gamma / sigma (g - <1, g> / m - y_hat <g, y_hat> / m), the products
    with 1 and y_hat: <dL/dy, 1> = 0 and <dL/dy, y_hat> = (1 - q) gamma / sigma <g, y_hat>, since <1, y_hat> = 0 and
    <y_hat, y_hat> = q m, q = var / (var + eps) (probes/lipschitz.py; the proof of theorem 4.1 in Santurkar et al. 2018
    has eps = 0). The largest difference, relative to |dL/dy| |1|."""
    worst = left = right = 0.0
    for norm, *passed in at_batch_norms(model, eps=0.5):
        y, below, g = (x.transpose(0, 1).flatten(1) for x in passed)  # [C, m]
        sigma2 = y.var(dim=1, correction=0) + norm.eps
        y_hat = (y - y.mean(dim=1, keepdim=True)) / sigma2.sqrt()[:, None]
        along = (below * y_hat).sum(dim=1)
        expected = norm.eps / sigma2 * norm.weight.detach() / sigma2.sqrt() * (g * y_hat).sum(dim=1)
        apart = torch.stack([along - expected, below.sum(dim=1)]).abs() / (below.norm(dim=1) * y.shape[1] ** 0.5)
        worst = largest(worst, apart[:, below.any(dim=1)].max().item())  # no gradient arrives at a dead channel
        left, right = left + along.abs().sum().item(), right + expected.abs().sum().item()
    return Identity(
        name=f"gradients below a batch norm: <dL/dy, 1> = 0 and <dL/dy, y_hat> by eps alone, {model}",
        left=f"sum of |<dL/dy, y_hat>| = {left:.6g}",
        right=f"{right:.6g}",
        error=worst,
        tolerance=1e-13,
    )


def gradients_fall_as_weights_grow(model: str) -> Identity:
    """A weight before a batch norm may be scaled: L(a W, a^2 eps) = L(W, eps), so dL(a W) = dL(W) / a, and no other
    gradient changes (Arora, Li & Lyu 2018, lemma 2.1, has eps = 0). For a = 3 and 1 / 3 at each normed site; the
    largest difference of any gradient, relative to its norm."""
    net, x, y = small_mlp(eps=1e-2) if model == "mlp" else small_cnn(eps=1e-2)
    before = State.of(net.module)
    _, grads = gradient_at(net.module, before, x, y, LOSS)
    worst = left = 0.0
    for index, norm in net.norms.items():
        for a in (3.0, 1 / 3):
            name = net.sites[index].params[0]
            scaled = replace(before, params=before.params | {name: a * before.params[name]})
            norm.eps = a**2 * 1e-2  # type: ignore[assignment]
            _, found = gradient_at(net.module, scaled, x, y, LOSS)
            norm.eps = 1e-2  # type: ignore[assignment]
            left, found[name] = found[name].norm().item(), a * found[name]
            worst = largest(worst, *(((found[key] - grad).norm() / grad.norm()).item() for key, grad in grads.items()))
    return Identity(
        name=f"gradients fall as the weights before a batch norm grow: dL(a W) = dL(W) / a, {model}",
        left=f"|dL(W / 3)| = {left:.6g}",
        right=f"{3 * grads[name].norm():.6g}",
        error=worst,
        tolerance=1e-12,
    )


def gradients_shrink(model: str) -> Identity:
    """Theorem 4.1 of Santurkar et al. 2018, as the equality at the end of its proof: what a batch norm takes out of the
    gradient, for every channel of every normed layer of a live net. Left by autograd, right by the formula that the
    probe `lipschitz` measures; the largest relative difference."""
    worst, left, right = 0.0, 0.0, 0.0
    for norm, pre, below, above in at_batch_norms(model, eps=1e-3):
        of = terms(pre, below, above, norm.weight.detach(), norm.eps)
        expected = of.raw - of.mean - of.corr
        alive = of.raw != 0  # no gradient arrives at a dead channel
        worst = largest(worst, (of.left[alive] / expected[alive] - 1).abs().max().item())
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
    worst = largest(*cosines)
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
    name = net.sites[1].params[0]
    left = line(state, grads, -lr).params[name].square().sum()
    right = state.params[name].square().sum() + lr**2 * grads[name].square().sum()
    return scalars("a step adds the squares of weight and update", left, right, 1e-9)


def a_line_begins_at_the_loss() -> Identity:
    """The loss along the gradient, at distance 0, is the training loss, and the net's buffers are unchanged."""
    net, x, y = small_cnn(eps=1e-5)
    state = State.of(net.module)
    loss, grads = gradient_at(net.module, state, x, y, LOSS)
    at_zero = loss_at(net.module, line(state, grads, 0.0), x, y, LOSS).detach()
    moved = [relative(now.double(), state.buffers[name].double()) for name, now in net.module.named_buffers()]
    error, now = largest(*moved, (loss - at_zero).abs().item()), LOSS(net.module(x), y).detach()
    return scalars("the loss along a line begins at the loss", at_zero, now, 1e-14, error)


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


def nets_of_a_stack_are_nets_alone() -> Identity:
    """Gradients of three nets with batch norm, computed in one stack, and one after the other."""
    nets = [random_net("mlp", "relu", "batch", (8,), seed, depth=3, width=12, eps=1e-5) for seed in range(3)]
    _, x, y = zip(*(with_batch(net, (16, 8)) for net in nets), strict=True)
    states = [State.of(net.module) for net in nets]
    params, buffers = stacked(state.params for state in states), stacked(state.buffers for state in states)
    together = Stack(nets[0]).gradients(params, buffers, torch.stack(x), y, LOSS)[1]
    alone = [gradient_at(nets[k].module, states[k], x[k], y[k], LOSS)[1] for k in range(len(nets))]
    pairs = [(together[name][k], grads[name]) for k, grads in enumerate(alone) for name in grads]
    return Identity(
        name="nets in a stack: their gradients are those of each net alone",
        left="3 nets at once",
        right="the same bits" if all(torch.equal(*pair) for pair in pairs) else "other bits: sweeps train nets alone",
        error=largest(*(relative(*pair) for pair in pairs)),
        tolerance=1e-9,
    )
