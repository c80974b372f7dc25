"""Metrics of one run that are about its loss and accuracy. Legend: T measured steps.

A run that diverged scores worst, and is never dropped. Where there is no worst value, it has the bound that the rule of
divergence gives: its loss is at least 1000 times the first one (Bjorck et al. 2018). A run that never reaches a
target has its number of steps, as a bound: the time to the target, restricted to the budget (Royston & Parmar 2013).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from scipy.integrate import trapezoid

from bnlab.analysis.base import METRICS, Metric, Value
from bnlab.record.journal import Floats, Series
from bnlab.record.runs import Run

WORST_LOSS = 1e3
"""Times the first loss: what train.py declares a divergence."""
BROKEN = 1e12
"""Stands for the loss of a run whose very first one was not finite."""
SMOOTHED = 5
"""Measured points in the trailing median that stands for the training loss at a step: one batch says little."""

Curve = Literal["train_loss", "train_accuracy", "test_loss", "test_accuracy"]


def trailing_median(values: Floats, points: int) -> Floats:
    """The median of each value and the up to `points` - 1 before it; NaN counts as the largest. [T] -> [T]

    >>> trailing_median(np.array([5.0, 1.0, 9.0, 2.0]), 3).tolist()
    [5.0, 3.0, 5.0, 2.0]
    """
    known = np.where(np.isnan(values), np.inf, values)
    head = [float(np.median(known[: end + 1])) for end in range(min(points - 1, len(known)))]
    if len(known) < points:
        return np.array(head)
    windows = np.lib.stride_tricks.sliding_window_view(known, points)
    return np.concatenate([head, np.median(windows, axis=-1)])


def train_loss(run: Run, points: int = SMOOTHED) -> Series:
    """The training batches' loss as a trailing median."""
    raw = run.series("train_loss")
    return Series(raw.steps, trailing_median(raw.values, points))


def first_loss(run: Run) -> float:
    """The loss of the first training batch, at the initial weights; NaN if the journal is empty."""
    raw = run.series("train_loss")
    return float(raw.values[0]) if len(raw) else math.nan


def worst_loss(run: Run) -> Value:
    first = first_loss(run)
    return Value(WORST_LOSS * first if math.isfinite(first) else BROKEN, "at least")


def _final(name: str) -> None:
    loss = name.endswith("loss")

    def figure(run: Run) -> Value:
        if run.diverged:
            return worst_loss(run) if loss else Value(0.0)
        return Value(run.final(name))

    split, what = name.split("_")
    METRICS.add(
        Metric(
            name=f"final_{name}",
            of="run",
            figure=figure,
            meaning=f"{what} over the whole {split} split at the end, as eval_bn says",
            source="status.json (docs/decisions/007)",
            unit="nats or squared units" if loss else "share",
            better="lower" if loss else "higher",
            reads=("train_loss",),
        )
    )


def _best(name: str) -> None:
    loss = name.endswith("loss")

    def figure(run: Run) -> Value:
        values = train_loss(run).values if name == "train_loss" else run.series(name).values
        if run.diverged:
            return worst_loss(run) if loss else Value(0.0)
        if not np.isfinite(values).any():
            return Value(math.nan)
        return Value(float(np.nanmin(values) if loss else np.nanmax(values)))

    split, what = name.split("_")
    on = f"training batches, as the median of {SMOOTHED} measured ones" if split == "train" else "test split"
    METRICS.add(
        Metric(
            name=f"best_{name}",
            of="run",
            figure=figure,
            meaning=f"{'lowest' if loss else 'highest'} {what} at any measured step, on the {on}",
            source="Ioffe & Szegedy 2015, figure 3: maximum accuracy",
            unit="nats or squared units" if loss else "share",
            better="lower" if loss else "higher",
            reads=("train_loss", name),
        )
    )


for _name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
    _final(_name)
for _name in ("train_loss", "test_loss", "test_accuracy"):
    _best(_name)


