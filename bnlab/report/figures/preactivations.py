"""Two figures of pre-activations over training, one panel an arm: how far each layer's move between measurements, and
the distributions of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from bnlab.core.study import evenly
from bnlab.core.text import count, listed, number
from bnlab.record.runs import Run
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import Sheet, layer_ticks, log_ticks, seeds_of
from bnlab.report.style import EDGE, GRID, MUTED, NOT_FINITE, PAPER
from bnlab.report.views import Drawn, Floats, Group, Missing, View, compared, even, finite, median, together

DRIFT = "drift_mean.pre"
"""The colour of a drift that is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One arm: drift [L, T], median over seeds, between measurements `gap` steps apart."""

    group: Group
    steps: Floats
    drift: Floats
    gap: int


def drift_of(group: Group, lr: float) -> Drift | None:
    """None where no run measured it."""
    steps, values = together(group.at(lr), DRIFT, median)
    kept = even(steps)
    if kept.sum() < 2:
        return None
    steps = steps[kept]
    return Drift(group=group, steps=steps, drift=values[kept].T, gap=int(steps[1] - steps[0]))


@FIGURES.register("drift", order=3, subject="drift of the pre-activations, layer against step", reads=(DRIFT,))
def drift(view: View, name: str) -> Drawn:
    """A heat map an arm, layer against step; the title compares medians over layers and steps.

    Raises:
        Missing: no drift in the journals.
    """
    lr, why = view.common_rate()
    panels = [found for group in view.panels if lr is not None and (found := drift_of(group, lr)) is not None]
    if not panels or lr is None:
        raise Missing("no drift in the journals", "measure it: probes=economy")
    every = f"Every {panels[0].gap} steps" if panels[0].gap > 1 else "Every step"
    title = compared(
        view,
        lr,
        lambda run: float(np.median(finite(run.spaced(DRIFT).values.ravel()) or [math.nan])),
        alone="Drift of the pre-activations, layer by layer",
        unclear=f"{every}, no clear difference in how far means of pre-activations move between {{}} and {{}}",
        clear=f"{every}, means of pre-activations move",
        metric="drift_pre",
    )
    factor = view.factor("drift_pre", "In the title, over layers and steps too.")
    gaps = "" if all(np.isfinite(p.drift).all() for p in panels) else "; light grey: not finite"
    note = (
        f"Median over channels of |Δ mean| / sd of the pre-activations (drift_mean.pre) between measurements "
        f"{count(panels[0].gap, 'step')} apart, on a fixed probe batch; median of {seeds_of(view)}. {factor} Over a "
        f"whole run means can move less or more than that: drift_mean_total, drift50. Learning rate {number(lr)}, "
        f"{why}. One logarithmic colour scale{gaps}."
    )
    sheet = Sheet(view.titled(title), view.noted(note), plot_height=2.75)
    values = np.concatenate([p.drift[np.isfinite(p.drift) & (p.drift > 0)] for p in panels])
    low, high = (float(x) for x in np.percentile(values, [1, 99])) if len(values) else (0.1, 1.0)
    high = max(high, low * 1.5)
    right = sheet.width - 0.85
    for index, (p, ax) in enumerate(zip(panels, sheet.panels([p.group for p in panels], right, 0.12), strict=True)):
        depth = len(p.drift)
        ax.set_facecolor(GRID)
        image = ax.imshow(
            np.maximum(np.ma.masked_invalid(p.drift), low * 1e-3),
            aspect="auto",
            origin="lower",
            interpolation="nearest",
            cmap=colormaps["cividis"].with_extremes(bad=NOT_FINITE),
            norm=LogNorm(low, high),
            extent=(p.steps[0] - p.gap / 2, p.steps[-1] + p.gap / 2, -0.5, depth - 0.5),
        )
        ax.set_xlabel("training step")
        ax.spines[:].set_visible(False)
        ax.locator_params(axis="x", nbins=max(3, int(ax.bbox.width / 72 * 2.4)))
        ax.set_yticks(layer_ticks(depth), labels=[] if index else None)
        if not index:
            ax.set_ylabel("layer (0 = first)")
    bar_ax = sheet.axes(left=right + 0.13, right=right + 0.24, above=0.28, first=False)
    bar = sheet.figure.colorbar(image, cax=bar_ax, extend="both")
    bar.outline.set_edgecolor(EDGE)
    log_ticks(bar_ax, low, high, most=5)
    bar.set_label("drift (standard deviations)")
    return sheet.drawn(
        name,
        about="Heat maps of the drift of pre-activations, layer by training step, for "
        f"{listed([p.group.label for p in panels])} at a learning rate of {number(lr)}.",
        columns=("arm", "lr", "layer", "step", "drift"),
        rows=[
            (p.group.label, lr, layer, step, value)
            for p in panels
            for layer, values in enumerate(p.drift)
            for step, value in zip(p.steps, values, strict=True)
        ],
    )


# -- distributions of one layer --------------------------------------------------------------------------------------

PREFIX = "histogram.pre."
LIMIT = 1000.0
BINS = 120
"""Counts come in bins uniform in asinh(x) from -LIMIT to LIMIT, with a tail bin at either end."""
EDGES: Floats = np.linspace(-math.asinh(LIMIT), math.asinh(LIMIT), BINS + 1)
"""The edges of the bins in asinh(x)."""
CENTRES: Floats = (EDGES[1:] + EDGES[:-1]) / 2
BIN = float(EDGES[1] - EDGES[0])
RIDGES = 11
WIDE = 12.0
"""Values beyond this are shown on an asinh axis, which is linear near 0 and logarithmic far from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridges:
    """One arm: densities [R, BINS] over asinh(x) at `steps` [R], of one seed."""

    group: Group
    seed: int
    steps: Floats
    density: Floats


