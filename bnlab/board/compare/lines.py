"""The lines of a comparison: the runs each is made of, and its means over seeds. Legend: N seeds, T steps, L layers.

A mean has the tag that its measurement has in a single run (board/tags.py), so that one page pins both. A
mean's interval has two more: beside `1_progress/train_loss` there are `1_progress/train_loss.lo` and `.hi`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bnlab.analysis.arms import OLD_TITLES
from bnlab.analysis.load import Collection, read_runs
from bnlab.analysis.metrics.losses import SMOOTHED, trailing_median
from bnlab.analysis.statistics import t_half_width
from bnlab.board.events import scalar
from bnlab.board.tags import hidden_sites
from bnlab.core.errors import UsageError
from bnlab.core.study import evenly
from bnlab.record.folder import RunFolder, runs_below
from bnlab.record.journal import Floats, Series, Steps
from bnlab.record.runs import Run
from bnlab.report.build import studies_in
from bnlab.report.figures import in_order
from bnlab.report.prepare import Prepared, prepare
from bnlab.report.style import LOOKS
from bnlab.report.views import Group, View, even, median

Points = Sequence[tuple[int, float]]
"""Steps and values, in the order of the steps."""
MOST_SHOWN = 6
"""Lines that are shown at first: more cannot be told apart."""
FEWEST = 2
"""Seeds that make a mean."""
SMALLEST = 1e-9
"""Smaller values count as this one in geometric means, as in the report: 0 has no logarithm."""
MOST_POINTS = 500
"""Of a series: more than a screen shows, fewer than TensorBoard samples from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPoint:
    """An arm at a learning rate: `runs` by seed. Runs that have not ended are among them only where fewer than two
    have: a seed that has just begun would cut the mean off at its last step."""

    arm: str
    lr: float
    runs: tuple[Run, ...]
    unfinished: int
    """How many have not ended, among `runs` or not."""

    @property
    def name(self) -> str:
        """TensorBoard's name for it, which is also the name of a folder."""
        return f"{_folder(self.arm)}/lr={self.lr:.12g}"

    @property
    def diverged(self) -> list[int]:
        """The steps at which seeds diverged."""
        return sorted(run.step for run in self.runs if run.diverged)

    @property
    def dead(self) -> int:
        """Seeds that ended at chance."""
        return sum(run.dead for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All of a sweep. `begun` includes the runs that have not ended, which figures leave out."""

    begun: Collection
    ended: Collection
    points: tuple[GridPoint, ...]
    shown: tuple[str, ...]
    """The names of the points to show at first, in this order."""
    colours: Mapping[str, str]
    """Of arms, by their part of a point's name, and of points: shades of their arm's."""


class NoComparisonError(UsageError):
    """These runs have nothing to average."""


def comparison_of(root: Path) -> Comparison:
    """The sweep at `root`.

    Raises:
        UsageError: no such directory, or no runs.
        NoComparisonError: several sweeps, one run, or no arm with two seeds, unless runs of a sweep over seeds have not
            ended.
    """
    runs_below(root)
    folders = studies_in(root)
    if RunFolder(root).spec_file.is_file():
        raise NoComparisonError(
            "--compare", "this is one run", str(root), "Give the folder of a sweep over several seeds."
        )
    if len(folders) > 1:
        raise NoComparisonError(
            "--compare", "several sweeps here", str(root), f"Give one: {', '.join(map(str, folders))}."
        )
    of_figures = [name for figure in in_order() for name in figure.reads]
    ended = read_runs(folders[0], keep=[*READS, *of_figures])
    unfinished = [run for run in ended.unfinished if run.state in ("running", "interrupted") and _has_records(run)]
    begun = replace(ended, runs=(*ended.runs, *unfinished))
    prepared = prepare(begun) if begun.runs else None
    points = grid_points(begun, prepared) if prepared else []
    seeds_to_come = bool(unfinished) and ended.study is not None and "seed" in ended.study.axes
    if prepared is None or not (seeds_to_come or any(len(point.runs) >= FEWEST for point in points)):
        few = "no arm has two seeds at one learning rate, so there is nothing to average"
        raise NoComparisonError("--compare", few, str(root), "Sweep some: bnlab sweep ... 'seed=range(0,6)'.")
    shown = [name for name in first_look(prepared.views[0], points) if name]
    place = {name: number for number, name in enumerate(shown)}
    first = sorted(points, key=lambda point: place.get(point.name, len(place)))
    looks = {group.label: group.look.color for view in prepared.views for group in view.groups}
    # Of arms that have no run yet too, while a sweep is running.
    colours = {OLD_TITLES[key]: look.color for norm, look in LOOKS.items() if (key := ("norm", norm)) in OLD_TITLES}
    for arm in dict.fromkeys(point.arm for point in first):  # of a setting without a figure too
        label = max((label for label in looks if f"{arm}, ".startswith(f"{label}, ")), key=len, default=None)
        if label is not None:
            lines = [point.name for point in first if point.arm == arm]
            colours |= {_folder(arm): looks[label]} | shades(looks[label], lines)
    return Comparison(begun=begun, ended=ended, points=tuple(points), shown=tuple(shown), colours=colours)


SHADES = (0.0, -0.4, 0.45, -0.6, 0.65)
"""Of an arm's colour, for its lines in order: towards black (negative) or white."""


def shades(color: str, lines: Sequence[str]) -> dict[str, str]:
    """A colour for each of an arm's lines: the arm's own for the first, then darker and lighter ones.

    >>> shades("#0072b2", ["a/lr=1", "a/lr=2"])
    {'a/lr=1': '#0072b2', 'a/lr=2': '#00446b'}
    """
    found = {}
    for number, line in enumerate(lines):
        shade = SHADES[number % len(SHADES)]
        channels = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
        moved = [round(c * (1 + shade) if shade < 0 else c + (255 - c) * shade) for c in channels]
        found[line] = "#{:02x}{:02x}{:02x}".format(*moved)
    return found


def _arm(view: View, group: Group) -> str:
    return ", ".join(part for part in (group.label, view.setting) if part)


def _folder(arm: str) -> str:
    return re.sub(r"[^ \w.=,+-]", "-", arm)


def grid_points(collection: Collection, prepared: Prepared) -> list[GridPoint]:
    """In the order of the arms, then of the rates. Of runs at one point and seed, which differ in their probes, the one
    that measured most."""
    found: dict[tuple[str, float], dict[int, Run]] = {}
    for run in collection.runs:
        seeds = found.setdefault((prepared.arms[run.id], run.lr), {})
        if run.seed not in seeds or _rank(run) > _rank(seeds[run.seed]):
            seeds[run.seed] = run
    points = []
    for arm, lr in sorted(found, key=lambda key: (prepared.order.index(key[0]), key[1])):
        runs = [run for _, run in sorted(found[arm, lr].items())]
        ended = [run for run in runs if run.ended]
        kept = ended if len(ended) >= FEWEST else runs
        points.append(GridPoint(arm=arm, lr=lr, runs=tuple(kept), unfinished=len(runs) - len(ended)))
    return points


def first_look(view: View, points: Sequence[GridPoint]) -> list[str]:
    """The points to put side by side first: every arm at the largest rate at which all of them train; then, where there
    is room, the two arms that the study contrasts, each at its own best rate."""
    names = {(point.arm, point.lr): point.name for point in points}

    def name(group: Group, lr: float | None) -> str:
        return names.get((_arm(view, group), lr), "") if lr is not None else ""

    common, _ = view.common_rate()
    found = [name(group, common if common is not None else group.rates[0]) for group in view.groups]
    pair = view.pair[::-1] if view.pair is not None else view.groups[:FEWEST]
    best = [name(group, group.best_rate()) for group in pair]
    found = list(dict.fromkeys(found))[:MOST_SHOWN]
    with_best = list(dict.fromkeys([*found, *best]))
    return with_best if len(with_best) <= MOST_SHOWN else found


def _rank(run: Run) -> tuple[bool, int]:
    return run.ended, run.folder.journal_bytes


def _has_records(run: Run) -> bool:
    return "steps" in run.status and run.folder.journal_bytes > 0


MEDIAN = "{}/00_median_of_layers"


@dataclass(frozen=True, slots=True)
class Averaged:
    """A measurement that is averaged over seeds: its tag, its mean (geometric if `log`, else of a share of 1), and what
    is done with each seed's values before. With a `title` it has a chart in a row of the page, of the mean and its
    interval."""

    metric: str
    tag: str
    row: str = ""
    title: str = ""
    log: bool = True
    smooth: bool = False

    def of(self, series: Series) -> Series:
        """The series of one seed that enters the average. A per-layer series is reduced to its median over layers, at
        steps of equal distance, since drift is smaller between measurements that are closer together."""
        if self.smooth:
            return Series(series.steps, trailing_median(series.values, SMOOTHED))
        if series.values.ndim > 1:
            kept = even(series.steps.astype(np.float64))
            return Series(series.steps[kept], median(series.values[kept].T))
        return series


LOSSES, LANDSCAPE, DRIFT = ROWS = ("Loss and accuracy", "Landscape along the gradient", "Drift and gradients")
"""Rows of charts on the Custom Scalars page."""
AVERAGED = (
    Averaged("train_loss", "1_progress/train_loss", LOSSES, "train_loss", smooth=True),
    Averaged("test_loss", "1_progress/test_loss", LOSSES, "test_loss"),
    Averaged("train_accuracy", "1_progress/train_accuracy", log=False),
    Averaged("test_accuracy", "1_progress/test_accuracy", LOSSES, "test_accuracy", log=False),
    Averaged("drift_mean.pre", MEDIAN.format("2_drift_mean_pre"), DRIFT, "drift of means, before the norm"),
    Averaged("drift_mean.act_in", MEDIAN.format("2_drift_mean_act_in"), DRIFT, "drift of means, what activations see"),
    Averaged("drift_logvar.pre", MEDIAN.format("3_drift_logvar_pre")),
    Averaged("drift_logvar.act_in", MEDIAN.format("3_drift_logvar_act_in")),
    Averaged("grad_norm_total", "4_grad_norm/00_total", DRIFT, "gradient norm", smooth=True),
    Averaged("grad_change", "5_landscape/grad_change", LANDSCAPE, "change of the gradient"),
    Averaged("grad_change_rel", "5_landscape/grad_change_rel", LANDSCAPE, "change of the gradient over its norm"),
)
AROUND = {
    "train_loss": "5_landscape/loss",
    "loss_lo": "5_landscape/loss_lo",
    "loss_hi": "5_landscape/loss_hi",
}
"""The loss, and the lowest and the highest within reach of one step along the gradient."""
UNITS = {"act_p15.act_in": "p15", "act_p50.act_in": "p50", "act_p85.act_in": "p85"}
PLACES = ("first", "middle", "last")
"""Of hidden layers, and of steps."""
DEPTH = {
    "drift_mean.pre": ("9_depth/drift", "drift of means"),
    "grad_norm": ("9_depth/grad_norm", "gradient norm"),
    "act_var.pre": ("9_depth/act_var", "variance of pre-activations"),
}
"""Tags and titles of profiles over depth: the layer, counted from 0, takes the place of the step."""

READS = tuple(dict.fromkeys([*(line.metric for line in AVERAGED), *AROUND, *UNITS, *DEPTH]))
"""Measurements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Over seeds, at the steps [T] at which every seed is finite: the mean, and the ends of its interval."""

    steps: Steps
    mean: Floats
    low: Floats
    high: Floats


def series_of(runs: Sequence[Run], moments: Sequence[int]) -> dict[str, Points]:
    """Tag -> points, averaged over the runs of one grid point, one a seed. `moments`: the steps of depth profiles,
    first to last; a profile is drawn where every seed has it."""
    series: dict[str, Points] = {}
    for line in AVERAGED:
        if (seeds := aligned([line.of(run.series(line.metric)) for run in runs])) is not None:
            series |= _band(line, over_seeds(seeds, log=line.log))
    series |= _landscape([aligned([run.series(name) for run in runs]) for name in AROUND])
    for metric, suffix in UNITS.items():
        if (seeds := aligned([run.series(metric) for run in runs])) is not None:
            for place, layer in zip(PLACES, hidden_sites(seeds.values.shape[-1]), strict=True):
                mean = over_seeds(Series(seeds.steps, seeds.values[:, :, layer]), log=False)
                series[f"6_act_percentiles_act_in/{place}_{suffix}"] = _points(mean.steps, mean.mean)
    for metric, (tag, _) in DEPTH.items():
        if (seeds := aligned([run.series(metric) for run in runs])) is not None:
            layers = np.arange(seeds.values.shape[-1])
            for place, moment in zip(PLACES, moments, strict=True):
                for at in np.flatnonzero(seeds.steps == moment):
                    mean = over_seeds(Series(layers, seeds.values[:, at]), log=True)
                    series[f"{tag}_{place}"] = _points(mean.steps, mean.mean)
    return {tag: points for tag, points in series.items() if points}


def by_step(series: Mapping[str, Points]) -> dict[int, bytes]:
    """Step -> Summary of the points there."""
    found: dict[int, list[bytes]] = {}
    for tag, points in series.items():
        for step, value in points:
            found.setdefault(step, []).append(scalar(tag, value))
    return {step: b"".join(messages) for step, messages in found.items()}


def moments_of(collection: Collection) -> tuple[int, int, int]:
    """Three steps at which every layer was measured: the second at the usual distance, since drift has no first, the
    last one, and the one nearest to the middle. Of the longest run: all have the same schedule."""
    found = [run.series("drift_mean.pre").steps for run in collection.runs]
    longest = max((steps[even(steps.astype(np.float64))] for steps in found), key=len, default=np.empty(0))
    if not len(longest):
        return 0, 0, 0
    middle = longest[np.abs(longest - (longest[0] + longest[-1]) / 2).argmin()]
    return int(longest[0]), int(middle), int(longest[-1])


def aligned(seeds: Sequence[Series]) -> Series | None:
    """The seeds' values, [N, T] or of layers [N, T, L], at the steps that all have; None where there are none."""
    if not seeds or any(len(one) == 0 for one in seeds):
        return None
    at = seeds[0].steps
    for one in seeds[1:]:
        at = np.intersect1d(at, one.steps)
    values = np.stack([one.values[np.searchsorted(one.steps, at)] for one in seeds])
    return Series(at, values) if len(at) else None


def over_seeds(seeds: Series, *, log: bool) -> Mean:
    """The geometric mean over seeds if `log`, else the arithmetic one, and its 95 % t-interval, of the logarithms if
    `log`. The interval of two seeds would span decades: `low` and `high` are then the two seeds. Of one seed all three
    are the same.

    >>> both = Series(np.array([0]), np.array([[1.0], [100.0]]))
    >>> round(float(over_seeds(both, log=True).mean[0]), 9)
    10.0
    """
    values = seeds.values
    if log:
        with np.errstate(invalid="ignore"):
            values = np.log(np.maximum(values, SMALLEST))
    finite = np.flatnonzero(np.isfinite(values).all(axis=0))
    kept = finite[evenly(len(finite), MOST_POINTS)]
    values = values[:, kept]
    mean, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    if len(values) > 2:
        half = t_half_width(values)
        low, high = mean - half, mean + half
    if log:
        mean, low, high = np.exp(mean), np.exp(low), np.exp(np.minimum(high, 700.0))
    return Mean(steps=seeds.steps[kept], mean=mean, low=low, high=high)


def _band(line: Averaged, mean: Mean) -> dict[str, Points]:
    """The mean and the ends of its interval."""
    most = math.inf if line.log else 1.0
    ends = {"": mean.mean, ".lo": mean.low, ".hi": mean.high}
    return {f"{line.tag}{end}": _points(mean.steps, np.clip(values, 0.0, most)) for end, values in ends.items()}


def _landscape(measured: Sequence[Series | None]) -> dict[str, Points]:
    """Geometric means of all three, at the steps at which the landscape was measured."""
    if any(seeds is None for seeds in measured):
        return {}
    joined = aligned([Series(seeds.steps, np.moveaxis(seeds.values, 0, -1)) for seeds in measured if seeds is not None])
    if joined is None:
        return {}
    whole = np.isfinite(joined.values).all(axis=(0, 2))  # [3, T, N]
    found = {}
    for tag, values in zip(AROUND.values(), joined.values[:, whole], strict=True):
        mean = over_seeds(Series(joined.steps[whole], values.T), log=True)
        found[tag] = _points(mean.steps, mean.mean)
    return found


def _points(steps: Steps, values: Floats) -> Points:
    return [(int(step), float(value)) for step, value in zip(steps, values, strict=True)]
