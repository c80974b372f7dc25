"""`bnlab report`: verdicts, figures and report.html remade from run folders alone. Nothing here imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnlab.record.runs import Run
from bnlab.report.base import Built
from bnlab.report.build import build
from bnlab.terminal import verdicts
from bnlab.terminal.signs import print_json, say

MOST_NAMED = 5
"""Runs without an end that are named one by one."""


def report(root: Path, as_json: bool) -> None:
    """Write the report of the runs below `root`, and say what it says and where it is.

    Raises:
        UsageError: no runs there that have ended.
    """
    start = time.perf_counter()
    built = build(root)
    seconds = time.perf_counter() - start
    if as_json:
        print_json(tree(built))
        return
    verdicts.show(built.verdicts)
    for line in unfinished(built.unfinished, root):
        say(line)
    runs = f"{built.runs} run" + ("" if built.runs == 1 else "s")
    figures = f"{len(built.figures)} figure" + ("" if len(built.figures) == 1 else "s")
    say(f"report     {built.path}")
    say(f"made of    {runs}, {figures}, in {seconds:.1f} s")


def tree(built: Built) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "report": str(built.path),
        "claims": [verdicts.tree(verdict) for verdict in built.verdicts],
        "figures": list(built.figures),
        "runs": built.runs,
        "unfinished": [str(run.path) for run in built.unfinished],
    }


def unfinished(runs: Sequence[Run], root: Path) -> list[str]:
    """A line a run that has not ended, the rest counted.

    >>> unfinished([], Path("runs"))
    []
    """
    lines = []
    for run in runs[:MOST_NAMED]:
        step = run.status.get("step")
        at = f" at step {step}" if isinstance(step, int | float) and math.isfinite(step) else ""
        place = run.path.relative_to(root) if run.path != root else run.path
        lines.append(f"left out   {place}: {run.status.get('status', 'not started or unreadable')}{at}")
    if len(runs) > MOST_NAMED:
        lines.append(f"left out   {len(runs) - MOST_NAMED} more that have not ended; see: bnlab runs {root}")
    return lines
