"""Where two arms are compared: from a claim and runs to one paired difference a seed. Legend: N seeds.

Runs of the two arms are matched on every key in which they differ besides the contrast: on the learning rate, and on
each further axis. A seed counts when it has all cells of the grid in both arms; over them, differences are averaged.
Positive differences speak for the claim; ratios are compared as differences of logs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnlab.analysis.arms import RATE, Cell, Grid, NotTestedError, Side, sides
from bnlab.analysis.base import METRICS, Arm, Curve, Figure, Floats, Metric, RunFacts, Series
from bnlab.analysis.ends import train_loss
from bnlab.analysis.load import Collection
from bnlab.study import Claim

LEVELS = 10
"""Training losses at which two courses are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """One difference a seed, in logs for ratios. Where a figure is a bound, the true one lies somewhere between `low`
    and `high`, which may be infinite; `values` takes bounds as they are. All [N]."""

    seeds: tuple[int, ...]
    values: Floats
    low: Floats
    high: Floats
    treated: Arm
    control: Arm
    cautions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """The two figures of one cell."""

    treated: Figure
    control: Figure

    def __post_init__(self) -> None:
        assert math.isfinite(self.treated.value)
        assert math.isfinite(self.control.value)


def difference(pair: Pair, claim: Claim) -> tuple[float, float, float]:
    """Value, lowest and highest of what speaks for the claim.

    Two bounds of the same side are a tie as far as anybody knows: that cannot support a claim, and must not refute it.
    """
    t, c = pair.treated, pair.control
    ratio, sign = claim.compare == "ratio", 1.0 if claim.expect == "larger" else -1.0
    if t.bound is not None and t.bound == c.bound:
        return 0.0, 0.0, math.inf
    value = sign * (math.log(t.value) - math.log(c.value) if ratio else t.value - c.value)
    up = "at least" if sign > 0 else "at most"
    down = "at most" if sign > 0 else "at least"
    low = -math.inf if t.bound == down or c.bound == up else value
    high = math.inf if t.bound == up or c.bound == down else value
    return value, low, high


def paired(collection: Collection, claim: Claim) -> Paired:
    """The claim's arms, seed by seed.

    Raises:
        NotTestedError: there is nothing to compare, and why.
        UsageError: no such metric, or options that it does not take.
    """
    metric, options = METRICS.checked(claim.metric, claim.options, f"claims.{claim.name}.options")
    factor = options.get("factor", RATE)
    grid = sides(collection, claim, factor)
    compare: Callable[[_Comparison], None] = {
        "curve": _curve,
        "matched_lr": _matched_lr,
        "best_lr": _best_lr,
        "matched_loss": _matched_loss,
    }[claim.at]
    comparison = _Comparison(collection=collection, claim=claim, metric=metric, options=options, grid=grid)
    compare(comparison)
    return comparison.result()


