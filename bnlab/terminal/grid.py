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
from bnlab.sweep.run import Standing
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
ABOVE, BELOW, AFTER = 4, 2, 4
"""Lines of a frame above and below its grid, and those left for what comes after the last frame."""
LOSS = 7
"""Characters of most losses: 0.00123."""
STUDY, NAME = 24, 8
"""Characters of a study's name, and the fewest of an arm's."""
LAYOUTS = ((True, False), (True, True), (False, False), (False, True))
"""A sign for each seed, or one for all; room for losses to come, or only for those that are known."""


@dataclass(frozen=True, slots=True)
class Point:
    """A grid point: the states of its seeds, the mean loss of those that finished, whether that is the best."""

    states: tuple[str, ...] = ()
    loss: float | None = None
    best: bool = False

    def line(self, signs: Signs, full: bool) -> Line:
        """A sign for each seed, or the one of the worst state, and the loss."""
        states = self.states if full else [state for state in WORST_FIRST if state in self.states][:1]
        line = [Segment(signs.states[state], STYLES[state]) for state in states]
        if self.loss is not None:
            line.append(Segment(f" {number(self.loss)}" + ("*" if self.best else ""), BEST if self.best else PLAIN))
        return line

    def room(self, full: bool, tight: bool) -> int:
        """Characters without the star; unless `tight`, those it may need later, so that columns do not move."""
        known = 0 if self.loss is None else 1 + len(number(self.loss))
        return (len(self.states) if full else min(1, len(self.states))) + (known if tight else max(1 + LOSS, known))


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
        yield [Segment("sweep", BOLD), Segment(f"  {self._facts(width - len('sweep  '))}", PLAIN)]
        yield [Segment(self.waiting, DIM)] if self.elsewhere and not self._closed else []
        head = self.axes[0].rpartition(".")[2] if self.axes else "norm"
        yield from table(head, points, self.signs, width, height - ABOVE - BELOW - below)
        yield []
        yield legend(self.signs, width, {state for point in points.values() for state in point.states})

    def _facts(self, width: int) -> str:
        """How many runs have ended, and the time; on a narrow screen without the study, then without the time."""
        name = shortened(next((one.cell.spec.name for one in self.standings.values()), ""), STUDY, self.signs)
        counted, eta = f"{self.ended}/{len(self.standings)} runs", self.eta_s()
        left = f"eta {'-' if eta is None else age(math.ceil(eta))}"
        some = ", ".join([counted, *self.counts(), left])
        all_of_them = ", ".join([counted, *self.counts(), age(self.elapsed_s()), left])
        return next((text for text in (f"{name}  {all_of_them}", all_of_them) if len(text) <= width), some)

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


def legend(signs: Signs, width: int, present: set[str]) -> Line:
    """What the signs mean, as far as there is room."""
    line, used = [], 0
    for state, sign in signs.states.items():
        if state in RARE and state not in present:
            continue
        used += len(sign) + len(state) + 3
        if used <= width:
            line += [Segment(sign, STYLES[state]), Segment(f" {state}  ", DIM)]
    text = "* best mean loss"
    return [*line, Segment(text, DIM)] if used + len(text) <= width else line


def table(head: str, points: Mapping[tuple[str, float], Point], signs: Signs, width: int, room: int) -> Iterator[Line]:
    """Head, rule and `room` rows: arms down and learning rates across, or the other way round, in the widest layout
    that fits; the narrowest one is cut."""
    arms = list(dict.fromkeys(arm for arm, _ in points))
    rates = {rate: f"{rate:g}" for rate in sorted({rate for _, rate in points})}
    by_arm = {(arm, rates[rate]): point for (arm, rate), point in points.items()}
    by_rate = {(rate, arm): point for (arm, rate), point in by_arm.items()}
    lrs, lengths = list(rates.values()), [0]
    for full, tight in LAYOUTS:
        ways = (_Layout(head, arms, lrs, by_arm, full, tight), _Layout("lr", lrs, arms, by_rate, full, tight))
        lengths = [way.longest_name(arms, width) for way in ways]
        chosen = ways[lengths.index(max(lengths))]
        if max(lengths):
            break
    else:
        chosen = min(ways, key=lambda way: way.width({arm: arm[:NAME] for arm in arms}))
    short = {arm: shortened(arm, max(lengths) or NAME, signs) for arm in arms}
    yield from chosen.lines(short, signs, width, room)


class _Layout:
    """A grid with its rows and columns; `full` has a sign for each seed, `tight` no room for losses to come."""

    def __init__(
        self,
        head: str,
        rows: Sequence[str],
        columns: Sequence[str],
        points: Mapping[tuple[str, str], Point],
        full: bool,
        tight: bool,
    ) -> None:
        self.head, self.rows, self.columns, self.full = head, rows, columns, full
        self.points = {(row, column): points.get((row, column), Point()) for row in rows for column in columns}
        self.rooms = [max(self.points[row, column].room(full, tight) for row in rows) for column in columns]

    def longest_name(self, arms: Sequence[str], width: int) -> int:
        """Characters of the arms' names with which it fits; 0 where it does not."""
        longest = max(map(len, arms))
        lengths = range(longest, min(NAME, longest) - 1, -1)
        return next((n for n in lengths if self.width({arm: arm[:n] for arm in arms}) <= width), 0)

    def width(self, short: Mapping[str, str]) -> int:
        """With the star of the best point, for which the last column has no gap."""
        widths = self._widths(short)
        return sum(widths) + 2 * (len(widths) - 1) + 1

    def _widths(self, short: Mapping[str, str]) -> list[int]:
        first = max(len(self.head), *(len(short.get(row, row)) for row in self.rows))
        heads = [len(short.get(column, column)) for column in self.columns]
        return [first, *map(max, heads, self.rooms)]

    def lines(self, short: Mapping[str, str], signs: Signs, width: int, room: int) -> Iterator[Line]:
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
                point = self.points[row, column].line(signs, self.full)
                line += [*point, Segment(" " * (size + 2 - Segment.get_line_length(point)), PLAIN)]
            yield line
