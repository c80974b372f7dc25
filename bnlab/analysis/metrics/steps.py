"""How far a run comes: steps to a target, step of divergence, whether it trains.

A run that never reaches a target has its number of steps, as a bound: the time to the target, restricted to the budget
(Royston & Parmar 2013).
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from annotated_types import Ge

from bnlab.analysis.metrics import METRICS, Value
from bnlab.analysis.metrics.losses import Outcome, trailing_median
from bnlab.record.runs import Run


@METRICS.register(
    "steps_to",
    of="run",
    source="Ioffe & Szegedy 2015, figure 3: steps to 72.2 %; restricted to the budget as in Royston & Parmar 2013",
    unit="steps",
    better="lower",
    reads=("train_loss", "train_accuracy", "test_loss", "test_accuracy"),
)
def steps_to(run: Run, *, of: Outcome, target: float, smooth: Annotated[int, Ge(1)]) -> Value:
    """First measured step at which `of` is at `target` or better, as the median of the last `smooth` measured values; a
    run that never gets there has its number of steps, as a lower bound.

    A net that is there at its initialization has 1, since ratios are taken."""
    raw = run.series(of)
    if not len(raw):
        return Value(math.nan)
    values = raw.values if of.endswith("loss") else -raw.values
    there = np.flatnonzero(trailing_median(values, smooth) <= (target if of.endswith("loss") else -target))
    if len(there) == 0:
        return Value(float(run.steps), "at least")
    return Value(float(max(1, raw.steps[there[0]])))


@METRICS.register(
    "divergence_step",
    of="run",
    source="Bjorck et al. 2018, section 3.1: divergence is a relative loss above 1000",
    unit="steps",
    better="higher",
    about_failure=True,
)
def divergence_step(run: Run) -> Value:
    """Step at which the loss was not finite or over 1000 times the first; a run that did not diverge has its number of
    steps, as a lower bound."""
    if run.diverged:
        return Value(float(max(1, run.status["step"])))
    return Value(float(run.steps), "at least")


@METRICS.register(
    "trains",
    of="run",
    source="Bjorck et al. 2018 for divergence; bnlab.net.evaluate.at_chance for chance",
    unit="0 or 1",
    better="higher",
    about_failure=True,
)
def trains(run: Run) -> float:
    """1 for a run that came to its end and is better than chance there, else 0."""
    return float(run.trains)
