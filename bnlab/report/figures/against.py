"""A metric of runs against any axis, a line per arm, or arm beside arm: drawn where a study asks for it.

On a logarithmic axis an average over seeds is a geometric mean, and two arms are compared by their ratio; on a linear
one it is the mean, and arms are compared by their difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen
from matplotlib.axes import Axes

from bnlab.analysis.arms import frozen
from bnlab.analysis.metrics import METRICS, Value
from bnlab.analysis.sides import RATE
from bnlab.core.study import ARM
from bnlab.core.text import number, short_key, typed
from bnlab.report.figures import FIGURES
from bnlab.report.measure import Measure, Spot, named, unit_of
from bnlab.report.sheet import (
    LABEL_PT,
    LEFT,
    Chart,
    Sheet,
    lanes,
    open_marker,
    text_width,
    thinned,
    value_axis,
)
from bnlab.report.views import (
    Drawn,
    Group,
    Missing,
    View,
    finding,
)

DOTTED: dict[str, Any] = {"color": "#555555", "linestyle": (0, (1, 1.6)), "linewidth": 1.2, "zorder": 2}
MOST_BANDS = 4
"""Arms; with more, only the two of the title have bands."""


@FIGURES.register("by", of="study", subject="a metric of runs against any axis, or arm beside arm")
def by(
    view: View,
    name: str,
    *,
    by: Annotated[str, MinLen(1)],
    metric: Annotated[str, MinLen(1)],
    options: dict[str, Any] | None = None,
    log: Literal["xy", "x", "y", "none"] = "none",
    reference: float | str | None = None,
    at: Literal["best_lr", "every_run"] = "best_lr",
) -> Drawn:
    """Seeds, their average and its interval, with each arm at its best learning rate for every value of the axis, or
    with `at: every_run` averaged over rates.

    Raises:
        Missing: fewer than two values of the axis, or nothing measured.
    """
    measure = Measure(
        metric=METRICS[metric],
        options=METRICS.checked(metric, options or {}, "options"),
        every_run=at == "every_run" and by != RATE,
        log="y" in log,
        reference=reference,
    )
    arms = by == ARM or (by == "norm" and all(len({run.spec.get(by) for run in g.runs}) == 1 for g in view.groups))
    places = (
        [None] if arms else in_order_of_size({frozen(run.spec.get(by)) for group in view.groups for run in group.runs})
    )
    numbers = all(isinstance(place, int | float) and not isinstance(place, bool) for place in places)
    if not arms and len(places) < 2:
        raise Missing(f"only one value of {by}", f"train at several: {by}=...")
    found = [
        [
            measure.spot(here, place, float(place) if numbers else float(index))
            for index, place in enumerate(places)
            if (here := [run for run in group.runs if arms or frozen(run.spec.get(by)) == place])
        ]
        for group in view.groups
    ]
    if not any(spot.values for spots in found for spot in spots):
        raise Missing(f"{measure.what} was not measured" + (", or is not above 0" if measure.log else ""))
    at_places = {
        "" if arms else f"at {axis_name(by)} {place_name(place)}": {
            group.label: spot.exact
            for group, spots in zip(view.groups, found, strict=True)
            for spot in spots
            if spot.place == place
        }
        for place in places
    }
    title = finding(view, measure.titled([run for group in view.groups for run in group.runs]), at_places, measure.log)
    note = measure.note(view, by, found)
    columns = ("arm", *([] if arms else [by]), "lr", "seed", metric, "bound", "mean", "low_95", "high_95", "reference")
    rows = [
        (group.label, *([] if arms else [typed(spot.place)]), *row)
        for group, spots in zip(view.groups, found, strict=True)
        for spot in spots
        for row in spot.rows()
    ]
    shown = "of every arm" if arms else f"against {axis_name(by)}, a line per arm"
    about = f"{measure.shown} {shown}, with every seed."
    if arms:
        return _beside(view, measure, title, note, [spots[0] for spots in found]).drawn(name, about, columns, rows)
    return _against(view, measure, title, note, found, by, "x" in log, numbers).drawn(name, about, columns, rows)


def axis_name(by: str) -> str:
    return "learning rate" if by == RATE else short_key(by)


def place_name(place: Any) -> str:
    return number(place) if isinstance(place, float) else typed(place)


def in_order_of_size(places: set[Any]) -> list[Any]:
    return sorted(places, key=lambda x: (0, x, "") if isinstance(x, int | float) else (1, 0, typed(x)))


def _marks(ax: Axes, group: Group, points: Sequence[tuple[float, float, Value, bool]], *, beside: bool = False) -> None:
    """An open marker a seed; an arrow where it is a bound, a cross where the run diverged."""
    for x, y, value, lost in points:
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        x, y = min(max(x, left), right), min(max(y, min(low, high)), max(low, high))  # a bound may be far away
        how = open_marker(group.look) | {"clip_on": False}
        if lost:
            how |= {"marker": "X", "markersize": 5.5, "markerfacecolor": group.look.color, "markeredgewidth": 0.3}
        elif value.bound:
            sign = "↓↑←→"[2 * beside + (value.bound == "at least")]
            how |= {"marker": f"${sign}$", "markersize": 7, "markerfacecolor": group.look.color, "markeredgewidth": 0.3}
        ax.plot(x, y, zorder=4, alpha=0.75, **how)


def _extent(found: Sequence[Sequence[Spot]], log: bool) -> list[float]:
    """What a value axis must have room for; of an interval that spans decades, and of bounds far away, a part."""
    spots = [spot for spots in found for spot in spots]
    all_values = [value for spot in spots for value in spot.values.values()]
    values = [value.value for value in all_values if not value.bound] or [value.value for value in all_values]
    values += [spot.reference for spot in spots if spot.reference is not None]
    low, high = min(values), max(values)
    ends = [end for spot in spots for end in spot.ends or ()] + [value.value for value in all_values]
    room = (low / 3, high * 3) if log else (2 * low - high, 2 * high - low)
    return [*values, *(min(max(end, room[0]), room[1]) for end in ends)]


def _against(
    view: View, measure: Measure, title: str, note: str, found: Sequence[Sequence[Spot]], by: str, log: bool, line: bool
) -> Chart:
    """A line an arm; of an axis that has no numbers, a bar an arm at each place."""
    lost = [[(spot.x, len(spot.seeds) - len(spot.values), len(spot.seeds)) for spot in spots] for spots in found]
    marks = [[mark for mark in of_arm if mark[1]] for of_arm in lost]
    chart = Chart(view, title, note, [group.label for group in view.groups], sum(map(bool, marks)))
    ax = chart.ax
    places = {spot.x: place_name(spot.place) for spots in found for spot in spots}
    xs = sorted(places)
    log = log and line and xs[0] > 0
    ax.set_xscale("log" if log else "linear")
    scale, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    at = scale(np.array(xs))
    span = at[-1] - at[0]
    step = min(0.06 * min(b - a for a, b in pairwise(at)), 0.03 * span) if line else 0.25
    ax.set_xlim(*back(np.array([at[0] - 0.05 * span - step, at[-1] + 0.05 * span + step])))
    ax.set_xticks(xs, labels=thinned([places[x] for x in xs], ax, xs))
    ax.set_xticks([], minor=True)
    ax.set_xlabel(axis_name(by))
    value_axis(ax, _extent(found, measure.log), measure.log)
    ax.set_ylabel(f"{measure.what}{unit_of(measure.metric.unit)}")
    middle = (len(found) - 1) / 2
    for index, (group, spots) in enumerate(zip(view.groups, found, strict=True)):
        shift = step * (index - middle) / max(1.0, middle)

        def moved(x: float, shift: float = shift) -> float:
            return float(back(scale(x) + shift))

        x, y = np.array([(spot.x if line else moved(spot.x), spot.middle) for spot in spots]).T
        ends = np.array([spot.ends or (math.nan, math.nan) for spot in spots]).T
        if not line:
            ax.vlines(x, *ends, color=group.look.color, linewidth=2, zorder=3)
            ax.plot(x, y, marker=group.look.marker, color=group.look.color, linestyle="none", zorder=5)
        else:
            chart.line(x, y, group.look)
            if len(found) <= MOST_BANDS or group in (view.pair or ()):
                ax.fill_between(x, *ends, color=group.look.color, alpha=0.15, linewidth=0)
        points = [
            (moved(spot.x), value.value, value, seed in spot.lost)
            for spot in spots
            for seed, value in spot.values.items()
        ]
        _marks(ax, group, points)
        chart.keep_off(*np.array([point[:2] for point in points] or np.empty((0, 2))).T)
        drawn = np.isfinite(y)
        if points:
            last, height = (x[drawn][-1], y[drawn][-1]) if drawn.any() else points[-1][:2]
            right = float(back(scale(last) + step)) if line else ax.get_xlim()[1]
            chart.name(group.label, group.look, right, height)  # right of all markers there
    lanes(ax, [group.look for group in view.groups], marks, "X", "no value")
    for curve in {tuple((spot.x, spot.reference) for spot in spots) for spots in found}:
        x, y = np.array(curve, np.float64).T
        if len(set(y)) == 1 and np.isfinite(y[0]):
            chart.line_across(y[0], named(measure.reference, y[0]))
        elif np.isfinite(y).any():
            chart.line(x, y, **DOTTED)
    return chart


def _beside(view: View, measure: Measure, title: str, note: str, spots: Sequence[Spot]) -> Sheet:
    """A row an arm."""
    widest = max(text_width(group.label, LABEL_PT, bold=True) for group in view.groups) / 72
    left = min(max(LEFT, widest + 0.25), 2.4)
    sheet = Sheet(view.titled(title), view.noted(note), plot_height=0.75 + 0.34 * len(spots))
    ax = sheet.axes(left=left, right=sheet.width - 0.75, first=False)
    value_axis(ax, _extent([spots], measure.log), measure.log, "x")
    ax.set(ylim=(len(spots) - 0.5, -0.5), xlabel=f"{measure.what}{unit_of(measure.metric.unit)}")
    ax.set_yticks(range(len(spots)), labels=[group.label for group in view.groups])
    ax.grid(visible=False, axis="y")
    for text, group in zip(ax.get_yticklabels(), view.groups, strict=True):
        text.set(color=group.look.ink, fontweight="bold", fontsize=LABEL_PT)
    for row, (group, spot) in enumerate(zip(view.groups, spots, strict=True)):
        tilt = np.linspace(-0.22, 0.22, len(spot.values)) if len(spot.values) > 1 else [0.0]
        points = [
            (value.value, row + up, value, seed in spot.lost)
            for (seed, value), up in zip(spot.values.items(), tilt, strict=True)
        ]
        _marks(ax, group, points, beside=True)
        if spot.ends:
            ax.hlines(row, *spot.ends, color=group.look.color, linewidth=2.4, zorder=3)
        ax.plot(spot.middle, row, marker="|", markersize=13, markeredgewidth=2.4, color=group.look.color, zorder=5)
        lost = len(spot.seeds) - len(spot.values)
        said = f"✕ {lost} of {len(spot.seeds)}" if lost else "bounds"
        said = number(spot.middle) if math.isfinite(spot.middle) else said
        how: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        ax.annotate(said, (1, row), xytext=(7, 0), color=group.look.ink, fontsize=8, annotation_clip=False, **how)
        if spot.reference is not None:
            ax.plot([spot.reference] * 2, [row - 0.5, row + 0.5], **DOTTED)
    return sheet
