"""The live display of a sweep: arms by learning rates, a sign for each seed."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.segment import Segment
from rich.style import Style

from bnlab.core.study import Cell
from bnlab.sweep.ledger import DONE
from bnlab.sweep.run import Standing
from bnlab.terminal.frames import Frames, Line
from bnlab.terminal.signs import Signs, age, number, shortened, signs_for
from bnlab.terminal.tally import Tally, at_work_elsewhere

PLAIN, BOLD, DIM = Style(), Style(bold=True), Style(dim=True)
STYLES = {
    "finished": Style(color="green"),
    "running": Style(color="cyan"),
    "diverged": Style(color="red"),
    "failed": Style(color="red", bold=True),
    "waiting": DIM,
}
WORST_FIRST = ("failed", "diverged", "running", "waiting", "finished")
BEST = Style(color="green", bold=True)
ABOVE, BELOW, AFTER = 4, 2, 4
"""Lines of a frame above and below its grid, and those left for what comes after the last frame."""
LOSS = 7
"""Signs of most losses: 0.00123."""
LR, SEED = "optim.lr", "seed"
NAME = 24
"""Signs of a study's name; an arm's is cut where the grid has no room for it."""
NAMES = (10_000, 32, NAME, 16, 12, 8)


@dataclass(frozen=True, slots=True)
class Spot:
    """One place of the grid: the states of its seeds, the mean loss of those that finished, whether it is the best."""

    states: tuple[str, ...]
    loss: float | None
    best: bool = False

    def line(self, signs: Signs, full: bool) -> Line:
        """A sign for each seed, or in short the worst one's, and the loss."""
        shown = _signs_of(signs)
        states = self.states if full else tuple(state for state in WORST_FIRST if state in self.states)[:1]
        found = [Segment(shown[state], STYLES[state]) for state in states]
        if self.loss is not None:
            text = f" {number(self.loss, 3)}" + ("*" if self.best else "")
            found.append(Segment(text, BEST if self.best else PLAIN))
        return found

    def room(self, full: bool, tight: bool) -> int:
        """Signs it takes, less that of the best; unless `tight`, those it may come to, so that columns stay where they
        are from the beginning on."""
        known = 0 if self.loss is None else 1 + len(number(self.loss, 3))
        return (len(self.states) if full else min(1, len(self.states))) + (known if tight else max(1 + LOSS, known))


class LiveGrid(Tally):
    """Draws itself at most four times a second, from `tick`."""

    def __init__(self, standings: Iterable[Standing], workers: int, out: TextIO) -> None:
        super().__init__(standings, workers, out)
        self.signs = signs_for(out.encoding)
        self.frames = Frames(self.lines, out)
        self._closed = False
        self.frames.begin()

    def tick(self) -> None:
        self.frames.draw_if_due()

    def close(self) -> None:
        self.frames.hold()
        self._closed = True
        self.frames.close()

    def lines(self, width: int, height: int) -> Iterator[Line]:
        """The frame."""
        below = AFTER if self._closed else 1  # the last line of the screen is the cursor's
        yield [Segment("sweep", BOLD), Segment(f"  {self._facts(width - len('sweep  '))}", PLAIN)]
        yield [Segment(at_work_elsewhere(self.elsewhere), DIM)] if self.elsewhere and not self._closed else []
        yield from table(self.standings.values(), self.signs, width, height - ABOVE - BELOW - below)
        yield []
        failed = any(standing.failed for standing in self.standings.values())
        yield legend(_signs_of(self.signs), width, failed)

    def _facts(self, width: int) -> str:
        """How far it is, and of what; on a narrow screen without what can be missed most easily."""
        name = shortened(next((one.cell.spec.name for one in self.standings.values()), ""), NAME, self.signs)
        counted, eta = f"{self.ended}/{len(self.standings)} runs", self.eta_s()
        left = f"eta {'-' if eta is None else age(math.ceil(eta))}"
        some = ", ".join([counted, *self.counts(), left])
        all_of_them = ", ".join([counted, *self.counts(), age(self.elapsed_s()), left])
        return next((text for text in (f"{name}  {all_of_them}", all_of_them) if len(text) <= width), some)


def _signs_of(signs: Signs) -> dict[str, str]:
    """The sign of each state."""
    return {
        "finished": signs.finished,
        "running": signs.running,
        "diverged": signs.bad,
        "failed": signs.failed,
        "waiting": signs.waiting,
    }


def legend(meanings: Mapping[str, str], width: int, failed: bool) -> Line:
    """What the signs mean, as many as there is room for."""
    meanings = {state: sign for state, sign in meanings.items() if failed or state != "failed"}
    line, used = [], 0
    for state, sign in meanings.items():
        used += len(sign) + len(state) + 3
        if used <= width:
            line += [Segment(sign, STYLES[state]), Segment(f" {state}  ", DIM)]
    text = "* best mean loss"
    return [*line, Segment(text, DIM)] if used + len(text) <= width else line


