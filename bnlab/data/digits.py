"""Handwritten digits: 1,797 grey 8x8 images in 10 classes (Alpaydin & Kaynak 1998), shipped inside scikit-learn."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Lt

from bnlab.core.registry import DATA
from bnlab.core.seeds import stream
from bnlab.data import _shipped
from bnlab.data.base import Dataset, Split


@DATA.register("digits")
def digits(*, test_fraction: Annotated[float, Gt(0), Lt(1)]) -> Dataset:
    """x [N, 1, 8, 8] with grey values 0 to 1; the test split takes the same share of each class, and never changes."""
    # [1797, 65]: 64 grey values 0 to 16, then the class
    table = torch.from_numpy(_shipped.table("digits.csv.gz", delimiter=",", loader="load_digits"))
    x = (table[:, :64] / 16).reshape(-1, 1, 8, 8)
    y = table[:, 64].long()
    shuffled = torch.randperm(len(y), generator=stream(0, "data", "digits"))
    tests = []
    for label in range(10):
        of_class = shuffled[y[shuffled] == label]
        tests.append(of_class[: round(len(of_class) * test_fraction)])
    is_test = torch.zeros(len(y), dtype=torch.bool)
    is_test[torch.cat(tests)] = True
    return Dataset(train=Split(x[~is_test], y[~is_test]), test=Split(x[is_test], y[is_test]), classes=10)
