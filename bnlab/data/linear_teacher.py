"""A linear teacher: y = A x with Gaussian x and A, for the deep linear net of Santurkar et al. 2018, section 3.2."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge

from bnlab.core.registry import DATA
from bnlab.core.seeds import stream
from bnlab.data.base import Dataset, Split


@DATA.register("linear_teacher")
def linear_teacher(
    *,
    dimension: Annotated[int, Ge(1)],
    size: Annotated[int, Ge(1)],
    test_size: Annotated[int, Ge(1)],
    data_seed: Annotated[int, Ge(0)],
) -> Dataset:
    """x [N, D] and A [D, D] of independent N(0, 1) entries; y [N, D] = A x, without noise."""
    generator = stream(data_seed, "data", "linear_teacher")
    teacher = torch.randn(dimension, dimension, generator=generator)  # A

    def draw(count: int) -> Split:
        x = torch.randn(count, dimension, generator=generator)
        return Split(x, x @ teacher.T)

    return Dataset(train=draw(size), test=draw(test_size), classes=None)
