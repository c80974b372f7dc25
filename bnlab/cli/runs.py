"""The runs that are there, as they are now: a table of them, and the card of one. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from bnlab.analysis.select import SAME, Selection, value_of
from bnlab.core.errors import UsageError
from bnlab.core.text import leaves
from bnlab.record.folder import RunFolder, find_runs
from bnlab.record.runs import age_s, progress_of, state_of
from bnlab.terminal.signs import print_json, say

SAME_COLUMN = ("norm.name", "optim.lr")
"""Keys that the table has a column of under another name."""

TRAIN_FIRST = "Train one first: bnlab train --config quickstart."


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run in a table. None: not known."""

    run: str
    status: str
    norm: str | None
    lr: float | None
    seed: int | None
    step: int | None
    steps: int | None
    train_loss: float | None
    test_accuracy: float | None
    age_s: float

    def tree(self) -> dict[str, Any]:
        return asdict(self)


def show_runs(root: Path, as_json: bool, selection: Selection | None = None) -> None:
    """Print the table of the runs below `root`, or of those selected; without a selection, of one run its card.

    Raises:
        UsageError: no runs there, or a selection that makes no sense of them.
    """
    from bnlab.terminal import tables

    if selection is None and RunFolder(root).spec_file.is_file():
        shown = card(RunFolder(root))
        if as_json:
            print_json(shown)
        else:
            tables.show_card(shown)
        return
    found = [_known(folder) for folder in runs_below(root)]
    columns = [field.name for field in fields(RunRow)]
    asked = selection.keys() if selection else []
    more = [key for key in asked if key not in columns and SAME.get(key, key) not in (*columns, *SAME_COLUMN)]
    taken = selection.of([values for _, values in found]) if selection else range(len(found))
    rows = [found[i][0].tree() | {key: value_of(found[i][1], key) for key in more} for i in taken]
    if as_json:
        print_json({"runs": rows})
    elif rows:
        tables.show_runs(rows, more=more)
    else:
        say(f"none of {len(found)} runs")


def runs_below(root: Path) -> list[RunFolder]:
    """The runs at or below `root`.

    Raises:
        UsageError: there are none, or no such directory.
    """
    if not root.is_dir():
        raise UsageError("RUNS", "no such directory", str(root), TRAIN_FIRST)
    found = find_runs(root)
    if not found:
        raise UsageError("RUNS", "no runs in this directory", str(root), TRAIN_FIRST)
    return found


def row(folder: RunFolder) -> RunRow:
    """What one line of a table tells; a file that cannot be read costs its figures only."""
    return _known(folder)[0]


def _known(folder: RunFolder) -> tuple[RunRow, dict[str, Any]]:
    """Its row, and all that can be asked of it: the row, the spec, the status with its final metrics."""
    status, spec = status_of(folder), spec_of(folder)
    metrics = _mapping(status.get("metrics"))
    row = RunRow(
        run=str(folder.path),
        status=status["status"],
        norm=_mapping(spec.get("norm")).get("name"),
        lr=_mapping(spec.get("optim")).get("lr"),
        seed=spec.get("seed"),
        step=status.get("step"),
        steps=status.get("steps", spec.get("steps")),
        train_loss=metrics.get("train_loss", status.get("train_loss")),
        test_accuracy=metrics.get("test_accuracy"),
        age_s=age_s(folder),
    )
    final = {f"final_{name}": value for name, value in metrics.items()}
    others = {key: value for key, value in status.items() if key != "metrics"}
    return row, {**dict(leaves(spec)), **dict(leaves(others)), **metrics, **final, **row.tree()}


def status_of(folder: RunFolder) -> dict[str, Any]:
    """The status with the state as it is now; a run that has not ended is as far as its journal."""
    state, status = state_of(folder)
    known = progress_of(folder) if state in ("running", "interrupted") else {}
    return {**status, **known, "status": state}


def spec_of(folder: RunFolder) -> dict[str, Any]:
    """The spec; empty where it cannot be read."""
    try:
        return _mapping(folder.spec())
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def card(folder: RunFolder) -> dict[str, Any]:
    """Everything about one run."""
    spec = spec_of(folder)
    provenance = spec.pop("provenance", {})
    files = {file.name: file.stat().st_size for file in sorted(folder.path.iterdir()) if file.is_file()}
    return {
        "run": str(folder.path),
        **status_of(folder),
        "age_s": age_s(folder),
        "spec": spec,
        "provenance": _mapping(provenance),
        "files": files,
    }


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
