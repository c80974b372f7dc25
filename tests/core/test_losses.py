"""Losses against their formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bnlab.core.state import correct, objective

OUTPUTS = np.random.default_rng(0).normal(size=(7, 4)) * 3
CLASSES = np.array([0, 3, 1, 1, 2, 0, 3])


def _cross_entropies() -> list[float]:
    found = []
    for row, label in zip(OUTPUTS, CLASSES, strict=True):
        partition = sum(math.exp(value) for value in row)
        found.append(-math.log(math.exp(row[label]) / partition))
    return found


def _squares(targets: np.ndarray) -> list[float]:
    return [(OUTPUTS[i, k] - targets[i, k]) ** 2 for i in range(7) for k in range(4)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_is_in_nats(reduction: str) -> None:
    expected = sum(_cross_entropies()) / (7 if reduction == "mean" else 1)
    found = objective("cross_entropy", reduction)(torch.from_numpy(OUTPUTS), torch.from_numpy(CLASSES))
    assert found.item() == pytest.approx(expected, rel=1e-13)
    uniform = objective("cross_entropy", reduction)(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))
    assert uniform.item() == pytest.approx(math.log(4) * (1 if reduction == "mean" else 5), rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_is_over_samples_and_outputs(reduction: str) -> None:
    targets = np.random.default_rng(1).normal(size=(7, 4))
    squares = _squares(targets)
    expected = sum(squares) / (len(squares) if reduction == "mean" else 1)
    found = objective("mse", reduction)(torch.from_numpy(OUTPUTS), torch.from_numpy(targets))
    assert found.item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_takes_classes_as_one_hot_rows(reduction: str) -> None:
    squares = _squares(np.eye(4)[CLASSES])
    expected = sum(squares) / (len(squares) if reduction == "mean" else 1)
    found = objective("mse", reduction)(torch.from_numpy(OUTPUTS), torch.from_numpy(CLASSES))
    assert found.item() == pytest.approx(expected, rel=1e-13)


def test_correct_counts_the_rows_whose_largest_entry_is_the_class() -> None:
    expected = sum(
        int(max(range(4), key=lambda k: row[k]) == label) for row, label in zip(OUTPUTS, CLASSES, strict=True)
    )
    found = correct(torch.from_numpy(OUTPUTS), torch.from_numpy(CLASSES))
    assert found.item() == expected
    assert found.shape == ()


@pytest.mark.parametrize("row", [[math.nan, math.nan, math.nan], [math.nan, 1.0, 2.0], [3.0, math.nan, 1.0]])
def test_a_row_with_nan_is_wrong_for_every_class(row: list[float]) -> None:
    """An argmax takes NaN for the largest: a net whose outputs are all NaN would have the share of class 0."""
    assert correct(torch.tensor([row] * 3), torch.arange(3)).item() == 0
    rows = torch.cat([torch.tensor([row]), torch.eye(3)])
    assert correct(rows, torch.tensor([0, 0, 1, 0])).item() == 2
