"""A metric with its options as figures show it: in words, and as values of seeds at a place of an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnlab.analysis.claims import reference as formula
from bnlab.analysis.metrics import Metric, Value
from bnlab.analysis.metrics.medians import Sites, Window
from bnlab.analysis.sides import RATE
from bnlab.core.text import capital, listed, number
from bnlab.record.runs import Run
from bnlab.report.sheet import (
    seeds_of,
)
from bnlab.report.views import (
    Number,
    View,
    average,
    interval,
    usual_rate,
)


def constants(reference: float | str | None, runs: Sequence[Run]) -> list[float]:
    """The values of the reference for these runs, each once."""
    if reference is None:
        return []
    each = formula(reference, "reference") if isinstance(reference, str) else None
    return [float(reference)] if each is None else sorted({each(run.spec) for run in runs})


def named(reference: float | str | None, value: float) -> str:
    return f"{reference}: {number(value)}" if isinstance(reference, str) else f"reference: {number(value)}"


def site(of: str, sites: Sites, runs: Iterable[Run]) -> str:
    """Of which sites, counted from 0, a measurement is, in words; empty where it has one value a step."""
    if not any(run.series(of).values.ndim > 1 for run in runs):
        return ""
    words = {"first": "first site", "last": "last hidden site", "all": "median over all sites"}
    if isinstance(sites, str):
        return words.get(sites, "median over hidden sites")
    return f"site{'s' * (len(sites) > 1)} {listed(list(map(str, sites)))}"


def when(window: Window) -> str:
    """A part of a run in words; empty for the whole.

    >>> when((0, 0)), when((0.9, 1)), when((0, 0.5)), when((0.2, 0.4)), when((0, 1))
    ('at step 0', 'in the last 10 % of the run', 'in the first 50 % of the run', 'from 20 to 40 % of the run', '')
    """
    low, high = (round(100 * share) for share in window)
    if (low, high) in ((0, 0), (0, 100)):
        return "" if high else "at step 0"
    if low and high < 100:
        return f"from {low} to {high} % of the run"
    return f"in the {'last' if low else 'first'} {100 - low if low else high} % of the run"


def unit_of(unit: str) -> str:
    return f" ({unit})" if unit not in ("1", "", "that of the measurement", "the measurement's own") else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """An arm at one `place` of the axis, at `x`, at the learning rate `lr` or over all: a value of each of `seeds` that
    has one. The line goes through `middle`, which is NaN where a seed has none, or a bound."""

    place: Any
    x: float
    lr: float | None
    seeds: tuple[int, ...]
    values: Mapping[int, Value]
    middle: float
    ends: tuple[float, float] | None
    reference: float | None
    lost: frozenset[int] = frozenset()
    """Seeds with a run that diverged."""

    @property
    def exact(self) -> dict[int, float]:
        """The values that are no bounds."""
        return {seed: value.value for seed, value in self.values.items() if value.bound is None}

    def rows(self) -> list[tuple[Number, ...]]:
        """Of the CSV, a row per seed, without the arm and the place."""
        shared = (self.middle, *(self.ends or (None, None)), self.reference)
        values = {seed: self.values.get(seed, Value(math.nan)) for seed in self.seeds}
        return [(self.lr, seed, value.value, value.bound, *shared) for seed, value in values.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A metric with its options, as a figure shows it. `every_run`: averaged over learning rates."""

    metric: Metric
    options: Mapping[str, Any]
    every_run: bool
    log: bool
    reference: float | str | None

    @property
    def what(self) -> str:
        """In words: of a course, the measurement."""
        of, target = self.options.get("of"), self.options.get("target")
        if self.metric.name == "course":
            return str(of)
        if (power := self.options.get("power", 1)) != 1:
            of = f"{of}²" if power == 2 else f"{of}^{number(power)}"
        if target is not None:
            return f"{self.metric.title} {of} {number(target)}"
        return f"{self.metric.title} of {of}" if of else self.metric.title

    @property
    def shown(self) -> str:
        """At the start of a sentence; a measurement keeps its name."""
        return self.what if self.metric.name == "course" else capital(self.what)

    def titled(self, runs: Sequence[Run]) -> str:
        """The same with the place and the time that it is of, so that titles of one report can be told apart."""
        options = self.options
        parts = [self.shown]
        if options.get("direction") == "down":
            parts[0] += " towards the input"
        if "window" in options:
            parts[0] = f"{parts[0]} {when(options['window'])}".rstrip()
        if self.metric.name == "course":
            over = {"max": "largest over steps", "mean": "mean over steps", "p90": "90th percentile over steps"}
            parts += [over.get(options["over"], ""), site(options["of"], options["sites"], runs)]
        return ", ".join(filter(None, parts))

    def value(self, run: Run) -> Value:
        """NaN for a run that does not train, of a metric that has no worst value."""
        known = self.every_run or run.trains or self.metric.better is not None
        return self.metric.value(run, **self.options) if known else Value(math.nan)

    def spot(self, runs: Sequence[Run], place: Any, x: float) -> Spot:
        """Of all runs of an arm at one place of the axis."""
        by_rate = {run.lr: [other for other in runs if other.lr == run.lr] for run in runs}
        lr = None if self.every_run else usual_rate(by_rate)
        found: dict[int, list[Value]] = {}
        for run in runs if lr is None else by_rate[lr]:
            found.setdefault(run.seed, []).append(self.value(run))
        values = {}
        for seed, of_seed in sorted(found.items()):
            mean = average([value.value for value in of_seed], self.log)
            if math.isfinite(mean) and (mean > 0 or not self.log):
                values[seed] = Value(mean, next((value.bound for value in of_seed if value.bound), None))
        exact = [value.value for value in values.values() if value.bound is None]
        whole = len(exact) == len(found)
        reference = constants(self.reference, runs[:1])
        return Spot(
            place=place,
            x=x,
            lr=lr,
            seeds=tuple(sorted(found)),
            values=values,
            middle=average(exact, self.log) if whole else math.nan,
            ends=interval(exact, self.log, of_share=self.metric.unit == "share") if whole else None,
            reference=reference[0] if reference else None,
            lost=frozenset(run.seed for run in (runs if lr is None else by_rate[lr]) if run.diverged),
        )

    def note(self, view: View, by: str, found: Sequence[Sequence[Spot]]) -> str:
        mean = "geometric mean" if self.log else "mean"
        where = "at the learning rate with the lowest final training loss"
        where = "" if by == RATE else ", each the mean over learning rates" if self.every_run else f", each arm {where}"
        parts = [f"{capital(mean)} of {seeds_of(view)} and its 95 % t-interval, of three or more{where}; open: seeds."]
        spots = [spot for of_arm in found for spot in of_arm]
        if any(value.bound for spot in spots for value in spot.values.values()):
            parts.append("Arrows: at least, or at most, this.")
        if any(spot.lost & spot.values.keys() for spot in spots):
            parts.append("✕: diverged, which counts as the worst value.")
        if self.reference is not None:
            parts.append(f"Dotted: {self.reference if isinstance(self.reference, str) else number(self.reference)}.")
        return " ".join(parts)
