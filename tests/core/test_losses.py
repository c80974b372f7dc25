"""Losses against their formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bnlab.core.state import Loss, correct

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
    found = Loss("cross_entropy", reduction)(torch.from_numpy(OUTPUTS), torch.from_numpy(CLASSES))
    assert found.item() == pytest.approx(expected, rel=1e-13)
    uniform = Loss("cross_entropy", reduction)(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))
    assert uniform.item() == pytest.approx(math.log(4) * (1 if reduction == "mean" else 5), rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_is_over_samples_and_outputs(reduction: str) -> None:
    targets = np.random.default_rng(1).normal(size=(7, 4))
    squares = _squares(targets)
    expected = sum(squares) / (len(squares) if reduction == "mean" else 1)
    found = Loss("mse", reduction)(torch.from_numpy(OUTPUTS), torch.from_numpy(targets))
    assert found.item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_takes_classes_as_one_hot_rows(reduction: str) -> None:
    squares = _squares(np.eye(4)[CLASSES])
    expected = sum(squares) / (len(squares) if reduction == "mean" else 1)
    found = Loss("mse", reduction)(torch.from_numpy(OUTPUTS), torch.from_numpy(CLASSES))
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("name", "classes"), [("cross_entropy", True), ("mse", True), ("mse", False)])
def test_several_losses_and_their_gradients_have_the_bits_of_each(
    name: str, classes: bool, reduction: str, dtype: torch.dtype
) -> None:
    loss = Loss(name, reduction)
    for batch in (1, 7, 60, 64):
        torch.manual_seed(batch)
        outputs = torch.randn(5, batch, 10, dtype=dtype)
        targets = list(torch.randint(10, (5, batch)) if classes else torch.randn(5, batch, 10, dtype=dtype))
        alone = []
        for out, y in zip(outputs, targets, strict=True):
            leaf = out.clone().requires_grad_()
            found = loss(leaf, y)
            alone.append((found.detach(), *torch.autograd.grad(found, leaf)))
        losses, gradients = loss.of_each(outputs, targets)
        assert torch.equal(torch.stack(losses), torch.stack([found for found, _ in alone]))
        assert torch.equal(gradients, torch.stack([gradient for _, gradient in alone]))
