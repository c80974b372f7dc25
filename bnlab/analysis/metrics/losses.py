"""Losses and accuracies of a run: final, best, and averaged over its steps; steps to a target or to divergence.
Legend: T measured steps.

A run that diverged scores worst, and is never dropped. Where there is no worst value, it has the bound that the rule of
divergence gives: its loss is at least 1000 times the first one (Bjorck et al. 2018). A run that never reaches a target
has its number of steps, as a bound: the time to the target, restricted to the budget (Royston & Parmar 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Annotated, Any, Literal, get_args

import numpy as np
from annotated_types import Ge

from bnlab.analysis.metrics import METRICS, Value, over_finite
from bnlab.analysis.metrics.cost import step_s
from bnlab.record.journal import Floats, Series
from bnlab.record.runs import DIVERGED_ABOVE, Run

BROKEN = 1e12
"""The loss of a run whose first loss was not finite."""
LOSS = "nats or squared units"
"""The unit of a loss."""
SMOOTHED = 5
"""Measured points in the trailing median that is taken as the training loss at a step: one batch is noisy."""

LEVELS = 10
"""Training losses at which two courses are compared."""

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


def train_loss(run: Run) -> Series:
    """The training batches' loss as a trailing median."""
    raw = run.series("train_loss")
    return Series(raw.steps, trailing_median(raw.values, SMOOTHED))


def at_equal_losses(losses: Sequence[Series], courses: Sequence[Series]) -> list[tuple[float, float]]:
    """The values of two courses at `LEVELS` training losses that both runs pass.

    The loss at a step is the running minimum of the trailing median of the batches' losses. Only steps count at which
    the course was measured. The levels are spread geometrically from the smaller of the two first losses to the larger
    of the two lowest; a run's value at a level is that of the first step at which its loss is at or below it.
    """
    minima, kept = [], []
    for loss, course in zip(losses, courses, strict=True):
        finite = np.isfinite(course.values)
        steps, values = course.steps[finite], course.values[finite]
        if not len(steps):
            return []
        lowest = np.minimum.accumulate(loss.values)
        minima.append(lowest[np.searchsorted(loss.steps, steps, side="right") - 1])
        kept.append(values)
    low, high = max(m[-1] for m in minima), min(m[0] for m in minima)
    if not 0 < low < high:
        return []
    found = []
    for level in np.geomspace(high, low, LEVELS):
        # The ends of a geometric sequence are exact up to rounding.
        first = [int(np.argmax(m <= level * (1 + 1e-12))) for m in minima]
        found.append((float(kept[0][first[0]]), float(kept[1][first[1]])))
    return found


def first_loss(run: Run) -> float:
    """The loss of the first training batch, at the initial weights; NaN if the journal is empty."""
    raw = run.series("train_loss")
    return float(raw.values[0]) if len(raw) else math.nan


OLD_CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10}
"""Of data sets, for runs of bnlab 0.1, whose provenance has no number of classes."""


def chance_loss(run: Run) -> float | None:
    """The loss of equal probabilities for every class."""
    spec = run.spec
    classes = run.provenance.get("classes", spec.get("data.classes", OLD_CLASSES.get(str(spec.get("data")))))
    if (spec.get("loss"), spec.get("reduction")) != ("cross_entropy", "mean") or not isinstance(classes, int):
        return None
    return math.log(classes) if classes > 1 else None


Scored = Callable[[Run], float | Value]


def _scored(name: str, what: str, **facts: Any) -> Callable[[Scored], Scored]:
    """Decorator: register a loss or an accuracy. A run that diverged, or whose value is infinite, gets the worst
    value."""
    unit, better = (LOSS, "lower") if what == "loss" else ("share", "higher")

    def keep(value: Scored) -> Scored:
        @METRICS.register(name, of="run", unit=unit, better=better, **facts)
        @wraps(value)
        def metric(run: Run) -> Value:
            given = value(run)
            found = given if isinstance(given, Value) else Value(given)
            if not run.diverged and not math.isinf(found.value):
                return found
            first = first_loss(run)
            worst = Value(DIVERGED_ABOVE * first if math.isfinite(first) else BROKEN, "at least")
            return worst if what == "loss" else Value(0.0)

        return value

    return keep


