"""A measurement of every layer over training steps, an arm a panel: drawn where a study asks. Courses show so update
ratios, saturation and dead units (Karpathy 2022, makemore part 3; Howard 2022, fast.ai part 2)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen
from matplotlib import colormaps
from matplotlib.axes import Axes

from bnlab.analysis.metrics.medians import over_sites
from bnlab.core.study import ARM, evenly
from bnlab.core.text import listed
from bnlab.report.figures import FIGURES
from bnlab.report.figures.against import DOTTED, by
from bnlab.report.figures.courses import Course, Log, courses
from bnlab.report.measure import constants, named
from bnlab.report.sheet import HALO, Sheet, spread, step_axis, value_axis
from bnlab.report.style import MUTED
from bnlab.report.views import Drawn, Floats, Missing, View, average, finding, finite, together

MOST_NAMED = 6
"""Layers with their number at the end of the line."""


@FIGURES.register("layers", of="study", subject="a measurement of every layer over training steps, an arm a panel")
def layers(
    view: View,
    name: str,
    *,
    of: Annotated[str, MinLen(1)],
    log: Log = "none",
    reference: float | str | None = None,
    lr: float | None = None,
) -> Drawn:
    """Every arm at one learning rate, by default the common one; the head is left out. The title compares averages over
    hidden layers and equally spaced steps.

    Raises:
        Missing: no such rate, or nothing measured.
    """
    log_y = log == "y"
    found, rate, note = courses(view, lr, of, log_y, lambda runs: together(runs, of, _hidden))
    found = [one for one in found if one.group in view.panels]
    means = {
        one.group.label: {
            run.seed: mean
            for run in one.runs
            if math.isfinite(mean := average(_shown(over_sites(run.spaced(of).values, "hidden"), log_y), log_y))
        }
        for one in found
    }
    across = sorted({value for one in found for value in constants(reference, one.runs[:1])})
    note = f"{of} of every hidden layer, from dark, the first, to light, the last. {note}"
    note += f" In the title: {'geometric ' * log_y}mean over equally spaced steps of the median over layers."
    sheet = Sheet(
        view.titled(finding(view, f"{of}, mean over steps", {"": means}, log_y)), view.noted(note), plot_height=3.0
    )
    every = [value for one in found for value in _shown(one.middle, log_y)]
    for index, (one, ax) in enumerate(
        zip(found, sheet.panels([one.group for one in found], sheet.width - 0.3, 0.35), strict=True)
    ):
        value_axis(ax, [*every, *across], log_y)
        ax.tick_params(labelleft=not index)
        step_axis(ax, max(1.0, float(one.x[-1])))
        ax.locator_params(axis="x", nbins=max(3, int(ax.bbox.width / 72 * 2)))
        for value in across:
            ax.axhline(value, **DOTTED)
            if not index:
                how: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
                how |= {"path_effects": HALO, "zorder": 6}
                ax.annotate(named(reference, value), (0, value), xytext=(3, -9), color=MUTED, fontsize=7, **how)
        _draw(ax, one)
        if not index:
            ax.set_ylabel(of)
    about = f"{of} of every hidden layer over training steps, a panel for {listed([one.group.label for one in found])}."
    rows = [
        (one.group.label, rate, layer, step, value)
        for one in found
        for layer, values in enumerate(one.middle.T)
        for step, value in zip(one.x, values, strict=True)
    ]
    return sheet.drawn(name, about, ("arm", "lr", "layer", "step", "median"), rows)


def _hidden(stack: Floats) -> Floats:
    """[R, T, L] without the head."""
    if stack.ndim < 3:
        raise Missing("one value a step, and none a layer", "draw it with kind: steps")
    return stack[:, :, : max(1, stack.shape[2] - 1)]


def _shown(values: Floats, log: bool) -> list[float]:
    """What an axis can show."""
    return [value for value in finite(values.ravel()) if value > 0 or not log]


def _draw(ax: Axes, one: Course) -> None:
    """A line a layer, those with room for it numbered at their ends."""
    drawn = [layer for layer in range(one.middle.shape[1]) if np.isfinite(one.middle[:, layer]).any()]
    ramp = colormaps["cividis"](np.linspace(0, 0.92, max(2, len(drawn))))
    ends: dict[int, float] = {}
    for color, layer in zip(ramp, drawn, strict=False):
        y = one.middle[:, layer]
        ax.plot(one.x, y, color=color, linewidth=1.2, zorder=3)
        ends[layer] = float(ax.transData.transform((0, y[np.isfinite(y)][-1]))[1])
    chosen = sorted((drawn[index] for index in evenly(len(drawn), MOST_NAMED)), key=lambda layer: -ends[layer])
    heights = spread([ends[layer] for layer in chosen], 9.0, ax.bbox.y0 + 4, ax.bbox.y1 - 4)
    for layer, height in zip(chosen, heights, strict=True):
        x, y = ax.transAxes.inverted().transform((ax.bbox.x1 + 3, height))
        ax.text(x, y, str(layer), transform=ax.transAxes, va="center", fontsize=7, color=MUTED)


@FIGURES.register("update_ratio", of="study", subject="update ratios of every layer over steps, with the line at 1e-3")
def update_ratio(view: View, name: str, *, lr: float | None = None) -> Drawn:
    """||step|| / ||W||, on a logarithmic axis (Karpathy 2022 draws log10 of the quotient of standard deviations, with a
    line at -3). See `layers`."""
    return layers(view, name, of="update_ratio", log="y", reference=1e-3, lr=lr)


@FIGURES.register("saturation", of="study", subject="saturated share of every layer's outputs over steps")
def saturation(view: View, name: str, *, lr: float | None = None) -> Drawn:
    """Of a tanh or a sigmoid. See `layers`."""
    return layers(view, name, of="saturated_fraction", lr=lr)


@FIGURES.register("dead_units", of="study", subject="share of every layer's units that are dead, over steps")
def dead_units(view: View, name: str, *, lr: float | None = None) -> Drawn:
    """Of ReLU. See `layers`."""
    return layers(view, name, of="dead_fraction", lr=lr)


@FIGURES.register("initial_loss", of="study", subject="training loss at step 0, against that of a uniform guess, log K")
def initial_loss(view: View, name: str) -> Drawn:
    """Arm beside arm, over all learning rates, on which it does not depend.

    Raises:
        Missing: nothing measured.
    """
    options = {"of": "train_loss", "sites": "all", "window": [0.0, 0.0], "over": "last"}
    return by(view, name, by=ARM, metric="course", options=options, reference=view.chance_loss, at="every_run")
