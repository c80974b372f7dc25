"""One paired difference a seed, from the figures of two arms. Legend: N seeds.

Positive differences speak for the claim; ratios are compared as differences of logs. Over the cells of a grid, the
differences of a seed are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnlab.analysis.base import METRICS, Arm, Metric, Value
from bnlab.analysis.load import Collection
from bnlab.analysis.sides import RATE, Cell, Grid, NotTestedError, Side
from bnlab.core.study import Claim
from bnlab.record.journal import Floats
from bnlab.record.runs import Run


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

    treated: Value
    control: Value

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


class Comparison:
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

    def figure(self, run: Run) -> Value:
        return self.collection.value(run, self.metric.name, self.options)

    def figures(self, side: Side, cell: Cell) -> dict[int, Value]:
        """Of a cell, seed -> figure; an arm metric sees all its seeds at once."""
        runs = {seed: side.runs[seed][cell] for seed in self.grid.seeds}
        if self.metric.of == "run":
            return {seed: self.figure(run) for seed, run in runs.items()}
        inner = METRICS[self.options["of"]]
        values = [self.collection.value(run, inner.name, inner.shown_with or {}).value for run in runs.values()]
        spread = self.metric.figure(np.array(values), **self.options)
        return {seed: Value(float(value)) for seed, value in zip(runs, spread, strict=True)}

    def add(self, seed: int, treated: Value, control: Value, runs: Sequence[Sequence[Run]]) -> None:
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
                    values=tuple(self._mean([figure.value for figure in found]) for found in each),
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
        if len(values) == 1:
            return values[0]
        return math.exp(np.mean(np.log(values))) if self.claim.compare == "ratio" else float(np.mean(values))

    def _bounds(self, label: str, figures: Sequence[Value]) -> None:
        for bound in ("at least", "at most"):
            if count := sum(figure.bound == bound for figure in figures):
                more = {"at least": "larger", "at most": "smaller"}[bound]
                self.cautions.append(f"{label}: {count} of {len(figures)} figures are bounds, the true ones {more}")

    def training_pairs(self) -> list[tuple[int, Cell, Run, Run]]:
        """Seed, cell and both runs, where both train."""
        found = []
        for seed in self.grid.seeds:
            for cell in self.grid.cells:
                treated, control = self.grid.treated.runs[seed][cell], self.grid.control.runs[seed][cell]
                if treated.trains and control.trains:
                    found.append((seed, cell, treated, control))
        return found

    def rate(self, index: int, rate: float) -> str:
        """In words; where rates are contrasted, an arm's is its own."""
        return f"lr {self.claim.contrast[RATE][index] if RATE in self.claim.contrast else rate:g}"

    def at_rates(self, rates: Mapping[int, set[float]]) -> None:
        """Say where both arms were taken."""
        if RATE in self.claim.contrast:
            self.points = [self.rate(index, 0.0) for index in (0, 1)]
            return
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
