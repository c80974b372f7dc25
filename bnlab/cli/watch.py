"""`bnlab runs --watch`: the table of runs, again and again, until nothing runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from bnlab.cli import INTERRUPTED, Stop
from bnlab.launch._arrays import held_below
from bnlab.terminal import tables
from bnlab.terminal.signs import is_screen, say

EVERY_S, SHARE = 3.0, 0.05
"""Seconds between two looks, and the share of the time that looks may take: a disk may be one that many share."""
CLEAR = "\x1b[H\x1b[J"


Rows = tuple[list[dict[str, Any]], list[str]]


def watch(root: Path, look: Callable[[], Rows], *, by_activity: bool, plain: bool) -> None:
    """Show the runs below `root` until none runs or is in SLURM: on a screen the table, as many as there is room for;
    else a line whenever a run has changed its state. `look` gives their rows, and keys that these have besides the
    columns; `by_activity`: those that run come first."""
    stop, before, screen = Stop(), "", is_screen(sys.stdout) and not plain
    while stop.reason is None:
        start = time.monotonic()
        rows, more = look()
        held = held_below(root)
        states = Counter(row["status"] for row in rows)
        queued = held - {str(Path(row["run"]).absolute()) for row in rows if row["status"] != "interrupted"}
        counts = [f"{number} {state}" for state, number in states.most_common()]
        line = ", ".join(counts + [f"{len(queued)} in the queue"] * bool(queued)) or "no runs"
        if screen:
            room = max(1, shutil.get_terminal_size().lines - 4)
            active = sorted(rows, key=lambda row: (row["status"] != "running", row["age_s"]))
            shown = active if by_activity else rows
            print(CLEAR, end="")
            if shown:
                tables.show_runs(shown[:room], more=more)
            say(line)
        elif line != before:
            say(f"{time.strftime('%H:%M:%S')}  {line}")
        if not held and not states["running"]:
            return
        before, until = line, time.monotonic() + max(EVERY_S, (time.monotonic() - start) / SHARE)
        while stop.reason is None and time.monotonic() < until:
            time.sleep(0.1)
    raise typer.Exit(INTERRUPTED)
