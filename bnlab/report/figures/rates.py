"""Two figures against the learning rate: the final training loss, and the steps until the loss falls to a target.

Both draw a marker per seed, a line per arm, and in rows above the plot how many runs of an arm have no value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnlab.analysis.metrics.losses import SMOOTHED, trailing_median
from bnlab.core.text import capital, number
from bnlab.record.journal import NOTHING, Series
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import Chart, around, lanes, log_ticks, open_marker, optimizer, rate_axis, seeds_of, shifts
from bnlab.report.views import Drawn, Group, Missing, Number, View, geometric_mean, log_interval, ratio

MOST_BANDS = 4
"""Arms; with more, only the two of the title have bands."""
LOSS = "final training loss"
SMALLEST = 1e-9
"""The lowest loss that is drawn: a loss of exactly 0 has no place on a logarithmic axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One arm at one rate: a value of each seed, infinite for a run without one; the line goes through `middle` where
    that is finite, inside of `band`."""

    lr: float
    values: dict[int, float]
    middle: float
    band: tuple[float, float] | None = None

    @property
    def known(self) -> dict[int, float]:
        """The values of the runs that have one."""
        return {seed: value for seed, value in self.values.items() if math.isfinite(value)}

    @property
    def without(self) -> int:
        """Runs without a value."""
        return len(self.values) - len(self.known)


def _need_two_rates(view: View) -> None:
    if len(view.rates) < 2:
        raise Missing("only one learning rate", "train at several: optim.lr=0.01,0.1,1")


def _chart(view: View, title: str, note: str, found: Sequence[Sequence[Spot]]) -> Chart:
    """The sheet with its axis of rates."""
    rows = sum(any(spot.without for spot in spots) for spots in found)
    chart = Chart(view, title, note, [group.label for group in view.groups], rows)
    rate_axis(chart.ax, view.rates, optimizer(view))
    return chart


def _draw(chart: Chart, view: View, found: Sequence[Sequence[Spot]], sign: str, word: str) -> None:
    """Lines, markers beside their rates, and above the plot a `sign` for the runs without a value."""
    marks = []
    for group, shift, spots in zip(view.groups, shifts(view), found, strict=True):
        x, middle = np.array([(spot.lr, spot.middle) for spot in spots]).T
        drawn = np.isfinite(middle)
        chart.line(x, np.where(drawn, middle, np.nan), group.look)
        points = [(spot.lr * shift, value) for spot in spots for value in spot.known.values()]
        for point in points:
            chart.keep_off(*np.array([point]).T)
        if points:
            chart.ax.plot(*np.array(points).T, zorder=4, **open_marker(group.look))
            end = (x[drawn][-1], middle[drawn][-1]) if drawn.any() else points[-1]
            chart.name(group.label, group.look, *end)
        marks.append([(spot.lr * shift, spot.without, len(spot.values)) for spot in spots if spot.without])
    lanes(chart.ax, [group.look for group in view.groups], marks, sign, word)


# -- final loss ------------------------------------------------------------------------------------------------------


def loss_spots(group: Group, *, banded: bool = True) -> list[Spot]:
    """The losses of the runs that did not diverge. A mean only where none did, a band where there are three seeds or
    more: with two, a t-interval spans decades."""
    found = []
    for lr in group.rates:
        losses = {run.seed: math.inf if run.diverged else run.final("train_loss") for run in group.at(lr)}
        values = {seed: max(loss, SMALLEST) if math.isfinite(loss) else math.inf for seed, loss in losses.items()}
        band = log_interval(list(values.values())) if banded and len(values) > 2 else None
        found.append(Spot(lr=lr, values=values, middle=geometric_mean(list(values.values())), band=band))
    return found


def loss_title(view: View) -> str:
    """Which arm trains at larger rates, and which reaches the lower loss."""
    if view.pair is None:
        return _title_of_many(view)
    treated, control = view.pair
    top, other_top = treated.top_rate, control.top_rate
    if top is None or other_top is None:
        if top == other_top:
            return "No rate at which every run trains, with either arm"
        return f"Only {(treated if other_top is None else control).label} has rates at which every run trains"
    best = ratio(*({run.seed: run.final("train_loss") for run in g.at(g.best_rate() or 0)} for g in view.pair))
    best = view.claimed("final_train_loss", best)
    lower = "" if best is None or not best.clear else ("lower" if best.value < 1 else "higher")
    claimed = view.ratios.get("max_stable_lr")
    reach = claimed or top / other_top
    if not math.isclose(reach, 1, rel_tol=1e-6):
        winner, loser = (treated, control) if reach > 1 else (control, treated)
        least = "at least " if claimed is None and max(top, other_top) == view.rates[-1] else ""
        found = f"{capital(winner.label)} trains at rates {least}{number(max(reach, 1 / reach))}× larger than "
        found += loser.label
        if lower and reach < 1:
            found += f"; {treated.label} reaches a {lower} {LOSS}"
        elif lower:
            found += f", {'but' if lower == 'higher' else 'and'} to a {lower} {LOSS}"
        return found if best is None or claimed else found + best.proviso
    if best is not None and lower:
        at = "at its best rate, over the same rates"
        return f"{capital(treated.label)}: {best.times} {lower} {LOSS} {at}{best.proviso}"
    return f"No clear difference between {treated.label} and {control.label}, in rates or in {LOSS}"


def _title_of_many(view: View) -> str:
    tops = {group.label: group.top_rate or 0.0 for group in view.groups}
    high, low = max(tops, key=tops.__getitem__), min(tops, key=tops.__getitem__)
    if len(tops) == 1:
        best = view.groups[0].best_rate()
        if best is None:
            return f"{capital(high)}: no rate at which every run trains"
        return f"{capital(high)}: best at a rate of {number(best)}, trains up to {number(tops[high])}"
    if tops[high] == tops[low]:
        return "All arms train over the same rates" if tops[high] else "No arm has a rate at which every run trains"
    reach = f"only up to {number(tops[low])}" if tops[low] else "at none"
    return f"{capital(high)} trains at rates up to {number(tops[high])}, {low} {reach}"


@FIGURES.register("loss_by_rate", order=0, subject="final training loss against the learning rate")
def loss_by_rate(view: View, name: str) -> Drawn:
    """Every seed, their mean, what diverged.

    Raises:
        Missing: fewer than two rates, or no run with a final loss.
    """
    _need_two_rates(view)
    few = len(view.groups) <= MOST_BANDS
    found = [loss_spots(group, banded=few or group in (view.pair or ())) for group in view.groups]
    dead = sum(run.dead for group in view.groups for run in group.runs)
    note = (
        f"Line: geometric mean of {seeds_of(view)}, where none diverged; band: 95 % t-interval of the log loss, of "
        "three seeds or more; markers: single runs. Loss of the finished net over the training set, running "
        "statistics. ✕: diverged." + (f" {dead} of the runs drawn ended at chance." if dead else "")
    )
    losses = [loss for spots in found for spot in spots for loss in spot.known.values()]
    if not losses:
        raise Missing("every run diverged")
    chart = _chart(view, loss_title(view), note, found)
    low, high = around(losses)
    bands = [end for spots in found for spot in spots for end in spot.band or ()]
    low, high = around([*losses, *(end for end in bands if low / 3 < end < high * 3)])  # a band may span decades
    if view.chance_loss and view.chance_loss > max(losses) / 30:
        high = max(high, view.chance_loss * 1.5)
    log_ticks(chart.ax, low, high)
    chart.ax.set_ylabel(LOSS)
    for group, spots in zip(view.groups, found, strict=True):
        ends = np.array([spot.band or (math.nan, math.nan) for spot in spots])
        chart.ax.fill_between([spot.lr for spot in spots], *ends.T, color=group.look.color, alpha=0.15, linewidth=0)
    _draw(chart, view, found, "X", "diverged")
    if view.chance_loss and low < view.chance_loss < high:
        chart.line_across(view.chance_loss, f"chance: {view.chance_loss:.2f}")
    return chart.drawn(
        name,
        about="Final training loss against learning rate, every seed of every arm; diverged runs above the plot.",
        columns=("arm", "lr", "seed", "final_train_loss", "mean", "low_95", "high_95", "diverged", "runs"),
        rows=[row for group, spots in zip(view.groups, found, strict=True) for row in _loss_rows(group, spots)],
    )


def _loss_rows(group: Group, spots: Sequence[Spot]) -> list[tuple[Number, ...]]:
    rows: list[tuple[Number, ...]] = []
    for spot in spots:
        shared = (spot.middle, *(spot.band or (None, None)), spot.without, len(spot.values))
        rows += [(group.label, spot.lr, seed, loss, *shared) for seed, loss in spot.known.items()]
        if not spot.known:
            rows.append((group.label, spot.lr, None, None, *shared))
    return rows


# -- steps to a target -----------------------------------------------------------------------------------------------

Losses = dict[tuple[str, float, int], Series]
"""Steps and smoothed training losses by arm, rate and seed."""


def losses_of(view: View) -> Losses:
    """Of every run that has any."""
    smooth = view.target.smooth if view.target else SMOOTHED
    raw = {(group.label, run.lr, run.seed): run.series("train_loss") for group in view.groups for run in group.runs}
    return {key: Series(each.steps, trailing_median(each.values, smooth)) for key, each in raw.items() if len(each)}


def target_of(view: View, losses: Losses) -> float:
    """The lowest loss that every arm reaches, in the median over seeds, at half or more of the rates at which it
    trains; rounded up to one digit, but never above half of the loss at the start."""
    reached, starts = [], []
    for group in view.groups:
        by_rate = []
        for lr in [rate for rate in group.rates if group.trains_at(rate)] or group.rates:
            curves = [losses[key].values for run in group.at(lr) if (key := (group.label, lr, run.seed)) in losses]
            starts += [curve[0] for curve in curves]
            if curves:
                lowest = [np.min(curve, initial=math.inf, where=np.isfinite(curve)) for curve in curves]
                by_rate.append(float(np.median(lowest)))
        if by_rate:
            reached.append(sorted(by_rate)[(len(by_rate) - 1) // 2])
    half = float(np.nanmedian(starts)) / 2
    wanted = max([loss for loss in reached if loss < half] or [half])
    digit = 10.0 ** math.floor(math.log10(wanted))
    return min(math.ceil(1.05 * wanted / digit) * digit, half)


def step_spots(group: Group, losses: Losses, target: float) -> list[Spot]:
    """The steps at which runs first reach the target; their median is infinite where half never do."""
    found = []
    for lr in group.rates:
        values = {}
        for run in group.at(lr):
            steps, smoothed = losses.get((group.label, lr, run.seed), NOTHING)
            there = np.flatnonzero(smoothed <= target)
            values[run.seed] = max(float(steps[there[0]]), 1.0) if len(there) else math.inf
        found.append(Spot(lr=lr, values=values, middle=float(np.median(list(values.values())))))
    return found


def step_title(view: View, found: Sequence[Sequence[Spot]], target: float) -> str:
    """Which arm reaches the target first, each at its fastest rate."""
    words = f"a training loss of {number(target)}"
    fastest = {
        group.label: min(spots, key=lambda spot: (spot.middle, spot.without))
        for group, spots in zip(view.groups, found, strict=True)
    }
    there = {label: spot for label, spot in fastest.items() if math.isfinite(spot.middle)}
    if not there:
        return f"No arm reaches {words}"
    if view.pair is None:
        first = min(there, key=lambda label: there[label].middle)
        return f"{capital(first)} reaches {words} in {there[first].middle:.0f} steps at its fastest rate"
    pair = treated, control = view.pair[0].label, view.pair[1].label
    missing = [label for label in pair if label not in there]
    if len(missing) == 2:
        return f"Neither {treated} nor {control} reaches {words}"
    if missing:
        (alone,) = set(pair) - set(missing)
        return f"{capital(alone)} reaches {words}, {missing[0]} does not"
    times = ratio(there[treated].known, there[control].known)
    times = view.claimed("steps_to", times)
    if times is None or not times.clear:
        return f"No clear difference in the steps to {words}, each at its fastest rate"
    fast = treated if times.value < 1 else control
    return f"At its fastest rate, {fast} reaches {words} in {times.times} fewer steps{times.proviso}"


@FIGURES.register(
    "steps_to_target",
    order=1,
    subject="steps until the training loss falls to a target, against the learning rate",
    reads=("train_loss",),
)
def steps_to_target(view: View, name: str) -> Drawn:
    """Every seed, their median, what never reaches the target.

    Raises:
        Missing: fewer than two rates, or no losses.
    """
    _need_two_rates(view)
    losses = losses_of(view)
    if not losses:
        raise Missing("no training losses in the journals")
    target = view.target.loss if view.target else target_of(view, losses)
    found = [step_spots(group, losses, target) for group in view.groups]
    smooth = view.target.smooth if view.target else SMOOTHED
    chosen = "the claim's" if view.target else "what every arm reaches at half of its rates that train, rounded up"
    budget = max(run.step for group in view.groups for run in group.runs)
    note = (
        f"Line: median of {seeds_of(view)}; markers: seeds; △: never reached within the budget of {budget} steps, or "
        f"diverged before. Loss of the training batch, median of the last {smooth} measured steps. The target is "
        f"{chosen}."
    )
    chart = _chart(view, step_title(view, found, target), note, found)
    numbers = [step for spots in found for spot in spots for step in spot.known.values()]
    low, high = around([*numbers, float(budget)], room=0.03)
    log_ticks(chart.ax, low, max(high, budget * 1.12))
    chart.ax.set_ylabel(f"steps until loss ≤ {number(target)}")
    _draw(chart, view, found, "^", "never")
    chart.line_across(budget, f"budget: {budget} steps")
    return chart.drawn(
        name,
        about=f"Steps until the training loss falls to {number(target)}, against learning rate, every seed of every "
        "arm; runs that never do above the plot.",
        columns=("arm", "lr", "seed", "target_loss", "step_reached", "budget"),
        rows=[
            (group.label, spot.lr, seed, target, step, budget)
            for group, spots in zip(view.groups, found, strict=True)
            for spot in spots
            for seed, step in spot.values.items()
        ],
    )
