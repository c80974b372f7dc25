"""Where two arms are compared: on whole curves, at equal rates, at each arm's best rate, at equal training losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bnlab.analysis.base import METRICS, Curve, Value
from bnlab.analysis.ends import train_loss
from bnlab.analysis.load import Collection
from bnlab.analysis.pairs import Comparison, Paired
from bnlab.analysis.sides import RATE, Cell, Side, sides
from bnlab.core.study import Claim
from bnlab.record.journal import Series

LEVELS = 10
"""Training losses at which two courses are compared."""


def paired(collection: Collection, claim: Claim) -> Paired:
    """The claim's arms, seed by seed.

    Raises:
        NotTestedError: there is nothing to compare, and why.
        UsageError: no such metric, or options that it does not take.
    """
    metric, options = METRICS.checked(claim.metric, claim.options, f"claims.{claim.name}.options")
    factor = options.get("factor", RATE)
    grid = sides(collection, claim, factor)
    compare: Callable[[Comparison], None] = {
        "curve": _curve,
        "matched_lr": _matched_lr,
        "best_lr": _best_lr,
        "matched_loss": _matched_loss,
    }[claim.at]
    comparison = Comparison(collection=collection, claim=claim, metric=metric, options=options, grid=grid)
    compare(comparison)
    return comparison.result()


def _curve(comparison: Comparison) -> None:
    grid = comparison.grid
    for setting in grid.settings:
        for seed in grid.seeds:
            figures, runs = [], []
            for side in (grid.treated, grid.control):
                cells = {cell.rate: side.runs[seed][cell] for cell in grid.cells if cell.setting == setting}
                curve: Curve = {rate: cells[rate] for rate in sorted(cells)}
                figures.append(comparison.metric.figure(curve, **comparison.options))
                runs.append(list(cells.values()))
            comparison.add(seed, figures[0], figures[1], runs)
    count = len({cell.rate for cell in grid.cells})
    what = "learning rates" if grid.factor == RATE else f"values of {grid.factor}"
    comparison.points = [f"{count} {what}"] * 2


def _matched_lr(comparison: Comparison) -> None:
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


def _best_lr(comparison: Comparison) -> None:
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
            points[index].append(comparison.rate(index, best.rate))
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
    if len({cell.rate for cell in grid.cells}) == 1 and RATE not in comparison.claim.contrast:
        comparison.cautions.append("the grid has one learning rate, so none was chosen")


def _rank(comparison: Comparison, side: Side, cell: Cell, figures: Mapping[int, Value]) -> tuple[float, float]:
    """Low for a good rate: the median over seeds of the metric, where it has a better side, then of the final training
    loss. What was not measured is worst. A spread over seeds is taken at the rate that is best for what is spread: all
    seeds fail alike at a rate that is too large."""
    metric = comparison.metric
    if metric.of == "arm":
        metric = METRICS[comparison.options["of"]]
        figures = {seed: comparison.collection.value(side.runs[seed][cell], metric.name, {}) for seed in figures}
    losses = [comparison.collection.value(side.runs[seed][cell], "final_train_loss", {}).value for seed in figures]
    sign = {"lower": 1.0, "higher": -1.0, None: 0.0}[metric.better]
    values = np.array([sign * figure.value for figure in figures.values()])
    return float(np.median(np.where(np.isnan(values), np.inf, values))) if sign else 0.0, float(np.median(losses))


def _matched_loss(comparison: Comparison) -> None:
    course = comparison.metric.course
    assert course is not None
    rates: dict[int, set[float]] = {}
    for seed, cell, treated, control in comparison.training_pairs():
        runs = (treated, control)
        values = at_equal_losses([train_loss(run) for run in runs], [course(run) for run in runs])
        for left, right in values:
            comparison.add(seed, Value(left), Value(right), [[treated], [control]])
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
