"""One `bnlab sweep` in a terminal: what is there, what is run, what failed, what it says of claims, the exit code."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bnlab.analysis.claims import check as check_claims
from bnlab.analysis.claims import read_expected, unexpected
from bnlab.analysis.statistics import claims_decidable
from bnlab.cli.train import DONE as OK
from bnlab.cli.train import FAILED, INTERRUPTED, Stop, has_data
from bnlab.core.errors import UsageError
from bnlab.core.study import Cell, Study
from bnlab.sweep.executors import executor
from bnlab.sweep.ledger import DONE, digests, write_study
from bnlab.sweep.run import Standing, Sweep
from bnlab.terminal import verdicts
from bnlab.terminal.signs import complain, is_screen, print_json, say
from bnlab.terminal.tally import Tally, TallyLines

if TYPE_CHECKING:
    from bnlab.analysis.base import Verdict

CHANGED = 4
DECIDING_SEEDS = 6
"""Of two arms with fewer seeds, no exact test can say more than a direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTyped:
    """What was typed after `bnlab sweep`."""

    config: str
    overrides: tuple[str, ...]
    runs: Path
    config_dir: Path | None
    as_json: bool
    plain: bool
    fresh: bool
    retry_failed: bool
    fail_fast: bool
    dry_run: bool
    expect: Path | None

    def again(self) -> str:
        """The line to type to go on: the same, less --fresh and --retry-failed."""
        words = ["bnlab", "sweep", "--config", self.config, *self.overrides, *self.places()]
        flags = {"--fail-fast": self.fail_fast, "--json": self.as_json, "--plain": self.plain}
        words += [flag for flag, wanted in flags.items() if wanted]
        return shlex.join(words + (["--expect-verdicts", str(self.expect)] if self.expect else []))

    def places(self) -> list[str]:
        """The options that say where things are, if they are not where they are by default."""
        runs = ["--runs", str(self.runs)] if self.runs != Path("runs") else []
        return runs + (["--config-dir", str(self.config_dir)] if self.config_dir is not None else [])


def sweep(study: Study, cells: Sequence[Cell], typed: SweepTyped, stop: Stop) -> int:
    """Run what is left of a grid, or with --dry-run say what that is; the exit code.

    Raises:
        UsageError: settings that cannot be followed, a status that cannot be read, a folder that cannot be written,
            expectations that cannot be read.
    """
    check_claims(study, dict.fromkeys(file for cell in cells for file in cell.spec.plugins))
    expected = read_expected(typed.expect, study) if typed.expect else {}
    at_work = executor(cells[0].spec)
    out = sys.stderr if typed.as_json else sys.stdout
    root = typed.runs / study.name
    grid = Sweep(
        cells,
        typed.runs,
        fresh=typed.fresh,
        retry_failed=typed.retry_failed,
        provenance={"claims": digests(study)} if study.claims else {},
    )
    if typed.dry_run:
        _show_cells(study, grid, typed)
        return OK
    _say_seeds(study, cells, out)
    if grid.left:
        write_study(root, study, typed.again())
        if _has_data(grid, typed, stop, out):
            _run(grid, at_work, typed, stop, out)
    else:
        say(f"{_runs(len(cells))}, all ended, nothing to do (--fresh runs again)", out)
    interrupted = stop.reason is not None and bool(grid.left)
    _say_counts(grid, out)
    report, found = (None, []) if interrupted else _reported(root)
    if not typed.as_json:
        verdicts.show(found, out)
        if report is not None:
            say(f"report  {report}", out)
    _say_failures(grid.failures, typed, out)
    changed = unexpected(expected, found) if expected and not interrupted else []
    for line in changed:
        complain(line)
    if typed.as_json:
        tree = {"study": study.name, "runs": [_row(standing, typed) for standing in grid.standings.values()]}
        print_json(tree | {"claims": [verdicts.tree(one) for one in found], "report": report and str(report)})
    if interrupted:
        say(f"go on   {typed.again()}", out)
        return INTERRUPTED
    if grid.failures or grid.left:
        return FAILED
    return CHANGED if changed else OK


def _has_data(grid: Sweep, typed: SweepTyped, stop: Stop, out: TextIO) -> bool:
    """Whether all data sets are there; those that are nowhere are downloaded once, before many runs want them."""
    specs = {(one.cell.spec.data.name, one.cell.spec.plugins): one.cell.spec for one in grid.left}
    return all(has_data(spec, out, typed.plain or typed.as_json, stop) for spec in specs.values())


