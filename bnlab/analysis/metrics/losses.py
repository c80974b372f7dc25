"""Losses and accuracies of a run: at the end, at best, over its course. Legend: T measured steps.

A run that diverged scores worst, and is never dropped. Where there is no worst value, it has the bound that the rule of
divergence gives: its loss is at least 1000 times the first one (Bjorck et al. 2018).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from bnlab.analysis.metrics import METRICS, Value
from bnlab.record.journal import Floats, Series
from bnlab.record.runs import Run

WORST_LOSS = 1e3
"""Times the first loss: above it, training has diverged (run/train.py)."""
BROKEN = 1e12
"""The loss of a run whose first loss was not finite."""
LOSS = "nats or squared units"
"""The unit of a loss."""
SMOOTHED = 5
"""Measured points in the trailing median that is taken as the training loss at a step: one batch is noisy."""

Outcome = Literal["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
"""What a run is judged by."""


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
    """The loss of a run that diverged."""
    first = first_loss(run)
    return Value(WORST_LOSS * first if math.isfinite(first) else BROKEN, "at least")


def _final(outcome: str) -> None:
    split, what = outcome.split("_")

    @METRICS.register(
        f"final_{outcome}",
        of="run",
        meaning=f"{what} over the whole {split} split at the end, as eval_bn says",
        source="status.json (docs/decisions/007)",
        **_of(what),
    )
    def final(run: Run) -> Value:
        return _worst(run, what) if run.diverged else Value(run.final(outcome))


def _best(outcome: str) -> None:
    split, what = outcome.split("_")
    on = f"training batches, as the median of {SMOOTHED} measured ones" if split == "train" else "test split"

    @METRICS.register(
        f"best_{outcome}",
        of="run",
        meaning=f"{'lowest' if what == 'loss' else 'highest'} {what} at any measured step, on the {on}",
        source="Ioffe & Szegedy 2015, figure 3: maximum accuracy",
        **_of(what),
        reads=(outcome,),
    )
    def best(run: Run) -> Value:
        values = train_loss(run).values if outcome == "train_loss" else run.series(outcome).values
        if run.diverged:
            return _worst(run, what)
        if not np.isfinite(values).any():
            return Value(math.nan)
        return Value(float(np.nanmin(values) if what == "loss" else np.nanmax(values)))


def _of(what: str) -> dict[str, str]:
    """Unit and better side of a loss or an accuracy."""
    return {"unit": LOSS, "better": "lower"} if what == "loss" else {"unit": "share", "better": "higher"}


def _worst(run: Run, what: str) -> Value:
    return worst_loss(run) if what == "loss" else Value(0.0)


for _outcome in get_args(Outcome):
    _final(_outcome)
for _outcome in ("train_loss", "test_loss", "test_accuracy"):
    _best(_outcome)


@METRICS.register(
    "end_batch_loss",
    of="run",
    source="Santurkar et al. 2018, figure 3, for runs on the full batch",
    unit=LOSS,
    better="lower",
)
def end_batch_loss(run: Run) -> Value:
    """Mean loss of the training batches over the last tenth of the steps, in batch mode."""
    if run.diverged:
        return worst_loss(run)
    raw = run.series("train_loss")
    late = raw.values[raw.steps >= 0.9 * run.steps]
    return Value(float(late.mean()) if len(late) else math.nan)


@METRICS.register(
    "loss_area", of="run", source="area under the training curve on a log scale", unit=LOSS, better="lower"
)
def loss_area(run: Run) -> Value:
    """Exp of the mean over the steps of the log of the training batches' loss (trapezoids between measured steps): the
    geometric mean of the loss over training, low for a run that learns fast and far."""
    if run.diverged:
        return worst_loss(run)
    raw = run.series("train_loss")
    if len(raw) < 2 or not (raw.values > 0).all():
        return Value(math.nan)
    area = np.trapezoid(np.log(raw.values), raw.steps)
    return Value(math.exp(float(area) / float(raw.steps[-1] - raw.steps[0])))


@METRICS.register("loss_gap", of="run", source="generalization gap; Hoffer et al. 2017", unit=LOSS)
def loss_gap(run: Run) -> float:
    """Test loss less training loss at the end, both over whole splits."""
    return run.final("test_loss") - run.final("train_loss")


@METRICS.register("accuracy_gap", of="run", source="generalization gap; Hoffer et al. 2017", unit="share")
def accuracy_gap(run: Run) -> float:
    """Training accuracy less test accuracy at the end, both over whole splits."""
    return run.final("train_accuracy") - run.final("test_accuracy")
