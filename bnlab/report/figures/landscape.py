"""The range of the loss along the gradient, over training, at one learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bnlab.core.text import listed, number
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import Chart, around, log_ticks, seeds_of, step_axis
from bnlab.report.views import Drawn, Floats, Group, Missing, View, compared, finite, geometric, together

HATCHES = {"o": "", "s": "////", "^": "\\\\\\\\", "D": "....", "v": "----"}
"""The hatch of a band, by the marker of its arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One arm: lowest and highest loss [T] within reach of one step, geometric means over seeds."""

    group: Group
    steps: Floats
    low: Floats
    high: Floats


def band(group: Group, lr: float) -> Band | None:
    """None where no run measured it."""
    steps, low = together(group.at(lr), "loss_lo", geometric)
    _, high = together(group.at(lr), "loss_hi", geometric)
    if len(steps) < 2:
        return None
    return Band(group=group, steps=steps, low=low, high=high)


def reach(view: View) -> str:
    """How far along the gradient: `0.5 to 4`."""
    spec = view.groups[0].runs[0].spec
    low, high = spec.get("probes.landscape.low"), spec.get("probes.landscape.high")
    return f"{low:g} to {high:g}" if low is not None and high is not None else "several"


@FIGURES.register(
    "landscape", order=5, subject="range of the loss along the gradient", reads=("loss_lo", "loss_hi", "loss_range")
)
def draw(view: View, name: str) -> Drawn:
    """A band an arm; the title compares the relative range of the loss, median over steps.

    Raises:
        Missing: the landscape was not measured.
    """
    lr, why = view.common_rate()
    bands = [found for group in view.groups if lr is not None and (found := band(group, lr)) is not None]
    if not bands or lr is None:
        raise Missing("the loss along the gradient was not measured", "measure it: probes=standard")
    title = compared(
        view,
        lr,
        lambda run: float(np.median(finite(run.spaced("loss_range").values) or [math.nan])),
        alone="Range of the loss within one gradient step",
        unclear="Along the gradient, no clear difference in the relative range of the training loss between {} and {}",
        clear="Along the gradient, the training loss varies, relative to itself,",
        metric="loss_range",
    )
    factor = "The title's factor: (highest - lowest) / loss, median over equally spaced steps."
    note = (
        f"Band: lowest to highest loss of the training batch at {reach(view)} times the learning rate along the "
        f"gradient (Santurkar et al. 2018, figure 4a), geometric mean of {seeds_of(view)}. Learning rate "
        f"{number(lr)}, {why}. {view.factor('loss_range', factor)}"
    )
    if endless := [b.group.label for b in bands if not np.isfinite(b.high).any()]:
        note += f" Of {listed(endless)} the lowest alone is drawn; the highest is too large for a number."
    chart = Chart(view, title, note, [group.label for group in view.groups])
    ax = chart.ax
    log_ticks(ax, *around(finite(np.concatenate([x for b in bands for x in (b.low, b.high)]))))
    step_axis(ax, float(max(b.steps[-1] for b in bands)))
    ax.set_ylabel("loss along the gradient")
    widest = sorted(bands, key=lambda b: -float(np.median(finite(b.high / b.low) or [math.inf])))
    for b in widest:
        look = b.group.look
        hatch = HATCHES.get(look.marker, "xxx")
        ax.fill_between(b.steps, b.low, b.high, facecolor=(look.color, 0.22), linewidth=0)
        if hatch:  # apart from the fill: in SVG a pattern hides itself before paper of its own colour
            edge = (look.color, 0.45)
            ax.fill_between(b.steps, b.low, b.high, facecolor="none", edgecolor=edge, hatch=hatch, linewidth=0)
        for end in (b.low, b.high):
            chart.line(b.steps, end, look, linestyle="solid", linewidth=1.0)
        high = np.where(np.isfinite(b.high), b.high, b.low)
        there = np.flatnonzero(np.isfinite(b.low))
        if len(there):
            late = there[-max(1, len(there) // 10) :]
            middle = math.exp(float(np.log(b.low[late] * high[late]).mean()) / 2)
            chart.name(b.group.label, look, b.steps[there[-1]], middle)
    return chart.drawn(
        name,
        about="Bands from the lowest to the highest loss within reach of one gradient step, over training, for "
        f"{listed([b.group.label for b in bands])} at a learning rate of {number(lr)}.",
        columns=("arm", "lr", "step", "loss_lo", "loss_hi"),
        rows=[(b.group.label, lr, *values) for b in widest for values in zip(b.steps, b.low, b.high, strict=True)],
    )
