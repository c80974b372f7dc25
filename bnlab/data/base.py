"""What a data set is, and the order in which it is fed. Legend: N examples, B batch, K outputs.

A data set is tensors on the device; a batch is an index selection of them. There are no worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.core.seeds import stream
from bnlab.core.spec import DataSpec
from bnlab.data import _shifts
from bnlab.data._images import Augment, Images


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs x [N, C, H, W] or [N, D], and targets y: classes [N] (int64) or values [N, K]. Large sets of images hold
    x as bytes (`Images`)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """On the device; inputs, and targets unless they are classes, in `dtype`."""
        target_dtype = self.y.dtype if self.y.dtype == torch.int64 else dtype
        x = self.x.moved(device, dtype) if isinstance(self.x, Images) else self.x.to(device, dtype)
        return Split(x, self.y.to(device, target_dtype))


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
    x = split.x.only(chosen) if isinstance(split.x, Images) else split.x[chosen]
    return replace(dataset, train=Split(x, split.y[chosen]))


def prepared(dataset: Dataset, spec: DataSpec) -> Dataset:
    """The data set as this spec wants it: the test split shifted, a subset, binarized, with label noise, normalized,
    ready to be augmented.

    Raises:
        UsageError: the data set is too small, or has no images, or no classes, to do that to.
    """
    name = f"data={spec.name}"
    for key, wanted in (("binarize", spec.binarize), ("crop", spec.crop > 0), ("flip", spec.flip)):
        if wanted and len(dataset.input_shape) != 3:
            raise UsageError(f"data.{key}", f"needs images, and {name} has none", getattr(spec, key), "Leave it out.")
    if spec.crop and spec.crop >= min(side := dataset.input_shape[1:]):
        raise UsageError("data.crop", f"must be below the {min(side)} pixels of the images' side", spec.crop)
    if spec.label_noise and dataset.classes is None:
        raise UsageError("data.label_noise", f"needs classes, and {name} has none", spec.label_noise, "Leave it out.")
    _shifts.refuse(spec, dataset.input_shape, dataset.classes)
    if spec.shift_strength is not None:
        dataset = replace(dataset, test=shifted(dataset.test, spec.shift, spec.shift_strength, dataset.classes))
    dataset = first(dataset, spec.subset)
    if spec.binarize:
        dataset = binarized(dataset)
    if spec.label_noise:
        dataset = with_label_noise(dataset, spec.label_noise)
    if spec.augments and not isinstance(dataset.train.x, Images):
        dataset = replace(dataset, train=Split(Images.over(dataset.train.x), dataset.train.y))
    return normalized(dataset, spec.normalize)


def shifted(split: Split, shift: str, strength: float, classes: int | None) -> Split:
    """The split under that shift; the same for every run's seed. Stored images become floats."""
    if shift == "prior":
        assert classes is not None
        kept = _shifts.kept(split.y, classes, strength)
        x = split.x.only(kept) if isinstance(split.x, Images) else split.x[kept]
        return Split(x, split.y[kept])
    x = _shifts.SHIFTS[shift](split.x[:], strength)
    return Split(Images.over(x) if isinstance(split.x, Images) else x, split.y)


def binarized(dataset: Dataset) -> Dataset:
    """Inputs from 0 to 1 as 0 or 1: 1 from 0.5 on (the images of Ioffe & Szegedy 2015, section 4.1, are binary)."""

    def apply(split: Split) -> Split:
        x = split.x
        return Split(x.made(binarized=True) if isinstance(x, Images) else (x >= 0.5).to(x.dtype), split.y)

    return replace(dataset, train=apply(dataset.train), test=apply(dataset.test))


