"""`bnlab runs --watch`: the table of runs, again and again, until nothing runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import typer

from bnlab.analysis.select import Selection
from bnlab.cli import INTERRUPTED, Stop
from bnlab.cli.runs import chosen, known
from bnlab.launch._arrays import held_below
from bnlab.record.folder import find_runs
from bnlab.terminal import tables
from bnlab.terminal.signs import is_screen, say

EVERY_S, SHARE = 3.0, 0.05
"""Seconds between two looks, and the share of the time that looks may take: a disk may be one that many share."""
CLEAR = "\x1b[H\x1b[J"


def watch(root: Path, selection: Selection, *, plain: bool) -> None:
    """Show the runs below `root` until none runs or is in SLURM: on a screen the table, those that run first, as many
    as there is room for; else a line whenever a run has changed its state."""
    stop, before, screen = Stop(), "", is_screen(sys.stdout) and not plain
    while stop.reason is None:
        start = time.monotonic()
        found = [known(folder) for folder in find_runs(root)]
        rows, more = chosen(selection, found)
        held = held_below(root)
        states = Counter(row["status"] for row in rows)
        queued = held - {str(Path(row["run"]).absolute()) for row in found if row["status"] != "interrupted"}
        counts = [f"{number} {state}" for state, number in states.most_common()]
        line = ", ".join(counts + [f"{len(queued)} in the queue"] * bool(queued)) or "no runs"
        if screen:
            room = max(1, shutil.get_terminal_size().lines - 4)
            shown = rows if selection.sort else sorted(rows, key=lambda row: (row["status"] != "running", row["age_s"]))
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
