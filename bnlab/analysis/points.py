"""One paired difference a seed, from the values of two arms: on whole curves, at equal learning rates, at each arm's
best rate, at equal training losses. Legend: N seeds.

Positive differences speak for the claim; ratios are compared as differences of logs. Over several grid points, the
differences of a seed are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bnlab.analysis.base import Arm
from bnlab.analysis.load import Collection
from bnlab.analysis.metrics import METRICS, Curve, Value
from bnlab.analysis.metrics.losses import train_loss
from bnlab.analysis.sides import RATE, GridPoint, NotTestedError, Side, sides
from bnlab.core.study import Claim
from bnlab.record.journal import Floats, Series
from bnlab.record.runs import Run

LEVELS = 10
"""Training losses at which two courses are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """One difference a seed, in logs for ratios, all [N]. Where a value is a bound, the true difference is between
    `low` and `high`, which may be infinite; `values` takes bounds as they are."""

    seeds: tuple[int, ...]
    values: Floats
    low: Floats
    high: Floats
    treated: Arm
    control: Arm
    cautions: tuple[str, ...]


class Pair(NamedTuple):
    """The values of both arms at one grid point."""

    treated: Value
    control: Value


def difference(pair: Pair, claim: Claim) -> tuple[float, float, float]:
    """Value, lowest and highest of what speaks for the claim.

    Two bounds of the same side are a tie as far as is known: that cannot support a claim, and must not refute it.
    """
    t, c = pair
    ratio, sign = claim.compare == "ratio", 1.0 if claim.expect == "larger" else -1.0
    if t.bound is not None and t.bound == c.bound:
        return 0.0, 0.0, math.inf
    value = sign * (math.log(t.value) - math.log(c.value) if ratio else t.value - c.value)
    up = "at least" if sign > 0 else "at most"
    down = "at most" if sign > 0 else "at least"
    low = -math.inf if t.bound == down or c.bound == up else value
    high = math.inf if t.bound == up or c.bound == down else value
    return value, low, high


