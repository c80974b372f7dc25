"""How figures look: colours that colour-blind readers tell apart, a sign beside every colour, and their dark twin.

An arm has a colour, a dash and a marker, so that colour is never the only sign. Colours are those of Okabe and Ito.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from bnlab.core.errors import UsageError, nearest

PAPER, TEXT, INK, MUTED, EDGE, GRID = "#fefefe", "#333333", "#111111", "#6b6b6b", "#8a8a8a", "#e6e6e6"
"""No pure black or white: SVG writers leave black out as the default, so it could not be inverted for a dark page."""

NOT_FINITE = "#b9b9b9"
"""Of a cell of a map that has no value."""

Dash = str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How an arm is drawn: colour, dash and marker."""

    color: str
    dash: Dash
    marker: str

    @property
    def ink(self) -> str:
        """The colour for small text: darkened until it reads well on paper."""
        return legible(self.color, PAPER)


LOOKS: Mapping[str, Look] = {
    "batch": Look(color="#0072b2", dash="solid", marker="o"),
    "none": Look(color="#d55e00", dash=(0, (5, 2)), marker="s"),
    "layer": Look(color="#009e73", dash=(0, (7, 2, 1.5, 2)), marker="^"),
    "group": Look(color="#cc79a7", dash=(0, (3, 1.5)), marker="D"),
    "frozen_batch": Look(color="#56b4e9", dash=(0, (1.5, 1.5)), marker="v"),
    "noisy_batch": Look(color="#e69f00", dash=(0, (5, 1.5, 1.5, 1.5, 1.5, 1.5)), marker="P"),
}
"""Of the norms that are compared most; other arms take free ones of these and of SPARE."""

SPARE: Sequence[Look] = (
    Look(color="#6b6b6b", dash=(0, (9, 2)), marker="h"),
    Look(color="#7a4fbf", dash=(0, (4, 1.5, 1, 1.5)), marker="<"),
    Look(color="#8c510a", dash=(0, (2, 2)), marker=">"),
    Look(color="#3b3b9e", dash=(0, (6, 1.5, 2, 1.5)), marker="p"),
)


def looks_for(norms: Sequence[str]) -> list[Look]:
    """A look for each arm, given their norms: its own where it is the only arm of that norm, all different.

    >>> [look.marker for look in looks_for(["batch", "none"])]
    ['o', 's']
    >>> len({look.marker for look in looks_for(["batch", "batch", "batch"])})
    3
    """
    found: list[Look | None] = [LOOKS.get(norm) if norms.count(norm) == 1 else None for norm in norms]
    free = [look for look in (*LOOKS.values(), *SPARE) if look not in found]
    rest = iter(free * (1 + len(norms) // max(1, len(free))))
    return [look if look is not None else next(rest) for look in found]


RC: dict[Any, Any] = {
    "figure.dpi": 72,
    "savefig.dpi": 200,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": EDGE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": EDGE,
    "ytick.color": EDGE,
    "xtick.labelcolor": "#555555",
    "ytick.labelcolor": "#555555",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.5,
    "text.hinting": "none",
    "text.parse_math": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "bnlab",
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
    "image.cmap": "cividis",
}
"""Over matplotlib's defaults. SVG text goes as outlines: the same everywhere,
since the report may not ask for a font."""


STYLES = ("report", "paper")
PAPER_WIDTH = 3.3
"""Inches of a column of a paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How large pictures are, in inches, and whether they are bare: without title and footnote, which a paper has in
    its caption."""

    width: float = 5.6
    is_bare: bool = False

    @property
    def sheet(self) -> float:
        """The width that it is drawn at, before it is made smaller. Narrow pictures are drawn at 4/3 of their width:
        at its own width a layout for letters of 9 points has no room, and at the usual one letters become too small."""
        return max(self.width, min(5.6, self.width * 4 / 3))

    @classmethod
    def of(cls, style: str, width: str | None) -> Format:
        """From `--style` and `--width`: `3.3in`, `8.4cm`, or a number of inches.

        Raises:
            UsageError: another style, or no width.
        """
        if style not in STYLES:
            raise UsageError("--style", "no such style", style, nearest(style, STYLES))
        found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?) *(in|cm)?", width or f"{PAPER_WIDTH if style == 'paper' else 5.6}")
        inches = float(found[1]) / (2.54 if found[2] == "cm" else 1) if found else 0.0
        if not 2.5 <= inches <= 12:
            raise UsageError("--width", "must be a width from 2.5in to 12in", width, "Write 3.3in, or 8.4cm.")
        return cls(width=inches, is_bare=style == "paper")


FORMAT: ContextVar[Format] = ContextVar("FORMAT", default=Format())  # noqa: B039  (frozen)
"""Of the pictures that are drawn now (`write.styled`)."""

DARK_PAPER = "#1b1e23"
_DARK = {
    PAPER: DARK_PAPER,
    TEXT: "#c9cdd3",
    INK: "#eceef1",
    MUTED: "#a2a8b0",
    "#555555": "#b3b8bf",
    EDGE: "#747a83",
    GRID: "#343941",
    "#00224e": "#00224e",  # the lower end of cividis: a colour bar shows data
}


def dark(svg: str) -> str:
    """The same drawing for a dark page: paper and ink change places, and colours are lightened until they read well.

    >>> dark('<path style="fill: #fefefe; stroke: #0072b2"/>')
    '<path style="fill: #1b1e23; stroke: #338ec1"/>'
    """
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _DARK.get(found[0]) or legible(found[0], DARK_PAPER), svg)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours by WCAG 2, from 1 to 21.

    >>> round(contrast("#000000", "#ffffff"), 1)
    21.0
    """
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@cache
def legible(color: str, paper: str, least: float = 4.5) -> str:
    """`color`, moved as little as needed towards black or white to stand out from `paper` as small text must."""
    towards = 0 if _luminance(paper) > 0.5 else 255
    channels = _channels(color)
    for tenth in range(21):
        moved = [round(c + (towards - c) * tenth / 20) for c in channels]
        found = "#{:02x}{:02x}{:02x}".format(*moved)
        if contrast(found, paper) >= least:
            return found
    return INK


def _channels(color: str) -> list[int]:
    return [int(color[start : start + 2], 16) for start in (1, 3, 5)]


def _luminance(color: str) -> float:
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in _channels(color))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
