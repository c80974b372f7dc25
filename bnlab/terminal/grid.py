"""The live display of a sweep: arms by learning rates, a sign for each seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from rich.segment import Segment
from rich.style import Style

from bnlab.core.study import label
from bnlab.core.text import age, number
from bnlab.grids.run import Standing
from bnlab.terminal.frames import Frames, Line, ends
from bnlab.terminal.progress import Tally
from bnlab.terminal.signs import Signs, shortened, signs_for

PLAIN, BOLD, DIM = Style(), Style(bold=True), Style(dim=True)
STYLES = {
    "finished": Style(color="green"),
    "running": Style(color="cyan"),
    "diverged": Style(color="red"),
    "failed": Style(color="red", bold=True),
    "interrupted": Style(color="yellow"),
    "not started": DIM,
}
WORST_FIRST = ("failed", "diverged", "interrupted", "running", "not started", "finished")
RARE = ("failed", "interrupted")
"""States that the legend explains only where there are any."""
BEST = Style(color="green", bold=True)
AFTER = 4
"""Lines left for what comes after the last frame."""
WIDE = 60
"""Characters from which on the legend has its longer words."""
LOSS = 7
"""Characters of most losses: 0.00123."""
STUDY, NAME = 24, 8
"""Characters of a study's name, and the fewest of an arm's."""
ALL_DIGITS, FEW_DIGITS, NO_LOSS = 3, 2, 0
LAYOUTS = (
    (True, False, ALL_DIGITS),
    (True, True, ALL_DIGITS),
    (False, False, ALL_DIGITS),
    (False, True, ALL_DIGITS),
    (False, True, FEW_DIGITS),
    (True, True, NO_LOSS),
    (False, True, NO_LOSS),
)
"""A sign for each seed, or one for all; room only for losses that are known, or for those to come; their digits."""


@dataclass(frozen=True, slots=True)
class Point:
    """A grid point: the states of its seeds, the mean loss of those that finished, whether that is the best."""

    states: tuple[str, ...] = ()
    loss: float | None = None
    best: bool = False

    def line(self, signs: Signs, full: bool, digits: int) -> Line:
        """A sign for each seed, or the one of the worst state, and the loss."""
        states = self.states if full else [state for state in WORST_FIRST if state in self.states][:1]
        line = [Segment(signs.states[state], STYLES[state]) for state in states]
        text = self._loss(digits) + ("*" if self.best else "")
        return [*line, Segment(text, BEST if self.best else PLAIN)] if text else line

    def room(self, full: bool, tight: bool, digits: int) -> int:
        """Characters without the star; unless `tight`, those it may need later, so that columns do not move."""
        known = len(self._loss(digits))
        return (len(self.states) if full else min(1, len(self.states))) + (known if tight else max(1 + LOSS, known))

    def _loss(self, digits: int) -> str:
        return "" if self.loss is None or not digits else f" {number(self.loss, digits)}"


class LiveGrid(Tally):
    """Draws itself at most four times a second, from `tick`."""

    def __init__(self, standings: Iterable[Standing], workers: int | None, out: TextIO) -> None:
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
        """The lines of a frame."""
        below = AFTER if self._closed else 1  # the last line of the screen is the cursor's
        points = self._points()
        head = self.axes[0].rpartition(".")[2] if self.axes else "norm"
        grid = table(head, points, width)
        waiting = [[Segment(self.waiting, DIM)]] if self.elsewhere and not self._closed else []
        signs = list(legend(self.signs, width, points.values(), grid.full))
        # What is left for blank lines, when the title, the head with its rule, all rows and the legend have theirs.
        spare = height - below - 3 - len(waiting) - len(signs) - len(grid.rows)
        yield [Segment("sweep", BOLD), Segment(f"  {self._facts(width - len('sweep  '))}", PLAIN)]
        yield from waiting or [[]] * (spare > 1)
        yield from grid.lines(self.signs, width, len(grid.rows) + min(0, spare))
        yield from [[]] * (spare > 0)
        yield from signs

    def _facts(self, width: int) -> str:
        """How many runs have ended, and the time; on a narrow screen without the study, then without the time, then
        with signs in place of words, then without what was not finished."""
        name = shortened(next((one.cell.spec.name for one in self.standings.values()), ""), STUDY, self.signs)
        counted, eta = f"{self.ended}/{len(self.standings)} runs", self.eta_s()
        left = f"eta {'-' if eta is None else age(math.ceil(eta))}"
        signs = [" ".join([many, self.signs.states[word]]) for many, word in map(str.split, self.counts())]
        facts = ", ".join([counted, *self.counts(), age(self.elapsed_s()), left])
        shorter = (", ".join([counted, *some, left]) for some in (self.counts(), signs))
        return next(
            (text for text in (f"{name}  {facts}", facts, *shorter) if len(text) <= width), f"{counted}, {left}"
        )

    def _points(self) -> dict[tuple[str, float], Point]:
        """The grid by arm and learning rate."""
        groups: dict[tuple[str, float], list[Standing]] = {}
        for standing in self.standings.values():
            spec = standing.cell.spec
            groups.setdefault((self._arm(standing), spec.optim.lr), []).append(standing)
        points = {place: _point(group) for place, group in groups.items()}
        # A grid point at which a seed diverged is not the best.
        losses = {
            place: point.loss
            for place, point in points.items()
            if point.loss is not None and not {"diverged", "failed"} & set(point.states)
        }
        if losses:
            best = min(losses, key=losses.__getitem__)
            points[best] = replace(points[best], best=True)
        return points

    def _arm(self, standing: Standing) -> str:
        """An arm by its values of the axes; the value of the first one, whose key is the head, stands alone."""
        values = standing.cell.values
        if not self.axes:
            return standing.cell.spec.norm.name
        first, *others = self.axes
        return " ".join([str(values[first]), *filter(None, [label({key: values[key] for key in others})])])


def _point(group: Sequence[Standing]) -> Point:
    losses = [one.status["metrics"]["train_loss"] for one in group if one.state == "finished"]
    known = [float(loss) for loss in losses if loss is not None]
    states = tuple("failed" if one.failed else one.state for one in group)
    return Point(states, statistics.fmean(known) if known else None)


def legend(signs: Signs, width: int, points: Iterable[Point], full: bool) -> Iterator[Line]:
    """What the signs mean, on as many lines as it takes; nothing is left out."""
    points = list(points)
    present = {state for point in points for state in point.states}
    words = [(sign, state) for state, sign in signs.states.items() if state not in RARE or state in present]
    several = any(len(point.states) > 1 for point in points)
    notes = ["* best mean loss" if width >= WIDE else "* best loss"]
    notes += ["one sign: the worst seed"] * (several and not full)
    parts = [
        *([Segment(sign, STYLES[state]), Segment(f" {state}", DIM)] for sign, state in words),
        *([Segment(note, DIM)] for note in notes),
    ]
    line: Line = []
    for part in parts:
        if line and Segment.get_line_length([*line, *part]) + 2 > width:
            yield line
            line = []
        line = [*line, *([Segment("  ", DIM)] if line else []), *part]
    yield line


def table(head: str, points: Mapping[tuple[str, float], Point], width: int) -> _Layout:
    """Arms down and learning rates across, or the other way round, in the widest layout that fits; else the narrowest
    one, which is cut."""
    arms = list(dict.fromkeys(arm for arm, _ in points))
    rates = {rate: f"{rate:g}" for rate in sorted({rate for _, rate in points})}
    by_arm = {(arm, rates[rate]): point for (arm, rate), point in points.items()}
    by_rate = {(rate, arm): point for (arm, rate), point in by_arm.items()}
    lrs = list(rates.values())
    for layout in LAYOUTS:
        ways = (_Layout(head, arms, lrs, by_arm, arms, *layout), _Layout("lr", lrs, arms, by_rate, arms, *layout))
        for way in ways:
            way.fit(width)
        chosen = max(ways, key=lambda way: way.longest)
        if chosen.longest:
            return chosen
    return min(ways, key=lambda way: way.width(NAME))


class _Layout:
    """A grid with its rows and columns, either of which are `arms`; `full` has a sign for each seed, `tight` no room
    for losses to come; losses have so many digits."""

    def __init__(
        self,
        head: str,
        rows: Sequence[str],
        columns: Sequence[str],
        points: Mapping[tuple[str, str], Point],
        arms: Sequence[str],
        full: bool,
        tight: bool,
        digits: int,
    ) -> None:
        self.head, self.rows, self.columns, self.arms = head, rows, columns, arms
        self.full, self.digits, self.longest = full, digits, 0
        self.points = {(row, column): points.get((row, column), Point()) for row in rows for column in columns}
        self.rooms = [max(self.points[row, column].room(full, tight, digits) for row in rows) for column in columns]

    def fit(self, width: int) -> None:
        """`longest` becomes the characters of the arms' names with which it fits; 0 where it does not."""
        longest = max(map(len, self.arms))
        lengths = range(longest, min(NAME, longest) - 1, -1)
        self.longest = next((n for n in lengths if self.width(n) <= width), 0)

    def width(self, longest: int) -> int:
        """With the star of the best point, for which the last column has no gap."""
        widths = self._widths({arm: arm[:longest] for arm in self.arms})
        return sum(widths) + 2 * (len(widths) - 1) + 1

    def _widths(self, short: Mapping[str, str]) -> list[int]:
        first = max(len(self.head), *(len(short.get(row, row)) for row in self.rows))
        heads = [len(short.get(column, column)) for column in self.columns]
        return [first, *map(max, heads, self.rooms)]

    def lines(self, signs: Signs, width: int, room: int) -> Iterator[Line]:
        """Head, rule and `room` rows, those in the middle left out."""
        short = {arm: shortened(arm, self.longest or NAME, signs) for arm in self.arms}
        first, *widths = self._widths(short)
        shown, used = 0, first
        while shown < len(widths) and used + 2 + widths[shown] <= width - (2 if shown + 1 < len(widths) else 1):
            used += 2 + widths[shown]
            shown += 1
        columns, cut = list(zip(self.columns, widths, strict=True))[:shown], shown < len(widths)
        heads = "".join(f"  {short.get(column, column):<{size}}" for column, size in columns)
        yield [Segment(f"{self.head:<{first}}{heads}" + (f" {signs.cut}" if cut else ""), DIM)]
        yield [Segment(signs.line * (used + 2 * cut), DIM)]
        above, below = ends(len(self.rows), room)
        hidden = range(above, len(self.rows) - below)
        for index, row in enumerate(self.rows):
            if index == above and hidden and room > 0:
                yield [Segment(f"{signs.cut} {len(hidden)} more", DIM)]
            if index in hidden:
                continue
            line = [Segment(f"{short.get(row, row):<{first}}  ", PLAIN)]
            for column, size in columns:
                point = self.points[row, column].line(signs, self.full, self.digits)
                line += [*point, Segment(" " * (size + 2 - Segment.get_line_length(point)), PLAIN)]
            yield line
