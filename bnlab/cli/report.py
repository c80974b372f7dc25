"""`bnlab report` and `bnlab view`: what a folder of runs shows, in report.html and in TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnlab.cli.app import FAILED, RUNS, Json, Runs, app
from bnlab.core.errors import UsageError
from bnlab.core.text import count
from bnlab.terminal.signs import complain, print_json, say

if TYPE_CHECKING:
    from bnlab.analysis.claims import Verdict
    from bnlab.record.runs import Run

MOST_NAMED = 5
"""Runs that have not ended and are listed one by one."""


@app.command()
def report(runs: Runs = RUNS, as_json: Json = False) -> None:
    """Build verdicts, figures and report.html from runs."""
    from bnlab.report.build import build

    start = time.perf_counter()
    built = build(runs)
    seconds = time.perf_counter() - start
    if as_json:
        print_json(
            {
                "report": str(built.path),
                "claims": [tree(verdict) for verdict in built.verdicts],
                "figures": list(built.figures),
                "failed": list(built.failed),
                "runs": built.runs,
                "unfinished": [str(run.path) for run in built.unfinished],
            }
        )
    else:
        from bnlab.terminal.tables import show_verdicts

        show_verdicts(built.verdicts)
        for line in unfinished(built.unfinished, runs):
            say(line)
        say(f"report     {built.path}")
        say(f"made of    {count(built.runs, 'run')}, {count(len(built.figures), 'figure')}, in {seconds:.1f} s")
    for line in built.failed:
        complain(line)
    if built.failed:
        raise typer.Exit(FAILED)


def tree(verdict: Verdict) -> dict[str, Any]:
    """A verdict as --json has it."""
    return {
        "name": verdict.claim.name,
        "verdict": verdict.decision,
        "effect": verdict.effect,
        "interval": None if verdict.interval is None else list(verdict.interval),
        "p": verdict.p,
        "n": verdict.n,
        "why": verdict.why,
        "cautions": list(verdict.cautions),
    }


def unfinished(runs: Sequence[Run], root: Path) -> list[str]:
    """A line for each of the first runs that have not ended, and one that counts the rest.

    >>> unfinished([], Path("runs"))
    []
    """
    lines = []
    for run in runs[:MOST_NAMED]:
        step = run.status.get("step")
        at = f" at step {step}" if isinstance(step, int | float) and math.isfinite(step) else ""
        place = run.path.relative_to(root) if run.path != root else run.path
        lines.append(f"left out   {place}: {run.state}{at}")
    if len(runs) > MOST_NAMED:
        lines.append(f"left out   {len(runs) - MOST_NAMED} more that have not ended; see: bnlab runs {root}")
    return lines


@app.command()
def view(
    runs: Runs = RUNS,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the link and open no browser.")] = False,
    run_filter: Annotated[
        str | None, typer.Option("--filter", metavar="REGEX", help="Show only the runs that match.")
    ] = None,
    bind_all: Annotated[bool, typer.Option("--bind-all", help="Serve other machines too. There is no login.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="The arms of a sweep side by side, averaged over seeds.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="All tags of every run, even of more than 50 runs.")] = False,
) -> None:
    """Open TensorBoard on runs, coloured by norm."""
    if compare and full:
        raise UsageError("--full", "cannot be used with --compare", remedy="A comparison has tags of its own.")
    from bnlab.board import serve

    serving = serve.Serving(port=port, open_browser=not no_open, run_filter=run_filter, bind_all=bind_all, say=say)
    if compare:
        serve.view_comparison(runs, serving)
    else:
        serve.view_runs(runs, serving, full=full)
