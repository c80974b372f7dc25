"""The cells of a sweep, as `bnlab sweep` lists them: before, with --json, and where they failed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from bnlab.core.text import count
from bnlab.terminal.signs import say

if TYPE_CHECKING:
    from bnlab.core.study import Study
    from bnlab.grids.run import Standing, Sweep


def states(grid: Sweep) -> str:
    found = Counter("failed" if one.failed else one.state for one in grid.standings.values())
    return ", ".join(f"{number} {state}" for state, number in found.most_common())


def say_failures(failures: Sequence[Standing], again: str, places: Mapping[str, Any], out: TextIO) -> None:
    """A table of them with their logs, and the line that runs the first one alone."""
    if not failures:
        return
    from bnlab.core.study import label
    from bnlab.terminal.tables import show_failures

    rows = [(label(one.cell.values) or "the only run", str(one.error), str(one.log or "-")) for one in failures]
    show_failures(rows, out)
    say(f"alone   {failures[0].cell.line(**places, fresh='--fresh' in str(failures[0].error))}", out)
    say(f"again   {again}{' --retry-failed' * any(one.state == 'failed' for one in failures)}", out)


def list_cells(
    study: Study, grid: Sweep, answers: tuple[int, int], places: Mapping[str, Any], as_json: bool
) -> dict[str, Any]:
    """What a sweep would find: every cell, its state, and with --json the line that runs it alone. `answers`: how many
    are there, and how many there will be if every run finishes."""
    rows = [row(standing, places) for standing in grid.standings.values()]
    if not as_json:
        from bnlab.terminal.tables import show_cells

        show_cells(rows, sys.stdout)
        say(f"{count(len(rows), 'run')}: {states(grid)}; {len(grid.left)} to run")
        if study.ask:
            say(f"{count(answers[1], 'answer')} of trained nets: {answers[0]} there; {answers[1] - answers[0]} to ask")
    return {"study": study.name, "cells": rows} | ({"answers": list(answers)} if study.ask else {})


def row(standing: Standing, places: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as --json has it."""
    found: dict[str, Any] = {
        "id": standing.cell.spec.id,
        "run": str(standing.folder.path),
        "state": standing.state,
        "values": dict(standing.cell.values),
        "line": standing.cell.line(**places),
    }
    if standing.error is not None:
        found |= {"error": standing.error, "log": str(standing.log) if standing.log else None}
    if standing.state in ("finished", "diverged"):
        found["metrics"] = standing.status.get("metrics")
    return found
