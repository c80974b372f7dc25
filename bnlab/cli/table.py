"""The table of `bnlab runs`, and `--watch`: the same again and again, until nothing runs."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bnlab.cli import INTERRUPTED, Stop
from bnlab.core.errors import UsageError
from bnlab.core.text import listed, number, typed
from bnlab.terminal.signs import complain, is_screen, print_json, say

if TYPE_CHECKING:
    from bnlab.analysis.select import Selection
    from bnlab.record.folder import RunFolder

EVERY_S, SHARE = 3.0, 0.05
"""Seconds between two looks, and the share of the time that looks may take: a disk may be one that many share."""
CLEAR = "\x1b[H\x1b[J"

COLUMNS = ("run", "status", "norm", "lr", "seed", "step", "steps", "train_loss", "test_accuracy", "age_s")
"""Keys of every row of the table."""

MOST_NAMED = 5
"""Runs that have not ended and are listed one by one."""

SAME_COLUMN = ("norm.name", "optim.lr")
"""Keys that are columns under another name."""


def chosen(
    selection: Selection, found: Sequence[Mapping[str, Any]], *, differing: bool = True
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the selected runs, and the keys that they have besides the columns: those that were asked for and, of
    `differing`, those in which the runs differ, choices of groups first."""
    from bnlab.analysis.select import full_key

    asked = list(dict.fromkeys([*selection.keys(), *(_axes(found) if differing else ())]))
    more = [key for key in asked if key not in COLUMNS and full_key(key) not in (*COLUMNS, *SAME_COLUMN)]
    rows = [row(found[index]) | {key: found[index].get(full_key(key)) for key in more} for index in selection.of(found)]
    return rows, more


