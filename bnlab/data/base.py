"""What a data set is, and the order in which it is fed. Legend: N examples, B batch, K outputs.

A data set is tensors on the device; a batch is an index selection of them. There are no worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bnlab.errors import UsageError
from bnlab.seeds import stream


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs x [N, C, H, W] or [N, D], and targets y: classes [N] (int64) or values [N, K]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """On the device; inputs, and targets unless they are classes, in `dtype`."""
        target_dtype = self.y.dtype if self.y.dtype == torch.int64 else dtype
        return Split(self.x.to(device, dtype), self.y.to(device, target_dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A fixed training and test split: the same examples whatever the run's seed. `classes` is None for a
    regression."""

    train: Split
    test: Split
    classes: int | None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example: (C, H, W) or (D,)."""
        return tuple(self.train.x.shape[1:])

    @property
    def outputs(self) -> int:
        """K: how many outputs a net needs."""
        return self.classes or self.train.y.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> Dataset:
        """Both splits on the device."""
        return replace(self, train=self.train.to(device, dtype), test=self.test.to(device, dtype))


def first(dataset: Dataset, count: int | None) -> Dataset:
    """The first `count` training examples, in their order, as many of each class as of any other where the classes
    allow it: the first of every class, then the second of every class, and so on. None: all. The test split stays.

    Raises:
        UsageError: more than there are, or fewer than there are classes.
    """
    if count is None:
        return dataset
    split, total = dataset.train, len(dataset.train)
    if count > total:
        raise UsageError("data.subset", f"larger than the {total} training examples", count, "Use a smaller one.")
    if count < (dataset.classes or 0):
        raise UsageError("data.subset", f"fewer than the {dataset.classes} classes", count, "Use a larger one.")
    turn = torch.zeros(total, dtype=torch.int64)  # how many of its own class precede each example
    for label in range(dataset.classes or 0):
        of_class = split.y == label
        turn[of_class] = torch.arange(int(of_class.sum()))
    chosen = torch.argsort(turn, stable=True)[:count].sort().values
    return replace(dataset, train=Split(split.x[chosen], split.y[chosen]))


def normalized(dataset: Dataset, how: Literal["channel", "feature", "none"]) -> Dataset:
    """Inputs shifted and scaled to mean 0 and standard deviation 1, by statistics of the *training* split alone: one
    pair per channel (for flat inputs: one pair in all), or one per input feature. A constant feature is only
    shifted."""
    if how == "none":
        return dataset
    x = dataset.train.x.double()
    over = (0,) if how == "feature" else (0, 2, 3) if x.ndim == 4 else (0, 1)
    mean, sd = x.mean(dim=over, keepdim=True), x.std(dim=over, keepdim=True, correction=0)
    sd = torch.where(sd > 0, sd, torch.ones_like(sd))

    def apply(split: Split) -> Split:
        return Split(((split.x.double() - mean) / sd).to(split.x.dtype), split.y)

    return replace(dataset, train=apply(dataset.train), test=apply(dataset.test))


class Batches:
    """The training batches of a run, as a function of the step alone: `at(step)` needs no earlier call, so a resumed
    run sees what it would have seen.

    Each epoch is a fresh permutation from the `order` stream, cut into batches of equal size; what is left over is not
    used that epoch, since a smaller batch would have other batch statistics.
    """

    def __init__(self, split: Split, batch_size: int | Literal["full"], seed: int) -> None:
        if batch_size != "full" and batch_size > len(split):
            raise UsageError(
                "data.batch_size",
                f"larger than the {len(split)} training examples",
                batch_size,
                "Use a smaller one, or full.",
            )
        self.split, self.seed = split, seed
        self.size = len(split) if batch_size == "full" else batch_size
        self.per_epoch = len(split) // self.size
        self._epoch, self._order = -1, torch.empty(0)

    def at(self, step: int) -> Split:
        """The batch of that step: x [B, ...], y [B] or [B, K]."""
        if self.size == len(self.split):
            return self.split
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.split), generator=stream(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.split.x.device)
        chosen = self._order[index * self.size : (index + 1) * self.size]
        return Split(self.split.x.index_select(0, chosen), self.split.y.index_select(0, chosen))


def probe_batch(split: Split, size: int, seed: int) -> Split:
    """A fixed batch from the training split for measuring, from the `probe` stream."""
    chosen = torch.randperm(len(split), generator=stream(seed, "probe"))[:size].to(split.x.device)
    return Split(split.x.index_select(0, chosen), split.y.index_select(0, chosen))
