"""ghost_batch against torch's batch norm of each part, batch_renorm against its algorithm channel by channel."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS

C = 5
EXACT = {"rtol": 1e-12, "atol": 1e-12}
GHOST = {"ghost_size": 4, "eps": 1e-5, "momentum": 0.1, "affine": True}
RENORM = {"eps": 1e-5, "momentum": 0.01, "r_max": 3.0, "d_max": 5.0, "ramp_steps": 0, "affine": True}


def _norm(name: str, dims: int, options: dict[str, Any]) -> nn.Module:
    return _with_affine(NORMS.build(name, options, C, dims).double())


def _with_affine(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, C))
        norm.bias.copy_(torch.linspace(-1, 1, C))
    return norm


def _batch(step: int, dims: int, size: int = 12, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    shape = (size, C, 3, 2) if dims else (size, C)
    return spread * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.7


# -- ghosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "parts"), [(12, [4, 4, 4]), (8, [4, 4]), (3, [3]), (4, [4]), (7, [7]), (11, [6, 5]), (13, [5, 4, 4])]
)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dims", [0, 2])
def test_each_ghost_is_batch_normalized_by_itself(
    dims: int, momentum: float | None, size: int, parts: list[int]
) -> None:
    norm = _norm("ghost_batch", dims, GHOST | {"momentum": momentum})
    batch_norm = _with_affine((nn.BatchNorm2d if dims else nn.BatchNorm1d)(C, momentum=momentum).double())
    for step in range(3):
        x, starts = _batch(step, dims, size), [sum(parts[:i]) for i in range(len(parts) + 1)]
        expected = torch.cat([batch_norm(x[a:b]) for a, b in itertools.pairwise(starts)])
        torch.testing.assert_close(norm(x), expected, **EXACT)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(norm.get_buffer(name), batch_norm.get_buffer(name), **EXACT)
    assert int(norm.num_batches_tracked) == 3 * len(parts)
    x = _batch(9, dims)
    torch.testing.assert_close(norm.eval()(x), batch_norm.eval()(x), **EXACT)


def test_ghosts_move_the_running_mean_with_the_paper_s_weights() -> None:
    """mu <- (1 - eta)^k mu + sum_i (1 - eta)^(k - i) eta mu_i over the k ghosts: one after the other."""
    norm = _norm("ghost_batch", 0, GHOST)
    x = _batch(0, 0)
    norm(x)
    means = [x[4 * i : 4 * i + 4].mean(dim=0) for i in range(3)]
    expected = 0.9**2 * 0.1 * means[0] + 0.9 * 0.1 * means[1] + 0.1 * means[2]
    torch.testing.assert_close(norm.running_mean, expected, **EXACT)


def test_one_ghost_does_not_see_another() -> None:
    norm = _norm("ghost_batch", 0, GHOST)
    x = _batch(0, 0).requires_grad_()
    norm(x)[:4].pow(3).sum().backward()
    assert float(x.grad[:4].abs().min()) > 0
    assert torch.count_nonzero(x.grad[4:]) == 0


def test_a_ghost_of_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^norm\.ghost_size: must be at least 2, got 1\."):
        _norm("ghost_batch", 0, GHOST | {"ghost_size": 1})


# -- renormalization -------------------------------------------------------------------------------


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


@pytest.mark.parametrize("bounds", [(3.0, 5.0), (1.1, 0.2), (1.0, 0.0), (1e6, 1e6)])
@pytest.mark.parametrize("ramp_steps", [0, 4])
@pytest.mark.parametrize("dims", [0, 2])
def test_it_is_the_algorithm_value_and_gradient(dims: int, ramp_steps: int, bounds: tuple[float, float]) -> None:
    options = {"momentum": 0.2, "r_max": bounds[0], "d_max": bounds[1], "ramp_steps": ramp_steps}
    norm = _norm("batch_renorm", dims, RENORM | options)
    mu, sigma = [0.0] * C, [1.0] * C
    for step in range(7):
        x = _batch(step, dims, spread=0.5 + step % 3).requires_grad_()
        out = norm(x)
        g = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape).sin()
        (gradient,) = torch.autograd.grad((out * g).sum(), x)
        share = min(1.0, step / ramp_steps) if ramp_steps else 1.0
        r_max, d_max = 1 + share * (bounds[0] - 1), share * bounds[1]
        for c in range(C):
            values, slopes = x.detach()[:, c], g[:, c]
            mean, sd = float(values.mean()), math.sqrt(float(values.var(correction=0)) + 1e-5)
            r, d = _clip(sd / sigma[c], 1 / r_max, r_max), _clip((mean - mu[c]) / sigma[c], -d_max, d_max)
            gamma, beta = norm.weight[c].item(), norm.bias[c].item()
            x_hat = (values - mean) / sd
            torch.testing.assert_close(out[:, c].detach(), gamma * (x_hat * r + d) + beta, **EXACT)
            through = slopes - slopes.mean() - x_hat * (slopes * x_hat).mean()  # r and d are constants
            torch.testing.assert_close(gradient[:, c], gamma * r / sd * through, rtol=1e-11, atol=1e-12)
            mu[c] += 0.2 * (mean - mu[c])
            sigma[c] += 0.2 * (sd - sigma[c])
        torch.testing.assert_close(norm.running_mean, torch.tensor(mu, dtype=torch.float64), **EXACT)
        torch.testing.assert_close(norm.running_sd, torch.tensor(sigma, dtype=torch.float64), **EXACT)
    x = _batch(9, dims)
    for c in range(C):
        expected = norm.weight[c] * (x[:, c] - mu[c]) / sigma[c] + norm.bias[c]
        torch.testing.assert_close(norm.eval()(x)[:, c], expected, **EXACT)


@pytest.mark.parametrize("dims", [0, 2])
def test_where_nothing_is_clipped_training_and_use_agree(dims: int) -> None:
    norm = _norm("batch_renorm", dims, RENORM | {"r_max": 1e6, "d_max": 1e6})
    for step in range(5):
        x = _batch(step, dims)
        in_use = norm.eval()(x)
        torch.testing.assert_close(norm.train()(x), in_use, **EXACT)  # the statistics of before this batch


@pytest.mark.parametrize("options", [{"r_max": 1.0, "d_max": 0.0}, {"ramp_steps": 10}])
def test_without_room_for_correction_it_is_batch_norm(options: dict[str, Any]) -> None:
    x = _batch(0, 2)
    expected = _with_affine(nn.BatchNorm2d(C).double())(x)
    torch.testing.assert_close(_norm("batch_renorm", 2, RENORM | options)(x), expected, **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, r"^norm\.r_max: must be at least 1, got 0\.5\."),
        ({"d_max": -1}, r"^norm\.d_max: must be at least 0, got -1\."),
        ({"momentum": None}, r"^norm\.momentum: must be a number, got null\."),
        ({"ramp_steps": -1}, r"^norm\.ramp_steps: must be at least 0, got -1\."),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _norm("batch_renorm", 0, RENORM | options)