def site_of(view: View, lr: float, prefix: str = PREFIX) -> str | None:
    """The deepest site that every run has histograms of; the head, which comes last, only where there is no other."""
    found = [
        [name.removeprefix(prefix) for name in run.measured(prefix)] for group in view.panels for run in group.at(lr)
    ]
    shared = [name for name in (found[0] if found else []) if all(name in names for names in found)]
    return shared[-2:][0] if shared else None


def ridges_of(group: Group, lr: float, site: str) -> Ridges | None:
    """Of the arm's longest run, the first seed among equals."""
    runs = [run for run in group.at(lr) if len(run.series(PREFIX + site))]
    if not runs:
        return None
    run = max(runs, key=lambda run: (run.trains, run.step, -run.seed))
    steps, counts = run.series(PREFIX + site)
    kept = evenly(len(steps), RIDGES)
    total = np.maximum(counts[kept].sum(axis=1, keepdims=True), 1)
    density = counts[kept, 1:-1] / total / np.diff(EDGES)
    return Ridges(group=group, seed=run.seed, steps=steps[kept], density=density)


def moved(run: Run, name: str) -> float:
    """How far a distribution moves from the first histogram of that name to the last: 1-Wasserstein distance in the
    first one's standard deviations. Tail bins count as values at the limit."""
    _, counts = run.series(name)
    if len(counts) < 2:
        return math.nan
    centre = np.sinh(np.concatenate([EDGES[:1], CENTRES, EDGES[-1:]]))
    first, last = (counts[index] / max(1.0, counts[index].sum()) for index in (0, -1))
    mean = float((first * centre).sum())
    sd = math.sqrt(float((first * (centre - mean) ** 2).sum()))
    distance = float((np.abs(np.cumsum(first - last))[:-1] * np.diff(centre)).sum())
    return distance / sd if sd > 0 else math.nan