@METRICS.register(
    "end_batch_loss",
    of="run",
    meaning="mean loss of the training batches over the last tenth of the steps, in batch mode",
    source="Santurkar et al. 2018, figure 3, for runs on the full batch",
    unit="nats or squared units",
    better="lower",
    reads=("train_loss",),
)
def end_batch_loss(run: Run) -> Value:
    if run.diverged:
        return worst_loss(run)
    raw = run.series("train_loss")
    late = raw.values[raw.steps >= 0.9 * run.steps]
    return Value(float(late.mean()) if len(late) else math.nan)


@METRICS.register(
    "steps_to",
    of="run",
    meaning="first measured step at which `of` is at `target` or better, as the median of the last `smooth` measured "
    "values; a run that never gets there has its number of steps, as a lower bound",
    source="Ioffe & Szegedy 2015, figure 3: steps to 72.2 %; restricted to the budget as in Royston & Parmar 2013",
    unit="steps",
    better="lower",
    reads=("train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    shown_with=None,
)
def steps_to(run: Run, *, of: Curve, target: float, smooth: Annotated[int, Ge(1)]) -> Value:
    """A net that is there at its initialization has 1: the figure stands in ratios."""
    raw = run.series(of)
    if not len(raw):
        return Value(math.nan)
    values = raw.values if of.endswith("loss") else -raw.values
    there = np.flatnonzero(trailing_median(values, smooth) <= (target if of.endswith("loss") else -target))
    if len(there) == 0:
        return Value(float(run.steps), "at least")
    return Value(float(max(1, raw.steps[there[0]])))


@METRICS.register(
    "loss_area",
    of="run",
    meaning="exp of the mean over the steps of the log of the training batches' loss (trapezoids between measured "
    "steps): the geometric mean of the loss over training, low for a run that learns fast and far",
    source="area under the training curve on a log scale",
    unit="nats or squared units",
    better="lower",
    reads=("train_loss",),
)
def loss_area(run: Run) -> Value:
    if run.diverged:
        return worst_loss(run)
    raw = run.series("train_loss")
    if len(raw) < 2 or not (raw.values > 0).all():
        return Value(math.nan)
    area = trapezoid(np.log(raw.values), raw.steps)
    return Value(math.exp(float(area) / float(raw.steps[-1] - raw.steps[0])))


@METRICS.register(
    "loss_gap",
    of="run",
    meaning="test loss less training loss at the end, both over whole splits",
    source="generalization gap; Hoffer et al. 2017",
    unit="nats or squared units",
    better=None,
    reads=(),
)
def loss_gap(run: Run) -> Value:
    return Value(run.final("test_loss") - run.final("train_loss"))


@METRICS.register(
    "accuracy_gap",
    of="run",
    meaning="training accuracy less test accuracy at the end, both over whole splits",
    source="generalization gap; Hoffer et al. 2017",
    unit="share",
    better=None,
    reads=(),
)
def accuracy_gap(run: Run) -> Value:
    return Value(run.final("train_accuracy") - run.final("test_accuracy"))


@METRICS.register(
    "divergence_step",
    of="run",
    meaning="step at which the loss was not finite or over 1000 times the first; a run that did not diverge has its "
    "number of steps, as a lower bound",
    source="Bjorck et al. 2018, section 3.1: divergence is a relative loss above 1000",
    unit="steps",
    better="higher",
    reads=(),
)
def divergence_step(run: Run) -> Value:
    if run.diverged:
        return Value(float(max(1, run.status["step"])))
    return Value(float(run.steps), "at least")


@METRICS.register(
    "trains",
    of="run",
    meaning="1 for a run that came to its end and is better than chance there, else 0",
    source="Bjorck et al. 2018 for divergence; bnlab.net.evaluate.at_chance for chance",
    unit="0 or 1",
    better="higher",
    reads=(),
)
def trains(run: Run) -> Value:
    return Value(float(run.trains))
