"""How far each layer's pre-activations move between measurements: layer against step, one panel an arm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm

from bnlab.core.text import listed, number
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import LEFT, WIDTH, Sheet, footnote, log_ticks, panel_name, seeds_of
from bnlab.report.style import EDGE, GRID, Look
from bnlab.report.views import (
    Drawn,
    Floats,
    Group,
    Missing,
    Number,
    View,
    by_seed,
    even,
    finite,
    median,
    ratio,
    together,
)

METRIC = "drift_mean.pre"
NOT_FINITE = "#b9b9b9"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One arm: drift [L, T], median over seeds, between measurements `gap` steps apart."""

    label: str
    look: Look
    steps: Floats
    drift: Floats
    gap: int


def panel(group: Group, lr: float) -> Panel | None:
    """None where no run measured it."""
    steps, values, _ = together((run for run in group.at(lr)), METRIC, median)
    kept = even(steps)
    if kept.sum() < 2:
        return None
    gap = int(steps[kept][1] - steps[kept][0])
    return Panel(label=group.label, look=group.look, steps=steps[kept], drift=values[kept].T, gap=gap)


def headline(view: View, lr: float) -> str:
    """By how much the median over layers and steps differs."""
    if view.pair is None:
        return "Drift of the pre-activations, layer by layer"
    ours, theirs = (
        by_seed(group.at(lr), lambda run: float(np.median(finite(run.series(METRIC).values.ravel()) or [math.nan])))
        for group in view.pair
    )
    treated, control = (group.label for group in view.pair)
    rest = f" than with {control}" if len(view.groups) > 2 else ""
    found = ratio(ours, theirs)
    if found is None or not found.clear:
        return f"No clear difference in drift between {treated} and {control}"
    less = "smaller" if found.value < 1 else "larger"
    return f"Median drift is {found.times} {less} with {treated}{rest}{found.proviso}"


@FIGURES.register(
    "drift", order=3, subject="drift of the pre-activations, layer against step", reads=("drift_mean.pre",)
)
def draw(view: View, name: str) -> Drawn:
    """Draw it.

    Raises:
        Missing: no drift in the journals.
    """
    lr, why = view.common_rate()
    panels = [found for group in view.panels if lr is not None and (found := panel(group, lr)) is not None]
    if not panels or lr is None:
        raise Missing("no drift in the journals", "measure it: probes=economy")
    title = view.titled(headline(view, lr))
    note = footnote(
        f"Median over channels of |Δ mean| / sd of the pre-activations between measurements {panels[0].gap} steps "
        f"apart, on a fixed probe batch; median of {seeds_of(view)}. Learning rate {number(lr)}, {why}. One "
        "logarithmic colour scale; grey: not finite.",
        view.reduced,
    )
    sheet = Sheet(title, note, plot_height=2.75)
    values = np.concatenate([p.drift[np.isfinite(p.drift) & (p.drift > 0)] for p in panels])
    low, high = (float(x) for x in np.percentile(values, [1, 99])) if len(values) else (0.1, 1.0)
    scale = LogNorm(low, max(high, low * 1.5), clip=False)
    gap, left, right = 0.12, LEFT, WIDTH - 0.85
    width = (right - left - gap * (len(panels) - 1)) / len(panels)
    image = None
    for index, p in enumerate(panels):
        x0 = left + index * (width + gap)
        ax = sheet.axes(left=x0, right=x0 + width, above=0.28, first=index == 0)
        ax.grid(False)
        ax.set_facecolor(GRID)
        half = p.gap / 2
        shown = np.ma.masked_invalid(p.drift)
        image = ax.imshow(
            np.maximum(shown, low * 1e-3),
            aspect="auto",
            origin="lower",
            interpolation="nearest",
            cmap=colormaps["cividis"].with_extremes(bad=NOT_FINITE),
            norm=scale,
            extent=(float(p.steps[0]) - half, float(p.steps[-1]) + half, 0.5, len(p.drift) + 0.5),
        )
        panel_name(ax, p.label, p.look)
        ax.set_xlabel("training step")
        for side in ax.spines.values():
            side.set_visible(False)
        ax.locator_params(axis="x", nbins=max(3, int(width * 2.4)))
        depth = len(p.drift)
        ax.set_yticks(sorted({1, depth, *range(5, depth - 1, 5)}))
        if index:
            ax.set_yticklabels([])
        else:
            ax.set_ylabel("layer (1 = input)")
    assert image is not None
    bar_ax = sheet.axes(left=right + 0.13, right=right + 0.24, above=0.28, first=False)
    bar = sheet.figure.colorbar(image, cax=bar_ax, extend="both")
    bar.outline.set_edgecolor(EDGE)
    log_ticks(bar_ax, low, max(high, low * 1.5), most=5)
    bar.set_label("drift (standard deviations)")
    return sheet.drawn(
        name,
        about="Heat maps of the drift of pre-activations, layer by training step, for "
        + listed([p.label for p in panels])
        + f" at a learning rate of {number(lr)}.",
        columns=("arm", "lr", "layer", "step", "drift"),
        rows=_rows(panels, lr),
    )


def _rows(panels: list[Panel], lr: float) -> list[tuple[Number, ...]]:
    return [
        (p.label, lr, layer + 1, int(step), float(p.drift[layer, at]) if np.isfinite(p.drift[layer, at]) else None)
        for p in panels
        for layer in range(len(p.drift))
        for at, step in enumerate(p.steps)
    ]