def _final(outcome: str) -> None:
    split, what = outcome.split("_")
    meaning = f"{what} over the whole {split} split at the end, as eval_bn says"

    @_scored(f"final_{outcome}", what, meaning=meaning, source="status.json (docs/decisions/007)")
    def final(run: Run) -> float:
        metrics = run.status.get("metrics") or {}
        return math.inf if metrics.get(outcome, 0.0) is None else run.final(outcome)


def _answer(what: str) -> None:
    meaning = f"{what} over the whole test split, under a condition of the study's `ask`"
    facts: dict[str, Any] = {"source": "answers.jsonl (docs/studies.md)", "shown_with": None, "of_answers": True}
    facts["title"] = f"test {what}"

    @_scored(f"answer_{what}", what, meaning=meaning, **facts)
    def answer(run: Run) -> float:
        value = (run.answer or {}).get(f"test_{what}")
        if value is None:
            return math.nan
        return math.inf if math.isnan(value) else float(value)  # it was measured, and nothing is worse


def _best(outcome: str, where: str) -> None:
    what = outcome.partition("_")[2]
    word, extreme = ("lowest", np.min) if what == "loss" else ("highest", np.max)
    meaning, source = f"{word} {what} at any measured step, on the {where}", "Ioffe & Szegedy 2015, figure 3"

    @_scored(f"best_{outcome}", what, meaning=meaning, source=f"{source}: maximum accuracy", reads=(outcome,))
    def best(run: Run) -> float:
        course = train_loss(run) if outcome == "train_loss" else run.series(outcome)
        return over_finite(extreme, course.values)


for _outcome in get_args(Outcome):
    _final(_outcome)
_answer("loss")
_answer("accuracy")
_best("train_loss", f"training batches, as the median of {SMOOTHED} measured ones")
_best("test_loss", "test split")
_best("test_accuracy", "test split")


@_scored("end_batch_loss", "loss", source="Santurkar et al. 2018, figure 3, for runs on the full batch")
def end_batch_loss(run: Run) -> float:
    """Mean loss of the training batches over the last tenth of the steps, in batch mode."""
    raw = run.series("train_loss")
    late = raw.values[raw.steps >= 0.9 * run.steps]
    return float(late.mean()) if len(late) else math.nan


@METRICS.register("lost_in_use", of="run", source="Wang et al. 2022", unit="share", reads=("train_accuracy",))
def lost_in_use(run: Run) -> float:
    """Mean accuracy of the training batches over the last tenth of the steps, each with its own statistics, less that
    over the whole training split at the end, with those of eval_bn."""
    raw = run.series("train_accuracy")
    late = raw.values[raw.steps >= 0.9 * run.steps]
    return float(late.mean()) - run.final("train_accuracy") if len(late) else math.nan


@_scored("loss_area", "loss", source="area under the training curve on a log scale")
def loss_area(run: Run) -> Value:
    """Exp of the mean over the steps of the log of the training batches' loss (trapezoids between measured steps): the
    geometric mean of the loss over training, low for a run that learns fast and far. A loss of 0 counts as the lowest
    loss above 0, so that the value is an upper bound."""
    raw = run.series("train_loss")
    positive = raw.values[raw.values > 0]
    if len(raw) < 2 or not len(positive) or np.isnan(raw.values).any():
        return Value(math.nan)
    area = np.trapezoid(np.log(np.maximum(raw.values, positive.min())), raw.steps)
    mean = math.exp(float(area) / float(raw.steps[-1] - raw.steps[0]))
    return Value(mean, "at most" if len(positive) < len(raw) else None)


@METRICS.register("loss_gap", of="run", source="generalization gap; Hoffer et al. 2017", unit=LOSS)
def loss_gap(run: Run) -> float:
    """Test loss less training loss at the end, both over whole splits."""
    return run.final("test_loss") - run.final("train_loss")


@METRICS.register("accuracy_gap", of="run", source="generalization gap; Hoffer et al. 2017", unit="share")
def accuracy_gap(run: Run) -> float:
    """Training accuracy less test accuracy at the end, both over whole splits."""
    return run.final("train_accuracy") - run.final("test_accuracy")


