"""Distributions of one layer's pre-activations over training: a ridge a step, one panel an arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from bnlab.core.study import evenly
from bnlab.core.text import listed, number
from bnlab.record.runs import Run
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import LEFT, WIDTH, Sheet, footnote, panel_name
from bnlab.report.style import EDGE, MUTED, PAPER, Look
from bnlab.report.views import Drawn, Floats, Group, Missing, Number, View, by_seed, ratio

PREFIX = "histogram.pre."
LIMIT = 1000.0
BINS = 120
"""Counts come in bins uniform in asinh(x) from -LIMIT to LIMIT, with a tail bin at either end."""
RIDGES = 11
WIDE = 12.0
"""Values beyond this are shown on an asinh axis, which is linear near 0 and logarithmic far from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridges:
    """One arm: densities [R, BINS] over asinh(x) at `steps` [R], of one seed."""

    label: str
    look: Look
    seed: int
    steps: Floats
    density: Floats


def edges() -> Floats:
    """The edges of the bins in asinh(x), [BINS + 1]."""
    limit = math.asinh(LIMIT)
    return np.linspace(-limit, limit, BINS + 1)


def site_of(view: View, lr: float) -> str | None:
    """The deepest site that every run has histograms of; the head, which comes last, only where there is no other."""
    found = [
        [name.removeprefix(PREFIX) for name in run.measured(PREFIX)] for group in view.panels for run in group.at(lr)
    ]
    shared = [name for name in (found[0] if found else []) if all(name in names for names in found)]
    hidden = shared[:-1] if len(shared) > 1 else shared
    return hidden[-1] if hidden else None


def ridges(group: Group, lr: float, site: str) -> Ridges | None:
    """Of the arm's longest run, the first seed among equals."""
    runs = [run for run in group.at(lr) if len(run.series(PREFIX + site).steps)]
    if not runs:
        return None
    run = max(runs, key=lambda run: (run.trains, run.step, -run.seed))
    steps, counts = run.series(PREFIX + site)
    kept = evenly(len(steps), RIDGES)
    inner = counts[kept, 1:-1]
    total = np.maximum(counts[kept].sum(axis=1, keepdims=True), 1)
    density = inner / total / np.diff(edges())
    return Ridges(label=group.label, look=group.look, seed=run.seed, steps=steps[kept], density=density)


def moved(run: Run, site: str) -> float:
    """How far the distribution goes from first to last: 1-Wasserstein distance in the first one's standard deviations.
    Tail bins count as values at the limit."""
    _, counts = run.series(PREFIX + site)
    if len(counts) < 2:
        return math.nan
    at = edges()
    centre = np.sinh(np.concatenate([[at[0]], (at[1:] + at[:-1]) / 2, [at[-1]]]))
    first, last = (counts[index] / max(1.0, counts[index].sum()) for index in (0, -1))
    mean = float((first * centre).sum())
    sd = math.sqrt(float((first * (centre - mean) ** 2).sum()))
    distance = float((np.abs(np.cumsum(first - last))[:-1] * np.diff(centre)).sum())
    return distance / sd if sd > 0 else math.nan


def headline(view: View, lr: float, site: str, where: str) -> str:
    """Whether the distribution moves less with the treated arm."""
    if view.pair is None:
        return f"Pre-activations of {where} over training"
    ours, theirs = (by_seed(group.at(lr), lambda run: moved(run, site)) for group in view.pair)
    treated, control = (group.label for group in view.pair)
    rest = f" than with {control}" if len(view.groups) > 2 else ""
    found = ratio(ours, theirs)
    if found is None or not found.clear:
        return f"Pre-activations of {where} move about as far with {treated} as with {control}"
    less = "less" if found.value < 1 else "more"
    return f"Pre-activations of {where} move {found.times} {less} with {treated}{rest}{found.proviso}"


