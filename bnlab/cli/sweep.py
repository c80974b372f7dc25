"""`bnlab sweep`: a grid of runs, its failures, and its verdicts on the study's claims."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from bnlab import cli
from bnlab.core.errors import UsageError
from bnlab.core.text import command, count
from bnlab.terminal.signs import complain, is_screen, print_json, say

if TYPE_CHECKING:
    from bnlab.core.study import Cell, Study
    from bnlab.report.views import Built
    from bnlab.sweep.executors import Executor
    from bnlab.sweep.run import Standing, Sweep
    from bnlab.terminal.progress import Tally

DECIDING_SEEDS = 6
"""With fewer seeds in two arms, no exact test can decide more than a direction."""


@cli.app.command()
def sweep(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUES]...", help="Axes and changes: norm=none,batch 'seed=range(0,6)' steps=500"),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME", help="The study, or an experiment for a grid of your own.")
    ] = None,
    runs: cli.RunsDir = cli.RUNS,
    config_dir: cli.ConfigDir = None,
    as_json: cli.Json = False,
    plain: cli.Plain = False,
    fresh: cli.Fresh = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed runs again.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their states (with --json, their lines); run nothing.")
    ] = False,
    expect_verdicts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Exit with 4 if a verdict differs from the one in this YAML or JSON."),
    ] = None,
) -> None:
    """Run a grid of runs, or resume it. Runs that have ended are skipped."""
    stop = cli.Stop()  # before the slow imports: a signal during them counts too
    from bnlab import config as configs
    from bnlab.analysis.claims import check, check_reach, read_expected, unexpected
    from bnlab.analysis.load import STUDY_FILE
    from bnlab.record.runs import other_than
    from bnlab.sweep.executors import executor
    from bnlab.sweep.run import Sweep, claims_differ, digests, write_study

    if config is None:
        raise cli.no_config(config_dir, "studies", "experiments")
    given = overrides or []
    study, cells = configs.load_study(config, given, config_dir)
    check(study, dict.fromkeys(file for cell in cells for file in cell.spec.plugins))
    typed = {override.partition("=")[0].lstrip("+~") for override in given}
    check_reach(study, cells, typed)
    if study.figures:
        from bnlab.report.figures import check_figures

        check_figures(study, cells, typed)
    expected = read_expected(expect_verdicts, study) if expect_verdicts else {}
    workers, out, root = executor(cells[0].spec), cli.words_out(as_json), runs / study.name
    places = {"runs": runs if runs != cli.RUNS else None, "config_dir": config_dir}
    provenance = {"claims": digests(study)} if study.claims else {}
    grid = Sweep(cells, runs, fresh=fresh, retry_failed=retry_failed, provenance=provenance)
    if dry_run:
        _show_cells(study, grid, places, as_json)
        return
    # The line that resumes the sweep: as it was typed, without --fresh and --retry-failed.
    flags = {"fail_fast": fail_fast, "json": as_json, "plain": plain, "expect_verdicts": expect_verdicts}
    again = command("bnlab", "sweep", "--config", config, *given, **places, **flags)
    _say_seeds(study, cells, out)
    if grid.left or claims_differ(root / STUDY_FILE, study):
        write_study(root, study, again)
    lines = (other_than(one.folder, one.cell.spec.tree(), grid.standings) for one in grid.left)
    if grid.left:
        if line := next(filter(None, lines), None):  # one is as good as all
            say(line, out)
        if _has_data(grid, plain or as_json, stop, out):
            # In this process a breakpoint needs the terminal, which a live display would take from it.
            live = not plain and not as_json and is_screen(out) and workers.isolated
            _say_notes(grid, out)
            with cli.writing(root):
                _run(grid, workers, live, fail_fast, stop, out)
    else:
        say(f"{count(len(cells), 'run')}, all ended, nothing to do (--fresh runs them again)", out)
    interrupted = stop.reason is not None and bool(grid.left)
    say(f"{count(len(cells), 'run')}: {_counted(grid)}", out)
    built = None if interrupted else _reported(root)
    verdicts, broken = (built.verdicts, built.failed) if built else ((), ())
    if not as_json:
        from bnlab.terminal.tables import show_verdicts

        show_verdicts(verdicts, out)
        if built:
            say(f"report  {built.path}", out)
    _say_failures(grid.failures, again, places, out)
    changed = unexpected(expected, verdicts) if expected and not interrupted else []
    for line in (*(built.notes if built else ()), *broken, *changed):
        complain(line)
    if as_json:
        from bnlab.cli.runs import tree

        claims = [tree(verdict) for verdict in verdicts]
        rows = [_row(standing, places) for standing in grid.standings.values()]
        print_json({"study": study.name, "runs": rows, "claims": claims, "report": str(built.path) if built else None})
    if interrupted:
        say(f"resume  {again}", out)
        raise typer.Exit(cli.INTERRUPTED)
    if grid.failures or grid.left or broken:
        raise typer.Exit(cli.FAILED)
    raise typer.Exit(cli.CHANGED if changed else cli.OK)


def _has_data(grid: Sweep, plain: bool, stop: cli.Stop, out: TextIO) -> bool:
    """Whether all data sets are there. Missing ones are downloaded once, before many runs need them."""
    from bnlab.cli.train import has_data

    specs = {(one.cell.spec.data.name, one.cell.spec.plugins): one.cell.spec for one in grid.left}
    return all(has_data(spec, out, plain, stop) for spec in specs.values())


def _say_notes(grid: Sweep, out: TextIO) -> None:
    """What the runs change in parts that are the user's own, each note once."""
    own = [one.cell.spec for one in grid.left if one.cell.spec.plugins]
    specs = {str((spec.model, spec.norm, spec.data)): spec for spec in own}
    if not specs:
        return
    from bnlab.run.setup import assemble

    notes: dict[str, None] = {}
    for spec in specs.values():
        with contextlib.suppress(UsageError):  # of these runs alone, which will say it
            notes |= dict.fromkeys(assemble(spec).notes)
    for note in notes:
        say(note, out)