Target = float | Literal["control"]
"""In a claim `control`: what the control reaches, `reached_by`."""


def reached_by(rates: Iterable[Sequence[Run]], of: Outcome, smooth: int) -> float:
    """The value of `of` that an arm reaches: the best one over its learning rates. A rate reaches the median over its
    runs; a run its best measured value, where a value is the median of the last `smooth` measurements. A run that
    diverged, and an arm whose rates all fail, reach none: infinite."""
    sign = 1 if of.endswith("loss") else -1

    def best(run: Run) -> float:
        smoothed = trailing_median(sign * run.series(of).values, smooth)
        return math.inf if run.diverged else float(smoothed.min(initial=math.inf))

    return sign * min(float(np.median([best(run) for run in runs])) for runs in rates)


@METRICS.register(
    "steps_to",
    of="run",
    source="Ioffe & Szegedy 2015, figure 3: steps to 72.2 %, the most that Inception reaches (`target: control`); "
    "restricted to the budget as in Royston & Parmar 2013",
    unit="steps",
    better="lower",
    reads=get_args(Outcome),
    of_control=True,
)
def steps_to(run: Run, *, of: Outcome, target: Target, smooth: Annotated[int, Ge(1)]) -> Value:
    """First measured step at which `of` is at `target` or better, as the median of the last `smooth` measured values; a
    run that never gets there has its number of steps, as a lower bound. In a claim, `target: control` is what the
    control reaches in the median over its seeds, at its best learning rate.

    A net that is there at its initialization has 1, since ratios are taken."""
    raw, sign = run.series(of), 1 if of.endswith("loss") else -1
    if not len(raw) or isinstance(target, str):
        return Value(math.nan)
    there = np.flatnonzero(trailing_median(sign * raw.values, smooth) <= sign * target)
    return Value(float(max(1, raw.steps[there[0]]))) if len(there) else Value(float(run.steps), "at least")


@METRICS.register("spikes", of="run", source="own", unit="share of steps", better="lower")
def spikes(run: Run) -> float:
    """Share of the equally spaced measured steps whose training loss is above twice the median of the five before it,
    and above a tenth of the first loss. A run that diverged has the share of its measured steps."""
    values = run.spaced("train_loss").values
    if len(values) <= SMOOTHED:
        return math.nan
    before = np.array([np.median(values[at - SMOOTHED : at]) for at in range(SMOOTHED, len(values))])
    now = values[SMOOTHED:]
    return float((~(now <= 2 * before) & ~(now <= 0.1 * values[0])).mean())


@METRICS.register(
    "time_to_s",
    of="run",
    source="Ioffe & Szegedy 2015, figure 3, in seconds; restricted to the budget as in Royston & Parmar 2013",
    unit="s",
    better="lower",
    reads=get_args(Outcome),
    of_control=True,
)
def time_to_s(run: Run, *, of: Outcome, target: Target, smooth: Annotated[int, Ge(1)]) -> Value:
    """steps_to times step_s: seconds to the first measured step at which `of` is at `target` or better."""
    steps = steps_to(run, of=of, target=target, smooth=smooth)
    return Value(steps.value * step_s(run), steps.bound)


@METRICS.register(
    "divergence_step",
    of="run",
    source="Bjorck et al. 2018, section 3.1: divergence is a relative loss above 1000",
    unit="steps",
    better="higher",
    about_failure=True,
)
def divergence_step(run: Run) -> Value:
    """Step at which the loss was not finite or over 1000 times the first; for a run that did not diverge, its number of
    steps as a lower bound."""
    return Value(float(max(1, run.status["step"]))) if run.diverged else Value(float(run.steps), "at least")


@METRICS.register(
    "trains",
    of="run",
    source="Bjorck et al. 2018 for divergence; bnlab.net.evaluate.at_chance for chance",
    unit="0 or 1",
    better="higher",
    about_failure=True,
)
def trains(run: Run) -> float:
    """1 if the run finished and is better than chance at its end, else 0."""
    return float(run.trains)
