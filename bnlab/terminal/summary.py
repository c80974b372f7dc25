"""What a run came to, in five lines."""

from __future__ import annotations

import os
import statistics
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from bnlab.terminal.signs import is_screen, number, say

Record = Mapping[str, Any]
Lines = list[tuple[str, str]]

COPIED = ("run", "next", "go on")
"""Lines to copy from: they are not broken by us."""


def show(
    status: Mapping[str, Any], path: Path, records: Sequence[Record], following: str, out: TextIO | None = None
) -> None:
    """Print the five lines; `following` is the next command to type."""
    out = out or sys.stdout
    lines = summary(status, path, records, following)
    indent = 2 + max(len(label) for label, _ in lines)
    width = os.get_terminal_size(out.fileno()).columns if is_screen(out) else 0
    for label, text in lines:
        line = f"{label:<{indent}}{text}"
        if label in COPIED or width < 2 * indent:
            say(line, out)
        else:
            say(textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False), out)


def summary(status: Mapping[str, Any], path: Path, records: Sequence[Record], following: str) -> Lines:
    """Five times a label and its line."""
    ended = str(status.get("status", "unknown"))
    return [
        (ended, outcome(status, records)),
        ("run", str(path)),
        ("steepest", steepest(records)),
        ("measuring", measuring(status)),
        ("go on" if ended == "interrupted" else "next", following),
    ]


def outcome(status: Mapping[str, Any], records: Sequence[Record]) -> str:
    """How it ended, and the key figures."""
    if diverged := status.get("diverged"):
        site = diverged.get("site")
        where = f"first non-finite activation at {site}" if site else "all activations finite"
        loss = "not finite" if diverged.get("loss") is None else number(diverged["loss"], 4)
        return f"at step {diverged.get('step')} of {status.get('steps')}: loss {loss}, {where}"
    metrics = status.get("metrics") or {}
    figures = []
    for split in ("test", "train"):
        of_split = [
            (name, metrics.get(f"{split}_{name}")) for name in ("accuracy", "loss") if f"{split}_{name}" in metrics
        ]
        if of_split:
            figures.append(f"{split} " + ", ".join(f"{name} {number(value, 4)}" for name, value in of_split))
    losses = [record["train_loss"] for record in records if "train_loss" in record]
    if not figures and losses:
        figures.append(f"loss {number(losses[-1], 4)}")
    dead = ["no better than chance"] if status.get("dead") else []
    return "; ".join([*figures, *dead, f"step {status.get('step', '?')}/{status.get('steps', '?')}"])


def steepest(records: Iterable[Record]) -> str:
    """The layer whose distribution moves most, and how the gradient changes with depth."""
    drifts: list[Sequence[float | None]] = []
    ratio = None
    for record in records:
        if row := record.get("drift_mean.pre"):
            drifts.append(row)
        ratio = record.get("first_over_last", ratio)
    facts = []
    count = len(drifts[0]) if drifts else 0
    medians = {index: median for index in range(count) if (median := _median(row[index] for row in drifts)) is not None}
    if medians:
        index = max(medians, key=lambda index: medians[index])
        facts.append(f"largest drift at {layer(index, count)}, {number(medians[index])} sd a measurement")
    if ratio is not None:
        facts.append(f"gradient of first over last layer {number(ratio)}")
    return "; ".join(facts) or "no layer was measured"


def layer(index: int, count: int) -> str:
    """A layer by its number, as its name begins.

    >>> layer(3, 11)
    'L03'
    """
    return f"L{index:0{max(2, len(str(count - 1)))}d}"


def measuring(status: Mapping[str, Any]) -> str:
    """The share of the time that went into measuring."""
    timing = status.get("timing") or {}
    run_s, measure_s, rate = (timing.get(name) for name in ("run_s", "measure_s", "steps_per_s"))
    if not run_s:
        return "not known"
    return f"took {100 * (measure_s or 0.0) / run_s:.0f} % of {number(run_s)} s ({number(rate)} steps/s)"


def _median(values: Iterable[float | None]) -> float | None:
    """Of the finite values, if there are any."""
    finite = [value for value in values if value is not None]
    return statistics.median(finite) if finite else None
