"""Frames on a screen, drawn without a thread (docs/decisions/019-frames-by-hand.md).

A frame is one write. Its lines overwrite those of the frame before, and only what they do not cover is erased: nothing
flickers, even where a terminal shows half a frame.
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

from bnlab.core.text import printable
from bnlab.terminal.progress import INTERVAL_S

SHARE = 0.01
"""The share of the time that drawing may take: where a frame is slow, frames are rarer."""

WHOLE, SHOWN = "\x1b[?2026h", "\x1b[?2026l"
"""Between these, a terminal that knows them shows nothing new; others ignore them."""
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
REST_OF_LINE, ALL_BELOW = "\x1b[K", "\x1b[J"

Line = list[Segment]


def ends(count: int, room: int) -> tuple[int, int]:
    """How many of the first and of the last of `count` lines fit into `room`, with one line for the rest.

    >>> ends(5, 5), ends(9, 4)
    ((5, 0), (2, 1))
    """
    return (count, 0) if count <= room else (room // 2, max(0, (room - 1) // 2))


class Frames:
    """Draws what `lines(width, height)` yields. A terminal that is closed ends the drawing, and nothing else. What is
    printed meanwhile appears above the frame."""

    def __init__(self, lines: Callable[[int, int], Iterable[Line]], out: TextIO) -> None:
        self.lines, self.out = lines, out
        # The output is known to be a terminal; FORCE_COLOR must not change that.
        self.console = Console(file=out, force_terminal=True, legacy_windows=False)
        self._due = math.inf
        self._drawn: list[
            int
        ] = []  # lengths of the lines on the screen; the cursor is at the beginning of the last one
        self._width = 0
        self._begun = False
        self._printed = contextlib.ExitStack()
        self._files: list[_Above] = []

    def begin(self) -> None:
        """Draw the first frame."""
        self._begun = True
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            file = getattr(sys, name)
            if file is not None and file.isatty():
                self._files.append(_Above(self, file))
                self._printed.enter_context(redirect(self._files[-1]))
        self._write(HIDE_CURSOR)
        self.draw()

    def draw_if_due(self) -> None:
        """Draw a frame if the last one is old enough."""
        if time.monotonic() >= self._due:
            self.draw()

    def draw(self) -> None:
        """Draw a frame."""
        start = time.monotonic()
        if not self._write(WHOLE + self._frame() + "\r" + SHOWN):
            self._due = math.inf
            return
        end = time.monotonic()
        self._due = end + max(INTERVAL_S, (end - start) / SHARE)

    def hold(self) -> None:
        """Draw no more frames but the last, in `close`."""
        self._due = math.inf

    def close(self) -> None:
        """Draw the last frame and show the cursor again, on a line of its own."""
        if self._begun:
            for file in self._files:
                file.end()
            self._printed.close()
            self._begun, self._due = False, math.inf
            self._write(WHOLE + self._frame() + "\n" + SHOWN + SHOW_CURSOR)

    def above(self, text: str) -> None:
        """Print whole lines above the frame."""
        self._write(WHOLE + self._to_the_top(self.console.size.width) + ALL_BELOW + text + SHOWN)
        self._drawn = []
        self.draw()

    def _frame(self) -> str:
        """The text of a frame that overwrites the one before; the cursor stays in its last line."""
        width, height = self.console.size
        shown = ([Segment(printable(text), style) for text, style, _ in line] for line in self.lines(width, height))
        lines = [Segment.adjust_line_length(line, width, pad=False) for line in shown][:height]
        lengths = [Segment.get_line_length(line) for line in lines]
        text = self._to_the_top(width)
        if width != self._width:  # wrapped lines may reach below the new frame
            text, self._width = text + ALL_BELOW, width
        # After a full line the cursor is still on its last sign, which erasing the rest would remove.
        text += "\n".join(
            self._painted(line) + (REST_OF_LINE if length < width else "")
            for line, length in zip(lines, lengths, strict=True)
        )
        if len(lines) < len(self._drawn):
            text += f"\n{ALL_BELOW}\x1b[A"
        self._drawn = lengths
        return text

    def _to_the_top(self, width: int) -> str:
        """To the beginning of the first line. A terminal that has become narrower has wrapped longer lines."""
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
        """Whether the terminal is still open."""
        try:
            self.out.write(text)
            self.out.flush()
        except OSError:
            return False
        return True


class _Above(io.TextIOBase):
    """Replaces a terminal's file: whole lines go above the frame."""

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
        """Print the rest, a line without an end."""
        if self._part:
            self.write("\n")
