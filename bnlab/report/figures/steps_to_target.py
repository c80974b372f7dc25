"""Steps until the training loss falls to a target, against the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bnlab.analysis.metrics.losses import SMOOTHED, trailing_median
from bnlab.core.text import capital, number
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import (
    LEFT,
    EndLabel,
    Sheet,
    around,
    footnote,
    lanes,
    line_note,
    log_ticks,
    open_marker,
    optimizer,
    place_labels,
    rate_axis,
    room_for,
    seeds_of,
    shifts,
)
from bnlab.report.views import Drawn, Floats, Group, Missing, Number, View, ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One arm at one rate: the step at which each seed first reaches the target, infinite if never."""

    lr: float
    steps: dict[int, float]

    @property
    def median(self) -> float:
        """Infinite where half of the seeds never reach the target."""
        return float(np.median(list(self.steps.values())))

    @property
    def never(self) -> int:
        return sum(not math.isfinite(step) for step in self.steps.values())


Losses = dict[tuple[str, float, int], tuple[Floats, Floats]]


def losses_of(view: View) -> Losses:
    """Steps and smoothed training losses by arm, rate and seed."""
    found: Losses = {}
    smooth = view.target.smooth if view.target else SMOOTHED
    for group in view.groups:
        for run in group.runs:
            steps, values = run.series("train_loss")
            if len(steps):
                found[group.label, run.lr, run.seed] = steps, trailing_median(values, smooth)
    return found


