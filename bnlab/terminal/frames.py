"""Frames drawn by hand on a screen: no thread takes time from what they show."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment

INTERVAL_S = 0.25
"""At most four frames a second."""

SHARE = 0.01
"""Of the time that may go into drawing: where a frame is slow, frames are rarer."""

Line = list[Segment]


class Frames:
    """Draws what `lines(width, height)` yields; a terminal that has gone away ends the drawing, and nothing else."""

    def __init__(self, lines: Callable[[int, int], Iterable[Line]], out: TextIO) -> None:
        self.lines, self.out = lines, out
        # The output has been found to be a terminal, and FORCE_COLOR must not have a say in that.
        self.console = Console(file=out, force_terminal=True, highlight=False, markup=False, legacy_windows=False)
        self._live = Live(self, console=self.console, auto_refresh=False, vertical_overflow="crop")
        self._due = math.inf

    def begin(self) -> None:
        """The first frame."""
        with contextlib.suppress(OSError):
            self._live.start()
        self.draw()

    def draw_if_due(self) -> None:
        """A frame, unless there was one just now, or none yet."""
        if time.monotonic() >= self._due:
            self.draw()

    def draw(self) -> None:
        """One frame."""
        start = time.monotonic()
        try:
            # Terminals that know this mode show a frame only when it is whole; the others ignore it.
            self.out.write("\x1b[?2026h")
            self._live.refresh()
            self.out.write("\x1b[?2026l")
            self.out.flush()
        except OSError:
            self._due = math.inf
            return
        end = time.monotonic()
        self._due = end + max(INTERVAL_S, (end - start) / SHARE)

    def hold(self) -> None:
        """No more frames but the last, which `close` draws."""
        self._due = math.inf

    def close(self) -> None:
        """The last frame; the cursor is given back."""
        with contextlib.suppress(OSError):
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = console.size
        for index, line in enumerate(self.lines(width, height)):
            if index:
                yield Segment.line()
            yield from Segment.adjust_line_length(line, width, pad=False)