def _run(grid: Sweep, workers: Executor, live: bool, fail_fast: bool, stop: cli.Stop, out: TextIO) -> None:
    from bnlab.terminal.progress import TallyLines

    display: Tally
    if live:
        from bnlab.terminal.grid import LiveGrid

        display = LiveGrid(grid.standings.values(), workers.workers, out)
    else:
        display = TallyLines(grid.standings.values(), workers.workers, out)
    try:
        grid.run(
            workers, fail_fast=fail_fast, stopped=stop, tick=display.tick, on_change=display.tell, on_wait=display.wait
        )
    finally:
        display.close()


def _reported(root: Path) -> Built | None:
    """The report over the study's runs; None where no run has ended: the failures are listed anyway.

    Raises:
        UsageError: it cannot be made, or written.
    """
    from bnlab.record.folder import NoRunsError
    from bnlab.report.build import build

    try:
        with cli.writing(root):
            return build(root)
    except NoRunsError:
        return None


def _say_seeds(study: Study, cells: Sequence[Cell], out: TextIO) -> None:
    from bnlab.analysis.statistics import claims_decidable

    seeds = len({cell.spec.seed for cell in cells})
    if study.claims and seeds < DECIDING_SEEDS:
        say(f"with {count(seeds, 'seed')} a claim gets a direction only; {DECIDING_SEEDS} or more seeds decide", out)
    elif len(study.claims) > (most := claims_decidable(seeds)):
        say(f"{seeds} seeds can decide {most} claims together, and there are {len(study.claims)}: use more seeds", out)


def _counted(grid: Sweep) -> str:
    states = Counter("failed" if one.failed else one.state for one in grid.standings.values())
    return ", ".join(f"{number} {state}" for state, number in states.most_common())


def _say_failures(failures: Sequence[Standing], again: str, places: Mapping[str, Any], out: TextIO) -> None:
    """A table of them with their logs, and the line that runs the first one alone."""
    if not failures:
        return
    from bnlab.core.study import label
    from bnlab.terminal.tables import show_failures

    rows = [(label(one.cell.values) or "the only run", str(one.error), str(one.log or "-")) for one in failures]
    show_failures(rows, out)
    say(f"alone   {failures[0].cell.line(**places)}", out)
    if any(one.state == "failed" for one in failures):
        say(f"again   {again} --retry-failed", out)


def _show_cells(study: Study, grid: Sweep, places: Mapping[str, Any], as_json: bool) -> None:
    """What a sweep would find: every cell, its state, and with --json the line that runs it alone."""
    rows = [_row(standing, places) for standing in grid.standings.values()]
    if as_json:
        print_json({"study": study.name, "cells": rows})
        return
    from bnlab.terminal.tables import show_cells

    show_cells(rows, sys.stdout)
    say(f"{count(len(rows), 'run')}: {_counted(grid)}; {len(grid.left)} to run")


def _row(standing: Standing, places: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as --json has it."""
    row: dict[str, Any] = {
        "id": standing.cell.spec.id,
        "run": str(standing.folder.path),
        "state": standing.state,
        "values": dict(standing.cell.values),
        "line": standing.cell.line(**places),
    }
    if standing.error is not None:
        row |= {"error": standing.error, "log": str(standing.log) if standing.log else None}
    if standing.state in ("finished", "diverged"):
        row["metrics"] = standing.status.get("metrics")
    return row