def target_of(view: View, losses: Losses) -> float:
    """The lowest loss that every arm reaches, in the median over seeds, at half or more of the rates at which it
    trains; rounded up to one digit, but never above half of the loss at the start."""
    reached, starts = [], []
    for group in view.groups:
        by_rate = []
        for lr in [rate for rate in group.rates if group.trains_at(rate)] or group.rates:
            lows = []
            for run in group.at(lr):
                if (group.label, lr, run.seed) in losses:
                    y = losses[group.label, lr, run.seed][1]
                    kept = y[np.isfinite(y)]
                    lows.append(float(kept.min()) if len(kept) else math.inf)
                    starts.append(float(y[0]))
            if lows:
                by_rate.append(float(np.median(lows)))
        if by_rate:
            reached.append(sorted(by_rate)[(len(by_rate) - 1) // 2])
    half = float(np.nanmedian(starts)) / 2
    wanted = [x for x in reached if x < half] or [half]
    digit = 10.0 ** math.floor(math.log10(max(wanted)))
    return min(math.ceil(1.05 * max(wanted) / digit) * digit, half)


def spots(group: Group, losses: Losses, target: float) -> list[Spot]:
    """The points of an arm, one per learning rate."""
    found = []
    for lr in group.rates:
        steps = {}
        for run in group.at(lr):
            at, values = losses.get((group.label, lr, run.seed), (np.empty(0), np.empty(0)))
            there = np.flatnonzero(values <= target)
            steps[run.seed] = max(float(at[there[0]]), 1.0) if len(there) else math.inf
        found.append(Spot(lr=lr, steps=steps))
    return found


def headline(view: View, found: list[list[Spot]], target: float) -> str:
    """Which arm reaches the target first, each at its fastest rate."""
    words = f"a loss of {number(target)}"
    fastest = {
        group.label: min((spot for spot in at), key=lambda spot: (spot.median, spot.never), default=None)
        for group, at in zip(view.groups, found, strict=True)
    }
    there = {label: spot for label, spot in fastest.items() if spot is not None and math.isfinite(spot.median)}
    if not there:
        return f"No arm reaches {words}"
    if view.pair is None:
        first = min(there, key=lambda label: there[label].median)
        return f"{capital(first)} reaches {words} in {there[first].median:.0f} steps at its fastest rate"
    treated, control = (group.label for group in view.pair)
    if treated not in there or control not in there:
        alone = [label for label in (treated, control) if label in there]
        if not alone:
            return f"Neither {treated} nor {control} reaches {words}"
        other = control if alone == [treated] else treated
        return f"{capital(alone[0])} reaches {words}, {other} does not"
    found_ratio = ratio(
        {seed: step for seed, step in there[treated].steps.items() if math.isfinite(step)},
        {seed: step for seed, step in there[control].steps.items() if math.isfinite(step)},
    )
    if found_ratio is None or not found_ratio.clear:
        return f"No clear difference in the steps to {words}, each at its fastest rate"
    fast = treated if found_ratio.value < 1 else control
    return f"At its fastest rate, {fast} reaches {words} {found_ratio.times} sooner{found_ratio.proviso}"


@FIGURES.register(
    "steps_to_target",
    order=1,
    subject="steps until the training loss falls to a target, against the learning rate",
    reads=("train_loss",),
)
def draw(view: View, name: str) -> Drawn:
    """Draw it.

    Raises:
        Missing: fewer than two rates, or no losses.
    """
    if len(view.rates) < 2:
        raise Missing("only one learning rate", "sweep it: optim.lr=0.01,0.1,1")
    losses = losses_of(view)
    if not losses:
        raise Missing("no training losses in the journals")
    target = view.target.loss if view.target else target_of(view, losses)
    found = [spots(group, losses, target) for group in view.groups]
    title = view.titled(headline(view, found, target))
    smooth = view.target.smooth if view.target else SMOOTHED
    chosen = "the claim's" if view.target else "what every arm reaches at half of its rates that train, rounded up"
    budget = max(run.step for group in view.groups for run in group.runs)
    note = footnote(
        f"Line: median of {seeds_of(view)}; markers: seeds; △: never reached within the budget of {budget} steps, or "
        f"diverged before. Loss of the training batch, median of the last {smooth} measured steps. The target is "
        f"{chosen}.",
        view.reduced,
    )
    rows = sum(any(spot.never for spot in at) for at in found)
    lane = 0.17 * rows + (0.06 if rows else 0)
    sheet = Sheet(title, note, plot_height=3.15 + lane)
    ax = sheet.axes(left=LEFT, right=room_for([group.label for group in view.groups]), above=0.1 + lane)
    rate_axis(ax, view.rates, optimizer(view))
    numbers = [step for at in found for spot in at for step in spot.steps.values() if math.isfinite(step)]
    low, high = around([*numbers, float(budget)], room=0.03)
    log_ticks(ax, low, max(high, budget * 1.12))
    ax.set_ylabel(f"steps until loss ≤ {number(target)}")
    moved = shifts(view)
    drawn, labels = [], []
    table: list[tuple[Number, ...]] = []
    for group, shift, at in zip(view.groups, moved, found, strict=True):
        x = np.array([spot.lr for spot in at])
        middle = np.array([spot.median if math.isfinite(spot.median) else math.nan for spot in at])
        ax.plot(x, middle, color=group.look.color, linestyle=group.look.dash, zorder=3)
        singles = [(spot.lr * shift, step) for spot in at for step in spot.steps.values() if math.isfinite(step)]
        if singles:
            points = np.array(singles)
            ax.plot(points[:, 0], points[:, 1], zorder=4, **open_marker(group.look))
            drawn += [(points[i : i + 1, 0], points[i : i + 1, 1]) for i in range(len(points))]
            whole = np.flatnonzero(np.isfinite(middle))
            end = (x[whole[-1]], middle[whole[-1]]) if len(whole) else singles[-1]
            labels.append(EndLabel(text=group.label, look=group.look, x=float(end[0]), y=float(end[1])))
        drawn.append((x, middle))
        for spot in at:
            for seed, step in spot.steps.items():
                reached = int(step) if math.isfinite(step) else None
                table.append((group.label, spot.lr, seed, target, reached, budget))
    marks = [
        [(spot.lr * shift, spot.never, len(spot.steps)) for spot in at if spot.never]
        for shift, at in zip(moved, found, strict=True)
    ]
    lanes(ax, view.groups, marks, "^", "never")
    place_labels(ax, labels, drawn, [line_note(ax, budget, f"budget: {budget} steps", drawn)])
    return sheet.drawn(
        name,
        about=f"Steps until the training loss falls to {number(target)}, against learning rate, every seed of every "
        "arm; runs that never do above the plot.",
        columns=("arm", "lr", "seed", "target_loss", "step_reached", "budget"),
        rows=table,
    )
