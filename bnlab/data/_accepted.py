"""What a data set's constructor returns, checked and in the types that a run needs. Legend: N examples, C channels,
H x W pixels, D features, K outputs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.core.text import count
from bnlab.data.base import Dataset, Images, Split


def accepted(made: object, name: str) -> Dataset:
    """The data set of `data=<name>`. Its `notes` say what was changed:

    - inputs that are neither float32 nor float64 become float32, before they are normalized; bytes in [N, C, H, W]
      are stored images (`Images`), 0 to 255 for values from 0 to 1
    - labels of any integer type, [N] or [N, 1], become int64 [N]; targets of a regression become floats [N, K]

    Raises:
        UsageError: no `Dataset`; inputs and targets that do not belong together or are not finite; labels that are no
            integers from 0 to classes - 1. Names the split, and the example.
    """
    key = f"data={name}"
    if not isinstance(made, Dataset):
        raise UsageError(key, "must return a bnlab.data.base.Dataset", type(made).__name__)
    notes: dict[str, None] = {}
    train, test = (_split(getattr(made, part), made.classes, f"{key} {part}", notes) for part in ("train", "test"))
    if train.shape != test.shape or train.y.shape[1:] != test.y.shape[1:]:
        raise UsageError(f"{key} test", "its examples have another shape than those of train", list(test.shape))
    return replace(made, train=train, test=test, notes=tuple(f"{key}: {note}" for note in notes))


def _split(split: Split, classes: int | None, key: str, notes: dict[str, None]) -> Split:
    stored = split.raw if isinstance(split, Images) else None
    x, given = torch.as_tensor(split.x if stored is None else stored), torch.as_tensor(split.y)
    if x.ndim < 2 or len(x) == 0 or given.ndim == 0 or len(x) != len(given):
        shapes = f"{list(x.shape)} with {list(given.shape)}"
        raise UsageError(key, "needs inputs [N, C, H, W] or [N, D], and a target for each of N > 0", shapes)
    y = _values(given) if classes is None else _labels(given, classes, key)
    for what, values in (("an input", x), ("a target", y)):
        if values.is_floating_point() and not bool((finite := torch.isfinite(values)).all()):
            bad = (~finite).flatten(1).any(dim=1).nonzero().flatten()
            many = f"{len(bad)} of {count(len(x), 'example')}"
            problem = f"{what} of {many} is not finite, first that of example {int(bad[0])}"
            raise UsageError(key, problem, remedy="Leave such examples out, or give them numbers.")
    if given.dtype != y.dtype or given.shape != y.shape:
        notes[f"targets of {given.dtype}, {list(given.shape[1:])} each, become {y.dtype}".replace("torch.", "")] = None
    if stored is not None:
        return split.with_targets(y)
    if x.dtype == torch.uint8 and x.ndim == 4:
        notes["images of bytes, 0 to 255, become values from 0 to 1"] = None
        return Images(x, y)
    if x.dtype not in (torch.float32, torch.float64):
        notes[f"inputs of {x.dtype} become float32".replace("torch.", "")] = None
        x = x.float()
    return Split(x, y)


def _values(y: Tensor) -> Tensor:
    """Targets of a regression as floats [N, K]."""
    y = y if y.dtype in (torch.float32, torch.float64) else y.float()
    return y[:, None] if y.ndim == 1 else y


def _labels(y: Tensor, classes: int, key: str) -> Tensor:
    """Classes as int64 [N]."""
    if y.is_floating_point() or y.is_complex() or y.numel() != len(y):
        got, remedy = f"{y.dtype} {list(y.shape)}".replace("torch.", ""), "Use y.long(), or classes=None for values."
        raise UsageError(key, "its labels must be integers, one for each example", got, remedy)
    y = y.long().flatten()
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        remedy = "Count them from 0: y - 1." if (low, high) == (1, classes) else "Change the labels, or classes."
        raise UsageError(key, f"its labels are {low} to {high}, and must be 0 to {classes - 1}", remedy=remedy)
    return y
