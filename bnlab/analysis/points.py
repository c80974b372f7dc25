"""One paired difference a seed, from the values of two arms: on whole curves, at equal learning rates, at each arm's
best rate, at equal training losses. Legend: N seeds.

Positive differences speak for the claim; ratios are compared as differences of logs. Over several grid points, the
differences of a seed are averaged. Where the treated arm alone has no value, since its run failed, that is the worst:
the claim cannot be supported. Where the control alone has none, the pair is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bnlab.analysis.claims import Arm, reference
from bnlab.analysis.load import Collection
from bnlab.analysis.metrics import CONTROL, METRICS, Curve, Value
from bnlab.analysis.metrics.losses import LEVELS, at_equal_losses, reached_by, train_loss
from bnlab.analysis.sides import RATE, GridPoint, NotTestedError, sides
from bnlab.core.study import METRIC, Claim
from bnlab.record.journal import Floats
from bnlab.record.runs import Run


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
    lost: bool = False
    """Whether the treated arm failed somewhere where the control did not: then `low` is minus infinity."""
    control_lost: bool = False
    """Whether the control failed somewhere where the treated arm did not: such pairs are left out."""


class Pair(NamedTuple):
    """The values of both arms at one seed and grid point, the treated arm's first, and the runs behind each."""

    seed: int
    values: tuple[Value, Value]
    runs: Sequence[Sequence[Run]]


def paired(collection: Collection, claim: Claim) -> Paired:
    """The claim's arms, seed by seed.

    Raises:
        NotTestedError: there is nothing to compare, and why.
        UsageError: no such metric, or options that it does not take.
    """
    if claim.beyond:
        first = paired(collection, replace(claim, beyond={}))
        return _less(first, paired(collection, replace(claim, contrast=claim.beyond, beyond={})))
    comparison = _Comparison(collection, claim)
    compare: Mapping[str, Callable[[], None]] = {
        "curve": comparison.curves,
        "matched_lr": comparison.equal_rates,
        "best_lr": comparison.best_rates,
        "matched_loss": comparison.equal_losses,
        "every_run": comparison.equal_rates,
    }
    compare[claim.at]()
    return comparison.result()


def _less(first: Paired, second: Paired) -> Paired:
    """The effects of one contrast beyond those of another, at the seeds that both have."""
    if not (common := [seed for seed in first.seeds if seed in second.seeds]):
        raise NotTestedError("the two contrasts have no seed in common")
    a, b = ([each.seeds.index(seed) for seed in common] for each in (first, second))
    return replace(
        first,
        seeds=tuple(common),
        values=first.values[a] - second.values[b],
        # A pair that the second contrast leaves out could have had any effect.
        low=np.full(len(common), -np.inf) if second.control_lost else first.low[a] - second.high[b],
        high=first.high[a] - second.low[b],
        cautions=(*first.cautions, *second.cautions),
        lost=first.lost or second.lost,
    )


def difference(treated: Value, control: Value, claim: Claim) -> tuple[float, float, float]:
    """Value, lowest and highest of what speaks for the claim.

    Two bounds of the same side are a tie as far as is known: that cannot support a claim, and must not refute it.
    """
    if treated.bound is not None and treated.bound == control.bound:
        return 0.0, 0.0, math.inf
    scale = math.log if claim.compare == "ratio" else float
    value = scale(treated.value) - scale(control.value)
    up, down = "at least", "at most"
    if claim.expect == "smaller":
        value, up, down = -value, down, up
    low = -math.inf if treated.bound == down or control.bound == up else value
    high = math.inf if treated.bound == up or control.bound == down else value
    return value, low, high


