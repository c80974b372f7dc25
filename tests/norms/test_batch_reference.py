"""Two batch norms against each other and against the formula: torch's, and the one written out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab.core.registry import NORMS

TOLERANCE = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}
SHAPES = {0: (11, 5), 2: (6, 5, 4, 3)}
C = 5


def _norm(name: str, dims: int, dtype: torch.dtype, **options: Any) -> nn.Module:
    layer = NORMS.build(name, {"eps": 1e-5, "momentum": 0.1, "affine": True} | options, C, dims).to(dtype)
    if layer.weight is not None:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            layer.weight.copy_(1 + torch.rand(C, generator=generator))
            layer.bias.copy_(torch.randn(C, generator=generator))
    assert isinstance(layer, nn.Module)
    return layer


def _torch_norm(dims: int, dtype: torch.dtype, momentum: float | None, affine: bool) -> nn.Module:
    layer = (nn.BatchNorm2d if dims else nn.BatchNorm1d)(C, eps=1e-5, momentum=momentum, affine=affine).to(dtype)
    if affine:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            layer.weight.copy_(1 + torch.rand(C, generator=generator))
            layer.bias.copy_(torch.randn(C, generator=generator))
    return layer


def _batch(step: int, dims: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    return (2 * torch.randn(SHAPES[dims], generator=generator, dtype=torch.float64) + 0.7).to(dtype)


def _passes(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient at the input, and at gamma and beta, of one loss that is not symmetric."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    out = layer(x)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    (weights * out.pow(2)).sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, *(param.grad for param in layer.parameters() if param.grad is not None)]


@pytest.mark.parametrize("name", ["batch_reference", "batch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("dims", [0, 2])
def test_it_is_torch_s_batch_norm(
    name: str, dims: int, momentum: float | None, affine: bool, dtype: torch.dtype
) -> None:
    ours, theirs = (
        _norm(name, dims, dtype, momentum=momentum, affine=affine),
        _torch_norm(dims, dtype, momentum, affine),
    )
    for step in range(1, 11):
        x = _batch(step, dims, dtype)
        found, expected = _passes(ours, x), _passes(theirs, x)
        assert len(found) == (4 if affine else 2)
        for one, other in zip(found, expected, strict=True):
            scale = max(1.0, float(other.abs().max()))
            torch.testing.assert_close(one / scale, other / scale, **TOLERANCE[dtype])
        if step in (1, 2, 10):
            assert sorted(ours.state_dict()) == sorted(theirs.state_dict())
            assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked) == step
            for buffer in ("running_mean", "running_var"):
                torch.testing.assert_close(getattr(ours, buffer), getattr(theirs, buffer), **TOLERANCE[dtype])
    ours.eval()
    theirs.eval()
    x = _batch(11, dims, dtype)
    for one, other in zip(_passes(ours, x), _passes(theirs, x), strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one / scale, other / scale, **TOLERANCE[dtype])
    assert int(ours.num_batches_tracked) == 10


def _by_hand(batches: list[np.ndarray], momentum: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last batch normalized, and the running statistics, channel by channel and value by value."""
    running_mean, running_var = np.zeros(C), np.ones(C)
    for count, x in enumerate(batches, start=1):
        normalized = np.empty_like(x)
        for c in range(C):
            values = [float(v) for v in x[:, c].ravel()]
            m = len(values)
            mean = sum(values) / m
            var = sum((v - mean) ** 2 for v in values) / m
            normalized[:, c] = (x[:, c] - mean) / np.sqrt(var + 1e-5)
            share = 1 / count if momentum is None else momentum
            running_mean[c] = (1 - share) * running_mean[c] + share * mean
            running_var[c] = (1 - share) * running_var[c] + share * var * m / (m - 1)
    return normalized, running_mean, running_var


@pytest.mark.parametrize("name", ["batch_reference", "batch"])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("dims", [0, 2])
def test_it_is_the_formula(name: str, dims: int, momentum: float | None) -> None:
    layer = _norm(name, dims, torch.float64, momentum=momentum, affine=False)
    batches = [_batch(step, dims, torch.float64) for step in range(10)]
    for x in batches:
        out = layer(x)
    normalized, mean, var = _by_hand([x.numpy() for x in batches], momentum)
    np.testing.assert_allclose(out.numpy(), normalized, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-12, atol=1e-12)


def test_with_momentum_null_the_running_mean_is_the_plain_average_of_all_batches() -> None:
    layer = _norm("batch_reference", 0, torch.float64, momentum=None)
    batches = [_batch(step, 0, torch.float64) for step in range(7)]
    for x in batches:
        layer(x)
    mean = torch.stack([x.mean(dim=0) for x in batches]).mean(dim=0)
    var = torch.stack([x.var(dim=0, correction=1) for x in batches]).mean(dim=0)
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, var, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [0, 2])
def test_its_gradient_is_that_of_theorem_4_1(dims: int) -> None:
    """dL/dx = gamma / sd * (g - mean(g) - x_hat mean(g x_hat)), the gradient from which Santurkar et al. 2018, theorem
    4.1, follows; with eps in sd it holds for x_hat as computed."""
    layer = _norm("batch_reference", dims, torch.float64)
    x = _batch(0, dims, torch.float64).requires_grad_()
    g = torch.linspace(-1, 2, x.numel(), dtype=torch.float64).reshape(x.shape).sin()
    (layer(x) * g).sum().backward()
    assert x.grad is not None
    for c in range(C):
        values, slopes = x.detach()[:, c], g[:, c]
        sd = (values.var(correction=0) + 1e-5).sqrt()
        x_hat = (values - values.mean()) / sd
        expected = layer.weight[c] / sd * (slopes - slopes.mean() - x_hat * (slopes * x_hat).mean())
        torch.testing.assert_close(x.grad[:, c], expected.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("dims", "training"), list(itertools.product([0, 2], [True, False])))
def test_its_gradients_pass_finite_differences(dims: int, training: bool) -> None:
    layer = _norm("batch_reference", dims, torch.float64)
    layer(_batch(0, dims, torch.float64))
    layer.train(training)
    x = _batch(1, dims, torch.float64)[:4].requires_grad_()

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(
            layer,
            {"weight": weight, "bias": bias} | {name: buffer.clone() for name, buffer in layer.named_buffers()},
            (x,),
        )
        return out

    assert torch.autograd.gradcheck(call, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("name", ["batch", "batch_reference"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, r"norm\.eps: must be a number above 0, got 0\.0\."),
        ({"eps": float("inf")}, r"norm\.eps: must be finite, got inf\."),
        ({"eps": "small"}, r"norm\.eps: must be a number, got 'small'\."),
        ({"momentum": 1.5}, r"norm\.momentum: must be at most 1, got 1\.5\."),
        ({"momentum": -0.1}, r"norm\.momentum: must be at least 0, got -0\.1\."),
        ({"affine": 1}, r"norm\.affine: must be a boolean, got 1\."),
        ({"epz": 1e-5}, r"norm\.epz: no such option, got 1e-05\. Did you mean: eps\?"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    given = {"eps": 1e-5, "momentum": 0.1, "affine": True} | options
    with pytest.raises(ValueError, match=rf"^{message}$"):
        NORMS.build(name, given, C, 0)


@pytest.mark.parametrize("build", [lambda name: NORMS.build(name, {"eps": 1e-5, "momentum": 0.1}, C, 0)])
def test_a_missing_option_is_named(build: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"^norm\.affine: missing\. Its YAML must give it a value\.$"):
        build("batch")
