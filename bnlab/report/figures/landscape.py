"""The range of the loss along the gradient, over training, at one learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bnlab.core.text import listed, number
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import (
    LEFT,
    EndLabel,
    Sheet,
    around,
    footnote,
    log_ticks,
    place_labels,
    room_for,
    seeds_of,
    step_axis,
)
from bnlab.report.style import Look
from bnlab.report.views import Drawn, Floats, Group, Missing, Number, View, by_seed, finite, geometric, ratio, together

HATCHES = {"o": "", "s": "////", "^": "\\\\\\\\", "D": "....", "v": "----"}
"""The hatch of a band, by the marker of its arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One arm: lowest and highest loss [T] within reach of one step, geometric means over seeds."""

    label: str
    look: Look
    steps: Floats
    low: Floats
    high: Floats


def band(group: Group, lr: float) -> Band | None:
    """None where no run measured it."""
    steps, low, _ = together(group.at(lr), "loss_lo", geometric)
    _, high, _ = together(group.at(lr), "loss_hi", geometric)
    if len(steps) < 2:
        return None
    return Band(label=group.label, look=group.look, steps=steps, low=low, high=high)


def headline(view: View, lr: float) -> str:
    """By how much the relative range of the loss differs, median over steps."""
    if view.pair is None:
        return "Range of the loss within one gradient step"
    ours, theirs = (
        by_seed(group.at(lr), lambda run: float(np.median(finite(run.series("loss_range").values) or [math.nan])))
        for group in view.pair
    )
    treated, control = (group.label for group in view.pair)
    rest = f" than with {control}" if len(view.groups) > 2 else ""
    found = ratio(ours, theirs)
    if found is None or not found.clear:
        return f"Along the gradient, no clear difference in the loss's range between {treated} and {control}"
    less = "less" if found.value < 1 else "more"
    return f"Along the gradient, the loss varies {found.times} {less} with {treated}{rest}{found.proviso}"


def reach(view: View) -> str:
    """How far along the gradient: `0.5 to 4`."""
    spec = view.groups[0].runs[0].spec
    low, high = spec.get("probes.landscape.low"), spec.get("probes.landscape.high")
    return f"{low:g} to {high:g}" if low is not None and high is not None else "several"


@FIGURES.register(
    "landscape", order=5, subject="range of the loss along the gradient", reads=("loss_lo", "loss_hi", "loss_range")
)
def draw(view: View, name: str) -> Drawn:
    """Draw it.

    Raises:
        Missing: the landscape was not measured.
    """
    lr, why = view.common_rate()
    bands = [found for group in view.groups if lr is not None and (found := band(group, lr)) is not None]
    if not bands or lr is None:
        raise Missing("the loss along the gradient was not measured", "measure it: probes=standard")
    title = view.titled(headline(view, lr))
    note = footnote(
        f"Band: lowest to highest loss of the training batch at {reach(view)} times the learning rate along the "
        f"gradient (Santurkar et al. 2018, figure 4a), geometric mean of {seeds_of(view)}. Learning rate "
        f"{number(lr)}, {why}. The title's factor: (highest - lowest) / loss, median over steps.",
        view.reduced,
    )
    sheet = Sheet(title, note, plot_height=3.15)
    ax = sheet.axes(left=LEFT, right=room_for([group.label for group in view.groups]))
    log_ticks(ax, *around(finite(np.concatenate([x for b in bands for x in (b.low, b.high)]))))
    step_axis(ax, float(max(b.steps[-1] for b in bands)))
    ax.set_ylabel("loss along the gradient")
    drawn, labels = [], []
    rows: list[tuple[Number, ...]] = []
    for b in sorted(bands, key=lambda b: -float(np.nanmedian(b.high / b.low))):
        hatch = HATCHES.get(b.look.marker, "xxx")
        ax.fill_between(b.steps, b.low, b.high, facecolor=(b.look.color, 0.22), linewidth=0)
        if hatch:  # apart from the fill: in SVG a pattern hides itself before paper of its own colour
            ax.fill_between(
                b.steps, b.low, b.high, facecolor="none", edgecolor=(b.look.color, 0.45), hatch=hatch, linewidth=0
            )
        for edge in (b.low, b.high):
            ax.plot(b.steps, edge, color=b.look.color, linewidth=1.0, zorder=3)
            drawn.append((b.steps, edge))
        there = np.flatnonzero(np.isfinite(b.low * b.high))
        if len(there):
            late = there[-max(1, len(there) // 10) :]
            middle = math.exp(float(np.log(b.low[late] * b.high[late]).mean()) / 2)
            labels.append(EndLabel(text=b.label, look=b.look, x=float(b.steps[there[-1]]), y=middle))
        rows += [
            (b.label, lr, int(s), *(float(x) if np.isfinite(x) else None for x in (lo, hi)))
            for s, lo, hi in zip(b.steps, b.low, b.high, strict=True)
        ]
    place_labels(ax, labels, drawn)
    return sheet.drawn(
        name,
        about="Bands from the lowest to the highest loss within reach of one gradient step, over training, for "
        + listed([b.label for b in bands])
        + f" at a learning rate of {number(lr)}.",
        columns=("arm", "lr", "step", "loss_lo", "loss_hi"),
        rows=rows,
    )
