"""How many of many things are done: a bar where there is a screen, else a line each tenth; neither of what is soon
over. It leaves nothing behind on a screen."""

from __future__ import annotations

import time
from typing import TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bnlab.terminal.frames import INTERVAL_S
from bnlab.terminal.progress import next_mark
from bnlab.terminal.signs import duration, is_screen, say
from bnlab.terminal.tables import console

BAR_AFTER_S, LINES_AFTER_S = 1.0, 5.0
"""What takes less has no bar, and no lines."""


class Count:
    """Called once before the first thing, and once after each. To be used in a `with`."""

    def __init__(self, what: str, total: int, out: TextIO, *, plain: bool) -> None:
        self.what, self.total, self.out = what, total, out
        self.done = -1
        self._start, self._drawn, self._mark = time.monotonic(), 0.0, next_mark(0, total)
        self._bar = None if plain or not is_screen(out) else _bar(out)
        self._task = self._bar.add_task(what, total=total) if self._bar else None

    def __enter__(self) -> Count:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None and self._drawn:
            self._bar.stop()

    def __call__(self) -> None:
        self.done += 1
        now = time.monotonic()
        if self._bar is None:
            self._line(now - self._start)
            return
        assert self._task is not None
        self._bar.update(self._task, completed=self.done)
        if now - self._start >= BAR_AFTER_S and now - self._drawn >= INTERVAL_S:
            if not self._drawn:
                self._bar.start()
            self._drawn = now
            self._bar.refresh()

    def _line(self, took: float) -> None:
        if self.done < self._mark:
            return
        self._mark = next_mark(self.done, self.total)
        if took >= LINES_AFTER_S:
            left = took / self.done * (self.total - self.done)
            shown = f"{self.what} {self.done:>{len(str(self.total))}}/{self.total}"
            say(f"{shown}  {duration(took)}  eta {duration(left)}", self.out)


def _bar(out: TextIO) -> Progress:
    """Drawn by hand: no thread takes time from what is counted."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("eta"))
    return Progress(
        *columns, TimeRemainingColumn(compact=True), console=console(out), auto_refresh=False, transient=True
    )
