"""The spread of a metric over an arm's seeds. Legend: N seeds."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from annotated_types import MinLen

from bnlab.analysis.metrics import METRICS
from bnlab.record.journal import Floats


@METRICS.register("seed_spread", of="arm", source="Brown & Forsythe 1974", unit="that of the metric", better="lower")
def seed_spread(values: Floats, *, of: Annotated[str, MinLen(1)], log: bool) -> Floats:
    """Distance of the run metric `of`, or of its log, from its median over the arm's seeds at the same learning rate,
    for each seed; it may be 0, so only differences are compared.

    [N] -> [N]; NaN where there is no log. The caller looks `of` up. Distances of one arm share their median, so that
    they are independent only nearly, as in Brown & Forsythe's test."""
    if log and not (values > 0).all():
        return np.full(len(values), math.nan)
    seen = np.log(values) if log else values
    return np.abs(seen - np.median(seen))