def with_label_noise(dataset: Dataset, fraction: float) -> Dataset:
    """That fraction of the training labels replaced by classes drawn uniformly, the right one among them (Zhang et al.
    2017). The same for every run's seed; the labels replaced at one fraction are replaced at every larger one."""
    assert dataset.classes is not None
    generator, y = stream(0, "data", "label_noise"), dataset.train.y.clone()
    chosen = torch.randperm(len(y), generator=generator)[: round(fraction * len(y))]
    drawn = torch.randint(dataset.classes, (len(y),), generator=generator)
    y[chosen] = drawn[chosen]
    return replace(dataset, train=Split(dataset.train.x, y))


def normalized(dataset: Dataset, how: Literal["channel", "feature", "none"]) -> Dataset:
    """Inputs shifted and scaled to mean 0 and standard deviation 1, by statistics of the *training* split alone: one
    pair per channel (for flat inputs: one pair in all), or one per input feature. A constant feature is only
    shifted."""
    if how == "none":
        return dataset
    x = dataset.train.x
    over = (0,) if how == "feature" else (0, 2, 3) if x.ndim == 4 else (0, 1)
    if isinstance(x, Images) and x.sums is not None:
        mean, sd = x.sums.moments(over, binarized=x.making.binarized)
    else:
        double = x.double()
        mean, sd = double.mean(dim=over, keepdim=True), double.std(dim=over, keepdim=True, correction=0)
    sd = torch.where(sd > 0, sd, torch.ones_like(sd))

    def apply(split: Split) -> Split:
        if isinstance(split.x, Images):
            return Split(split.x.made(mean=mean, sd=sd), split.y)
        return Split(((split.x.double() - mean) / sd).to(split.x.dtype), split.y)

    return replace(dataset, train=apply(dataset.train), test=apply(dataset.test))


def augmentation(spec: DataSpec) -> Augment | None:
    """What is done to the images of a training batch, if anything."""
    return Augment(crop=spec.crop, flip=spec.flip) if spec.augments else None


class Batches:
    """The training batches of a run, as a function of the step alone: `at(step)` needs no earlier call, so a resumed
    run sees what it would have seen.

    Each epoch is a fresh permutation from the `order` stream, cut into batches of equal size; what is left over is not
    used that epoch, since a smaller batch would have other batch statistics. Images are augmented from the `augment`
    stream of their step.
    """

    def __init__(
        self, split: Split, batch_size: int | Literal["full"], seed: int, augment: Augment | None = None
    ) -> None:
        if batch_size != "full" and batch_size > len(split):
            raise UsageError(
                "data.batch_size",
                f"larger than the {len(split)} training examples",
                batch_size,
                "Use a smaller one, or full.",
            )
        self.split, self.seed, self.augment = split, seed, augment
        self.size = len(split) if batch_size == "full" else batch_size
        self.per_epoch = len(split) // self.size
        self._epoch, self._order = -1, torch.empty(0)

    def at(self, step: int) -> Split:
        """The batch of that step: x [B, ...], y [B] or [B, K]."""
        if self.size == len(self.split):
            return self._whole(step)
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.split), generator=stream(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.split.x.device)
        chosen = self._order[index * self.size : (index + 1) * self.size]
        return Split(self._inputs(chosen, step), self.split.y.index_select(0, chosen))

    def _inputs(self, chosen: Tensor, step: int) -> Tensor:
        x = self.split.x
        if self.augment is None:
            return x.index_select(0, chosen)
        assert isinstance(x, Images)
        return x.augmented(chosen, self.augment, stream(self.seed, "augment", step))

    def _whole(self, step: int) -> Split:
        """All examples in their own order; of stored images the floats are made once."""
        x = self.split.x
        if self.augment is not None:
            return Split(self._inputs(torch.arange(len(x), device=x.device), step), self.split.y)
        if isinstance(x, Images):
            self.split = Split(x[:], self.split.y)
        return self.split


def probe_batch(split: Split, size: int, seed: int) -> Split:
    """A fixed batch from the training split for measuring, from the `probe` stream."""
    chosen = torch.randperm(len(split), generator=stream(seed, "probe"))[:size].to(split.x.device)
    return Split(split.x.index_select(0, chosen), split.y.index_select(0, chosen))
