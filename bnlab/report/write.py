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
import numpy as np
from matplotlib.axis import Axis
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text

from bnlab.analysis.claims import Verdict
from bnlab.core.text import csv_table
from bnlab.record.runs import Run
from bnlab.report.ranking import Ranking
from bnlab.report.style import FORMAT, PAPER, RC, Format, dark
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
def styled(shape: Format | None = None) -> Iterator[None]:
    """A context in which figures have bnlab's style, independent of the user's matplotlibrc, and this shape."""
    token = FORMAT.set(shape or Format())
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name that the font cannot show: a box is drawn
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        try:
            yield
        finally:
            FORMAT.reset(token)


def written(drawn: Drawn) -> Written:
    """The figure as files, in the shape of `styled`."""
    shape = FORMAT.get()
    if shape.sheet != shape.width:
        _shrink(drawn.figure, shape.width / shape.sheet)
    return Written(drawn=drawn, svg=svg(drawn), png=png(drawn), csv=table(drawn))


def _shrink(figure: Figure, scale: float) -> None:
    """Make a figure smaller with all that is in it. What is measured in points, not in parts of the figure, has to be
    made smaller one by one."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width * scale, height * scale)
    for artist in figure.findobj():
        if isinstance(artist, Text):
            artist.set_fontsize(float(artist.get_fontsize()) * scale)
            if artist.get_path_effects():
                artist.set_path_effects([withStroke(linewidth=2.6 * scale, foreground=PAPER)])
            if isinstance(artist, Annotation) and artist.anncoords == "offset points":
                artist.xyann = (artist.xyann[0] * scale, artist.xyann[1] * scale)
        elif isinstance(artist, Line2D):
            artist.set(linewidth=artist.get_linewidth() * scale, markersize=artist.get_markersize() * scale)
            artist.set_markeredgewidth(artist.get_markeredgewidth() * scale)
        elif isinstance(artist, Collection):
            artist.set_linewidth([float(width) * scale for width in np.atleast_1d(artist.get_linewidth())])
        elif isinstance(artist, Patch):
            artist.set_linewidth(artist.get_linewidth() * scale)
        elif isinstance(artist, Axis):
            artist.labelpad *= scale
            artist.set_tick_params(pad=matplotlib.rcParams["xtick.major.pad"] * scale)


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