class _Comparison:
    """Collects pairs, seed by seed."""

    def __init__(
        self, *, collection: Collection, claim: Claim, metric: Metric, options: Mapping[str, Any], grid: Grid
    ) -> None:
        self.collection, self.claim, self.metric, self.options, self.grid = collection, claim, metric, options, grid
        self.pairs: dict[int, list[Pair]] = {seed: [] for seed in grid.seeds}
        self.used: tuple[set[str], set[str]] = (set(), set())
        self.points = ["", ""]
        self.cautions = list(grid.cautions)
        self.nothing = f"{metric.name} was not measured"

    def figure(self, run: RunFacts) -> Figure:
        return self.collection.figure(run, self.metric.name, self.options)

    def figures(self, side: Side, cell: Cell) -> dict[int, Figure]:
        """Of a cell, seed -> figure; an arm metric sees all its seeds at once."""
        runs = {seed: side.runs[seed][cell] for seed in self.grid.seeds}
        if self.metric.of == "run":
            return {seed: self.figure(run) for seed, run in runs.items()}
        inner = METRICS[self.options["of"]]
        values = [self.collection.figure(run, inner.name, inner.shown_with or {}).value for run in runs.values()]
        spread = self.metric.figure(np.array(values), **self.options)
        return {seed: Figure(float(value)) for seed, value in zip(runs, spread, strict=True)}

    def add(self, seed: int, treated: Figure, control: Figure, runs: Sequence[Sequence[RunFacts]]) -> None:
        """A pair, unless one of the two was not measured."""
        if not (math.isfinite(treated.value) and math.isfinite(control.value)):
            return
        if self.claim.compare == "ratio" and min(treated.value, control.value) <= 0:
            arm = self.grid.treated if treated.value <= 0 else self.grid.control
            value = min(treated.value, control.value)
            raise NotTestedError(
                f"{self.metric.name} is {value:.3g} for {arm.label} (seed {seed}): no ratio; compare differences"
            )
        self.pairs[seed].append(Pair(treated, control))
        for used, some in zip(self.used, runs, strict=True):
            used.update(self.collection.place(run) for run in some)

    def result(self) -> Paired:
        """Averaged within each seed."""
        pairs = {seed: found for seed, found in self.pairs.items() if found}
        if not pairs:
            raise NotTestedError(self.nothing)
        if len(pairs) < len(self.pairs):
            missing = " ".join(str(seed) for seed in self.pairs if seed not in pairs)
            self.cautions.append(f"no pair at seeds {missing}: {self.nothing}")
        differences = [[difference(pair, self.claim) for pair in found] for found in pairs.values()]
        means = np.array([np.mean(found, axis=0) for found in differences])  # [N, 3]
        arms = []
        for index, side in enumerate((self.grid.treated, self.grid.control)):
            each = [[pair.treated if index == 0 else pair.control for pair in found] for found in pairs.values()]
            self._bounds(side.label, [figure for found in each for figure in found])
            arms.append(
                Arm(
                    label=side.label,
                    figures=tuple(self._mean([figure.value for figure in found]) for found in each),
                    point=self.points[index],
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
        return math.exp(np.mean(np.log(values))) if self.claim.compare == "ratio" else float(np.mean(values))

    def _bounds(self, label: str, figures: Sequence[Figure]) -> None:
        for bound in ("at least", "at most"):
            if count := sum(figure.bound == bound for figure in figures):
                what = f"{count} of {len(figures)} figures" if len(figures) > 1 else "the figure"
                self.cautions.append(f"{label}: {what} known only to be {bound} what is counted")

    def training_pairs(self) -> list[tuple[int, Cell, RunFacts, RunFacts]]:
        """Seed, cell and both runs, where both train."""
        found = []
        for seed in self.grid.seeds:
            for cell in self.grid.cells:
                treated, control = self.grid.treated.runs[seed][cell], self.grid.control.runs[seed][cell]
                if treated.trains and control.trains:
                    found.append((seed, cell, treated, control))
        return found

    def at_rates(self, rates: Mapping[int, set[float]]) -> None:
        """Say where both arms were taken."""
        counts = sorted({len(found) for found in rates.values()})
        seen = sorted(set().union(*rates.values()))
        if len(seen) == 1:
            text = f"lr {seen[0]:g}"
        elif seen:
            number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            text = f"{number} learning rates, {seen[0]:g} to {seen[-1]:g}"
        else:
            text = ""
        self.points = [text, text]


def _curve(comparison: _Comparison) -> None:
    grid = comparison.grid
    for setting in grid.settings:
        for seed in grid.seeds:
            figures, runs = [], []
            for side in (grid.treated, grid.control):
                cells = {cell.rate: side.runs[seed][cell] for cell in grid.cells if cell.setting == setting}
                curve: Curve = {rate: comparison.collection.measured(cells[rate]) for rate in sorted(cells)}
                figures.append(comparison.metric.figure(curve, **comparison.options))
                runs.append(list(cells.values()))
            comparison.add(seed, figures[0], figures[1], runs)
    count = len({cell.rate for cell in grid.cells})
    what = "learning rates" if grid.factor == RATE else f"values of {grid.factor}"
    comparison.points = [f"{count} {what}"] * 2


def _matched_lr(comparison: _Comparison) -> None:
    grid = comparison.grid
    rates: dict[int, set[float]] = {}
    found = {cell: [comparison.figures(side, cell) for side in (grid.treated, grid.control)] for cell in grid.cells}
    trains = comparison.training_pairs()
    for seed, cell, treated, control in trains:
        comparison.add(seed, found[cell][0][seed], found[cell][1][seed], [[treated], [control]])
        rates.setdefault(seed, set()).add(cell.rate)
    if not trains:
        comparison.nothing = "there is no learning rate at which both arms train"
    comparison.at_rates(rates)


def _best_lr(comparison: _Comparison) -> None:
    grid = comparison.grid
    found = {cell: [comparison.figures(side, cell) for side in (grid.treated, grid.control)] for cell in grid.cells}
    points: list[list[str]] = [[], []]
    for setting in grid.settings:
        cells = [cell for cell in grid.cells if cell.setting == setting]
        chosen = []
        for index, side in enumerate((grid.treated, grid.control)):
            # One rate for all seeds of an arm: as a user tunes, and no seed picks its own luck.
            best = min(cells, key=lambda cell: _rank(comparison, side, cell, found[cell][index]))
            chosen.append(best)
            points[index].append(f"lr {best.rate:g}")
            ends = {min(cells).rate: "smallest", max(cells).rate: "largest"}
            if len(cells) > 1 and best.rate in ends:
                comparison.cautions.append(f"{side.label} is best at lr {best.rate:g}, the grid's {ends[best.rate]}")
        for seed in grid.seeds:
            runs = [[side.runs[seed][cell]] for side, cell in zip((grid.treated, grid.control), chosen, strict=True)]
            comparison.add(seed, found[chosen[0]][0][seed], found[chosen[1]][1][seed], runs)
    comparison.points = [
        text[0] if len(set(text)) == 1 else f"the best of each of {len(text)} settings: {', '.join(text)}"
        for text in points
    ]
    if len({cell.rate for cell in grid.cells}) == 1:
        comparison.cautions.append("the grid has one learning rate, so none was chosen")


def _rank(comparison: _Comparison, side: Side, cell: Cell, figures: Mapping[int, Figure]) -> tuple[float, float]:
    """Low for a good rate: the median over seeds of the metric, where it has a better side, then of the final training
    loss. What was not measured is worst."""
    losses = [comparison.collection.figure(side.runs[seed][cell], "final_train_loss", {}).value for seed in figures]
    sign = {"lower": 1.0, "higher": -1.0, None: 0.0}[comparison.metric.better]
    values = np.array([sign * figure.value for figure in figures.values()])
    return float(np.median(np.where(np.isnan(values), np.inf, values))) if sign else 0.0, float(np.median(losses))


def _matched_loss(comparison: _Comparison) -> None:
    course = comparison.metric.course
    assert course is not None
    rates: dict[int, set[float]] = {}
    for seed, cell, treated, control in comparison.training_pairs():
        runs = [comparison.collection.measured(run) for run in (treated, control)]
        values = at_equal_losses([train_loss(run) for run in runs], [course(run) for run in runs])
        for left, right in values:
            comparison.add(seed, Figure(left), Figure(right), [[treated], [control]])
        if values:
            rates.setdefault(seed, set()).add(cell.rate)
    comparison.nothing = f"there is no training loss that both arms pass with {comparison.metric.name} measured"
    comparison.at_rates(rates)
    comparison.points = [f"{text}, {LEVELS} training losses at each" for text in comparison.points]


def at_equal_losses(losses: Sequence[Series], courses: Sequence[Series]) -> list[tuple[float, float]]:
    """The values of two courses at `LEVELS` training losses that both runs pass.

    The loss at a step is the running minimum of the trailing median of the batches' losses. The levels are spread
    geometrically from the smaller of the two first losses to the larger of the two lowest, at steps at which the course
    was measured; a run's value at a level is that of the first such step at which its loss is at or below it.
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
        # The ends of a geometric sequence are exact, but for rounding.
        first = [int(np.argmax(m <= level * (1 + 1e-12))) for m in minima]
        found.append((float(kept[0][first[0]]), float(kept[1][first[1]])))
    return found