def _run(grid: Sweep, at_work: Any, typed: SweepTyped, stop: Stop, out: TextIO) -> None:
    # In this process a breakpoint shares the terminal, which a live display would take from it.
    plain = typed.plain or typed.as_json or not is_screen(out) or not at_work.apart
    display: Tally
    if plain:
        display = TallyLines(grid.standings.values(), at_work.workers, out)
    else:
        from bnlab.terminal.grid import LiveGrid

        display = LiveGrid(grid.standings.values(), at_work.workers, out)
    grid.tell = display.tell
    try:
        grid.run(
            at_work,
            fail_fast=typed.fail_fast,
            stopped=lambda: stop.reason,
            tick=display.tick,
            elsewhere=display.wait,
        )
    except OSError as error:
        raise UsageError("--runs", (error.strerror or str(error)).lower(), str(error.filename)) from None
    finally:
        display.close()


def _reported(root: Path) -> tuple[Path | None, list[Verdict]]:
    """The report over the study's runs, made anew, and its verdicts."""
    from bnlab.report.build import build

    try:
        built = build(root)
    except UsageError:  # no run has ended: nothing to report, and the failures are told already
        return None, []
    return built.path, list(built.verdicts)


def _say_seeds(study: Study, cells: Sequence[Cell], out: TextIO) -> None:
    seeds = len({cell.spec.seed for cell in cells})
    if study.claims and seeds < DECIDING_SEEDS:
        of = "1 seed" if seeds == 1 else f"{seeds} seeds"
        say(f"with {of} a claim gets a direction only; {DECIDING_SEEDS} or more seeds decide", out)
    elif len(study.claims) > (most := claims_decidable(seeds)):
        say(f"{seeds} seeds can decide {most} claims together, and there are {len(study.claims)}: take more seeds", out)


def _say_counts(grid: Sweep, out: TextIO) -> None:
    say(f"{_runs(len(grid.standings))}: {_counted(grid)}", out)


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _counted(grid: Sweep) -> str:
    states = Counter("failed" if one.failed else one.state for one in grid.standings.values())
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items(), key=lambda item: -item[1]))


def _say_failures(failures: Sequence[Standing], typed: SweepTyped, out: TextIO) -> None:
    """A table of them, with their logs, and how to look at one alone."""
    if not failures:
        return
    from bnlab.terminal import tables

    rows = [{"run": label(one.cell), "error": str(one.error), "log": str(one.log or "-")} for one in failures]
    tables.show_failures(rows, out)
    say(f"alone   {failures[0].cell.line(*typed.places())}", out)
    written = [one for one in failures if one.state == "failed"]
    if written:
        say(f"again   {typed.again()} --retry-failed", out)


def _show_cells(study: Study, grid: Sweep, typed: SweepTyped) -> None:
    """What a sweep would find: every cell, its state, and with --json the line that runs it alone."""
    rows = [_row(standing, typed) for standing in grid.standings.values()]
    if typed.as_json:
        print_json({"study": study.name, "cells": rows})
        return
    from bnlab.terminal import tables

    tables.show_cells(rows, sys.stdout)
    say(f"{_runs(len(rows))}: {_counted(grid)}; {len(grid.left)} to run")


def _row(standing: Standing, typed: SweepTyped) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": standing.cell.spec.id,
        "run": str(standing.folder.path),
        "state": standing.state,
        "values": dict(standing.cell.values),
        "line": standing.cell.line(*typed.places()),
    }
    if standing.error is not None:
        row |= {"error": standing.error, "log": str(standing.log) if standing.log else None}
    if standing.state in DONE:
        row["metrics"] = standing.status.get("metrics")
    return row


def label(cell: Cell) -> str:
    """A cell by its values of the axes.

    >>> from types import SimpleNamespace
    >>> label(SimpleNamespace(values={"norm": "none", "optim.lr": 0.1, "seed": 3}))
    'none lr=0.1 seed=3'
    """
    words = [str(value) if key == "norm" else f"{key.rpartition('.')[2]}={value}" for key, value in cell.values.items()]
    return " ".join(words) or "the only run"
