"""Frames drawn by hand on a screen: no thread takes time from what they show.

A frame is one write. Its lines are put over those of the frame before, and nothing is erased that is not over: so there
is nothing to flicker, even where a terminal shows half a frame.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment

INTERVAL_S = 0.25
"""At most four frames a second."""

SHARE = 0.01
"""Of the time that may go into drawing: where a frame is slow, frames are rarer."""

WHOLE, SHOWN = "\x1b[?2026h", "\x1b[?2026l"
"""Between these a terminal that knows them shows nothing; the others ignore them."""
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
REST_OF_LINE, ALL_BELOW = "\x1b[K", "\x1b[J"

Line = list[Segment]


class Frames:
    """Draws what `lines(width, height)` yields; a terminal that has gone away ends the drawing, and nothing else. What
    is printed meanwhile stands above the frame."""

    def __init__(self, lines: Callable[[int, int], Iterable[Line]], out: TextIO) -> None:
        self.lines, self.out = lines, out
        # The output has been found to be a terminal, and FORCE_COLOR must not have a say in that.
        self.console = Console(file=out, force_terminal=True, legacy_windows=False)
        self._due = math.inf
        self._drawn: list[int] = []  # lengths of the lines that stand there; the cursor is at the begin of the last one
        self._width = 0
        self._begun = False
        self._printed = contextlib.ExitStack()
        self._files: list[_Above] = []

    def begin(self) -> None:
        """The first frame."""
        self._begun = True
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            file = getattr(sys, name)
            if file is not None and file.isatty():
                self._files.append(_Above(self, file))
                self._printed.enter_context(redirect(self._files[-1]))
        self._write(HIDE_CURSOR)
        self.draw()

    def draw_if_due(self) -> None:
        """A frame, unless there was one just now, or none yet."""
        if time.monotonic() >= self._due:
            self.draw()

    def draw(self) -> None:
        """One frame."""
        start = time.monotonic()
        if not self._write(WHOLE + self._frame() + "\r" + SHOWN):
            self._due = math.inf
            return
        end = time.monotonic()
        self._due = end + max(INTERVAL_S, (end - start) / SHARE)

    def hold(self) -> None:
        """No more frames but the last, which `close` draws."""
        self._due = math.inf

    def close(self) -> None:
        """The last frame; the cursor is given back, in a line of its own."""
        if self._begun:
            for file in self._files:
                file.end()
            self._printed.close()
            self._begun, self._due = False, math.inf
            self._write(WHOLE + self._frame() + "\n" + SHOWN + SHOW_CURSOR)

    def above(self, text: str) -> None:
        """Put whole lines above the frame."""
        self._write(WHOLE + self._to_the_top(self.console.size.width) + ALL_BELOW + text + SHOWN)
        self._drawn = []
        self.draw()

    def _frame(self) -> str:
        """The text of a frame over the one before, less what moves the cursor on behind it."""
        width, height = self.console.size
        lines = [Segment.adjust_line_length(line, width, pad=False) for line in self.lines(width, height)][:height]
        lengths = [Segment.get_line_length(line) for line in lines]
        text = self._to_the_top(width)
        if width != self._width:  # lines that were broken stand where no new one need come
            text, self._width = text + ALL_BELOW, width
        # At the end of a full line the cursor is still on its last sign: what would erase the rest would erase that.
        text += "\n".join(
            self._painted(line) + (REST_OF_LINE if length < width else "")
            for line, length in zip(lines, lengths, strict=True)
        )
        if len(lines) < len(self._drawn):
            text += f"\n{ALL_BELOW}\x1b[A"
        self._drawn = lengths
        return text

    def _to_the_top(self, width: int) -> str:
        """To the begin of the first line. A terminal that has become narrower has broken those that were longer."""
        up = sum(max(1, -(-length // width)) for length in self._drawn[:-1])
        return f"\r\x1b[{up}A" if up else "\r"

    def _painted(self, line: Line) -> str:
        system = ColorSystem.STANDARD if self.console.color_system else None
        plain = self.console.no_color
        parts = []
        for text, style, _ in line:
            if style is not None and style:
                text = (style.without_color if plain else style).render(text, color_system=system)
            parts.append(text)
        return "".join(parts)

    def _write(self, text: str) -> bool:
        """Whether the terminal is still there."""
        try:
            self.out.write(text)
            self.out.flush()
        except OSError:
            return False
        return True


class _Above(io.TextIOBase):
    """Takes the place of a terminal's file: whole lines go above the frame."""

    def __init__(self, frames: Frames, file: TextIO) -> None:
        self._frames, self._file, self._part = frames, file, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._file.encoding

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, text: str) -> int:
        whole, end, self._part = (self._part + text).rpartition("\n")
        if end:
            self._frames.above(whole + end)
        return len(text)

    def end(self) -> None:
        """A line that was not ended is a line too."""
        if self._part:
            self.write("\n")
