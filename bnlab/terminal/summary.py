"""What `bnlab train` says of a run at its end."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from bnlab.core.text import number
from bnlab.record.findings import findings
from bnlab.record.folder import RunFolder
from bnlab.record.runs import read_run
from bnlab.terminal.signs import say
from bnlab.terminal.tables import Record, console, folded_lines

COPIED = ("run", "next", "resume")
"""Lines of a summary to copy from: they are not folded."""


def show_summary(
    status: Mapping[str, Any], path: Path, records: Sequence[Record], following: str, out: TextIO | None = None
) -> None:
    """Print the result of the run in the folder `path` in five lines, and what was found in it; `following` is the next
    command to type."""
    out = out or sys.stdout
    ended = str(status.get("status", "unknown"))
    found = [finding.text for finding in findings(read_run(RunFolder(path)))]
    lines = [
        (ended, outcome(status, records)),
        ("run", str(path)),
        ("steepest", steepest(records)),
        ("measuring", measuring(status)),
        *zip(["findings", *[""] * len(found)], found, strict=False),
        ("resume" if ended == "interrupted" else "next", following),
    ]
    indent = 2 + max(len(name) for name, _ in lines)
    width = console(out).width
    for name, text in lines:
        folded = name not in COPIED and width >= 2 * indent
        for line in folded_lines(f"{name:<{indent}}{text}", indent, width if folded else None):
            say(line, out)


def outcome(status: Mapping[str, Any], records: Sequence[Record]) -> str:
    """How a run ended, and its final metrics."""
    if diverged := status.get("diverged"):
        site = diverged.get("site")
        where = f"first non-finite activation at {site}" if site else "all activations finite"
        loss = "not finite" if diverged.get("loss") is None else number(diverged["loss"], 4)
        return f"at step {diverged.get('step')} of {status.get('steps')}: loss {loss}, {where}"
    metrics, facts = status.get("metrics") or {}, []
    for split in ("test", "train"):
        known = [name for name in ("accuracy", "loss") if f"{split}_{name}" in metrics]
        if known:
            facts.append(f"{split} " + ", ".join(f"{name} {number(metrics[f'{split}_{name}'], 4)}" for name in known))
    losses = [record["train_loss"] for record in records if "train_loss" in record]
    if not facts and losses:
        facts.append(f"loss {number(losses[-1], 4)}")
    dead = ["no better than chance"] if status.get("dead") else []
    return "; ".join([*facts, *dead, f"step {status.get('step', '?')}/{status.get('steps', '?')}"])


def steepest(records: Iterable[Record]) -> str:
    """The layer whose distribution moves most, and how the gradient changes with depth."""
    drifts: list[Sequence[float | None]] = []
    ratio = None
    for record in records:
        if row := record.get("drift_mean.pre"):
            drifts.append(row)
        ratio = record.get("first_over_last", ratio)
    facts = []
    medians = {}
    for index, values in enumerate(zip(*drifts, strict=True)):
        if finite := [value for value in values if value is not None]:
            medians[index] = statistics.median(finite)
    if medians:
        index = max(medians, key=medians.__getitem__)
        digits = max(2, len(str(len(drifts[0]) - 1)))
        facts.append(f"largest drift at L{index:0{digits}d}, {number(medians[index])} sd per measurement")
    if ratio is not None:
        facts.append(f"weight gradient of first over last layer {number(ratio)}")
    return "; ".join(facts) or "no layer was measured"


def measuring(status: Mapping[str, Any]) -> str:
    """The share of the time that measuring took."""
    timing = status.get("timing") or {}
    run_s, measure_s, rate = (timing.get(name) for name in ("run_s", "measure_s", "steps_per_s"))
    if not run_s:
        return "not known"
    return f"took {100 * (measure_s or 0.0) / run_s:.0f} % of {number(run_s)} s ({number(rate)} steps/s)"