class _Comparison:
    """Collects pairs over the grid of a claim's arms. `places` says in words where each arm was compared, `nothing` why
    there may be no pair."""

    def __init__(self, collection: Collection, claim: Claim) -> None:
        self.collection, self.claim, self.metric = collection, claim, METRICS[claim.metric]
        self.options = METRICS.checked(claim.metric, claim.options, f"claims.{claim.name}.options")
        self.metrics = [self.metric, METRICS[claim.contrast[METRIC][1]] if METRIC in claim.contrast else self.metric]
        self.factor = self.options.get("factor", RATE)
        self.grid = sides(collection, claim, self.factor)
        self.pairs: list[Pair] = []
        self.places = ["", ""]
        self.cautions = list(self.grid.cautions)
        self.nothing = f"{self.metric.name} was not measured"
        self.compared, self.lost, self.both_lost = 0, [0, 0], 0
        """Pairs of runs that both train, where only these are compared; pairs of which one arm's run alone has no value
        since it failed; those of which both have none."""
        self._scores: dict[tuple[int, GridPoint], tuple[Floats, Floats]] = {}
        self._targets: dict[str, float] = {}
        """What the control reaches in each setting, where the claim's target is that."""

    def curves(self) -> None:
        for of_setting in self.grid.settings():
            values_of_factor: dict[float, list[GridPoint]] = {}
            for point in of_setting:
                values_of_factor.setdefault(point.rate if self.factor == RATE else point.factor, []).append(point)
            for seed in self.grid.seeds:
                curves: list[Curve] = [
                    {x: side.runs[seed][self._best(arm, at, seed)] for x, at in sorted(values_of_factor.items())}
                    for arm, side in enumerate(self.grid.arms)
                ]
                values = [self.metric.value(curve, **self.options) for curve in curves]
                if self.claim.against is not None:
                    values[1] = Value(self._reference(next(iter(curves[1].values()))))
                self._add(seed, values, [list(curve.values()) for curve in curves])
        what = "learning rates" if self.factor == RATE else f"values of {self.factor}"
        self.places = [f"{len(values_of_factor)} {what}"] * 2

    def equal_rates(self) -> None:
        rates: dict[int, set[float]] = {}
        values = {point: [self._values(arm, point) for arm in (0, 1)] for point in self.grid.points}
        for seed, point, runs in self._training():
            self._add(seed, [of_arm[seed] for of_arm in values[point]], [[run] for run in runs])
            rates.setdefault(seed, set()).add(point.rate)
        if not rates:
            self.nothing = "there is no learning rate at which both arms train"
        self.places = self._over(rates)

    def equal_losses(self) -> None:
        rates: dict[int, set[float]] = {}
        for seed, point, runs in self._training():
            for values in at_equal_losses(
                [train_loss(run) for run in runs], [self.metric.course_of(run, **self.options) for run in runs]
            ):
                self._add(seed, [Value(value) for value in values], [[run] for run in runs])
                rates.setdefault(seed, set()).add(point.rate)
        self.nothing = f"there is no training loss that both arms pass with {self.metric.name} measured"
        self.places = [f"{text}, {LEVELS} training losses at each" for text in self._over(rates)]

    def best_rates(self) -> None:
        """Each seed at the rate that is best for its arm by the other seeds, so that no seed chooses by its own noise:
        by its own it would look better than it is, the more so the flatter its arm's curve."""
        words: list[list[str]] = [[], []]
        for points in self.grid.settings():
            ends = {points[0].rate: "smallest", points[-1].rate: "largest"} if len(points) > 1 else {}
            chosen = [{seed: self._best(arm, points, seed) for seed in self.grid.seeds} for arm in (0, 1)]
            for arm, best in enumerate(chosen):
                rates = Counter(point.rate for point in best.values()).most_common()
                words[arm].append(self._rates(arm, rates))
                if rates[0][0] in ends:
                    where = f"at lr {rates[0][0]:g}, the grid's {ends[rates[0][0]]}"
                    self.cautions.append(f"{self.grid.arms[arm].label} is best {where}")
            values = {
                (arm, point): self._values(arm, point)
                for arm, best in enumerate(chosen)
                for point in set(best.values())
            }
            for seed in self.grid.seeds:
                runs = [[side.runs[seed][best[seed]]] for side, best in zip(self.grid.arms, chosen, strict=True)]
                self._add(seed, [values[arm, best[seed]][seed] for arm, best in enumerate(chosen)], runs)
        self.places = [
            text[0] if len(set(text)) == 1 else f"the best of each of {len(text)} settings: {', '.join(text)}"
            for text in words
        ]
        if len({point.rate for point in self.grid.points}) == 1 and RATE not in self.claim.contrast:
            self.cautions.append("the grid has one learning rate, so none was chosen")

    def result(self) -> Paired:
        """The differences, averaged within each seed.

        Raises:
            NotTestedError: there is no pair.
        """
        by_seed = {seed: [pair for pair in self.pairs if pair.seed == seed] for seed in self.grid.seeds}
        found = [pairs for pairs in by_seed.values() if pairs]
        self._say_lost()
        if not found:
            raise NotTestedError(self.nothing)
        if missing := [str(seed) for seed, pairs in by_seed.items() if not pairs]:
            self.cautions.append(f"no pair at seeds {' '.join(missing)}: {self.nothing}")
        differences = [[difference(*pair.values, self.claim) for pair in pairs] for pairs in found]
        values, low, high = np.array([np.mean(each, axis=0) for each in differences]).T  # each [N]
        treated, control = (self._arm(arm, found) for arm in (0, 1))
        return Paired(
            seeds=tuple(pairs[0].seed for pairs in found),
            values=values,
            low=np.full_like(low, -np.inf) if self.lost[0] else low,
            high=high,
            treated=treated,
            control=control,
            cautions=tuple(self.cautions),
            lost=self.lost[0] > 0,
            control_lost=self.lost[1] > 0,
        )

    def _say_lost(self) -> None:
        """How many runs each arm lost."""
        if not self.both_lost + sum(self.lost):
            return
        treated, control = (side.label for side in self.grid.arms)
        parts = [
            f"{treated} alone in {self.lost[0]}, which rules out support",
            f"{control} alone in {self.lost[1]}",
            f"both in {self.both_lost}",
        ]
        counts = [self.lost[0], self.lost[1], self.both_lost]
        said = [part for part, number in zip(parts, counts, strict=True) if number]
        pairs = (self.compared or len(self.pairs)) + sum(counts)
        self.cautions.append(f"of {pairs} pairs of runs some fail: {'; '.join(said)}")

    def _arm(self, arm: int, found: Sequence[Sequence[Pair]]) -> Arm:
        side, all_pairs = self.grid.arms[arm], [pair for pairs in found for pair in pairs]
        for bound, more in (("at least", "larger"), ("at most", "smaller")):
            if number := sum(pair.values[arm].bound == bound for pair in all_pairs):
                bounds = f"{number} of {len(all_pairs)} values are bounds"
                self.cautions.append(f"{side.label}: {bounds}, the true ones are {more}")
        return Arm(
            label=side.label,
            values=tuple(self._mean([pair.values[arm].value for pair in pairs]) for pairs in found),
            point=", to ".join(
                [self.places[arm], *(f"{target:.4g}" for target in dict.fromkeys(self._targets.values()))]
            ),
            runs=tuple(sorted({self.collection.place(run) for pair in all_pairs for run in pair.runs[arm]})),
        )

    def _mean(self, values: Sequence[float]) -> float:
        if len(values) == 1:
            return values[0]
        return math.exp(np.mean(np.log(values))) if self.claim.compare == "ratio" else float(np.mean(values))

    def _add(self, seed: int, values: Sequence[Value], runs: Sequence[Sequence[Run]]) -> None:
        """Keep a pair, unless one of its values was not measured, or is missing since runs failed."""
        known = [math.isfinite(value.value) for value in values]
        if not all(known):
            failed = [not ok and any(not run.trains for run in of) for ok, of in zip(known, runs, strict=True)]
            self._lose(failed[0] and (known[1] or failed[1]), failed[1] and (known[0] or failed[0]))
            return
        for side, value in zip(self.grid.arms, values, strict=True):
            if self.claim.compare == "ratio" and value.value <= 0:
                least = min(value.value for value in values)
                raise NotTestedError(
                    f"{self.metric.name} is {least:.3g} for {side.label} (seed {seed}): no ratio; compare differences"
                )
        treated, control = values
        self.pairs.append(Pair(seed, (treated, control), runs))

    def _lose(self, treated: bool, control: bool) -> None:
        """Count a pair of which one run or both have no value since they failed."""
        self.both_lost += treated and control
        self.lost[0] += treated and not control
        self.lost[1] += control and not treated

    def _training(self) -> Iterator[tuple[int, GridPoint, list[Run]]]:
        """Seed, grid point and both runs, where both train; or everywhere."""
        for seed in self.grid.seeds:
            for point in self.grid.points:
                runs = [side.runs[seed][point] for side in self.grid.arms]
                if self.claim.at == "every_run":
                    yield seed, point, runs
                elif all(run.trains for run in runs):
                    self.compared += 1
                    yield seed, point, runs
                else:
                    self._lose(not runs[0].trains, not runs[1].trains)

    def _values(self, arm: int, point: GridPoint) -> dict[int, Value]:
        """Seed -> value. A metric of an arm is given the values of all its seeds at once."""
        runs = [self.grid.arms[arm].runs[seed][point] for seed in self.grid.seeds]
        if arm and self.claim.against is not None:
            return dict(zip(self.grid.seeds, (Value(self._reference(run)) for run in runs), strict=True))
        found, metric = self._of_runs(arm, point), self.metrics[arm]
        if metric.of == "arm":
            found = metric.values(np.array([value.value for value in found]), **self.options)
        if metric.better is None or metric.of == "arm":
            # There is no worst value, and that of a net that does not train may be better than all others.
            with_chance = metric.of == "arm" or self.claim.at == "every_run"
            failed = [run.diverged if with_chance else not run.trains for run in runs]
            found = [Value(math.nan) if lost else value for lost, value in zip(failed, found, strict=True)]
        return dict(zip(self.grid.seeds, found, strict=True))

    def _reference(self, run: Run) -> float:
        """What a claim without a control compares this run with."""
        against = self.claim.against
        if not isinstance(against, str):
            return against or 0.0
        try:
            return reference(against, "against")(run.spec)
        except (KeyError, TypeError, ValueError) as error:
            raise NotTestedError(f"{against} has no value for {self.collection.place(run)}: {error}") from None

    def _of_runs(self, arm: int, point: GridPoint) -> list[Value]:
        """The metric's value of each seed's run; of a spread over seeds, that of the metric whose spread it is."""
        metric, options = self.metrics[arm], self.options if self.metrics[arm] is self.metric else {}
        if metric.of == "arm":
            metric, options = METRICS[options["of"]], {}
        options = options or dict(metric.shown_with or {})
        if metric.of_control and options.get("target") == CONTROL:
            options = {**options, "target": self._target(point.setting)}
        runs = [self.grid.arms[arm].runs[seed][point] for seed in self.grid.seeds]
        return [self.collection.value(run, metric.name, options) for run in runs]

    def _target(self, setting: str) -> float:
        """What the control reaches in a setting, over its learning rates."""
        if setting not in self._targets:
            points, control = [point for point in self.grid.points if point.setting == setting], self.grid.arms[1]
            rates = [[control.runs[seed][point] for seed in self.grid.seeds] for point in points]
            found = reached_by(rates, self.options["of"], self.options["smooth"])
            if not math.isfinite(found):
                raise NotTestedError(f"{control.label} reaches nothing: it diverges, or was not measured")
            self._targets[setting] = found
        return self._targets[setting]

    def _best(self, arm: int, points: Sequence[GridPoint], seed: int) -> GridPoint:
        """The best of these points for an arm by its seeds but this one: by the median of the metric, where it has a
        better side, then of the final training loss. A spread over seeds is taken at the rate that is best for the
        metric whose spread it is: at a rate that is too large all seeds fail alike."""
        if len(points) == 1:
            return points[0]
        arm = 0 if METRIC in self.claim.contrast or not self.claim.contrast else arm  # one arm has one best rate
        others = [index for index, other in enumerate(self.grid.seeds) if other != seed] or [0]
        return min(points, key=lambda point: [float(np.median(of[others])) for of in self._score(arm, point)])

    def _score(self, arm: int, point: GridPoint) -> tuple[Floats, Floats]:
        """Of every seed, low for a good run: the metric, 0 where it has no better side, and the final training loss.
        What was not measured is worst."""
        if (arm, point) not in self._scores:
            side = self.grid.arms[arm]
            metric = METRICS[self.options["of"]] if self.metric.of == "arm" else self.metric
            sign = {"lower": 1.0, "higher": -1.0, None: 0.0}[metric.better if metric.of == "run" else None]
            values = [value.value for value in self._of_runs(arm, point)] if sign else [0.0] * len(self.grid.seeds)
            runs = [side.runs[seed][point] for seed in self.grid.seeds]
            losses = [self.collection.value(run, "final_train_loss", {}).value for run in runs]
            signed, lost = sign * np.array(values), np.array(losses)
            self._scores[arm, point] = (
                np.where(np.isnan(signed), np.inf, signed),
                np.where(np.isnan(lost), np.inf, lost),
            )
        return self._scores[arm, point]

    def _rates(self, arm: int, rates: Sequence[tuple[float, int]]) -> str:
        """In words, with how many seeds each has. Where rates are contrasted, each arm has its own."""
        if RATE in self.claim.contrast:
            return f"lr {self.claim.contrast[RATE][arm]:g}"
        if len(rates) == 1:
            return f"lr {rates[0][0]:g}"
        return f"lr {', '.join(f'{rate:g} at {number}' for rate, number in rates)} of {len(self.grid.seeds)} seeds"

    def _over(self, rates: Mapping[int, set[float]]) -> list[str]:
        """Where both arms were compared, in words, from the learning rates of each seed."""
        if RATE in self.claim.contrast:
            return [self._rates(arm, []) for arm in (0, 1)]
        counts, seen = [len(found) for found in rates.values()], sorted(set().union(*rates.values()))
        text = f"lr {seen[0]:g}" if seen else ""
        if len(seen) > 1:
            number = " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))
            text = f"{number} learning rates, {seen[0]:g} to {seen[-1]:g}"
        return [text, text]
