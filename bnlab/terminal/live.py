"""The live display of one run: progress, loss, and a table of its layers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.segment import Segment
from rich.style import Style

from bnlab.core.text import number
from bnlab.terminal.frames import Frames, Line, ends
from bnlab.terminal.progress import Progress, Record
from bnlab.terminal.signs import Signs, shortened, signs_for, sparkline, thinned

HISTORY = 60
"""Drifts that are kept of each layer."""

NAME = 8
"""Characters of a name that are kept on any screen."""

LOSSES = 512
"""Losses that are kept: when there are twice as many, every second one is dropped."""

COLUMNS = {
    "mean": ("act_mean.pre", "batch_mean"),
    "var": ("act_var.pre", "batch_var"),
    "drift": ("drift_mean.pre",),
    "grad": ("grad_norm",),
}
"""Columns of the table, and the measurements that they show: the first one that is there."""

PRE = ("mean", "var", "drift")
"""The columns that are of the output of the affine map, which a norm is given unless it is after the activation."""

PLAIN, BOLD, DIM = Style(), Style(bold=True), Style(dim=True)
GOOD, TIME, CURVE, BAD = Style(color="green"), Style(color="cyan"), Style(color="cyan"), Style(color="red", bold=True)
BAR = Style(color="magenta")
ABOVE, AFTER = 6, 6
"""Lines of a frame above its layers, and those of the summary below the last frame."""


class LiveTable(Progress):
    """Draws itself at most four times a second, from `tick`: no thread takes time from the run."""

    def __init__(
        self,
        title: str,
        steps: int,
        begun: Callable[[], int],
        out: TextIO,
        sites: Sequence[str],
        point: str = "before the norm",
    ) -> None:
        super().__init__(title, steps, begun, out)
        self.point = point
        self.sites, self.signs = list(sites), signs_for(out.encoding)
        self.losses: list[float] = []
        self.best = math.inf
        self.drifts: deque[Any] = deque(maxlen=HISTORY)
        self.bad_site: str | None = None
        self._stride, self._skipped = 1, 0
        self._below = 1  # the last line of the screen is the cursor's
        self.frames = Frames(self.lines, out)

    def listen(self, record: Record) -> None:
        super().listen(record)
        if "train_loss" in record:
            self._remember(float(record["train_loss"]))
        if "drift_mean.pre" in record:
            self.drifts.append(record["drift_mean.pre"])

    def advanced(self) -> None:
        self.frames.draw_if_due()

    def finish(self, status: Mapping[str, Any]) -> None:
        super().finish(status)
        self.bad_site = (status.get("diverged") or {}).get("site")
        self.frames.hold()
        self._below = AFTER

    def close(self) -> None:
        self.frames.close()

    def draw(self) -> None:
        """Draw a frame now."""
        self.frames.draw()

    def _begin(self) -> None:
        super()._begin()
        self.frames.begin()

    def _remember(self, loss: float) -> None:
        self.best = min(self.best, loss) if math.isfinite(loss) else self.best
        self._skipped += 1
        if self._skipped < self._stride:
            return
        self._skipped = 0
        self.losses.append(loss)
        if len(self.losses) >= 2 * LOSSES:
            self.losses = self.losses[1::2]
            self._stride *= 2

    def lines(self, width: int, height: int) -> Iterator[Line]:
        """The lines of a frame."""
        name, gap, facts = self.title.partition("  ")
        name = shortened(name, max(NAME, width - len(f"train  {gap}{facts}")), self.signs)
        yield [Segment("train", BOLD), Segment(f"  {name}{gap}{facts}", PLAIN)]
        yield self._bar(width)
        yield self._loss(width)
        measured = {head: [name for name in names if name in self.latest] for head, names in COLUMNS.items()}
        shown = {head: self.latest[names[0]] for head, names in measured.items() if names}
        room = height - ABOVE - self._below
        if shown and room >= 2:
            yield from self._table(shown, width, room)

    def _bar(self, width: int) -> Line:
        counted = f"{max(0, self.step)}/{self.steps}"
        pace = self.pace()
        room = width - len(f"step   {counted}  {pace}")
        line = [Segment("step ", DIM)]
        if room >= 4:
            done = min(room, room * max(0, self.step) // self.steps)
            line += [
                Segment(self.signs.done * done, BAR),
                Segment(self.signs.rest * (room - done), DIM),
                Segment("  ", PLAIN),
            ]
        return [*line, Segment(counted, GOOD), Segment("  ", PLAIN), Segment(pace, TIME)]

    def _loss(self, width: int) -> Line:
        loss = self.latest.get("train_loss")
        line = [Segment("loss ", DIM), Segment(f"{number(loss, 4):<9}", BAD if _is_bad(loss) else BOLD)]
        line += [Segment(" best ", DIM), Segment(f"{number(self.best, 4):<9}", PLAIN)]
        if "test_accuracy" in self.latest and width >= 60:
            line += [Segment(" test accuracy ", DIM), Segment(f"{number(self.latest['test_accuracy'], 4):<6}", PLAIN)]
        room = width - sum(len(segment.text) for segment in line) - 2
        curve = sparkline(thinned(self.losses, room), room, self.signs)
        return [*line, Segment("  ", PLAIN), Segment(curve, CURVE)]

    def _table(self, shown: Mapping[str, Sequence[float]], width: int, room: int) -> Iterator[Line]:
        """Header, rule, and the layers; where not all fit, the first and the last ones."""
        table = Table(self.sites, shown, self.drifts, self.signs, width)
        yield table.above(self.point)
        yield table.header()
        yield [Segment(self.signs.line * table.used, DIM)]
        count = len(self.sites)
        bad = [index for index in range(count) if table.is_bad(index) or self.sites[index] == self.bad_site]
        first, last = ends(count, room)
        hidden = range(first, count - last)
        wrong = sum(index in hidden for index in bad)
        text = f"{self.signs.cut} {len(hidden)} more" + (f", {wrong} of them not finite" if wrong else "")
        for index in range(count):
            if index not in hidden:
                yield table.line(index, index in bad)
            elif index == first:
                yield [Segment(text, BAD if wrong else DIM)]


class Table:
    """The layer table at one width: a narrow one has fewer digits, and no curve."""

    def __init__(
        self,
        sites: Sequence[str],
        shown: Mapping[str, Sequence[float]],
        drifts: Sequence[Any],
        signs: Signs,
        width: int,
    ) -> None:
        self.shown, self.signs = shown, signs
        self.digits = 3 if width >= 56 else 2
        self.cell = self.digits + 6  # -1.23e-05 and a blank before it
        room = max(NAME, width - len(shown) * self.cell - 1)
        self.sites = [shortened(name, room, signs) for name in sites]
        self.name_width = max(len("layer"), *(len(name) for name in self.sites))
        narrow = self.name_width + len(shown) * self.cell + 1
        self.curve = min(HISTORY, width - narrow - 2) if drifts else 0
        self.curve = self.curve if self.curve >= 12 else 0
        self.used = narrow + (2 + self.curve if self.curve else 0)
        self.histories = (
            [list(values) for values in zip(*list(drifts)[-self.curve :], strict=True)] if self.curve else []
        )

    def above(self, point: str) -> Line:
        """The measuring point, above the columns that are of it."""
        of_it = [self._column(name) for name in self.shown if name in PRE]
        text = f" {point} ".center(sum(of_it) - 4, self.signs.line)
        return [Segment(f"{text:>{self.name_width + sum(of_it)}}", DIM)] if of_it else []

    def header(self) -> Line:
        heads = "".join(f"{name:>{self._column(name)}}" for name in self.shown)
        text = f"{'layer':<{self.name_width}}{heads}"
        return [Segment(text + (f"  drift, last {self.curve}" if self.curve else ""), DIM)]

    def line(self, index: int, bad: bool) -> Line:
        cells = [
            f"{number(float(row[index]), self.digits, sign=name == 'mean'):>{self._column(name)}}"
            for name, row in self.shown.items()
        ]
        text = f"{self.sites[index]:<{self.name_width}}{''.join(cells)}"
        curve = f"  {sparkline(self.histories[index], self.curve, self.signs)}" if self.curve else ""
        return [Segment(text, BAD if bad else PLAIN), Segment(curve, BAD if bad else CURVE)]

    def _column(self, name: str) -> int:
        """Characters of a column; means have a sign."""
        return self.cell + (name == "mean")

    def is_bad(self, index: int) -> bool:
        return any(_is_bad(row[index]) for row in self.shown.values())


def _is_bad(value: Any) -> bool:
    return value is not None and not math.isfinite(value)
