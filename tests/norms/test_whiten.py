"""Decorrelated batch norm against whitening written out in numpy, and against batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab.core.registry import NORMS
from bnlab.core.spec import RunSpec
from bnlab.norms.base import population_of, statistics_in_use
from bnlab.norms.whiten import SquareRoot

C, EPS = 5, 1e-3
SHAPES = {0: (24, C), 1: (6, C, 4), 2: (6, C, 2, 2)}
GROUPS = [1, 2, 5, 16]


def _norm(dims: int, name: str = "whiten", **options: Any) -> nn.Module:
    norm: nn.Module = NORMS.build(name, {"eps": EPS, "momentum": 0.1, "affine": True, **options}, C, dims).double()
    with torch.no_grad():
        norm.get_parameter("weight").copy_(torch.linspace(0.5, 2, C))
        norm.get_parameter("bias").copy_(torch.linspace(-1, 1, C))
    return norm


def _batch(dims: int, seed: int = 0) -> Tensor:
    """With correlated channels."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(C, C, generator=generator, dtype=torch.float64)
    x = torch.randn(SHAPES[dims], generator=generator, dtype=torch.float64)
    return torch.tensordot(x, mix, dims=([1], [0])).movedim(-1, 1) + 0.7


def _columns(x: Tensor) -> np.ndarray:
    """[m, C]"""
    return x.detach().movedim(1, -1).reshape(-1, C).numpy()


def _whitened(x: Tensor, mean: np.ndarray, cov: np.ndarray, size: int) -> np.ndarray:
    """[m, C] by eigenvectors of each group's covariance; with the norm's gamma and beta."""
    rows = _columns(x) - mean
    out = np.empty_like(rows)
    for start in range(0, C, size):
        part = slice(start, start + size)
        values, vectors = np.linalg.eigh(cov[part, part] + EPS * np.eye(len(cov[part])))
        out[:, part] = rows[:, part] @ vectors @ np.diag(values**-0.5) @ vectors.T
    return out * np.linspace(0.5, 2, C) + np.linspace(-1, 1, C)


@pytest.mark.parametrize("size", GROUPS)
@pytest.mark.parametrize("dims", list(SHAPES))
def test_it_whitens_by_the_covariance_of_the_batch_and_in_use_by_the_running_one(dims: int, size: int) -> None:
    norm, x = _norm(dims, group_size=size), _batch(dims)
    mean, cov = np.zeros(C), np.eye(C)
    for seed in range(3):
        x = _batch(dims, seed)
        rows = _columns(x)
        now = rows.mean(axis=0), np.cov(rows.T, bias=True)
        np.testing.assert_allclose(_columns(norm(x)), _whitened(x, *now, size), rtol=1e-9, atol=1e-11)
        mean, cov = 0.9 * mean + 0.1 * now[0], 0.9 * cov + 0.1 * np.cov(rows.T)
    np.testing.assert_allclose(norm.get_buffer("running_mean").numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(norm.get_buffer("running_cov").numpy(), cov, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(_columns(norm.eval()(x)), _whitened(x, mean, cov, size), rtol=1e-5, atol=1e-6)
    used = statistics_in_use(norm)
    assert used is not None
    assert used[1] is not None
    np.testing.assert_allclose(used[1].numpy(), np.diag(cov), rtol=1e-6)


def test_what_it_gives_has_no_correlations() -> None:
    norm = NORMS.build("whiten", {"eps": 1e-12, "momentum": 0.1, "affine": False, "group_size": C}, C, 0).double()
    found = np.cov(_columns(norm(_batch(0))).T, bias=True)
    np.testing.assert_allclose(found, np.eye(C), atol=1e-9)


@pytest.mark.parametrize("dims", list(SHAPES))
def test_in_groups_of_one_channel_it_is_batch_norm(dims: int) -> None:
    """Values, gradients, running statistics, and in use."""
    norms = [_norm(dims, group_size=1), _norm(dims, "batch_reference")]
    x = _batch(dims)
    for training in (True, False):
        given = [x.clone().requires_grad_() for _ in norms]
        outs = [norm.train(training)(one) for norm, one in zip(norms, given, strict=True)]
        torch.testing.assert_close(outs[0], outs[1])
        grads = [torch.autograd.grad(out.pow(3).sum(), one)[0] for out, one in zip(outs, given, strict=True)]
        torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(norms[0].get_buffer("running_cov").diagonal(), norms[1].get_buffer("running_var"))


@pytest.mark.parametrize("rows", [3, 24])
def test_gradients_of_first_and_second_order_are_derivatives(rows: int) -> None:
    """With fewer values than channels too, where eigenvalues of the covariance are equal: eps."""
    norm, x = _norm(0, group_size=C), _batch(0)[:rows].requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,), atol=1e-3)


def test_the_square_root_of_equal_eigenvalues_has_a_derivative() -> None:
    """d sqrt(4 I) = dA / 4."""
    a = (4 * torch.eye(3, dtype=torch.float64)).requires_grad_()
    root = SquareRoot.apply(a, 1e-6)
    torch.testing.assert_close(root, 2 * torch.eye(3, dtype=torch.float64))
    weights = torch.arange(9.0, dtype=torch.float64).view(3, 3)
    torch.testing.assert_close(torch.autograd.grad((root * weights).sum(), a)[0], weights / 4)


def test_its_population_has_the_covariance_of_all_values() -> None:
    norm, parts = _norm(2, group_size=2), [_batch(2, seed)[: 4 + seed] for seed in range(3)]
    population = population_of(norm)
    assert population is not None
    for part in parts:
        population.add(part)
    population.put()
    rows = np.concatenate([_columns(part) for part in parts])
    np.testing.assert_allclose(norm.get_buffer("running_mean").numpy(), rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(norm.get_buffer("running_cov").numpy(), np.cov(rows.T), rtol=1e-10)


def test_what_is_not_finite_gives_nan_and_no_error() -> None:
    x = _batch(0)
    x[0, 0] = torch.inf
    assert bool(_norm(0, group_size=C)(x.requires_grad_()).isnan().all())


def test_a_run_that_diverges_with_it_is_one_that_diverged(
    spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    assert run(spec_of("norm=whiten", "optim.lr=1e30", "loss=mse")).status["status"] == "diverged"
