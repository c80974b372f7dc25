"""Metrics of single measurements of a net's sites: at the initialization, at the end, the largest of all."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from annotated_types import Ge

from bnlab.analysis.metrics import METRICS
from bnlab.analysis.metrics.medians import over_sites
from bnlab.record.journal import Series
from bnlab.record.runs import Run


def _at_first(name: str, meaning: str) -> None:
    """Register the measurement of that name at step 0."""

    def course(run: Run) -> Series:
        raw = run.series(name)
        return Series(raw.steps, over_sites(raw.values, "hidden"))

    @METRICS.register(
        name,
        of="run",
        meaning=f"{meaning}, at step 0; median over hidden sites",
        source="Bjorck et al. 2018, table 1, at initialization",
        unit="1",
        reads=(name,),
        course=course,
    )
    def at_first(run: Run) -> float:
        found = course(run)
        return float(found.values[0]) if len(found) and found.steps[0] == 0 else math.nan


_at_first("abs_over_sum", "how far the terms of an affine weight's gradient cancel")
_at_first("grad_kurtosis", "excess kurtosis of the entries of an affine weight's gradient")


@METRICS.register(
    "gradient_growth",
    of="run",
    source="Yang et al. 2019, theorem 8 (bnlab.core.theory.gradient_growth has the closed form)",
    unit="1",
    reads=("delta_norm",),
    shown_with={"skip_first": 0, "skip_last": 0},
)
def gradient_growth(run: Run, *, skip_first: Annotated[int, Ge(0)], skip_last: Annotated[int, Ge(0)]) -> float:
    """Geometric mean over the hidden layers, but for the first `skip_first` and the last `skip_last`, of the growth of
    the squared norm of the gradient at the pre-activations from a layer to the one below it, at step 0."""
    raw = run.series("delta_norm")
    if not len(raw) or raw.steps[0] != 0:
        return math.nan
    norms = raw.values[0, :-1]  # [hidden]
    kept = norms[skip_first : len(norms) - skip_last]
    if len(kept) < 2 or not (kept > 0).all():
        return math.nan
    return float((kept[0] / kept[-1]) ** (2 / (len(kept) - 1)))


@METRICS.register(
    "thm41_error",
    of="run",
    source="Santurkar et al. 2018, theorem 4.1",
    unit="1",
    better="lower",
    reads=("thm41_error",),
)
def thm41_error(run: Run) -> float:
    """Largest relative error of theorem 4.1 as an equality, over steps, sites and channels."""
    values = run.series("thm41_error").values
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else math.nan


@METRICS.register(
    "drift50",
    of="run",
    source="Ioffe & Szegedy 2015, figure 1b and 1c",
    unit="widths of the distribution",
    reads=("drift50.act_in",),
)
def drift50(run: Run) -> float:
    """Of the input of the last hidden nonlinearity, over the whole run but for its first measurement: median over units
    of max less min of the unit's median over the probe batch, over the distance of its 15th and 85th percentiles at
    the end."""
    values = run.series("drift50.act_in").values
    return float(values[-1, max(0, values.shape[1] - 2)]) if len(values) else math.nan