@FIGURES.register(
    "ridges",
    order=4,
    subject="distributions of a layer's pre-activations over training",
)
def draw(view: View, name: str) -> Drawn:
    """Draw it.

    Raises:
        Missing: no histograms in the journals.
    """
    lr, why = view.common_rate()
    found, site = [], None
    if lr is not None:
        site = site_of(view, lr)
        found = [r for group in view.panels if site and (r := ridges(group, lr, site)) is not None]
    if not found or lr is None or site is None:
        raise Missing("no histograms in the journals", "measure them: probes=standard")
    where = f"layer {int(site[1:].partition('_')[0]) + 1}" if site[1:3].isdigit() else site
    title = view.titled(headline(view, lr, site, where))
    stretched = _reach(found)
    note = footnote(
        f"Density over batch and units at the affine map's output, fixed probe batch, seed {found[0].seed}, first step "
        f"at the top. Learning rate {number(lr)}, {why}. Title: 1-Wasserstein distance from first to last "
        "over the first one's standard deviation, all seeds."
        + (" The axis is linear near 0 and logarithmic far from it." if stretched > math.asinh(WIDE) else ""),
        view.reduced,
    )
    sheet = Sheet(title, note, plot_height=3.75)
    gap, left, right = 0.22, LEFT, WIDTH - 0.2
    width = (right - left - gap * (len(found) - 1)) / len(found)
    for index, r in enumerate(found):
        x0 = left + index * (width + gap)
        ax = sheet.axes(left=x0, right=x0 + width, above=0.28, first=index == 0)
        _panel(ax, r, stretched, first=index == 0)
    return sheet.drawn(
        name,
        about=f"Densities of the pre-activations of {where} over training, one ridge a step, for "
        + listed([r.label for r in found])
        + f" at a learning rate of {number(lr)}.",
        columns=("arm", "lr", "seed", "step", "bin_low", "bin_high", "share"),
        rows=_rows(found, lr),
    )


def _reach(found: Sequence[Ridges]) -> float:
    """The limit of the axis, in asinh(x): it contains 99.5 % of every ridge."""
    width = float(np.diff(edges())[0])
    centre = np.abs((edges()[1:] + edges()[:-1]) / 2)
    far = 0.0
    for r in found:
        for row in r.density:
            order = np.argsort(centre)
            share = np.cumsum(row[order]) * width
            there = np.flatnonzero(share >= 0.995 * share[-1])
            far = max(far, float(centre[order][there[0]]) if len(there) else 0.0)
    return far + width


def _panel(ax: Axes, r: Ridges, reach: float, *, first: bool) -> None:
    u = (edges()[1:] + edges()[:-1]) / 2
    linear = reach <= math.asinh(WIDE)
    x = np.sinh(u) if linear else u
    density = r.density / np.cosh(u) if linear else r.density
    peak = float(np.median(density.max(axis=1))) or 1.0
    limit = math.sinh(reach) if linear else reach
    inside = np.abs(x) <= limit * 1.02
    rows = len(r.steps)
    for row in range(rows):
        base = rows - 1 - row
        height = np.minimum(density[row] / peak, 3.2) * 1.35
        depth = 0.25 + 0.6 * row / max(1, rows - 1)
        ax.fill_between(x[inside], base, base + height[inside], facecolor=PAPER, linewidth=0, zorder=row * 3)
        ax.fill_between(
            x[inside], base, base + height[inside], facecolor=(r.look.color, depth), linewidth=0, zorder=row * 3 + 1
        )
        ax.plot(x[inside], base + height[inside], color=PAPER, linewidth=2.0, zorder=row * 3 + 1.5)
        ax.plot(x[inside], base + height[inside], color=r.look.color, linewidth=1.0, zorder=row * 3 + 2)
    ax.grid(False)
    ax.axvline(0, color=EDGE, linestyle=(0, (1, 2)), linewidth=0.9, zorder=0)
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-0.15, rows - 1 + 3.0)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_yticks([rows - 1 - row for row in range(0, rows, 2)])
    ax.set_yticklabels([f"{r.steps[row]:.0f}" for row in range(0, rows, 2)] if first else [])
    if first:
        ax.set_ylabel("training step")
    if not linear:
        ticks = [0.0, *(sign * 10.0**k for k in range(4) for sign in (-1, 1) if 10.0**k <= math.sinh(limit))]
        ax.set_xticks(sorted(math.asinh(t) for t in ticks))
        ax.set_xticklabels([number(t).replace("-", "−") for t in sorted(ticks)])
    ax.set_xlabel("pre-activation", color=MUTED)
    panel_name(ax, r.label, r.look)


def _rows(found: Sequence[Ridges], lr: float) -> list[tuple[Number, ...]]:
    at = np.sinh(edges())
    width = float(np.diff(edges())[0])
    return [
        (r.label, lr, r.seed, int(step), float(at[bin_]), float(at[bin_ + 1]), float(row[bin_]) * width)
        for r in found
        for step, row in zip(r.steps, r.density, strict=True)
        for bin_ in np.flatnonzero(row)
    ]