@FIGURES.register("ridges", order=4, subject="distributions of a layer's pre-activations over training")
def ridges(view: View, name: str) -> Drawn:
    """A ridge a step; the title compares how far the distributions move.

    Raises:
        Missing: no histograms in the journals.
    """
    lr, why = view.common_rate()
    site = site_of(view, lr) if lr is not None else None
    if lr is None or site is None:
        raise Missing("no histograms in the journals", "measure them: probes=standard")
    found = [each for group in view.panels if (each := ridges_of(group, lr, site)) is not None]
    where = f"layer {int(site[1:].partition('_')[0])}" if site[1:3].isdigit() else site
    title = compared(
        view,
        lr,
        lambda run: moved(run, PREFIX + site),
        alone=f"Pre-activations of {where} over training",
        unclear=f"From the first to the last step, pre-activations of {where} move about as far with {{}} as with {{}}",
        clear=f"From the first to the last step, pre-activations of {where} move",
    )
    reach = _reach(np.concatenate([r.density for r in found]))
    note = (
        f"Density over batch and units at the affine map's output, fixed probe batch, seed {found[0].seed}, first step "
        f"at the top. Learning rate {number(lr)}, {why}. Title: 1-Wasserstein distance from first to last "
        "over the first one's standard deviation, all seeds."
    )
    if reach > math.asinh(WIDE):
        note += " The axis is linear near 0 and logarithmic far from it."
    sheet = Sheet(view.titled(title), view.noted(note), plot_height=3.75)
    for index, ax in enumerate(sheet.panels([r.group for r in found], sheet.width - 0.2, 0.22)):
        _panel(ax, found[index], reach, first=index == 0)
    return sheet.drawn(
        name,
        about=f"Densities of the pre-activations of {where} over training, one ridge a step, for "
        f"{listed([r.group.label for r in found])} at a learning rate of {number(lr)}.",
        columns=("arm", "lr", "seed", "step", "bin_low", "bin_high", "share"),
        rows=[
            (r.group.label, lr, r.seed, step, low, high, share)
            for r in found
            for step, shares in zip(r.steps, r.density * BIN, strict=True)
            for low, high, share in zip(np.sinh(EDGES[:-1]), np.sinh(EDGES[1:]), shares, strict=True)
            if share
        ],
    )


def _reach(density: Floats) -> float:
    """The limit of the axis, in asinh(x): it contains 99.5 % of every ridge [R, BINS]."""
    far = np.abs(CENTRES)
    order = np.argsort(far)
    inside = np.cumsum(density[:, order], axis=1)
    return float(far[order][(inside >= 0.995 * inside[:, -1:]).argmax(axis=1)].max()) + BIN


def _panel(ax: Axes, r: Ridges, reach: float, *, first: bool) -> None:
    linear = reach <= math.asinh(WIDE)
    x = np.sinh(CENTRES) if linear else CENTRES
    density = r.density / np.cosh(CENTRES) if linear else r.density
    peak = float(np.median(density.max(axis=1))) or 1.0
    limit = math.sinh(reach) if linear else reach
    inside = np.abs(x) <= limit * 1.02
    x, heights = x[inside], np.minimum(density[:, inside] / peak, 3.2) * 1.35
    color, top = r.group.look.color, len(r.steps) - 1
    for row, height in enumerate(heights):
        base, order = top - row, 3 * row
        shade = (color, 0.25 + 0.6 * row / max(1, top))
        ax.fill_between(x, base, base + height, facecolor=PAPER, linewidth=0, zorder=order)
        ax.fill_between(x, base, base + height, facecolor=shade, linewidth=0, zorder=order + 1)
        ax.plot(x, base + height, color=PAPER, linewidth=2.0, zorder=order + 1.5)
        ax.plot(x, base + height, color=color, linewidth=1.0, zorder=order + 2)
    ax.axvline(0, color=EDGE, linestyle=(0, (1, 2)), linewidth=0.9, zorder=0)
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-0.15, top + 3.0)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_yticks(range(top, -1, -2), labels=[f"{step:.0f}" for step in r.steps[::2]] if first else [])
    if first:
        ax.set_ylabel("training step")
    if not linear:
        ax.set_xticks(*_decades(limit))
    ax.set_xlabel("pre-activation", color=MUTED)


