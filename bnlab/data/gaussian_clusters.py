"""Gaussian clusters: one isotropic cluster a class, around random centres."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Lt

from bnlab.core.registry import DATA
from bnlab.core.seeds import stream
from bnlab.data.base import Dataset, Split


@DATA.register("gaussian_clusters")
def gaussian_clusters(
    *,
    dimension: Annotated[int, Ge(1)],
    classes: Annotated[int, Ge(2)],
    separation: Annotated[float, Ge(0), Lt(math.inf)],
    size: Annotated[int, Ge(1)],
    test_size: Annotated[int, Ge(1)],
    data_seed: Annotated[int, Ge(0)],
) -> Dataset:
    """x [N, D] = centre of its class + N(0, I). The centres are N(0, separation^2 / 2 I / D) apart from each other, so
    that two of them lie `separation` standard deviations apart on average (root mean square); classes are equally
    likely."""
    generator = stream(data_seed, "data", "gaussian_clusters")
    centres = torch.randn(classes, dimension, generator=generator) * separation / (2 * dimension) ** 0.5

    def draw(count: int) -> Split:
        y = torch.randint(classes, (count,), generator=generator)
        return Split(centres[y] + torch.randn(count, dimension, generator=generator), y)

    return Dataset(train=draw(size), test=draw(test_size), classes=classes)
