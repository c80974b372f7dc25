"""One row a run: what it was, how it ended, every metric of it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import polars as pl

from bnlab.analysis.base import METRICS
from bnlab.analysis.load import Collection
from bnlab.core.spec import canonical
from bnlab.core.study import varying
from bnlab.record.folder import write_atomically

ALWAYS = ("norm", "optim.lr", "seed")


def summary(collection: Collection) -> pl.DataFrame:
    """The ended runs in the order of their paths: `run`, `id`, the keys they differ in, `status`, `dead`, `step`,
    `steps`, every metric of a run, and what the clock said under `*_s`. A metric with options that a claim gives has
    them in its name: `steps_to(of=train_loss,smooth=5,target=0.2)`. Not measured is null. Where a figure is a bound,
    a column `NAME.bound` says which.
    """
    keys = [*ALWAYS, *(key for key in sorted(varying(run.spec for run in collection.runs)) if key not in ALWAYS)]
    metrics = columns(collection)
    rows = []
    for run in collection.runs:
        status = run.status
        row: dict[str, Any] = {"run": collection.place(run), "id": run.id}
        row |= {key: _plain(run.spec.get(key)) for key in keys}
        row |= {"status": status["status"], "dead": bool(status.get("dead", False))}
        row |= {"step": status.get("step"), "steps": status["steps"]}
        for column, (name, options) in metrics.items():
            figure = collection.value(run, name, options)
            row[column] = figure.value if math.isfinite(figure.value) else None
            row[f"{column}.bound"] = figure.bound
        row |= {key: value for key, value in status.get("timing", {}).items() if key.endswith("_s")}
        rows.append(row)
    frame = pl.DataFrame(rows, infer_schema_length=None, strict=False)
    bounds = [f"{column}.bound" for column in metrics]
    return frame.drop([name for name in bounds if name in frame.columns and frame[name].null_count() == len(frame)])


def columns(collection: Collection) -> dict[str, tuple[str, dict[str, Any]]]:
    """Column -> run metric and its options: the usual ones, then those of the study's claims."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in METRICS.names():
        metric = METRICS[name]
        if metric.of == "run" and metric.shown_with is not None:
            found[name] = (name, dict(metric.shown_with))
    for claim in collection.study.claims if collection.study else ():
        metric = METRICS[claim.metric]
        if metric.of == "run" and claim.options and canonical(claim.options) != canonical(metric.shown_with or {}):
            listed = ",".join(f"{key}={claim.options[key]}" for key in sorted(claim.options))
            found[f"{claim.metric}({listed})"] = (claim.metric, dict(claim.options))
    return found


def write(collection: Collection, file: Path) -> None:
    """summary.parquet: equal runs give equal values in all columns but those of the clock."""
    buffer = io.BytesIO()
    summary(collection).write_parquet(buffer)
    write_atomically(file, buffer.getvalue())


def _plain(value: Any) -> Any:
    return canonical(value) if isinstance(value, list | dict) else value
