"""Metrics of an arm: of its curve over the learning rates at one seed, and of its seeds at one learning rate.
Legend: K rates, T measured steps, N seeds.

A grid has ends: a value beyond one of them is a bound. Its spacing is the resolution of every rate found on it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen

from bnlab.analysis.metrics import METRICS, Curve, Value
from bnlab.analysis.metrics.losses import LOSS, Outcome, chance_loss, first_loss
from bnlab.record.journal import Floats
from bnlab.record.runs import Run


def stable(run: Run) -> bool:
    """It did not diverge, is better than chance at the end, and has a lower training loss there than the first batch
    had."""
    return run.trains and run.final("train_loss") < first_loss(run)


def usable(run: Run, of: Outcome, target: float) -> bool:
    """It did not diverge, and `of` is at `target` or better at the end."""
    value = run.final(of)
    return run.finished and (value <= target if of.endswith("loss") else value >= target)


def largest_of(rates: Floats, good: list[bool]) -> Value:
    """The last rate, going up from the lowest good one, before the first that is not good. [K], [K]

    A good rate above a bad one does not count, since it depends on the seed. With none good, the value is at most one
    spacing below the grid; with the uppermost good, it is at least that rate.

    >>> largest_of(np.array([0.1, 1.0, 10.0, 100.0]), [False, True, False, True])
    Value(value=1.0, bound=None)
    """
    if not any(good):
        below = rates[0] ** 2 / rates[1] if len(rates) > 1 else rates[0]
        return Value(float(below), "at most")
    last = good.index(True)
    while last + 1 < len(rates) and good[last + 1]:
        last += 1
    return Value(float(rates[last]), "at least" if last + 1 == len(rates) else None)


def decades(rates: Floats, good: list[bool]) -> Value:
    """log10 of the width of the good rates. Each rate has half of the distance to either neighbour; the outermost have
    the same distance outwards as inwards. With the uppermost good, the value is at least that width. [K], [K]

    >>> decades(np.array([0.1, 1.0, 10.0, 100.0]), [False, True, True, False])
    Value(value=2.0, bound=None)
    """
    if len(rates) < 2:
        return Value(math.nan)
    logs = np.log10(rates)
    edges = np.concatenate([[2 * logs[0] - logs[1]], logs, [2 * logs[-1] - logs[-2]]])
    width = float(((edges[2:] - edges[:-2]) / 2)[np.array(good)].sum())
    return Value(round(width, 12), "at least" if good[-1] else None)


def _rates(curve: Curve) -> Floats:
    return np.array(list(curve), dtype=np.float64)


@METRICS.register(
    "max_stable_lr",
    of="curve",
    source="Bjorck et al. 2018, section 3; Ioffe & Szegedy 2015, section 3.3",
    unit="learning rate",
    better="higher",
)
def max_stable_lr(curve: Curve) -> Value:
    """Largest learning rate of the grid, going up without a gap, at which the net trains: no divergence, better than
    chance, a lower training loss at the end than at the start."""
    return largest_of(_rates(curve), [stable(run) for run in curve.values()])


@METRICS.register(
    "max_usable_lr", of="curve", source="Bjorck et al. 2018, section 3", unit="learning rate", better="higher"
)
def max_usable_lr(curve: Curve, *, of: Outcome, target: float) -> Value:
    """Largest learning rate of the grid, going up without a gap, at which `of` ends at `target` or better."""
    return largest_of(_rates(curve), [usable(run, of, target) for run in curve.values()])


@METRICS.register("stable_decades", of="curve", source="Bjorck et al. 2018, section 3", unit="decades", better="higher")
def stable_decades(curve: Curve) -> Value:
    """Decades of learning rates at which the net trains, as for max_stable_lr, gaps left out."""
    return decades(_rates(curve), [stable(run) for run in curve.values()])


@METRICS.register("usable_decades", of="curve", source="Bjorck et al. 2018, section 3", unit="decades", better="higher")
def usable_decades(curve: Curve, *, of: Outcome, target: float) -> Value:
    """Decades of learning rates at which `of` ends at `target` or better, gaps left out."""
    return decades(_rates(curve), [usable(run, of, target) for run in curve.values()])


@METRICS.register("lr_sensitivity", of="curve", source="Wortsman et al. 2023, section 2.2", unit=LOSS, better="lower")
def lr_sensitivity(curve: Curve) -> float:
    """Mean over the learning rates of min(l, l0) - l*: l the final training loss, l0 the first, l* the lowest l."""
    ends = [run.final("train_loss") for run in curve.values()]
    starts = np.array([first_loss(run) for run in curve.values()])
    if not np.isfinite(starts).any():
        return math.nan
    # A run that diverged has no final loss: its first loss counts.
    capped = np.fmin(ends, np.where(np.isnan(starts), np.nanmax(starts), starts))
    return float(np.mean(capped - np.min(capped)))


@METRICS.register("sensitivity", of="curve", source="Wortsman et al. 2023, section 2.2", unit=LOSS, better="lower")
def sensitivity(curve: Curve, *, factor: Annotated[str, MinLen(1)]) -> float:
    """Over the values of `factor`, such as model.init_scale, each at its best learning rate, mean of min(l, l0) - l*: l
    the final training loss, l0 the first, l* the lowest l.

    The caller makes the curve over `factor`."""
    return lr_sensitivity(curve)


@METRICS.register(
    "lr_envelope", of="curve", source="what public reproductions of Santurkar et al. 2018, figure 4 show", unit="1"
)
def lr_envelope(curve: Curve) -> float:
    """Median over measured steps of (max - min) / min of the training loss over the nets that were trained at the
    stable learning rates: not a landscape of one net."""
    raws = [run.series("train_loss") for run in curve.values() if stable(run)]
    if len(raws) < 2 or any(not np.array_equal(raw.steps, raws[0].steps) for raw in raws):
        return math.nan
    losses = np.stack([raw.values for raw in raws])  # [K, T]
    low = losses.min(axis=0)
    return float(np.median((losses.max(axis=0) - low) / low)) if (low > 0).all() else math.nan


Factor = Annotated[str, MinLen(1)]
"""The key over whose values a curve is, such as model.init_scale; each value at its best learning rate."""


@METRICS.register("slope", of="curve", source="least squares", unit="that of the metric, by that of the factor")
def slope(
    curve: Curve,
    *,
    of: Annotated[str, MinLen(1)],
    of_options: dict[str, Any],
    factor: Factor,
    log: Literal["none", "x", "y", "xy"],
) -> float:
    """Slope of the run metric `of` over the values of `factor`, with logs of either or both, by least squares.

    NaN where a value is a bound, or has no log."""
    found = [METRICS[of].value(run, **of_options) for run in curve.values()]
    x, y = _rates(curve), np.array([math.nan if value.bound else value.value for value in found])
    with np.errstate(all="ignore"):
        x, y = np.log(x) if log in ("x", "xy") else x, np.log(y) if log in ("y", "xy") else y
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    return float(np.polyfit(x, y, 1)[0])


@METRICS.register("correlation", of="curve", source="Spearman 1904", unit="1")
def correlation(
    curve: Curve,
    *,
    of: Annotated[str, MinLen(1)],
    of_options: dict[str, Any],
    to: Annotated[str, MinLen(1)],
    to_options: dict[str, Any],
    factor: Factor,
) -> float:
    """Rank correlation of the run metrics `of` and `to` over the values of `factor`, ties by their mean rank.

    NaN with fewer than three values, where one is a bound or was not measured, or where a metric is constant."""
    from scipy.stats import spearmanr  # takes half a second

    pairs = [[METRICS[of].value(run, **of_options), METRICS[to].value(run, **to_options)] for run in curve.values()]
    found = np.array([[math.nan if value.bound else value.value for value in pair] for pair in pairs])
    if len(found) < 3 or not np.isfinite(found).all() or (np.ptp(found, axis=0) == 0).any():
        return math.nan
    return float(spearmanr(found).statistic)


@METRICS.register(
    "largest", of="curve", source="Yang et al. 2019, figure 2", unit="that of the factor", better="higher"
)
def largest(curve: Curve, *, of: Outcome, target: float, factor: Factor) -> Value:
    """Largest value of `factor`, going up without a gap, at which `of` ends at `target` or better."""
    return largest_of(_rates(curve), [usable(run, of, target) for run in curve.values()])


@METRICS.register(
    "spread", of="curve", source="Wortsman et al. 2023, section 2.2, with chance for l0", unit="log", better="lower"
)
def spread(curve: Curve, *, of: Literal["train_loss", "test_loss"], factor: Factor) -> float:
    """Largest less smallest log of the final loss `of` over the values of `factor`; a loss above that of the best
    constant answer, or none since the run diverged, counts as that."""
    ends = [run.final(of) for run in curve.values()]
    chance = np.array([chance_loss(run) or first_loss(run) for run in curve.values()])
    logs = np.log(np.fmin(ends, chance))
    return float(logs.max() - logs.min())


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
