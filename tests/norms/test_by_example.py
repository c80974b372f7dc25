"""Norms of single examples against their formulas, value by value: layer, group, instance, rms, affine_only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS

C = 6
SHAPES = {0: (5, C), 2: (4, C, 3, 2)}
EPS = 1e-3


def _norm(name: str, dims: int, **options: Any) -> nn.Module:
    """In float64, with gammas and betas that differ from channel to channel."""
    norm: nn.Module = NORMS.build(name, options, C, dims).double()
    with torch.no_grad():
        for param, start in ((getattr(norm, "weight", None), 0.5), (getattr(norm, "bias", None), -1.0)):
            if param is not None:
                param.copy_(torch.linspace(start, start + 2, C))
    return norm


def _batch(dims: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(SHAPES[dims], generator=generator, dtype=torch.float64) + 0.7


def _by_hand(x: np.ndarray, groups: int, *, mean_too: bool = True) -> np.ndarray:
    """x_hat of each example, a group of channels after the other."""
    out = np.empty_like(x)
    size = C // groups
    for i in range(len(x)):
        for first in range(0, C, size):
            values = [float(v) for v in x[i, first : first + size].ravel()]
            mean = sum(values) / len(values) if mean_too else 0.0
            var = sum((v - mean) ** 2 for v in values) / len(values)
            out[i, first : first + size] = (x[i, first : first + size] - mean) / np.sqrt(var + EPS)
    return out


def _affine(x_hat: np.ndarray, norm: nn.Module) -> np.ndarray:
    shape = (1, C) + (1,) * (x_hat.ndim - 2)
    gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
    out = x_hat if gamma is None else x_hat * gamma.detach().numpy().reshape(shape)
    return out if beta is None else out + beta.detach().numpy().reshape(shape)


CASES: dict[str, tuple[tuple[int, ...], dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = {
    "layer": ((0, 2), {}, lambda x: _by_hand(x, 1)),
    "group": ((0, 2), {"groups": 2}, lambda x: _by_hand(x, 2)),
    "instance": ((2,), {}, lambda x: _by_hand(x, C)),
    "rms": ((0, 2), {}, lambda x: _by_hand(x, 1, mean_too=False)),
}
"""Name -> the dims it takes, its own options, the formula."""


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("name", "dims"), [(name, dims) for name, case in CASES.items() for dims in case[0]])
def test_it_is_the_formula_in_training_and_in_use(name: str, dims: int, affine: bool, training: bool) -> None:
    _, options, formula = CASES[name]
    norm = _norm(name, dims, eps=EPS, affine=affine, **options).train(training)
    x = _batch(dims)
    assert len(list(norm.parameters())) == (0 if not affine else 1 if name == "rms" else 2)
    np.testing.assert_allclose(norm(x).detach().numpy(), _affine(formula(x.numpy()), norm), rtol=1e-12, atol=1e-12)
    assert dict(norm.named_buffers()) == {}


@pytest.mark.parametrize("dims", [0, 2])
def test_affine_only_is_gamma_times_x_plus_beta_and_begins_as_nothing(dims: int) -> None:
    x = _batch(dims)
    assert torch.equal(NORMS.build("affine_only", {}, C, dims).double()(x), x)
    norm = _norm("affine_only", dims)
    np.testing.assert_array_equal(norm(x).detach().numpy(), _affine(x.numpy(), norm))


def test_one_group_is_layer_norm_and_a_group_a_channel_instance_norm() -> None:
    x = _batch(2)
    shared = {"eps": EPS, "affine": True}
    assert torch.equal(_norm("group", 2, groups=1, **shared)(x), _norm("layer", 2, **shared)(x))
    torch.testing.assert_close(
        _norm("group", 2, groups=C, **shared)(x), _norm("instance", 2, **shared)(x), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("name", "dims", "channels", "options", "message"),
    [
        ("group", 2, 6, {"groups": 4}, r"^norm\.groups: does not divide the 6 channels of a layer, got 4\. Use a div"),
        ("group", 0, 6, {"groups": 6}, r"^norm\.groups: leaves one unit a group, always normalized to 0, got 6\."),
        ("group", 2, 6, {"groups": 0}, r"^norm\.groups: must be at least 1, got 0\."),
        ("layer", 0, 1, {}, r"^norm: norm=layer needs layers of at least two units, got 1\."),
        ("instance", 0, 6, {}, r"^norm: a dense layer has one value per channel and example, got 'instance'\. Use"),
        ("rms", 0, 6, {"eps": 0}, r"^norm\.eps: must be a number above 0, got 0\."),
    ],
)
def test_what_cannot_be_is_refused(name: str, dims: int, channels: int, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NORMS.build(name, {"eps": EPS, "affine": True} | options, channels, dims)
