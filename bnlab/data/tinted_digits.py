"""Handwritten digits in ink of one colour: those of `digits`, times red, green and blue."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from bnlab.core.registry import DATA
from bnlab.data.base import Dataset

Tint = Annotated[list[Annotated[float, Ge(0), Le(1)]], MinLen(3), MaxLen(3)]


@DATA.register("tinted_digits")
def tinted_digits(*, test_fraction: Annotated[float, Gt(0), Lt(1)], tint: Tint) -> Dataset:
    """x [N, 3, 8, 8] = grey value times `tint` (red, green, blue), on black; the splits are those of `digits`. Both are
    of one colour: `data.shift=hue` gives the test split another one."""
    grey: Dataset = DATA.build("digits", {"test_fraction": test_fraction})
    colour = torch.tensor(tint).view(1, 3, 1, 1)
    train, test = (split.with_inputs(split.x * colour) for split in (grey.train, grey.test))
    return Dataset(train=train, test=test, classes=grey.classes)
