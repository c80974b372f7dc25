"""l1, l2 and linf against their formula, channel by channel and value by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS

C = 5
SHAPES = {0: (11, C), 2: (6, C, 4, 3)}
EPS = 1e-3
POWERS = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}


def _norm(name: str, dims: int, **options: Any) -> nn.Module:
    norm: nn.Module = NORMS.build(name, {"eps": EPS, "momentum": 0.1, "affine": True} | options, C, dims).double()
    if norm.weight is not None:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, C))
            norm.bias.copy_(torch.linspace(-1, 1, C))
    return norm


def _batch(step: int, dims: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return 2 * torch.randn(SHAPES[dims], generator=generator, dtype=torch.float64) + 0.7


def _lp(values: np.ndarray, p: float) -> float:
    """The average lp norm, as a limit of means of powers."""
    magnitudes = [abs(float(v)) for v in values.ravel()]
    return max(magnitudes) if p == float("inf") else (sum(m**p for m in magnitudes) / len(magnitudes)) ** (1 / p)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("dims", [0, 2])
@pytest.mark.parametrize("name", sorted(POWERS))
def test_it_is_the_formula(name: str, dims: int, momentum: float | None, affine: bool) -> None:
    norm = _norm(name, dims, momentum=momentum, affine=affine)
    gamma, beta = (norm.weight.tolist(), norm.bias.tolist()) if affine else ([1.0] * C, [0.0] * C)
    mean, scale = np.zeros(C), np.ones(C)
    for step in range(1, 6):
        x = _batch(step, dims)
        values, expected = x.numpy(), np.empty(SHAPES[dims])
        share = 1 / step if momentum is None else momentum
        for c in range(C):
            own = values[:, c]
            lp = _lp(own, POWERS[name])  # of x itself, before the mean is taken away
            expected[:, c] = gamma[c] * (own - own.mean()) / (lp + EPS) + beta[c]
            mean[c] += share * (own.mean() - mean[c])
            scale[c] += share * (lp - scale[c])
        np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(norm.running_norm.numpy(), scale, rtol=1e-12, atol=1e-12)
    x = _batch(9, dims)
    for c in range(C):
        expected[:, c] = gamma[c] * (x.numpy()[:, c] - mean[c]) / (scale[c] + EPS) + beta[c]
    np.testing.assert_allclose(norm.eval()(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert int(norm.num_batches_tracked) == 5


def test_of_a_batch_around_zero_l2_is_batch_norm() -> None:
    x = _batch(0, 0)
    x = x - x.mean(dim=0)
    batch_norm = nn.BatchNorm1d(C, eps=1e-12).double()
    torch.testing.assert_close(_norm("l2", 0, eps=1e-12, affine=False)(x), batch_norm(x).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "expected"), [("l1", 2.5), ("l2", 7.5**0.5), ("linf", 4.0)])
def test_a_channel_of_1_2_3_4(name: str, expected: float) -> None:
    norm = NORMS.build(name, {"eps": 1e-300, "momentum": 1.0, "affine": False}, 1, 0).double()
    out = norm(torch.tensor([[1.0], [-2.0], [3.0], [-4.0]], dtype=torch.float64))
    torch.testing.assert_close(out.flatten(), torch.tensor([1.5, -1.5, 3.5, -3.5], dtype=torch.float64) / expected)
    assert norm.running_norm.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", sorted(POWERS))
def test_options_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^norm\.momentum: must be at most 1, got 2\."):
        _norm(name, 0, momentum=2)
