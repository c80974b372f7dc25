"""Loss and accuracy over a split against a value by value count; chance against the best constant answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnlab import evaluate as module_under_test
from bnlab.data.base import Dataset, Split
from bnlab.evaluate import at_chance, evaluate


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    net(torch.randn(16, 4, dtype=torch.float64))
    return net


def _split(classes: bool = True, count: int = 23) -> Split:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (count,), generator=generator)
    return Split(x, y if classes else torch.randn(count, 3, generator=generator, dtype=torch.float64))


def _by_hand(net: nn.Sequential, split: Split, loss: str, reduction: str, mode: str) -> tuple[float, float | None]:
    """Example by example in running mode; in batch mode the statistics are those of the whole split."""
    hidden = (split.x @ net[0].weight.T + net[0].bias).detach().numpy()
    if mode == "batch":
        mean, var = hidden.mean(axis=0), hidden.var(axis=0)
    else:
        mean, var = net[1].running_mean.numpy(), net[1].running_var.numpy()
    losses, hits = [], 0
    for row, target in zip(hidden, split.y.tolist(), strict=True):
        normalized = (row - mean) / np.sqrt(var + 1e-5)
        out = np.maximum(normalized, 0) @ net[3].weight.detach().numpy().T + net[3].bias.detach().numpy()
        if loss == "cross_entropy":
            losses.append(math.log(sum(math.exp(value) for value in out)) - out[target])
        else:
            wanted = np.eye(3)[target] if isinstance(target, int) else np.array(target)
            losses.extend((out - wanted) ** 2)
        hits += isinstance(target, int) and int(np.argmax(out)) == target
    accuracy = hits / len(split) if split.y.dtype == torch.int64 else None
    return (sum(losses) if reduction == "sum" else sum(losses) / len(losses)), accuracy


@pytest.mark.parametrize("chunk", [1, 4, 23, 4096])
@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("loss", "classes"), [("cross_entropy", True), ("mse", True), ("mse", False)])
def test_loss_and_accuracy_are_those_of_all_examples(
    loss: str,
    classes: bool,
    reduction: str,
    mode: Any,
    chunk: int,
    bits_of: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module_under_test, "CHUNK", chunk)
    net, split = _net(), _split(classes)
    before = bits_of(net.state_dict())
    found = evaluate(net, split, loss, reduction, mode)
    expected, accuracy = _by_hand(net, split, loss, reduction, mode)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-12)
    assert ("accuracy" in found) == classes
    if classes:
        assert found["accuracy"].item() == pytest.approx(accuracy, rel=1e-6)
    assert bits_of(net.state_dict()) == before
    assert all(part.training for part in net.modules())
    assert not found["loss"].requires_grad


def _dataset(y: torch.Tensor, classes: int | None) -> Dataset:
    split = Split(torch.zeros(len(y), 2), y)
    return Dataset(train=split, test=split, classes=classes)


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.0, True), (0.5, True), (0.525, True), (0.5251, False), (0.9, False)]
)
def test_a_classifier_at_chance_knows_no_more_than_the_most_common_class(accuracy: float, expected: bool) -> None:
    dataset = _dataset(torch.tensor([0, 0, 1, 2]), 3)
    assert at_chance({"train_accuracy": accuracy}, dataset, "cross_entropy", "mean") is expected


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("share", "expected"), [(2.0, True), (1.0, True), (0.951, True), (0.949, False), (0.1, False)])
def test_a_regression_at_chance_knows_no_more_than_the_mean_target(
    share: float, reduction: str, expected: bool
) -> None:
    y = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 8.0]])
    squares = (4 + 0 + 4) + (16 + 0 + 16)  # around the means 3 and 4
    constant = squares if reduction == "sum" else squares / 6
    assert at_chance({"train_loss": share * constant}, _dataset(y, None), "mse", reduction) is expected