def table(standings: Iterable[Standing], signs: Signs, width: int, room: int) -> Iterator[Line]:
    """Head, rule and `room` rows: arms downwards and learning rates across; the other way round where only that fits;
    else in short, and cut."""
    cells = list(standings)
    varying = _varying([standing.cell for standing in cells])
    spots = _spots(cells, varying)
    arms = list(dict.fromkeys(arm for arm, _ in spots))
    rates = sorted({rate for _, rate in spots})
    head = varying[0].rpartition(".")[2] if varying else "norm"
    lrs = {rate: f"{rate:g}" for rate in rates}
    there = {(arm, lrs[rate]): spot for (arm, rate), spot in spots.items()}
    turned = {(rate, arm): spot for (arm, rate), spot in there.items()}
    ways = ((head, arms, [*lrs.values()], there), ("lr", [*lrs.values()], arms, turned))
    layouts = []
    for full, tight, name in itertools.product((True, False), (False, True), NAMES):
        short = {arm: shortened(arm, name, signs) for arm in arms}
        for way in ways:
            layout = _Layout(*way, short, full, tight)
            if layout.width() <= width:
                yield from layout.lines(signs, width, room)
                return
            layouts.append(layout)
    yield from min(layouts, key=_Layout.width).lines(signs, width, room)


@dataclass(frozen=True, slots=True)
class _Layout:
    """A grid with its rows and columns chosen; `short` are names as they are shown, `full` has a sign for each seed."""

    head: str
    rows: Sequence[str]
    columns: Sequence[str]
    spots: Mapping[tuple[str, str], Spot]
    short: Mapping[str, str]
    full: bool
    tight: bool

    def _shown(self, name: str) -> str:
        return self.short.get(name, name)

    def _widths(self) -> list[int]:
        first = max(len(self.head), *(len(self._shown(row)) for row in self.rows))
        return [first] + [
            max([len(self._shown(column)), *(self._spot(row, column).room(self.full, self.tight) for row in self.rows)])
            for column in self.columns
        ]

    def width(self) -> int:
        """With the sign of the best place, which else stands between two columns, behind the last one."""
        widths = self._widths()
        return sum(widths) + 2 * (len(widths) - 1) + 1

    def _spot(self, row: str, column: str) -> Spot:
        return self.spots.get((row, column), Spot((), None))

    def lines(self, signs: Signs, width: int, room: int) -> Iterator[Line]:
        first, *widths = self._widths()
        shown, used = 0, first
        while shown < len(widths) and used + 2 + widths[shown] <= width - (2 if shown + 1 < len(widths) else 1):
            used += 2 + widths[shown]
            shown += 1
        columns, cut = self.columns[:shown], shown < len(self.columns)
        heads = "".join(f"  {self._shown(column):<{size}}" for column, size in zip(columns, widths, strict=False))
        yield [Segment(f"{self.head:<{first}}{heads}" + (f" {signs.cut}" if cut else ""), DIM)]
        yield [Segment(signs.line * (used + 2 * cut), DIM)]
        for row in self._fitting(room, signs):
            if row is None:
                yield [Segment(f"{signs.cut} {len(self.rows) - room + 1} more", DIM)]
                continue
            line = [Segment(f"{self._shown(row):<{first}}  ", PLAIN)]
            for column, size in zip(columns, widths, strict=False):
                spot = self._spot(row, column).line(signs, self.full)
                line += [*spot, Segment(" " * (size + 2 - _length(spot)), PLAIN)]
            yield line

    def _fitting(self, room: int, signs: Signs) -> Iterator[str | None]:
        """The first and the last rows, with None for those between that there is no room for."""
        if len(self.rows) <= room:
            yield from self.rows
            return
        first, last = room // 2, max(0, (room - 1) // 2)
        yield from self.rows[:first]
        if room > 0:
            yield None
        yield from self.rows[len(self.rows) - last :]


def _spots(standings: Sequence[Standing], varying: Sequence[str]) -> dict[tuple[str, float], Spot]:
    groups: dict[tuple[str, float], list[Standing]] = {}
    for standing in standings:
        spec = standing.cell.spec
        groups.setdefault((_arm(standing.cell, varying), spec.optim.lr), []).append(standing)
    spots = {place: _spot(group) for place, group in groups.items()}
    losses = {place: spot.loss for place, spot in spots.items() if spot.loss is not None and _is_clean(spot)}
    if losses:
        best = min(losses, key=lambda place: losses[place])
        spots[best] = Spot(spots[best].states, spots[best].loss, best=True)
    return spots


def _spot(group: Sequence[Standing]) -> Spot:
    finished = [standing.status["metrics"]["train_loss"] for standing in group if standing.state == "finished"]
    known = [float(loss) for loss in finished if loss is not None]
    return Spot(tuple(_shown(standing) for standing in group), statistics.fmean(known) if known else None)


def _shown(standing: Standing) -> str:
    if standing.failed:
        return "failed"
    return standing.state if standing.state in (*DONE, "running") else "waiting"


def _is_clean(spot: Spot) -> bool:
    """A learning rate at which a seed diverged is nobody's best."""
    return not {"diverged", "failed"} & set(spot.states)


def _varying(cells: Sequence[Cell]) -> list[str]:
    """The axes that tell arms apart: all but the learning rate and the seed, `norm` first."""
    keys = [key for key in (cells[0].values if cells else ()) if key not in (LR, SEED)]
    several = [key for key in keys if len({str(cell.values[key]) for cell in cells}) > 1]
    return sorted(several, key=lambda key: key != "norm")


def _arm(cell: Cell, varying: Sequence[str]) -> str:
    words = [
        str(cell.values[key]) if key == varying[0] else f"{key.rpartition('.')[2]}={cell.values[key]}"
        for key in varying
    ]
    return " ".join(words) or cell.spec.norm.name


def _length(line: Line) -> int:
    return sum(len(segment.text) for segment in line)
