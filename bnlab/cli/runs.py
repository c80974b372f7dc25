"""`bnlab runs`: a table of runs, or the card of one. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnlab.cli.app import RUNS, Json, Runs, app
from bnlab.terminal.signs import print_json, say

if TYPE_CHECKING:
    from bnlab.record.folder import RunFolder

COLUMNS = ("run", "status", "norm", "lr", "seed", "step", "steps", "train_loss", "test_accuracy", "age_s")
"""Keys of every row of the table."""

SAME_COLUMN = ("norm.name", "optim.lr")
"""Keys that are columns under another name."""


@app.command()
def runs(
    runs: Runs = RUNS,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Only runs with norm=batch,none or optim.lr>=0.1; also != < > <="),
    ] = None,
    sort: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Sort by a key; -KEY sorts in descending order.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs in a table, or show everything about one run.

    --where selects runs (all conditions must hold); --sort sorts them (by the first key, then the next; runs without a
    value come last). Both take any column of the table, any key of the spec and any final metric: status, train_loss,
    test_accuracy, seed, optim.lr, model.depth, data, ...

    bnlab runs --where norm=batch --where 'optim.lr>=0.1' --sort -test_accuracy
    """
    from bnlab.analysis.select import Selection, full_key
    from bnlab.record.folder import RunFolder, runs_below
    from bnlab.terminal import tables

    selection = Selection(where=where or (), sort=sort or ())
    if not where and not sort and RunFolder(runs).spec_file.is_file():
        shown = card(RunFolder(runs))
        if as_json:
            print_json(shown)
        else:
            tables.show_card(shown)
        return
    asked = selection.keys()
    found = [known(folder) for folder in runs_below(runs)]
    more = [key for key in asked if key not in COLUMNS and full_key(key) not in (*COLUMNS, *SAME_COLUMN)]
    rows = [row(found[index]) | {key: found[index].get(full_key(key)) for key in more} for index in selection.of(found)]
    if as_json:
        print_json({"runs": rows})
    elif rows:
        tables.show_runs(rows, more=more)
    else:
        say(f"none of {len(found)} runs")


def row(values: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the table, of all that is known of a run. None: not known."""
    return {key: values[key] for key in COLUMNS}


def known(folder: RunFolder) -> dict[str, Any]:
    """All that is known of a run, by key: its columns, its spec, its status and final metrics. A file that cannot be
    read leaves its keys out, or None."""
    from bnlab.core.text import leaves
    from bnlab.record.runs import age_s

    status, spec = status_of(folder), dict(leaves(spec_of(folder)))
    metrics = _mapping(status.pop("metrics", None))
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


def status_of(folder: RunFolder) -> dict[str, Any]:
    """The status, with the state of the run now; the step of a run that has not ended is that of its journal."""
    from bnlab.record.runs import progress_of, state_of

    state, status = state_of(folder)
    recorded = progress_of(folder) if state in ("running", "interrupted") else {}
    return {**status, **recorded, "status": state}


def spec_of(folder: RunFolder) -> dict[str, Any]:
    """The spec; empty where it cannot be read."""
    import yaml

    try:
        return _mapping(folder.spec())
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def card(folder: RunFolder) -> dict[str, Any]:
    """Everything about one run."""
    from bnlab.record.runs import age_s

    spec = spec_of(folder)
    provenance = _mapping(spec.pop("provenance", {}))
    files = {file.name: file.stat().st_size for file in sorted(folder.path.iterdir()) if file.is_file()}
    age = {"age_s": age_s(folder)}
    return {"run": str(folder.path), **status_of(folder), **age, "spec": spec, "provenance": provenance, "files": files}


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