class Comparison:
    """Collects pairs, seed by seed."""

    def __init__(self, collection: Collection, claim: Claim) -> None:
        self.collection, self.claim, self.metric = collection, claim, METRICS[claim.metric]
        self.options = METRICS.checked(claim.metric, claim.options, f"claims.{claim.name}.options")
        self.grid = sides(collection, claim, self.options.get("factor", RATE))
        self.pairs: dict[int, list[Pair]] = {seed: [] for seed in self.grid.seeds}
        self.used: tuple[set[str], set[str]] = (set(), set())
        self.places = ["", ""]
        self.cautions = list(self.grid.cautions)
        self.nothing = f"{self.metric.name} was not measured"

    def values(self) -> dict[GridPoint, list[dict[int, Value]]]:
        """Grid point -> for both arms, seed -> value."""
        return {point: [self._values(side, point) for side in self.grid.arms] for point in self.grid.points}

    def _values(self, side: Side, point: GridPoint) -> dict[int, Value]:
        runs = {seed: side.runs[seed][point] for seed in self.grid.seeds}
        if self.metric.of == "run":
            return {seed: self.collection.value(run, self.metric.name, self.options) for seed, run in runs.items()}
        # A metric of an arm is given the values of all its seeds at once.
        of = METRICS[self.options["of"]]
        each = [self.collection.value(run, of.name, of.shown_with or {}).value for run in runs.values()]
        spread = self.metric.constructor(np.array(each), **self.options)
        return {seed: Value(float(value)) for seed, value in zip(runs, spread, strict=True)}

    def add(self, seed: int, treated: Value, control: Value, runs: Sequence[Sequence[Run]]) -> None:
        """Keep a pair, unless one of the two was not measured."""
        if not (math.isfinite(treated.value) and math.isfinite(control.value)):
            return
        value = min(treated.value, control.value)
        if self.claim.compare == "ratio" and value <= 0:
            arm = self.grid.treated if treated.value <= 0 else self.grid.control
            raise NotTestedError(
                f"{self.metric.name} is {value:.3g} for {arm.label} (seed {seed}): no ratio; compare differences"
            )
        self.pairs[seed].append(Pair(treated, control))
        for used, some in zip(self.used, runs, strict=True):
            used.update(self.collection.place(run) for run in some)

    def result(self) -> Paired:
        """The differences, averaged within each seed."""
        pairs = {seed: found for seed, found in self.pairs.items() if found}
        if not pairs:
            raise NotTestedError(self.nothing)
        if len(pairs) < len(self.pairs):
            missing = " ".join(str(seed) for seed in self.pairs if seed not in pairs)
            self.cautions.append(f"no pair at seeds {missing}: {self.nothing}")
        differences = [[difference(pair, self.claim) for pair in found] for found in pairs.values()]
        means = np.array([np.mean(found, axis=0) for found in differences])  # [N, 3]
        arms = []
        for index, side in enumerate(self.grid.arms):
            each = [[pair[index] for pair in found] for found in pairs.values()]
            self._caution_of_bounds(side.label, [value for found in each for value in found])
            arms.append(
                Arm(
                    label=side.label,
                    values=tuple(self._mean([value.value for value in found]) for found in each),
                    point=self.places[index],
                    runs=tuple(sorted(self.used[index])),
                )
            )
        return Paired(
            seeds=tuple(pairs),
            values=means[:, 0],
            low=means[:, 1],
            high=means[:, 2],
            treated=arms[0],
            control=arms[1],
            cautions=tuple(self.cautions),
        )

    def _mean(self, values: Sequence[float]) -> float:
        if len(values) == 1:
            return values[0]
        return math.exp(np.mean(np.log(values))) if self.claim.compare == "ratio" else float(np.mean(values))

    def _caution_of_bounds(self, label: str, values: Sequence[Value]) -> None:
        for bound, more in (("at least", "larger"), ("at most", "smaller")):
            if number := sum(value.bound == bound for value in values):
                self.cautions.append(f"{label}: {number} of {len(values)} values are bounds, the true ones are {more}")

    def training_pairs(self) -> list[tuple[int, GridPoint, Run, Run]]:
        """Seed, grid point and both runs, where both train."""
        treated, control = (side.runs for side in self.grid.arms)
        pairs = [
            (seed, point, treated[seed][point], control[seed][point])
            for seed in self.grid.seeds
            for point in self.grid.points
        ]
        return [pair for pair in pairs if pair[2].trains and pair[3].trains]

    def rate(self, index: int, rate: float) -> str:
        """In words. Where rates are contrasted, each arm has its own."""
        return f"lr {self.claim.contrast[RATE][index] if RATE in self.claim.contrast else rate:g}"

    def at_rates(self, rates: Mapping[int, set[float]]) -> None:
        """Say where both arms were compared."""
        if RATE in self.claim.contrast:
            self.places = [self.rate(index, 0.0) for index in (0, 1)]
            return
        counts = sorted({len(found) for found in rates.values()})
        seen = sorted(set().union(*rates.values()))
        text = f"lr {seen[0]:g}" if seen else ""
        if len(seen) > 1:
            number = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
            text = f"{number} learning rates, {seen[0]:g} to {seen[-1]:g}"
        self.places = [text, text]


def paired(collection: Collection, claim: Claim) -> Paired:
    """The claim's arms, seed by seed.

    Raises:
        NotTestedError: there is nothing to compare, and why.
        UsageError: no such metric, or options that it does not take.
    """
    comparison = Comparison(collection, claim)
    compare: Mapping[str, Callable[[Comparison], None]] = {
        "curve": _curve,
        "matched_lr": _matched_lr,
        "best_lr": _best_lr,
        "matched_loss": _matched_loss,
    }
    compare[claim.at](comparison)
    return comparison.result()


