"""Training loss against the step, each arm at the learning rate that is best for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bnlab.analysis.metrics.losses import SMOOTHED, trailing_median
from bnlab.core.text import capital, number
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import Chart, around, log_ticks, step_axis
from bnlab.report.views import Drawn, Floats, Group, Missing, View, geometric, ratio, together, usual_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One arm: smoothed losses [T] of every run, and their geometric mean over those that have them all."""

    group: Group
    lr: float
    steps: Floats
    mean: Floats
    singles: tuple[tuple[int, bool, Floats, Floats], ...]
    """Of each run: seed, whether it diverged, steps, smoothed losses."""


def curve(group: Group) -> Curve | None:
    """At the arm's best rate; where it has none, at the rate at which most of its runs train, the smaller of equals."""
    lr = usual_rate({rate: group.at(rate) for rate in group.rates})
    singles = []
    for run in group.at(lr):
        steps, values = run.series("train_loss")
        if len(steps):
            singles.append((run.seed, run.diverged, steps, trailing_median(values, SMOOTHED)))
    if not singles:
        return None
    steps, mean = together(
        (run for run in group.at(lr) if not run.diverged or len(singles) == 1),
        "train_loss",
        lambda stack: geometric(np.stack([trailing_median(values, SMOOTHED) for values in stack])),
    )
    return Curve(group=group, lr=lr, steps=steps, mean=mean, singles=tuple(singles))


def headline(view: View, curves: list[Curve]) -> str:
    """Which arm reaches the other's final loss, and how much sooner."""
    chosen = any(len(group.rates) > 1 for group in view.groups)
    by_label = {curve.group.label: curve for curve in curves}
    if view.pair is None or any(group.label not in by_label for group in view.pair):
        ends = {c.group.label: float(c.mean[-1]) for c in curves if len(c.mean) and math.isfinite(c.mean[-1])}
        if not ends:
            return "No run keeps a finite loss"
        first = min(ends, key=ends.__getitem__)
        if len(curves) == 1:
            return f"{capital(first)}: training loss falls to {number(ends[first])}"
        rates = "each arm at its best rate" if chosen else "at the one rate tried"
        return f"{capital(first)} ends at the lowest training loss, {rates}"
    pair = [by_label[group.label] for group in view.pair]
    ends_of_pair = [float(c.mean[-1]) if len(c.mean) else math.nan for c in pair]
    if not all(math.isfinite(end) for end in ends_of_pair):
        done = [c.group.label for c, end in zip(pair, ends_of_pair, strict=True) if math.isfinite(end)]
        return f"Only {done[0]} trains" if done else "Neither arm trains"
    fast, slow = pair if ends_of_pair[0] <= ends_of_pair[1] else pair[::-1]
    found = ratio(*({seed: float(y[-1]) for seed, _, _, y in c.singles if len(y)} for c in (fast, slow)))
    when = fast.steps[np.flatnonzero(fast.mean <= slow.mean[-1])[0]]
    at = "Each at its best rate" if chosen else "At the one rate tried"
    if found is None or not found.clear:
        return f"{at}, the arms end with no clear difference in the loss of training batches"
    if when < 1:
        return (
            f"{at}, {slow.group.label} ends above the training loss at which {fast.group.label} begins{found.proviso}"
        )
    sooner = number((slow.steps[-1] + 1) / when, 2)
    return (
        f"{at}, {fast.group.label} is at the final training loss of {slow.group.label} in {sooner}× fewer steps"
        f"{found.proviso}"
    )


@FIGURES.register(
    "learning_curves",
    order=2,
    subject="training loss against the step, each arm at its best learning rate",
    reads=("train_loss",),
)
def draw(view: View, name: str) -> Drawn:
    """Draw it.

    Raises:
        Missing: no losses in any journal.
    """
    curves = [found for group in view.groups if (found := curve(group)) is not None]
    if not curves:
        raise Missing("no training losses in the journals")
    note = (
        f"Thin: single runs; thick: their geometric mean. Loss of the training batch, median of the last {SMOOTHED} "
        "measured steps. ✕: diverged."
    )
    names = [f"{c.group.label}, lr {number(c.lr)}" for c in curves]
    chart = Chart(view, headline(view, curves), note, names)
    ax = chart.ax
    singles = [single for c in curves for single in c.singles]
    starts = [y[0] for _, _, _, y in singles if math.isfinite(y[0])]
    roof = 10 * max(starts, default=1.0)
    low, high = around([min(x, roof) for _, _, _, y in singles for x in y[np.isfinite(y)]])
    log_ticks(ax, low, high)
    last = max(float(steps[-1]) for _, _, steps, _ in singles)
    step_axis(ax, max(last, 1.0))
    ax.set_ylabel("training loss")
    for c, text in zip(curves, names, strict=True):
        look = c.group.look
        for _, diverged, steps, losses in c.singles:
            ax.plot(steps, losses, color=look.color, linewidth=0.7, alpha=0.45, zorder=2)
            if diverged:
                known = np.isfinite(losses)
                x, y = (steps[known][-1], min(losses[known][-1], high)) if known.any() else (steps[0], high)
                ax.plot(x, y, marker="X", markersize=6, color=look.color, linestyle="none", clip_on=False, zorder=5)
        chart.line(c.steps, c.mean, look)
        known = np.isfinite(c.mean)
        chart.name(text, look, *((c.steps[known][-1], c.mean[known][-1]) if known.any() else (last, high)))
    rates = ", ".join(f"{c.group.label} at a learning rate of {number(c.lr)}" for c in curves)
    return chart.drawn(
        name,
        about=f"Training loss against training step for {rates}.",
        columns=("arm", "lr", "seed", "step", "train_loss_smoothed"),
        rows=[
            (c.group.label, c.lr, seed, step, loss)
            for c in curves
            for seed, _, steps, losses in c.singles
            for step, loss in zip(steps, losses, strict=True)
        ],
    )
