"""What a cell shows: means over its seeds under tags. Legend: N seeds, T steps, L layers.

Means have the tags that the same figures have in a single run (board/tags.py), so that one page pins both. What is
averaged geometrically has its log10 too, for bands: `1_progress/loss`, `1_progress/log10_loss`, and the ends of its
interval `1_progress/log10_loss.lo` and `.hi`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bnlab.analysis.load import Collection
from bnlab.analysis.metrics.losses import SMOOTHED, trailing_median
from bnlab.board.compare.averages import Course, Mean, common, over_seeds
from bnlab.board.plain import Points
from bnlab.record.runs import Run
from bnlab.report.views import Floats, even, median


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A figure of the journal: its tag, its mean (geometric if `log`, else of a share of 1), what is done with a seed's
    values before."""

    metric: str
    tag: str
    log: bool = True
    smooth: bool = False
    layers: bool = False
    """One value a layer, of which the median is shown, at steps of equal distance: drift between measurements that lie
    closer together is smaller for that alone."""


SHOWN = (
    Shown(metric="train_loss", tag="1_progress/loss", smooth=True),
    Shown(metric="test_loss", tag="1_progress/eval_loss"),
    Shown(metric="train_accuracy", tag="1_progress/accuracy", log=False),
    Shown(metric="test_accuracy", tag="1_progress/eval_accuracy", log=False),
    Shown(metric="drift_mean.pre", tag="2_drift_mean_pre/00_median_of_layers", layers=True),
    Shown(metric="drift_mean.act_in", tag="2_drift_mean_act_in/00_median_of_layers", layers=True),
    Shown(metric="drift_logvar.pre", tag="3_drift_logvar_pre/00_median_of_layers", layers=True),
    Shown(metric="drift_logvar.act_in", tag="3_drift_logvar_act_in/00_median_of_layers", layers=True),
    Shown(metric="grad_norm_total", tag="4_grad_norm/00_total", smooth=True),
    Shown(metric="grad_change", tag="5_landscape/grad_change"),
    Shown(metric="grad_change_rel", tag="5_landscape/grad_change_rel"),
)
AROUND = "5_landscape/log10_loss", "5_landscape/log10_loss_lo", "5_landscape/log10_loss_hi"
"""log10 of the loss, and the lowest and the highest within reach of one step along the gradient."""
UNITS = {"act_p15.act_in": "p15", "act_p50.act_in": "p50", "act_p85.act_in": "p85"}
PLACES = ("first", "middle", "last")
"""Of hidden layers, and of steps."""
PROFILES = {
    "act_var.pre": "9_depth/log10_act_var",
    "grad_norm": "9_depth/log10_grad_norm",
    "drift_mean.pre": "9_depth/log10_drift",
}
"""Against depth, with the layer in the place of the step, counted from 1."""

READS = tuple(
    dict.fromkeys([*(shown.metric for shown in SHOWN), "loss_lo", "loss_hi", *UNITS, *PROFILES]),
)
"""Names of the journal."""


def series_of(collection: Collection, runs: Sequence[Run], moments: Sequence[float]) -> dict[str, Points]:
    """All that the runs of one cell, one a seed, have measured. `moments`: the steps of depth profiles, first to last;
    a profile is there where every seed has it."""

    def seeds(name: str, change: Callable[[Floats, Floats], tuple[Floats, Floats]] = _as_it_is) -> Course | None:
        found = (run.series(name) for run in runs)
        return common([change(one.steps.astype(np.float64), one.values) for one in found])

    series: dict[str, Points] = {}
    for shown in SHOWN:
        change = _layers if shown.layers else _smooth if shown.smooth else _as_it_is
        if (course := seeds(shown.metric, change)) is not None:
            series |= _band(shown, over_seeds(course, log=shown.log))
    series |= _landscape([seeds(name) for name in ("train_loss", "loss_lo", "loss_hi")])
    for metric, suffix in UNITS.items():
        if (course := seeds(metric)) is not None:
            for place, layer in zip(PLACES, hidden(course.values.shape[-1]), strict=True):
                mean = over_seeds(Course(steps=course.steps, values=course.values[:, :, layer]), log=False)
                series[f"6_act_percentiles_act_in/{place}_{suffix}"] = _points(mean.steps, mean.mean)
    for metric, tag in PROFILES.items():
        if (course := seeds(metric)) is not None:
            for place, moment in zip(PLACES, moments, strict=True):
                series |= _profile(f"{tag}_{place}", course, moment)
    return {tag: points for tag, points in series.items() if points}


