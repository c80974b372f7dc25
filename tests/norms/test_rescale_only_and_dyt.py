"""rescale_only, dyt and derf against their formulas, value by value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab.core.registry import NORMS
from bnlab.norms.base import population_of

C, EPS = 4, 1e-3
SHAPES = {0: (5, C), 2: (3, C, 2, 2)}


def _norm(name: str, dims: int, **options: Any) -> nn.Module:
    norm: nn.Module = NORMS.build(name, options, C, dims).double()
    with torch.no_grad():
        norm.get_parameter("weight").copy_(torch.linspace(0.5, 2, C))
        norm.get_parameter("bias").copy_(torch.linspace(-1, 1, C))
    return norm


def _batch(dims: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(SHAPES[dims], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.7


def _by_channel(x: Tensor, norm: nn.Module, scaled: Any) -> np.ndarray:
    out = x.clone().numpy()
    for c in range(C):
        out[:, c] = norm.get_parameter("weight")[c].item() * scaled(x[:, c].numpy(), c)
        out[:, c] += norm.get_parameter("bias")[c].item()
    return out


@pytest.mark.parametrize("dims", [0, 2])
def test_rescale_only_divides_by_the_root_mean_square_of_the_batch_or_by_the_running_one(dims: int) -> None:
    norm = _norm("rescale_only", dims, eps=EPS, momentum=0.1, affine=True)
    x, running = _batch(dims), [1.0] * C
    squares = [float((x[:, c] ** 2).mean()) for c in range(C)]
    expected = _by_channel(x, norm, lambda values, c: values / math.sqrt(squares[c] + EPS))
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-12)
    running = [0.9 * old + 0.1 * new for old, new in zip(running, squares, strict=True)]
    np.testing.assert_allclose(norm.get_buffer("running_square").numpy(), running, rtol=1e-6)
    expected = _by_channel(x, norm, lambda values, c: values / math.sqrt(running[c] + EPS))
    np.testing.assert_allclose(norm.eval()(x).detach().numpy(), expected, rtol=1e-6)


def test_the_population_of_rescale_only_is_the_mean_square_of_all_values() -> None:
    norm = _norm("rescale_only", 0, eps=EPS, momentum=0.1, affine=True)
    population, parts = population_of(norm), [_batch(0, seed) for seed in range(3)]
    assert population is not None
    for part in parts:
        population.add(part)
    population.put()
    torch.testing.assert_close(norm.get_buffer("running_square"), torch.cat(parts).square().mean(dim=0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dims", [0, 2])
def test_dyt_is_tanh_of_alpha_x_in_training_and_in_use(dims: int, training: bool) -> None:
    norm, x = _norm("dyt", dims, alpha=0.5, affine=True).train(training), _batch(dims)
    expected = _by_channel(x, norm, lambda values, c: np.tanh(0.5 * values))
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-12)
    assert dict(norm.named_buffers()) == {}
    assert norm.get_parameter("alpha").shape == (1,)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dims", [0, 2])
def test_derf_is_erf_of_alpha_x_and_s_in_training_and_in_use(dims: int, training: bool) -> None:
    norm, x = _norm("derf", dims, alpha=0.5, affine=True).train(training), _batch(dims)
    assert norm.get_parameter("s").tolist() == [0.0]
    with torch.no_grad():
        norm.get_parameter("s").fill_(-0.3)
    expected = _by_channel(x, norm, lambda values, c: np.vectorize(math.erf)(0.5 * values - 0.3))
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-12)
