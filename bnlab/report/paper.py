"""Figures and tables for a paper: bare pictures of a given width, and tables in LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnlab.analysis.claims import Verdict, allowed
from bnlab.core.text import csv_table, latex_table, number
from bnlab.record.folder import write_atomically
from bnlab.report.build import drawn_from
from bnlab.report.style import Format
from bnlab.report.write import pdf

Table = tuple[list[str], list[list[str]]]


def paper(root: Path, plugins: Sequence[str], to: Path, shape: Format) -> list[Path]:
    """Write into `to` every figure of the report of `root` as PDF, with its numbers as CSV, and the verdicts and the
    arms as LaTeX and CSV.

    Raises:
        NoRunsError: no run has ended.
        UsageError: a study.yaml that is not a study.
    """
    found = drawn_from(root, plugins, shape)
    files: dict[str, bytes] = {}
    for figure in found.figures:
        files |= {f"{figure.drawn.name}.pdf": pdf(figure.drawn), f"{figure.drawn.name}.csv": figure.csv.encode()}
    arms = found.ranked.cells() if len(found.ranked.rows) > 1 else None
    for name, table in (("verdicts", verdict_table(found.verdicts) if found.verdicts else None), ("arms", arms)):
        if table is not None:
            files |= {f"{name}.tex": latex_table(*table).encode(), f"{name}.csv": csv_table(*table).encode()}
    to.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomically(to / name, data)
    return [to / name for name in files]


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each claim."""
    heads = ["claim", "arms", "effect", "95 % interval", "smallest effect", "p", "seeds", "verdict"]
    rows: list[list[str]] = []
    for verdict in verdicts:
        unit = "×" if verdict.claim.compare == "ratio" else ""
        ends = verdict.interval
        span = f"{number(ends[0])} to {number(ends[1])}{unit}" if ends else "-"
        effect = "-" if verdict.effect is None else f"{number(verdict.effect)}{unit}"
        arms = " and ".join(arm.label for arm in (verdict.treated, verdict.control) if arm)
        numbers: list[Any] = [effect, span, allowed(verdict.claim).replace("x", unit), number(verdict.p, 2)]
        rows.append([verdict.claim.name.replace("_", " "), arms or "-", *numbers, str(verdict.n), verdict.decision])
    return heads, rows