def hidden(layers: int) -> tuple[int, int, int]:
    """The first, the middle and the last hidden layer of that many, of which the last is the head.

    >>> hidden(11), hidden(1)
    ((0, 4, 9), (0, 0, 0))
    """
    last = max(0, layers - 2)
    return 0, last // 2, last


def moments_of(collection: Collection) -> tuple[float, float, float]:
    """Steps at which every layer was measured: the second at the usual distance, since drift has no first, the last
    one, and the one nearest to the middle. Of the run that went farthest: all have the same schedule."""
    found = [run.series("drift_mean.pre").steps.astype(np.float64) for run in collection.runs]
    longest = max((steps[even(steps)] for steps in found), key=len, default=np.empty(0))
    if not len(longest):
        return 0.0, 0.0, 0.0
    middle = longest[np.abs(longest - (longest[0] + longest[-1]) / 2).argmin()]
    return float(longest[0]), float(middle), float(longest[-1])


def _as_it_is(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    return steps, values


def _smooth(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    return steps, trailing_median(values, SMOOTHED)


def _layers(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    if not len(steps):
        return steps, values
    kept = even(steps)
    return steps[kept], median(values[kept].T)


def _band(shown: Shown, mean: Mean) -> dict[str, Points]:
    """The mean and the ends of its interval, of what is shown or of its logarithm."""
    if not shown.log:
        low, high = (np.clip(end, 0.0, 1.0) for end in (mean.low, mean.high))
        return _ends(shown.tag, mean.steps, mean.mean, low, high)
    logs = (np.log10(end) for end in (mean.mean, mean.low, mean.high))
    return {shown.tag: _points(mean.steps, mean.mean)} | _ends(log10_of(shown.tag), mean.steps, *logs)


def log10_of(tag: str) -> str:
    """
    >>> log10_of("1_progress/loss"), log10_of("4_grad_norm/00_total")
    ('1_progress/log10_loss', '4_grad_norm/00_log10_total')
    """
    group, name = tag.split("/")
    number = "00_" if name.startswith("00_") else ""
    return f"{group}/{number}log10_{name.removeprefix('00_')}"


def _ends(tag: str, steps: Floats, mean: Floats, low: Floats, high: Floats) -> dict[str, Points]:
    return {f"{tag}{end}": _points(steps, values) for end, values in (("", mean), (".lo", low), (".hi", high))}


def _landscape(courses: Sequence[Course | None]) -> dict[str, Points]:
    """All three at the steps at which the landscape was measured; their geometric means."""
    if any(course is None for course in courses):
        return {}
    joined = common([(c.steps, np.moveaxis(c.values, 0, -1)) for c in courses if c is not None])
    if joined is None:
        return {}
    whole = np.isfinite(joined.values).all(axis=(0, 2))  # [3, T, N]
    found = {}
    for tag, values in zip(AROUND, joined.values[:, whole], strict=True):
        mean = over_seeds(Course(steps=joined.steps[whole], values=values.T), log=True)
        found[tag] = _points(mean.steps, np.log10(mean.mean))
    return found


def _profile(tag: str, course: Course, moment: float) -> dict[str, Points]:
    """log10 of the geometric mean over seeds, layer by layer."""
    at = np.flatnonzero(course.steps == moment)
    if not len(at):
        return {}
    layers = np.arange(1.0, course.values.shape[-1] + 1)
    mean = over_seeds(Course(steps=layers, values=course.values[:, int(at[0])]), log=True)
    return {tag: _points(mean.steps, np.log10(mean.mean))}


def _points(steps: Floats, values: Floats) -> Points:
    return [(int(step), float(value)) for step, value in zip(steps, values, strict=True)]