def _curve(comparison: Comparison) -> None:
    grid, metric = comparison.grid, comparison.metric
    for setting in grid.settings:
        points = sorted(point for point in grid.points if point.setting == setting)
        for seed in grid.seeds:
            curves: list[Curve] = [{point.rate: side.runs[seed][point] for point in points} for side in grid.arms]
            treated, control = (metric.value(curve, **comparison.options) for curve in curves)
            comparison.add(seed, treated, control, [list(curve.values()) for curve in curves])
    what = "learning rates" if grid.factor == RATE else f"values of {grid.factor}"
    comparison.places = [f"{len({point.rate for point in grid.points})} {what}"] * 2


def _matched_lr(comparison: Comparison) -> None:
    rates: dict[int, set[float]] = {}
    values = comparison.values()
    for seed, point, treated, control in comparison.training_pairs():
        comparison.add(seed, values[point][0][seed], values[point][1][seed], [[treated], [control]])
        rates.setdefault(seed, set()).add(point.rate)
    if not rates:
        comparison.nothing = "there is no learning rate at which both arms train"
    comparison.at_rates(rates)


def _best_lr(comparison: Comparison) -> None:
    grid, values = comparison.grid, comparison.values()
    words: list[list[str]] = [[], []]
    for setting in grid.settings:
        points = [point for point in grid.points if point.setting == setting]
        chosen = []
        for index, side in enumerate(grid.arms):
            # One rate for all seeds of an arm, as a user tunes it: no seed chooses the rate that suits its own noise.
            best = min(points, key=lambda point: _rank(comparison, side, point, values[point][index]))
            chosen.append(best)
            words[index].append(comparison.rate(index, best.rate))
            ends = {min(points).rate: "smallest", max(points).rate: "largest"}
            if len(points) > 1 and best.rate in ends:
                comparison.cautions.append(f"{side.label} is best at lr {best.rate:g}, the grid's {ends[best.rate]}")
        for seed in grid.seeds:
            runs = [[side.runs[seed][point]] for side, point in zip(grid.arms, chosen, strict=True)]
            comparison.add(seed, values[chosen[0]][0][seed], values[chosen[1]][1][seed], runs)
    comparison.places = [
        text[0] if len(set(text)) == 1 else f"the best of each of {len(text)} settings: {', '.join(text)}"
        for text in words
    ]
    if len({point.rate for point in grid.points}) == 1 and RATE not in comparison.claim.contrast:
        comparison.cautions.append("the grid has one learning rate, so none was chosen")


def _rank(comparison: Comparison, side: Side, point: GridPoint, values: Mapping[int, Value]) -> tuple[float, float]:
    """Low for a good rate: the median over seeds of the metric, where it has a better side, then of the final training
    loss. Values that were not measured are worst. A spread over seeds is taken at the rate that is best for the metric
    whose spread it is: at a rate that is too large all seeds fail alike."""
    metric, runs = comparison.metric, [side.runs[seed][point] for seed in values]
    each = [value.value for value in values.values()]
    if metric.of == "arm":
        metric = METRICS[comparison.options["of"]]
        each = [comparison.collection.value(run, metric.name, metric.shown_with or {}).value for run in runs]
    losses = [comparison.collection.value(run, "final_train_loss", {}).value for run in runs]
    sign = {"lower": 1.0, "higher": -1.0, None: 0.0}[metric.better]
    signed = sign * np.array(each)
    return float(np.median(np.where(np.isnan(signed), np.inf, signed))) if sign else 0.0, float(np.median(losses))


def _matched_loss(comparison: Comparison) -> None:
    course = comparison.metric.course
    assert course is not None
    rates: dict[int, set[float]] = {}
    for seed, point, *runs in comparison.training_pairs():
        values = at_equal_losses([train_loss(run) for run in runs], [course(run) for run in runs])
        for treated, control in values:
            comparison.add(seed, Value(treated), Value(control), [[run] for run in runs])
        if values:
            rates.setdefault(seed, set()).add(point.rate)
    comparison.nothing = f"there is no training loss that both arms pass with {comparison.metric.name} measured"
    comparison.at_rates(rates)
    comparison.places = [f"{text}, {LEVELS} training losses at each" for text in comparison.places]


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
