"""A measurement of the journal over training steps, and over layers, a line per arm: drawn where a study asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen

from bnlab.analysis.metrics.medians import Sites, Window, at_sites, within
from bnlab.core.text import count, number
from bnlab.record.journal import Series
from bnlab.record.runs import Run
from bnlab.report.figures import FIGURES
from bnlab.report.figures.against import MOST_BANDS
from bnlab.report.measure import constants, named, site, when
from bnlab.report.sheet import Chart, layer_ticks, open_marker, step_axis, value_axis
from bnlab.report.views import Drawn, Floats, Group, Missing, View, average, finding, finite, median, together

Log = Literal["y", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One arm: what its `runs` measured at `x` [T], or of every layer [T, L]: their median, smallest and largest."""

    group: Group
    runs: Sequence[Run]
    x: Floats
    middle: Floats
    low: Floats
    high: Floats


def _positive(values: Floats, log: bool) -> Floats:
    """Of a logarithmic axis, the values that it can show."""
    return np.where(values > 0, values, math.nan) if log else values


def courses(
    view: View, lr: float | None, of: str, log: bool, read: Callable[[list[Run]], tuple[Floats, Floats]]
) -> tuple[list[Course], float, str]:
    """Of every arm, at the learning rate, which is returned with the footnote on it; `read`: runs -> x [T] and their
    values [R, T], or of every layer [R, T, L]. Runs that diverged are left out, unless all did.

    Raises:
        Missing: no learning rate that all arms have, or nothing measured.
    """
    rate, why = view.common_rate() if lr is None else (lr, "")
    if rate is None:
        raise Missing("no learning rate that every arm has", "give the figure one: lr: 0.1")
    found, lost = [], 0
    for group in view.groups:
        runs = [run for run in group.at(rate) if not run.diverged] or group.at(rate)
        lost += len(group.at(rate)) - len(runs)
        runs = [run for run in runs if len(run.series(of))]
        x, stack = read(runs) if runs else (np.empty(0), np.empty(0))
        stack = _positive(stack, log)
        if np.isfinite(stack).any():
            low, high = np.fmin.reduce(stack, axis=0), np.fmax.reduce(stack, axis=0)
            found.append(Course(group=group, runs=runs, x=x, middle=median(stack), low=low, high=high))
    if not found:
        raise Missing(f"no {of} in the journals at a learning rate of {number(rate)}", "measure it: probes=standard")
    most = max(len(course.runs) for course in found)
    band = "; band: smallest to largest" * (found[0].middle.ndim == 1)
    note = f"Line: median of {count(most, 'seed')}{band}. Learning rate {number(rate)}"
    note += f", {why}." if why else "."
    return found, rate, note + (f" Left out: {count(lost, 'run')} that diverged." if lost else "")


def _chart(view: View, title: str, note: str, found: Sequence[Course], log: bool, more: Sequence[float] = ()) -> Chart:
    """Everything but the horizontal axis."""
    chart = Chart(view, title, note, [course.group.label for course in found])
    banded = [course for course in found if len(found) <= MOST_BANDS or course.group in (view.pair or ())]
    lines = [c.middle for c in found] + [end for c in banded for end in (c.low, c.high)]
    value_axis(chart.ax, [*finite(np.concatenate(lines)), *more], log)
    for course in found:
        look = course.group.look
        if any(course is other for other in banded):
            chart.ax.fill_between(course.x, course.low, course.high, color=look.color, alpha=0.15, linewidth=0)
        chart.line(course.x, course.middle, look)
        last = np.flatnonzero(np.isfinite(course.middle))[-1]
        chart.name(course.group.label, look, course.x[last], course.middle[last])
    return chart


def _rows(found: Sequence[Course], rate: float) -> list[tuple[str | float, ...]]:
    return [
        (course.group.label, rate, *values)
        for course in found
        for values in zip(course.x, course.middle, course.low, course.high, strict=True)
    ]


