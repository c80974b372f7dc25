"""Arms against each other: a row per arm, at the learning rate that is best for it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnlab.analysis.load import Collection
from bnlab.analysis.metrics import METRICS
from bnlab.analysis.statistics import LEVEL, holm, sign_flip, t_interval
from bnlab.core.text import count, listed, number
from bnlab.record.runs import Run
from bnlab.report.prepare import Prepared
from bnlab.report.views import average, geometric_mean, log_interval, usual_rate

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One arm at one learning rate. `n` runs there finished; `diverged` of all `runs` of the arm, at any rate. `loss`
    is the geometric mean of the final training loss with the 95 % t-interval of its log, `score` the mean of what is
    ranked by, with its t-interval; NaN and None where they are not measured. `seconds` and
    `step_s` are medians, of a run and of a step (metric step_s), `parameters` what training changes. `beats`
    are the arms that are worse."""

    arm: str
    lr: float
    n: int
    runs: int
    diverged: int
    loss: float
    loss_interval: Interval | None
    score: float
    score_interval: Interval | None
    seconds: float
    step_s: float = math.nan
    parameters: float = math.nan
    beats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Arms, the best first; `by` is the final measurement that they are ranked by, empty where none is there."""

    by: str
    rows: tuple[Ranked, ...]
    notes: tuple[str, ...] = ()
    """What the tests cannot say, and rates at an edge of their grid."""

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Heads and texts of a table."""
        score = self.by.replace("_", " ").replace("accuracy", "acc") or "score"
        heads = ["arm", "lr", "n", "diverged", score, f"95 % {score}"]
        heads += [] if self.by == "train_loss" else ["train loss", "95 % train loss"]
        lines = []
        for row in self.rows:
            line = [row.arm, number(row.lr, 3), str(row.n), f"{row.diverged}/{row.runs}", number(row.score, 3)]
            line += [_span(row.score_interval), number(row.loss, 3), _span(row.loss_interval)]
            beats = f"{len(row.beats)} of {len(self.rows) - 1}"
            count_of = f"{row.parameters:.0f}" if math.isfinite(row.parameters) else "-"
            cost = [number(row.seconds, 3), _or_dash(1000 * row.step_s), count_of]
            lines.append([*line[: len(heads)], *cost, beats])
        return [*heads, "s/run", "ms/step", "parameters", "better than"], lines


def _or_dash(value: float) -> str:
    return number(value, 3) if math.isfinite(value) else "-"


def _span(interval: Interval | None) -> str:
    return f"{number(interval[0], 3)} to {number(interval[1], 3)}" if interval else "-"


SCORES = ("test_accuracy", "test_loss", "train_loss")
"""What arms are ranked by: the first that every finished run has."""


def ranking(collection: Collection, prepared: Prepared) -> Ranking:
    """Arms by their mean score. The rate of an arm is that with the smallest training loss, of those at which all its
    seeds train. An arm beats another where two-sided sign-flip tests of the differences by seed say so at 5 %, adjusted
    by Holm over all pairs of arms. In the order and in the tests a run that diverged has the worst score: an accuracy
    of 0, or the largest loss of any run here. The rates are chosen by the same runs, which no test accounts for."""
    finished = [run for run in collection.runs if run.finished]
    by = next((name for name in SCORES if finished and all(math.isfinite(run.final(name)) for run in finished)), "")
    if finished and not by:  # a loop of one's own may log none
        return Ranking(by="", rows=())
    larger = by == "test_accuracy"
    worst = 0.0 if larger else max((run.final(by) for run in finished if by), default=math.nan)
    grid = prepared.grid(collection.runs)
    rates = {arm: usual_rate(here) for arm, here in grid.items()}
    at_best = {arm: grid[arm][lr] for arm, lr in rates.items()}
    scores = {
        arm: {run.seed: run.final(by) if run.finished else worst for run in here} if by else {}
        for arm, here in at_best.items()
    }
    beaten = _beaten(scores, larger=larger)
    order = {arm: average(list(found.values()), False) * (-1 if larger else 1) for arm, found in scores.items()}
    rows = []
    for arm, here in grid.items():
        found, every = [run for run in at_best[arm] if run.finished], [run for runs in here.values() for run in runs]
        losses = [run.final("train_loss") for run in found]
        seconds = [known for run in found if (known := run.status.get("timing", {}).get("run_s")) is not None]
        reached = [run.final(by) for run in found] if by else []
        rows.append(
            Ranked(
                arm=arm,
                lr=rates[arm],
                n=len(found),
                runs=len(every),
                diverged=sum(run.diverged for run in every),
                loss=geometric_mean(losses),
                loss_interval=log_interval(losses),
                score=average(reached, False),
                score_interval=t_interval(reached, of_share=larger),
                seconds=_median(seconds),
                step_s=_median([METRICS["step_s"].value(run).value for run in found]),
                parameters=_median([METRICS["parameters"].value(run).value for run in found]),
                beats=beaten[arm],
            )
        )
    ordered = sorted(rows, key=lambda row: (math.isnan(row.score), order[row.arm]))
    seeds = max((len(found) for found in scores.values()), default=0)
    return Ranking(by=by, rows=tuple(ordered), notes=tuple(_notes(ordered, grid, seeds)))


def _notes(rows: Sequence[Ranked], grid: Mapping[str, Mapping[float, Sequence[Run]]], seeds: int) -> Iterator[str]:
    pairs = len(rows) * (len(rows) - 1) // 2
    if seeds > 0 and pairs * 2.0 ** (1 - seeds) > LEVEL:
        most = next(number for number in itertools.count(2) if pairs * 2.0 ** (1 - number) <= LEVEL)
        yield f"{count(seeds, 'seed')} cannot tell {len(rows)} arms apart: {most} or more can"
    edges = [row.arm for row in rows if len(grid[row.arm]) > 2 and row.lr in (min(grid[row.arm]), max(grid[row.arm]))]
    if edges:
        yield f"the best rate is the first or the last of the grid for {listed(edges)}"


def _median(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else math.nan


def _beaten(scores: Mapping[str, Mapping[int, float]], *, larger: bool) -> dict[str, tuple[str, ...]]:
    """For each arm, those that are worse. Pairs of arms with fewer than two seeds in common are not tested."""
    pairs, ps = [], []
    for one, other in itertools.combinations(scores, 2):
        seeds = sorted(scores[one].keys() & scores[other].keys())
        gains = np.array([scores[one][seed] - scores[other][seed] for seed in seeds]) * (1 if larger else -1)
        if len(seeds) > 1:
            pairs.append((one, other) if gains.mean() > 0 else (other, one))
            ps.append(2 * min(float(sign_flip(gains, "greater")), float(sign_flip(gains, "less"))))
    adjusted = holm(np.array(ps)) if ps else ()
    won = [pair for pair, p in zip(pairs, adjusted, strict=True) if p <= LEVEL]
    return {arm: tuple(worse for better, worse in won if better == arm) for arm in scores}
