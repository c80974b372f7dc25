"""Progress of diabetes: 442 patients, ten measurements of each, and how far the disease went in a year (Efron, Hastie,
Johnstone & Tibshirani 2004, section 1); shipped inside scikit-learn. A regression on a table whose training and test
examples may be of two kinds, as houses are of two cities.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt

from bnlab.core.registry import DATA
from bnlab.core.seeds import stream
from bnlab.data import _shipped
from bnlab.data.base import Dataset, Split

COLUMNS = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
Half = Literal["all", "low", "high"]


@DATA.register("diabetes")
def diabetes(
    *,
    test_fraction: Annotated[float, Gt(0), Lt(1)],
    by: Literal["age", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"],
    train: Half,
    test: Half,
    data_seed: Annotated[int, Ge(0)],
) -> Dataset:
    """x [N, 10] as it was measured, y [N, 1] with mean 0 and standard deviation 1 over all patients, so that losses of
    any two splits are in one unit. Half of the patients are `low`, by their value of `by`, and half `high`; the share
    `test_fraction` of either half is for the test, and `train` and `test` say whose examples are used."""
    table = torch.from_numpy(
        _shipped.table(
            "diabetes_data_raw.csv.gz",
            "diabetes_target.csv.gz",
            delimiter=None,
            loader="load_diabetes",
            scaled=False,
        )
    )
    x, y = table[:, :10], table[:, 10:].double()
    y = ((y - y.mean()) / y.std(correction=0)).float()
    order = torch.randperm(len(y), generator=stream(data_seed, "data", "diabetes"))
    ranked = order[x[order, COLUMNS.index(by)].argsort(stable=True)]  # patients alike in it, in the drawn order
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    halves = {"low": ranked[: len(ranked) // 2], "high": ranked[len(ranked) // 2 :]}
    parts: dict[str, list[torch.Tensor]] = {"train": [], "test": []}
    for name, half in halves.items():
        drawn = half[place[half].argsort()]
        count = round(test_fraction * len(half))
        if test in ("all", name):
            parts["test"].append(drawn[:count])
        if train in ("all", name):
            parts["train"].append(drawn[count:])
    chosen = {name: torch.cat(part).sort().values for name, part in parts.items()}
    splits = {name: Split(x[rows], y[rows]) for name, rows in chosen.items()}
    return Dataset(train=splits["train"], test=splits["test"], classes=None)
