"""Figures as bytes: SVG for light and dark pages, PNG, PDF, CSV; the same runs give the same bytes. And what a report
is, once it is written."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

from bnlab.analysis.claims import Verdict
from bnlab.core.text import csv_table
from bnlab.record.runs import Run
from bnlab.report.ranking import Ranking
from bnlab.report.style import RC, dark
from bnlab.report.views import Drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A figure as files."""

    drawn: Drawn
    svg: str
    png: bytes
    csv: str

    @property
    def dark_svg(self) -> str:
        return dark(self.svg)

    def files(self) -> dict[str, bytes]:
        """The content of each file, by its suffix."""
        return {"svg": self.svg.encode(), "png": self.png, "csv": self.csv.encode()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A report that was written; of a folder of several studies `path` leads to their reports, the `parts`."""

    path: Path
    verdicts: tuple[Verdict, ...]
    figures: tuple[str, ...]
    unfinished: tuple[Run, ...]
    runs: int
    failed: tuple[str, ...] = ()  # a line for each metric or figure of a user that raised an error
    notes: tuple[str, ...] = ()  # a line for each plugin of metrics or figures that was edited since
    parts: tuple[Built, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of a study, what `verdicts.json` has."""
    ranking: Ranking | None = None


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """A context in which figures have bnlab's style, independent of the user's matplotlibrc."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name that the font cannot show: a box is drawn
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def written(drawn: Drawn) -> Written:
    return Written(drawn=drawn, svg=svg(drawn), png=png(drawn), csv=table(drawn))


def svg(drawn: Drawn) -> str:
    """SVG with coordinates rounded to two decimals of a point, which halves its size."""
    out = io.StringIO()
    drawn.figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    short = re.sub(r"(?<![\d.])([1-9]\d*\.\d\d)\d+", r"\1", out.getvalue())
    return re.sub(r"\n\s*", "\n", short)


def png(drawn: Drawn) -> bytes:
    """At 200 dots an inch."""
    out = io.BytesIO()
    drawn.figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def pdf(drawn: Drawn) -> bytes:
    """With letters as text, not as curves."""
    out = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        drawn.figure.savefig(out, format="pdf", metadata={"CreationDate": None, "Creator": None})
    return out.getvalue()


def table(drawn: Drawn) -> str:
    """Every number that is drawn."""
    return csv_table(drawn.columns, drawn.rows)