def _decades(limit: float) -> tuple[Floats, list[str]]:
    """Ticks in asinh(x) up to a limit, and what they say."""
    decades = [10.0**k for k in range(4) if 10.0**k <= math.sinh(limit)]
    ticks = [*(-tick for tick in reversed(decades)), 0.0, *decades]
    return np.arcsinh(ticks), [number(tick).replace("-", "−") for tick in ticks]


# -- the same, as a map of counts ------------------------------------------------------------------------------------


@FIGURES.register("activation_map", of="study", subject="counts of a layer's values over training steps, in colour")
def activation_map(
    view: View,
    name: str,
    *,
    point: Literal["pre", "act_in"] = "act_in",
    site: str | None = None,
    lr: float | None = None,
) -> Drawn:
    """A map an arm, value against step, of the first seed: the "colourful dimension" of Howard (fast.ai part 2). `site`
    is its name, by default the deepest hidden one. The title compares how far the distributions move.

    Raises:
        Missing: no histograms of that site at that learning rate.
    """
    rate, why = view.common_rate() if lr is None else (lr, "")
    prefix = f"histogram.{point}."
    site = site if site or rate is None else site_of(view, rate, prefix)
    panels = [
        (group, run)
        for group in view.panels
        if rate is not None and site is not None
        for run in [run for run in group.at(rate) if len(run.series(prefix + site)) > 1][:1]
    ]
    if not panels or rate is None or site is None:
        raise Missing("no histograms of that site in the journals", "measure them: probes=standard")
    of = prefix + site
    title = compared(
        view,
        rate,
        lambda run: moved(run, of),
        alone=f"Values at {point} of {site} over training",
        unclear=f"From the first to the last step, {point} of {site} moves about as far with {{}} as with {{}}",
        clear=f"From the first to the last step, {point} of {site} moves",
    )
    note = (
        f"Counts over the probe batch and units of {site} at {point}, in bins uniform in asinh(x), first seed; colour: "
        f"log(1 + count). Learning rate {number(rate)}{', ' * bool(why)}{why}. Title: 1-Wasserstein distance from "
        "first to last over the first one's standard deviation, all seeds."
    )
    sheet = Sheet(view.titled(title), view.noted(note), plot_height=2.75)
    found = [run.series(of) for _, run in panels]
    counts = [values[:, 1:-1] for _, values in found]
    reach, most = _reach(np.concatenate(counts)), math.log1p(max(float(values.max()) for values in counts))
    right = sheet.width - 0.85
    axes = sheet.panels([group for group, _ in panels], right, 0.12)
    for index, (ax, (steps, _), values) in enumerate(zip(axes, found, counts, strict=True)):
        edges = np.append(steps, 2 * steps[-1] - steps[-2]).astype(np.float64)
        image = ax.pcolormesh(edges, EDGES, np.log1p(values.T), cmap="cividis", vmin=0, vmax=most, rasterized=True)
        ax.set(xlabel="training step", ylim=(-reach, reach))
        ax.locator_params(axis="x", nbins=max(3, int(ax.bbox.width / 72 * 2.4)), prune="upper")
        places, labels = _decades(reach)
        ax.set_yticks(places, labels=[] if index else labels)
        if not index:
            ax.set_ylabel(f"value at {point}")
    bar_ax = sheet.axes(left=right + 0.13, right=right + 0.24, above=0.28, first=False)
    bar = sheet.figure.colorbar(image, cax=bar_ax)
    bar.outline.set_edgecolor(EDGE)
    bar.set_label("log(1 + count)")
    return sheet.drawn(
        name,
        about=f"Counts of the values at {point} of {site}, value by training step, for "
        f"{listed([group.label for group, _ in panels])} at a learning rate of {number(rate)}.",
        columns=("arm", "lr", "seed", "step", "bin_low", "bin_high", "count"),
        rows=[
            (group.label, rate, run.seed, step, low, high, value)
            for (group, run), (steps, _), values in zip(panels, found, counts, strict=True)
            for step, row in zip(steps, values, strict=True)
            for low, high, value in zip(np.sinh(EDGES[:-1]), np.sinh(EDGES[1:]), row, strict=True)
            if value
        ],
    )
