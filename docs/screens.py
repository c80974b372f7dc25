"""Makes docs/images/terminal_train.png and terminal_sweep.png: what two real commands show on a terminal of 100 by 30.

    python docs/screens.py

Each is run on a pseudo-terminal, whose screen pyte keeps; the frame at three quarters of the run is drawn by Chromium.
Needs the extras [test] and [browser], and a Chromium.
"""

from __future__ import annotations

import copy
import fcntl
import html
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Any

import pyte
from playwright.sync_api import sync_playwright

COLUMNS, LINES = 100, 30
SHOWN = b"\x1b[?2026l"
WHEN = 0.75
COLOURS = {
    "default": "#d5d8d6",
    "red": "#e0605e",
    "green": "#a3be5c",
    "cyan": "#6fb3c8",
    "magenta": "#d5508c",
    "brown": "#e0b450",
    "brightblack": "#868b89",
}
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; width: max-content; background: #26282b; }}
pre {{ margin: 0; padding: 12px 14px; font: 15px/19px "DejaVu Sans Mono", monospace; color: {colour}; }}
</style><pre>{text}</pre>"""


def frames(words: list[str]) -> list[Any]:
    """The screen after every frame of a command, its line above it."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ {' '.join(words)}\r\n".encode())
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    found, left = [], b""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=folder, env=environment, stdin=inside, stdout=inside, stderr=inside
        )
        os.close(inside)
        while True:
            try:
                left += os.read(outside, 65536)
            except OSError:  # the command has ended
                break
            while SHOWN in left:
                frame, _, left = left.partition(SHOWN)
                stream.feed(frame.replace(b"\x1b[2m", b"\x1b[90m"))  # pyte knows of nothing dim
                found.append(copy.deepcopy(screen.buffer))
        process.wait()
    os.close(outside)
    return found


def page(screen: Any) -> str:
    """A screen as HTML, less what is empty below."""
    lines = []
    for row in range(LINES):
        parts = []
        for column in range(COLUMNS):
            cell = screen[row][column]
            weight = ";font-weight:bold" if cell.bold else ""
            colour = COLOURS[cell.fg]
            parts.append(f'<span style="color:{colour}{weight}">{html.escape(cell.data)}</span>')
        lines.append(re.sub(r"</span><span style=\"[^\"]*\"> (?=</span>)", " ", "".join(parts)))
    used = max(row for row in range(LINES) if any(screen[row][column].data != " " for column in range(COLUMNS)))
    return PAGE.format(colour=COLOURS["default"], text="\n".join(lines[: used + 1]))


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        drawn = browser.new_page(device_scale_factor=1.25)
        for command, config in (("train", "deep_mlp"), ("sweep", "quickstart")):
            found = frames(["bnlab", command, "--config", config])
            drawn.set_content(page(found[round(WHEN * (len(found) - 1))]))
            file = Path(__file__).parent / "images" / f"terminal_{command}.png"
            drawn.locator("body").screenshot(path=str(file))
            print(f"{file}  {file.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
