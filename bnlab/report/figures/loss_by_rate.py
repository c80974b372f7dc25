"""Final training loss against the learning rate: every seed, their mean, what diverged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
from bnlab.report.views import Drawn, Group, Missing, Number, View, geometric_mean, log_interval, ratio

MOST_BANDS = 4
"""Arms; with more, only the two of the title have bands."""
SMALLEST = 1e-9
"""The lowest loss that is drawn: a loss of exactly 0 has no place on a logarithmic axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One arm at one rate. `losses` of the runs that did not diverge, by seed; `mean` only where all are there, `band`
    where these are three or more: with two, a t-interval spans decades."""

    lr: float
    losses: dict[int, float]
    diverged: int
    dead: int
    mean: float
    band: tuple[float, float] | None

    @property
    def runs(self) -> int:
        return len(self.losses) + self.diverged


def spots(group: Group, *, banded: bool = True) -> list[Spot]:
    """The points of an arm, one per learning rate."""
    found = []
    for lr in group.rates:
        runs = group.at(lr)
        losses = {
            run.seed: max(run.final("train_loss"), SMALLEST)
            for run in runs
            if not run.diverged and math.isfinite(run.final("train_loss"))
        }
        whole = len(losses) == len(runs)
        values = list(losses.values())
        found.append(
            Spot(
                lr=lr,
                losses=losses,
                diverged=len(runs) - len(losses),
                dead=sum(run.dead for run in runs),
                mean=geometric_mean(values) if whole else math.nan,
                band=log_interval(values) if whole and banded and len(values) > 2 else None,
            )
        )
    return found


def headline(view: View) -> str:
    """The finding, in a sentence."""
    if view.pair is None:
        return _many(view)
    treated, control = view.pair
    tops = [treated.top_rate, control.top_rate]
    names = capital(treated.label), control.label
    if tops[0] is None or tops[1] is None:
        if tops == [None, None]:
            return "No rate at which every run trains, with either arm"
        alone = treated if tops[1] is None else control
        return f"Only {alone.label} has rates at which every run trains"
    reach = tops[0] / tops[1]
    best = ratio(*({run.seed: run.final("train_loss") for run in g.at(g.best_rate() or 0)} for g in view.pair))
    lower = "" if best is None or not best.clear else ("lower" if best.value < 1 else "higher")
    if not math.isclose(reach, 1, rel_tol=1e-6):
        winner, loser = (names[0], control.label) if reach > 1 else (capital(control.label), treated.label)
        factor = max(reach, 1 / reach)
        least = "at least " if max(tops[0], tops[1]) == view.rates[-1] else ""
        tail = f", {'but' if (lower == 'higher') == (reach > 1) else 'and'} to a {lower} loss" if lower else ""
        if reach < 1 and lower:
            tail = f"; {treated.label} reaches a {lower} loss"
        return f"{winner} trains at rates {least}{number(factor)}× larger than {loser}{tail}"
    if best is not None and lower:
        return f"{names[0]}: {best.times} {lower} loss at its best rate, over the same rates{best.proviso}"
    return f"No clear difference between {treated.label} and {control.label}, in rates or in loss"


def _many(view: View) -> str:
    tops = {group.label: group.top_rate or 0.0 for group in view.groups}
    if len(tops) == 1:
        ((label, top),) = tops.items()
        best = view.groups[0].best_rate()
        if best is None:
            return f"{capital(label)}: no rate at which every run trains"
        return f"{capital(label)}: best at a rate of {number(best)}, trains up to {number(top)}"
    high, low = max(tops, key=tops.__getitem__), min(tops, key=tops.__getitem__)
    if tops[high] == tops[low]:
        return "All arms train over the same rates" if tops[high] else "No arm has a rate at which every run trains"
    reach = f"only up to {number(tops[low])}" if tops[low] else "at none"
    return f"{capital(high)} trains at rates up to {number(tops[high])}, {low} {reach}"


@FIGURES.register(
    "loss_by_rate",
    order=0,
    subject="final training loss against the learning rate",
)
def draw(view: View, name: str) -> Drawn:
    """Draw it.

    Raises:
        Missing: fewer than two rates, or no run with a final loss.
    """
    if len(view.rates) < 2:
        raise Missing("only one learning rate", "sweep it: optim.lr=0.01,0.1,1")
    crowd = len(view.groups) > MOST_BANDS
    found = [spots(group, banded=not crowd or group in (view.pair or ())) for group in view.groups]
    losses = [x for group in found for spot in group for x in spot.losses.values()]
    if not losses:
        raise Missing("every run diverged")
    title = view.titled(headline(view))
    dead = sum(spot.dead for group in found for spot in group)
    note = footnote(
        f"Line: geometric mean of {seeds_of(view)}, where none diverged; band: 95 % t-interval of the log "
        "loss, of three seeds or more; markers: single runs. Loss of the finished net over the training set, running "
        "statistics.",
        f"✕: diverged. {dead} of the runs drawn ended at chance." if dead else "✕: diverged.",
        view.reduced,
    )
    rows = sum(any(spot.diverged for spot in group) for group in found)
    lane = 0.17 * rows + (0.06 if rows else 0)
    sheet = Sheet(title, note, plot_height=3.15 + lane)
    ax = sheet.axes(left=LEFT, right=room_for([group.label for group in view.groups]), above=0.1 + lane)
    rate_axis(ax, view.rates, optimizer(view))
    bands = [x for group in found for spot in group if spot.band for x in spot.band]
    low, high = around(losses)
    wide = [x for x in bands if low / 3 < x < high * 3]  # a band of two seeds may span the universe
    low, high = around([*losses, *wide])
    if view.chance_loss and view.chance_loss > max(losses) / 30:
        high = max(high, view.chance_loss * 1.5)
    log_ticks(ax, low, high)
    ax.set_ylabel("final training loss")
    moved = shifts(view)
    drawn, labels = [], []
    for group, shift, at in zip(view.groups, moved, found, strict=True):
        x = np.array([spot.lr for spot in at])
        mean = np.array([spot.mean for spot in at])
        band = np.array([spot.band or (math.nan, math.nan) for spot in at])
        ax.fill_between(x, band[:, 0], band[:, 1], color=group.look.color, alpha=0.15, linewidth=0)
        ax.plot(x, mean, color=group.look.color, linestyle=group.look.dash, zorder=3)
        singles = np.array([(spot.lr * shift, loss) for spot in at for loss in spot.losses.values()])
        drawn.append((x, mean))
        if len(singles):
            ax.plot(singles[:, 0], singles[:, 1], zorder=4, **open_marker(group.look))
            drawn += [(singles[i : i + 1, 0], singles[i : i + 1, 1]) for i in range(len(singles))]
            whole = np.flatnonzero(np.isfinite(mean))
            end = (x[whole[-1]], mean[whole[-1]]) if len(whole) else tuple(singles[-1])
            labels.append(EndLabel(text=group.label, look=group.look, x=float(end[0]), y=float(end[1])))
    lanes(
        ax,
        view.groups,
        [
            [(spot.lr * shift, spot.diverged, spot.runs) for spot in at if spot.diverged]
            for shift, at in zip(moved, found, strict=True)
        ],
        "X",
        "diverged",
    )
    blocked = []
    if view.chance_loss and low < view.chance_loss < high:
        blocked = [line_note(ax, view.chance_loss, f"chance: {view.chance_loss:.2f}", drawn)]
    place_labels(ax, labels, drawn, blocked)
    return sheet.drawn(
        name,
        about="Final training loss against learning rate, every seed of every arm; diverged runs above the plot.",
        columns=("arm", "lr", "seed", "final_train_loss", "mean", "low_95", "high_95", "diverged", "runs"),
        rows=_rows(view, found),
    )


def _rows(view: View, found: Sequence[Sequence[Spot]]) -> list[tuple[Number, ...]]:
    rows: list[tuple[Number, ...]] = []
    for group, at in zip(view.groups, found, strict=True):
        for spot in at:
            low, high = spot.band or (None, None)
            mean = spot.mean if math.isfinite(spot.mean) else None
            for seed, loss in spot.losses.items():
                rows.append((group.label, spot.lr, seed, loss, mean, low, high, spot.diverged, spot.runs))
            if not spot.losses:
                rows.append((group.label, spot.lr, None, None, None, None, None, spot.diverged, spot.runs))
    return rows
