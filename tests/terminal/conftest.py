"""Emulated terminals, and time that passes only when it is told to."""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pyte = pytest.importorskip("pyte", reason="needs pyte, an emulated terminal")


class Screen(io.StringIO):
    """A terminal of a fixed size: what is written to it stands on `screen`."""

    def __init__(self, columns: int, rows: int, encoding: str = "utf-8") -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._stream = pyte.Stream(self.screen)
        self._name = encoding
        self.writes: list[str] = []

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._name

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes.append(text)
        self._stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    @property
    def written(self) -> str:
        return "".join(self.writes)

    @property
    def lines(self) -> list[str]:
        """What stands there, less blanks at the ends of lines and empty lines at the end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    def style(self, row: int) -> set[tuple[str, bool]]:
        """Colour and boldness of what stands in a row."""
        cells = [self.screen.buffer[row][column] for column in range(self.screen.columns)]
        return {(cell.fg, cell.bold) for cell in cells if cell.data != " "}


@pytest.fixture
def screen_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`screen_of(columns, rows)`: a terminal of that size, in the environment too."""

    def made(columns: int, rows: int, encoding: str = "utf-8") -> Screen:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(rows))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        return Screen(columns, rows, encoding)

    return made


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@dataclass(frozen=True, slots=True)
class Terminal:
    """What a command left: its exit code, the screen, and all that it wrote."""

    code: int
    screen: Any
    raw: bytes


def _in_terminal(
    folder: Path, words: list[str], size: tuple[int, int], *, press: bytes = b"", when: bytes = b"", **environment: str
) -> Terminal:
    """`bnlab` with `words` on a terminal; `press` is typed once `when` was written."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals are a thing of Unix")
    import fcntl
    import struct
    import termios

    columns, rows = size
    settings = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    settings |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
    # To open it makes it the terminal that Ctrl-C is typed at.
    script = "import os, sys; os.open(os.ttyname(0), os.O_RDWR); from bnlab.cli import main; main(sys.argv[1:])"
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        cwd=folder,
        env=settings,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    screen = pyte.HistoryScreen(columns, rows, history=1000)
    stream, raw, limit = pyte.ByteStream(screen), b"", time.monotonic() + 120
    while time.monotonic() < limit:
        if press and when in raw:
            os.write(terminal, press)
            press = b""
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                read = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            if not read:
                break
            raw += read
            stream.feed(read)
    os.close(terminal)
    with process:
        process.terminate()  # nothing but at the time limit
    return Terminal(process.returncode, screen, raw)


@pytest.fixture
def in_terminal() -> Callable[..., Any]:
    """`in_terminal(folder, words, size)`: what `bnlab` with these words left on a terminal of that size."""
    return _in_terminal
