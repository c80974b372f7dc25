"""Loss and accuracy over a whole split. Legend: N examples, K outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnlab.data.base import Dataset, Split
from bnlab.losses import correct, objective
from bnlab.state import Mode, outputs_now

CHUNK = 4096
"""Examples at a time in running mode, where the result does not depend on it."""


@torch.no_grad()
def evaluate(module: nn.Module, split: Split, loss: str, reduction: str, mode: Mode = "running") -> dict[str, Tensor]:
    """`loss` with its reduction over all N examples and, for classes, `accuracy`: scalars on the device. In `batch`
    mode the whole split is one batch. The net stays as it is."""
    size = CHUNK if mode == "running" else len(split)
    total, hits = split.x.new_zeros(()), torch.zeros((), dtype=torch.int64, device=split.x.device)
    summed = objective(loss, "sum")
    classes = split.y.dtype == torch.int64
    outputs = 1
    for start in range(0, len(split), size):
        out = outputs_now(module, split.x[start : start + size], mode)
        y = split.y[start : start + size]
        total += summed(out, y)
        outputs = 1 if loss == "cross_entropy" else out.shape[1]
        if classes:
            hits += correct(out, y)
    found = {"loss": total if reduction == "sum" else total / (len(split) * outputs)}
    return found | ({"accuracy": hits / len(split)} if classes else {})


def at_chance(metrics: dict[str, float], dataset: Dataset, loss: str, reduction: str) -> bool:
    """Whether a net knows no more than the best constant answer: training accuracy within 5 % of the share of the most
    common class or below; in a regression, training loss within 5 % of that of the mean target, or above."""
    y = dataset.train.y
    if dataset.classes is not None:
        return metrics["train_accuracy"] <= 1.05 * torch.bincount(y).max().item() / len(y)
    constant = objective(loss, reduction)(y.mean(dim=0).expand_as(y), y).item()
    return not metrics["train_loss"] < 0.95 * constant  # so that NaN counts as no better
