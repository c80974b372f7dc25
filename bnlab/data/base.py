"""What a data set is, and the order in which it is fed. Legend: N examples, B batch, K outputs; images have
C channels and H x W pixels.

A data set is tensors on the device; a batch is an index selection of them. There are no worker processes. Large sets of
images stay bytes, in pages that all processes on a machine share: only what is picked from them becomes floats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.core.seeds import stream
from bnlab.core.spec import DataSpec
from bnlab.data import _shifts

CHUNK = 4096
"""Images at a time, where all are read."""


class Split:
    """Inputs x [N, C, H, W] or [N, D], and targets y: classes [N] (int64) or values [N, K]."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x, self.y = x, y

    @property
    def x(self) -> Tensor:
        """All inputs, as floats."""
        return self._x

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example: (C, H, W) or (D,)."""
        return tuple(self._x.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where inputs and targets are."""
        return self.y.device

    def __len__(self) -> int:
        return len(self.y)

    def pick(self, chosen: Tensor | slice) -> Split:
        """The chosen examples, inputs as floats."""
        return Split(_rows(self._x, chosen), _rows(self.y, chosen))

    def only(self, chosen: Tensor) -> Split:
        """The chosen examples as a split of the same kind."""
        return self.pick(chosen)

    def with_targets(self, y: Tensor) -> Split:
        """The same inputs with other targets."""
        return Split(self._x, y)

    def with_inputs(self, x: Tensor) -> Split:
        """A split of the same kind with other inputs, values from 0 to 1."""
        return Split(x, self.y)

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """On the device; inputs, and targets unless they are classes, in `dtype`."""
        return Split(self._x.to(device, dtype), _targets(self.y, device, dtype))

    def binarized(self) -> Split:
        """Inputs from 0 to 1 as 0 or 1: 1 from 0.5 on."""
        return Split((self._x >= 0.5).to(self._x.dtype), self.y)

    def moments(self, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the inputs over these dimensions, which are kept, in float64."""
        x = self.x.double()
        return x.mean(dim=over, keepdim=True), x.std(dim=over, keepdim=True, correction=0)

    def standardized(self, mean: Tensor, sd: Tensor) -> Split:
        """Inputs less `mean` and over `sd`, both float64."""
        return Split(((self._x.double() - mean) / sd).to(self._x.dtype), self.y)


def _rows(x: Tensor, chosen: Tensor | slice) -> Tensor:
    return x[chosen] if isinstance(chosen, slice) else x.index_select(0, chosen)


def _targets(y: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return y.to(device, y.dtype if y.dtype == torch.int64 else dtype)


@dataclass(eq=False)
class Images(Split):
    """Stored images `raw` [N, C, H, W], bytes or floats from 0 to 1. What is picked becomes floats in `dtype`: values
    from 0 to 1, 0 and 1 alone if `binary`, then less `mean` and over `sd`, each [1, C or 1, H or 1, W or 1] in float64.
    `sums` are those of the bytes (`sums_of`)."""

    raw: Tensor
    y: Tensor
    sums: NDArray[np.int64] | None = None
    dtype: torch.dtype = torch.float32
    binary: bool = False
    mean: Tensor | None = None
    sd: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """All images as floats, made at each call."""
        return torch.cat([self._floats(part) for part in torch.split(self.raw, CHUNK)])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.raw.shape[1:])

    def pick(self, chosen: Tensor | slice) -> Split:
        return Split(self._floats(_rows(self.raw, chosen)), _rows(self.y, chosen))

    def only(self, chosen: Tensor) -> Images:
        raw = self.raw[chosen]
        sums = None if self.sums is None else sums_of(raw.numpy())
        return replace(self, raw=raw, y=self.y[chosen], sums=sums)

    def with_targets(self, y: Tensor) -> Images:
        return replace(self, y=y)

    def with_inputs(self, x: Tensor) -> Images:
        return Images(x, self.y)

    def to(self, device: torch.device, dtype: torch.dtype) -> Images:
        return replace(self, raw=self.raw.to(device), y=_targets(self.y, device, dtype), dtype=dtype)

    def binarized(self) -> Images:
        return replace(self, binary=True)

    def moments(self, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if self.sums is None:
            return super().moments(over)
        # In Python's integers, which do not overflow, so that a constant has a standard deviation of exactly 0.
        first, second, bright = (sums.sum(axis=over, keepdims=True) for sums in self.sums[:, None].astype(object))
        count = len(self) * (self.sums[0].size // first.size)
        first, second, top = (bright, bright, 1) if self.binary else (first, second, 255)
        mean = (first / (count * top)).astype(np.float64)
        variance = ((count * second - first * first) / (count * top) ** 2).astype(np.float64)
        return torch.from_numpy(mean), torch.from_numpy(variance).sqrt()

    def standardized(self, mean: Tensor, sd: Tensor) -> Images:
        return replace(self, mean=mean, sd=sd)

    def augmented(self, chosen: Tensor, augment: Augment, generator: torch.Generator) -> Split:
        """The chosen examples, changed at random before floats are made of them: what a crop adds is black."""
        raw = augment(self.raw.index_select(0, chosen), generator)
        return Split(self._floats(raw), self.y.index_select(0, chosen))

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor] | None:
        """Scale and shift from stored to standardized values."""
        if self.mean is None or self.sd is None:
            return None
        scale = 1 / self.sd / (1 if self.binary or self.raw.dtype != torch.uint8 else 255)
        return scale.to(self.raw.device, self.dtype), (-self.mean / self.sd).to(self.raw.device, self.dtype)

    def _floats(self, raw: Tensor) -> Tensor:
        """raw [B, C, H, W] -> the same shape."""
        half, top = (128, 255) if raw.dtype == torch.uint8 else (0.5, 1)
        if self._affine is None:
            return (raw >= half).to(self.dtype) if self.binary else raw.to(self.dtype) / top
        scale, shift = self._affine
        # Three times as fast on the CPU as addcmul over floats made first.
        return ((raw >= half if self.binary else raw) * scale).add_(shift)


def sums_of(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Exact sums over images raw [N, C, H, W] -> [3, C, H, W]: of the values, of their squares, and of ones where a
    value is in the upper half."""
    table = np.zeros((3, *raw.shape[1:]), np.int64)
    for start in range(0, len(raw), CHUNK):  # 4,096 squares of bytes fit into 32 bits
        part = raw[start : start + CHUNK]
        table[0] += part.sum(axis=0, dtype=np.uint32)
        table[1] += np.einsum("nchw,nchw->chw", part, part, dtype=np.uint32, casting="unsafe")
        table[2] += (part > 127).sum(axis=0, dtype=np.uint32)
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Random changes of training images: a crop of the image's own size after padding with `crop` black pixels on every
    side, and, if `flip`, a mirror image of every second one, on average."""

    crop: int
    flip: bool

    def __call__(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """raw [B, C, H, W] -> the same shape. The draws are made on the CPU, so that they are the same on every
        device; the images are moved where they are."""
        B, C, H, W = raw.shape
        shift = torch.randint(2 * self.crop + 1, (B, 2), generator=generator).to(raw.device)
        flipped = torch.rand(B, generator=generator).to(raw.device) < 0.5 if self.flip else None
        rows = torch.arange(H, device=raw.device) + shift[:, :1]  # [B, H]
        columns = torch.arange(W, device=raw.device).expand(B, W)
        if flipped is not None:
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
        columns = columns + shift[:, 1:]  # [B, W]
        padded = F.pad(raw, [self.crop] * 4)
        places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # [B, H, W]
        return padded.flatten(2).gather(2, places.reshape(B, 1, -1).expand(B, C, -1)).view(B, C, H, W)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A fixed training and test split: the same examples whatever the run's seed. `classes` is None for a
    regression. `notes`: what was changed of what its constructor returned, in words."""

    train: Split
    test: Split
    classes: int | None
    notes: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example: (C, H, W) or (D,)."""
        return self.train.shape

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
    return replace(dataset, train=split.only(chosen))


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
    if spec.binarize:  # the images of Ioffe & Szegedy 2015, section 4.1, are binary
        dataset = replace(dataset, train=dataset.train.binarized(), test=dataset.test.binarized())
    if spec.label_noise:
        dataset = with_label_noise(dataset, spec.label_noise)
    if spec.augments and not isinstance(dataset.train, Images):
        dataset = replace(dataset, train=Images(dataset.train.x, dataset.train.y))
    return normalized(dataset, spec.normalize)


def shifted(split: Split, shift: str, strength: float, classes: int | None) -> Split:
    """The split under that shift; the same for every run's seed. Stored images become floats."""
    if shift == "prior":
        assert classes is not None
        return split.only(_shifts.kept(split.y, classes, strength))
    return split.with_inputs(_shifts.SHIFTS[shift](split.x, strength))


def with_label_noise(dataset: Dataset, fraction: float) -> Dataset:
    """That fraction of the training labels replaced by classes drawn uniformly, the right one among them (Zhang et al.
    2017). The same for every run's seed; the labels replaced at one fraction are replaced at every larger one."""
    assert dataset.classes is not None
    generator, y = stream(0, "data", "label_noise"), dataset.train.y.clone()
    chosen = torch.randperm(len(y), generator=generator)[: round(fraction * len(y))]
    drawn = torch.randint(dataset.classes, (len(y),), generator=generator)
    y[chosen] = drawn[chosen]
    return replace(dataset, train=dataset.train.with_targets(y))


def normalized(dataset: Dataset, how: Literal["channel", "feature", "none"]) -> Dataset:
    """Inputs shifted and scaled to mean 0 and standard deviation 1, by statistics of the *training* split alone: one
    pair per channel (for flat inputs: one pair in all), or one per input feature. A constant feature is only
    shifted."""
    if how == "none":
        return dataset
    images = len(dataset.input_shape) == 3
    over = (0,) if how == "feature" else (0, 2, 3) if images else (0, 1)
    mean, sd = dataset.train.moments(over)
    # Of a constant in float64 the mean has a rounding, and so the standard deviation: it is not to be divided by.
    sd = torch.where(sd > 64 * torch.finfo(sd.dtype).eps * mean.abs(), sd, torch.ones_like(sd))
    return replace(dataset, train=dataset.train.standardized(mean, sd), test=dataset.test.standardized(mean, sd))


def augmentation(spec: DataSpec) -> Augment | None:
    """What is done to the images of a training batch, if anything."""
    return Augment(crop=spec.crop, flip=spec.flip) if spec.augments else None


class Batches:
    """The training batches of a run, as a function of the step alone: `at(step)` needs no earlier call, so a resumed
    run sees what it would have seen.

    Each epoch is a fresh permutation from the `order` stream, cut into batches of equal size; what is left over is not
    used that epoch, since a smaller batch would have other batch statistics. With `shuffle` once, every epoch has the
    batches of the first, and what is left over is never used. Images are augmented from the `augment` stream of their
    step.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int | Literal["full"],
        seed: int,
        augment: Augment | None = None,
        shuffle: Literal["every_epoch", "once"] = "every_epoch",
    ) -> None:
        if batch_size != "full" and batch_size > len(split):
            raise UsageError(
                "data.batch_size",
                f"larger than the {len(split)} training examples",
                batch_size,
                "Use a smaller one, or full.",
            )
        self.split, self.seed, self.augment, self.once = split, seed, augment, shuffle == "once"
        self.size = len(split) if batch_size == "full" else batch_size
        self.per_epoch = len(split) // self.size
        self._epoch, self._order = -1, torch.empty(0)

    def at(self, step: int) -> Split:
        """The batch of that step: x [B, ...], y [B] or [B, K]."""
        if self.size == len(self.split):
            return self._whole(step)
        epoch, index = divmod(step, self.per_epoch)
        epoch = 0 if self.once else epoch
        if epoch != self._epoch:
            order = torch.randperm(len(self.split), generator=stream(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.split.device)
        return self._picked(self._order[index * self.size : (index + 1) * self.size], step)

    def _picked(self, chosen: Tensor, step: int) -> Split:
        if self.augment is None:
            return self.split.pick(chosen)
        assert isinstance(self.split, Images)
        return self.split.augmented(chosen, self.augment, stream(self.seed, "augment", step))

    def _whole(self, step: int) -> Split:
        """All examples in their own order; floats are made of stored images once."""
        if self.augment is not None:
            return self._picked(torch.arange(len(self.split), device=self.split.device), step)
        if isinstance(self.split, Images):
            self.split = Split(self.split.x, self.split.y)
        return self.split


def probe_batch(split: Split, size: int, seed: int) -> Split:
    """A fixed batch from the training split for measuring, from the `probe` stream."""
    return split.pick(torch.randperm(len(split), generator=stream(seed, "probe"))[:size].to(split.device))
