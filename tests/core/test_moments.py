"""Moments of values that come in parts, against those of all at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnlab.core.state import Moments


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    dims=st.sampled_from([0, 2]),
    offset=st.sampled_from([0.0, -3.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_parts_of_any_size_give_the_moments_of_the_whole(sizes: list[int], dims: int, offset: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [random.normal(offset, 2.0, (size, 3, *((2, 4) if dims else ()))) for size in sizes]
    found = Moments()
    for part in parts:
        found.add(torch.from_numpy(part))
    values = np.concatenate(parts).swapaxes(0, 1).reshape(3, -1)
    assert found.count == values.shape[1]
    scale = 1e-9 * max(1.0, abs(offset) * 1e-6)
    np.testing.assert_allclose(found.mean, values.mean(axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.biased, values.var(axis=1), rtol=scale, atol=scale)
    if found.count > 1:
        np.testing.assert_allclose(found.unbiased, values.var(axis=1, ddof=1), rtol=scale, atol=scale)


def test_single_precision_values_are_added_up_in_double() -> None:
    """A mean of 1e4 and a variance of 1: in float32 the square of the mean alone has no digit left for it."""
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0)) + 1e4
    found = Moments()
    for part in x.split(100):
        found.add(part)
    assert found.unbiased.item() == pytest.approx(x.double().var().item(), rel=1e-10)


def test_a_single_value_has_no_unbiased_variance() -> None:
    found = Moments()
    found.add(torch.tensor([[3.0, 4.0]]))
    assert found.biased.tolist() == [0.0, 0.0]
    assert all(math.isnan(value) for value in found.unbiased.tolist())