def _axes(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that tell the runs' specs apart, beside the columns."""
    from bnlab.core.spec import GROUPS, NOT_HASHED, RunSpec
    from bnlab.core.study import axes_of

    of_spec = {field.name for field in dataclasses.fields(RunSpec)} - {*NOT_HASHED}
    choices = {f"{group}.name": group for group in GROUPS}
    specs = [
        {choices.get(key, key): value for key, value in values.items() if key.partition(".")[0] in of_spec}
        for values in found
    ]
    return sorted((key for key in axes_of(specs) if key != "norm"), key=lambda key: (key not in GROUPS, key))


def row(values: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the table, of all that is known of a run. None: not known."""
    return {key: values[key] for key in COLUMNS}


def known(folder: RunFolder) -> dict[str, Any]:
    """All that is known of a run, by key: its columns, its spec, its status and final metrics. A file that cannot be
    read leaves its keys out, or None."""
    from bnlab.core.text import leaves
    from bnlab.record.runs import age_s

    tree, status = read(folder)
    spec = dict(leaves(tree))
    metrics = mapping(status.pop("metrics", None))
    columns = {
        "run": str(folder.path),
        "status": status["status"],
        "norm": spec.get("norm.name"),
        "lr": spec.get("optim.lr"),
        "seed": spec.get("seed"),
        "step": status.get("step"),
        "steps": status.get("steps", spec.get("steps")),
        "train_loss": metrics.get("train_loss", status.get("train_loss")),
        "test_accuracy": metrics.get("test_accuracy"),
        "age_s": age_s(folder),
    }
    final = {f"final_{name}": value for name, value in metrics.items()}
    return {**spec, **dict(leaves(status)), **metrics, **final, **columns}


def read(folder: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """The spec, and the status as `status_of` has it; of a run with a file that cannot be read, `problem` says why."""
    from bnlab.record.folder import BrokenError

    status, problem = status_of(folder), None
    try:
        tree = folder.read_spec()
        problem = folder.problem() if status["status"] == "unreadable" else None
    except BrokenError as error:
        tree, problem = {}, str(error)
    return tree, status | ({"status": "unreadable", "problem": problem} if problem else {})


def status_of(folder: RunFolder) -> dict[str, Any]:
    """The status, with the state of the run now; the step of a run that has not ended is that of its journal."""
    from bnlab.record.runs import progress_of, state_of

    state, status = state_of(folder)
    recorded = progress_of(folder) if state in ("running", "interrupted") else {}
    return {**status, **recorded, "status": state}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a table is printed: for people, or one of the others."""

    as_json: bool = False
    csv: bool = False
    latex: bool = False

    def __post_init__(self) -> None:
        chosen = {"--json": self.as_json, "--csv": self.csv, "--latex": self.latex}
        given = [name for name in chosen if chosen[name]]
        if len(given) > 1:
            raise UsageError(given[0], f"cannot be used with {given[1]}")

    @property
    def other(self) -> bool:
        return self.csv or self.latex

    def put(self, rows: Sequence[Mapping[str, Any]], heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        """`rows` are the values that CSV has; `heads` and `cells` the texts of the others."""
        from bnlab.core.text import csv_table, latex_table
        from bnlab.terminal import tables

        if self.csv:
            text = csv_table(list(rows[0]) if rows else heads, [list(row.values()) for row in rows])
        elif self.latex:
            text = latex_table(heads, cells)
        else:
            tables.show_table(heads, cells)
            return
        for line in text.splitlines():
            say(line)


def grouped_out(
    rows: Sequence[Mapping[str, Any]], by: str, of: str | None, form: Form, more: Sequence[str] = ()
) -> None:
    """Print the means of the rows by keys, and over which other keys they are, of the axes and `more`."""
    from bnlab.analysis.grouped import grouped

    there = {key for row in rows for key in row if row[key] is not None}
    usual = [key for key in ("test_accuracy", "test_loss", "train_loss") if key in there][:2]
    wanted = words_of(of) if of else usual
    found = grouped(rows, words_of(by), wanted, ["norm.name", "optim.lr", *_axes(rows), *more])
    if form.as_json:
        print_json({"groups": found.tree(), "pooled": list(found.pooled)})
    else:
        form.put(found.tree(), *found.cells())
    if found.pooled and not form.as_json:
        complain(f"each mean is over all values of {listed(list(found.pooled))}; --by or --where keeps them apart")


def short(value: Any) -> str:
    return number(value, 4) if isinstance(value, float) else typed(value)


def some(lines: Sequence[str], what: str) -> list[str]:
    """The first lines, and one that counts the rest.

    >>> some(["a", "b"], "runs"), some(["a"] * 7, "runs")[-1]
    (['a', 'b'], '2 more runs')
    """
    left = len(lines) - MOST_NAMED
    return [*lines[:MOST_NAMED], *([f"{left} more {what}"] if left > 0 else [])]


def words_of(text: str) -> list[str]:
    """
    >>> words_of("norm, optim.lr")
    ['norm', 'optim.lr']
    """
    return [word for part in text.split(",") if (word := part.strip())]


def watch(root: Path, selection: Selection, *, plain: bool) -> None:
    """Show the selected runs until none runs or is in SLURM: on a screen the table, those that run first, as many as
    there is room for; else a line whenever a run has changed its state."""
    from bnlab.launch._arrays import held_below
    from bnlab.record.folder import find_runs
    from bnlab.terminal import tables

    stop, before, screen = Stop(), "", is_screen(sys.stdout) and not plain
    while stop.reason is None:
        start = time.monotonic()
        rows, more = chosen(selection, [known(folder) for folder in find_runs(root)])
        held = held_below(root)
        states = Counter(row["status"] for row in rows)
        line = counted(rows, queued(held, rows)) or "no runs"
        if screen:
            room = max(1, shutil.get_terminal_size().lines - 4)
            active = sorted(rows, key=lambda row: (row["status"] != "running", row["age_s"]))
            shown = rows if selection.sort else active
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


def queued(held: set[str], rows: Sequence[Mapping[str, Any]]) -> int:
    """How many of the runs that jobs in SLURM have do not run yet, or wait to go on."""
    return len(held - {str(Path(row["run"]).absolute()) for row in rows if row["status"] != "interrupted"})


def counted(rows: Sequence[Mapping[str, Any]], in_queue: int) -> str:
    """
    >>> counted([{"status": "finished"}, {"status": "running"}, {"status": "running"}], 4)
    '2 running, 1 finished, 4 in the queue'
    """
    numbers = [*Counter(row["status"] for row in rows).most_common(), ("in the queue", in_queue)]
    return ", ".join(f"{number} {state}" for state, number in numbers if number)


def mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