@FIGURES.register("steps", of="study", subject="a measurement over training steps")
def steps(
    view: View,
    name: str,
    *,
    of: Annotated[str, MinLen(1)],
    sites: Sites = "hidden",
    log: Log = "none",
    reference: float | str | None = None,
    lr: float | None = None,
) -> Drawn:
    """Every arm at one learning rate, by default the common one. The title compares averages over equally spaced steps.

    Raises:
        Missing: no such rate, or nothing measured.
    """
    log_y = log == "y"

    def read(runs: list[Run]) -> tuple[Floats, Floats]:
        return together(runs, of, lambda stack: np.stack([at_sites(_at_steps(one), sites).values for one in stack]))

    found, rate, note = courses(view, lr, of, log_y, read)
    means = {
        course.group.label: {
            run.seed: mean
            for run in course.runs
            if math.isfinite(mean := average(finite(_positive(at_sites(run.spaced(of), sites).values, log_y)), log_y))
        }
        for course in found
    }
    what = ", ".join(filter(None, (of, site(of, sites, [run for course in found for run in course.runs]))))
    counted = "" if isinstance(sites, str) else ", counted from 0"
    note = f"{what}{counted}. {note} In the title: {'geometric ' * log_y}mean over equally spaced steps."
    across = sorted({value for course in found for value in constants(reference, course.runs[:1])})
    chart = _chart(view, finding(view, f"{what}, mean over steps", {"": means}, log_y), note, found, log_y, across)
    chart.ax.set_ylabel(of)
    step_axis(chart.ax, max(1.0, *(float(course.x[-1]) for course in found)))
    for value in across:
        chart.line_across(value, named(reference, value))
    about = f"{of} over training steps, a line per arm, at a learning rate of {number(rate)}."
    return chart.drawn(name, about, ("arm", "lr", "step", "median", "smallest", "largest"), _rows(found, rate))


def _at_steps(values: Floats) -> Series:
    return Series(np.arange(len(values)), values)


@FIGURES.register("profile", of="study", subject="a measurement over the layers")
def profile(
    view: View,
    name: str,
    *,
    of: Annotated[str, MinLen(1)],
    window: Window = (0, 1),  # type: ignore[assignment]
    log: Log = "none",
    lr: float | None = None,
) -> Drawn:
    """Every arm at one learning rate, by default the common one; median over the equally spaced steps of a window of
    the run. The head is left out.

    Raises:
        Missing: no such rate, nothing measured, or one value a step.
    """
    log_y = log == "y"

    def read(runs: list[Run]) -> tuple[Floats, Floats]:
        parts = [within(run, run.spaced(of), window).values for run in runs]
        parts = [part[:, : max(1, part.shape[1] - 1)] for part in parts if part.ndim > 1 and len(part)]
        if not parts:
            raise Missing(f"no {of} of several sites in this part of the run", "give the figure another window")
        return np.arange(float(parts[0].shape[1])), np.stack([median(_positive(part, log_y)) for part in parts])

    found, rate, note = courses(view, lr, of, log_y, read)
    length = max(run.steps for course in found for run in course.runs)
    low, high = (round(share * length) for share in window)
    steps = f"step {low}" if low == high else f"median over equally spaced steps from {low} to {high}"
    note = f"{of} of every hidden site, {steps}. {note}"
    chart = _chart(view, _along_depth(view, f"{of} {when(window)}".rstrip(), found, log_y), note, found, log_y)
    ax, depth = chart.ax, max(len(course.x) for course in found)
    ax.set_xlim(-0.03 * depth, depth - 1 + 0.03 * depth)
    ax.set_xticks(layer_ticks(depth) if depth > 10 else range(depth))
    ax.set(xlabel="hidden layer (0 = first)", ylabel=of)
    for course in found:
        ax.plot(course.x, course.middle, zorder=4, **open_marker(course.group.look))
    about = f"{of} of every hidden layer, a line per arm, at a learning rate of {number(rate)}."
    return chart.drawn(name, about, ("arm", "lr", "layer", "median", "smallest", "largest"), _rows(found, rate))


def _along_depth(view: View, what: str, found: Sequence[Course], log: bool) -> str:
    """A title: how it changes from the first layer to the last, with the pair's arms, or with those in which it changes
    most and least."""
    ends: dict[str, tuple[float, float, int]] = {}
    for course in found:
        known = np.flatnonzero(np.isfinite(course.middle))
        first, last = known[0], known[-1]
        ends[course.group.label] = float(course.middle[first]), float(course.middle[last]), int(last - first)
    size = {
        label: abs(math.log(last / first)) if log else abs(last - first) for label, (first, last, _) in ends.items()
    }
    arms = [group.label for group in view.pair or () if group.label in ends]
    if not arms:
        arms = list(dict.fromkeys([max(size, key=size.__getitem__), min(size, key=size.__getitem__)]))
    parts: list[str] = []
    for label in arms:
        first, last, layers = ends[label]
        rate = (last / first) ** (1 / layers) if log and layers else 1.0
        if not log:
            words = f"from {number(first)} in the first layer to {number(last)} in the last" if not parts else ""
            words = words or f"from {number(first)} to {number(last)}"
        elif abs(math.log(rate)) < math.log(1.02):
            words = "stays level"
        else:
            words = f"{'grows' if rate > 1 else 'shrinks'} {max(rate, 1 / rate):.3g}× a layer"
        parts.append(f"{words} with {label}")
    return f"{what} {', '.join(parts)}" if log else f"{what}: {'; '.join(parts)}"
