"""The sheet a figure is drawn on: title above, footnote below, axes placed in inches, labels at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from bnlab.analysis.arms import title as title_of
from bnlab.core.text import count as counted
from bnlab.core.text import number
from bnlab.report.style import INK, MUTED, PAPER, Look
from bnlab.report.views import Drawn, Floats, Group, Number, View

WIDTH, LEFT = 5.6, 0.74
"""Width of a sheet, and the left edge of its leftmost axes, in inches."""
TITLE_PT, NOTE_PT, LABEL_PT = 10.5, 7.0, 9.0
HALO = [withStroke(linewidth=2.6, foreground=PAPER)]
LABEL: dict[str, Any] = {"fontsize": LABEL_PT, "fontweight": "bold"}


@cache
def _word_width(word: str, size: float, bold: bool) -> float:
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(word, font, ismath=False)
    return float(width)


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """In points; word by word, so that the width of each word is computed once."""
    words = text.split(" ")
    spaces = (len(words) - 1) * _word_width(" ", size, bold)
    return spaces + sum(_word_width(word, size, bold) for word in words if word)


def wrapped(text: str, size: float, inches: float, *, bold: bool = False) -> list[str]:
    """Lines that fit into a width."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold=bold) <= 72 * inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def balanced(text: str, size: float, inches: float) -> list[str]:
    """Bold lines that fit, as many as needed, of about equal length: no last line of one word."""
    lines = wrapped(text, size, inches, bold=True)
    for narrower in np.arange(inches, 0.45 * inches, -0.1):
        tried = wrapped(text, size, float(narrower), bold=True)
        if len(tried) > len(lines):
            break
        lines = tried
    return lines


class Sheet:
    """A figure with its title and footnote. `plot_height` is what the axes and all around them have, in inches; it is
    measured from the top of the footnote."""

    def __init__(
        self, title: str, note: str, *, plot_height: float, width: float = WIDTH, indent: float = LEFT
    ) -> None:
        """`indent`: where the title begins, in inches; over the left end of the axes."""
        head = balanced(title, TITLE_PT, width - indent - 0.1)
        foot = wrapped(note, NOTE_PT, width - 0.25)
        self.bottom = 0.1 + 0.135 * len(foot)
        self.top = self.bottom + plot_height
        self.width, self.height = width, self.top + 0.19 * len(head) + 0.12
        self.indent = indent
        self.figure = Figure(figsize=(self.width, self.height))
        self._text(indent, self.height - 0.08, "\n".join(head), fontsize=TITLE_PT, fontweight="bold", color=INK)
        self._text(0.12, self.bottom - 0.03, "\n".join(foot), fontsize=NOTE_PT, color=MUTED, linespacing=1.35)
        self.title, self.note = title, note

    def drawn(self, name: str, about: str, columns: tuple[str, ...], rows: Sequence[tuple[Number, ...]]) -> Drawn:
        """The sheet as a figure of a report, with the numbers in it."""
        return Drawn(
            name=name,
            title=self.title,
            note=self.note,
            about=about,
            columns=columns,
            rows=rows,
            figure=self.figure,
        )

    def _text(self, x: float, y: float, text: str, **looks: object) -> None:
        self.figure.text(x / self.width, y / self.height, text, va="top", ha="left", **looks)  # type: ignore[arg-type]

    def axes(self, *, left: float, right: float, above: float = 0.1, below: float = 0.5, first: bool = True) -> Axes:
        """From `left` to `right` inches of the sheet, with room `above` and `below` inside the plot's height. The name
        of the `first` vertical axis stands at the edge of the sheet."""
        y0, y1 = self.bottom + below, self.top - above
        box = (left / self.width, y0 / self.height, (right - left) / self.width, (y1 - y0) / self.height)
        ax = self.figure.add_axes(box)
        if first:
            ax.yaxis.set_label_coords(0.2 / self.width, (y0 + y1) / 2 / self.height, self.figure.transFigure)
        return ax


def room_for(labels: Sequence[str]) -> float:
    """Where axes end so that these names fit beside them, in inches; they keep the larger part of the sheet."""
    return max(WIDTH - max(text_width(label, LABEL_PT, bold=True) for label in labels) / 72 - 0.22, WIDTH * 0.62)


def rate_axis(ax: Axes, rates: Sequence[float], optimizer: str) -> None:
    """A logarithmic axis with a tick at every rate that was swept, labelled as densely as there is room."""
    ax.set_xscale("log")
    low, high = rates[0], rates[-1]
    margin = (high / low) ** 0.05 if high > low else 2.0
    ax.set_xlim(low / margin, high * margin)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(FixedLocator(list(rates)))
    ax.xaxis.set_major_formatter(FixedFormatter(thinned([number(lr) for lr in rates], ax, rates)))
    ax.set_xlabel(f"learning rate ({optimizer})")


def shifts(view: View) -> list[float]:
    """The factor by which the markers of each arm are moved beside their rate, so that arms do not hide each other."""
    rates = view.rates
    gap = math.log(min(b / a for a, b in pairwise(rates)))
    widest = min(0.06 * gap, 0.03 * math.log(rates[-1] / rates[0]))
    middle = (len(view.groups) - 1) / 2
    return [math.exp(widest * (index - middle) / max(1.0, middle)) for index in range(len(view.groups))]


def thinned(texts: Sequence[str], ax: Axes, at: Sequence[float]) -> list[str]:
    """Every k-th text, the others empty, with the smallest k at which none touches the next; k is 1 up to 9 ticks if
    they fit."""
    places = [float(ax.transData.transform((x, 1.0))[0]) for x in at]
    widths = [text_width(text, 8) for text in texts]
    for step in range(1, len(texts) + 1):
        kept = range(0, len(texts), step)
        gaps = [places[b] - widths[b] / 2 - places[a] - widths[a] / 2 for a, b in pairwise(kept)]
        if min(gaps, default=9.0) >= 4 and (step > 1 or len(texts) <= 9):
            return [text if index % step == 0 else "" for index, text in enumerate(texts)]
    return list(texts)


def log_ticks(ax: Axes, low: float, high: float, *, axis: str = "y", most: int = 8) -> None:
    """Logarithmic, with round numbers as ticks: the finest set of at most `most`."""
    getattr(ax, f"set_{axis}scale")("log")
    getattr(ax, f"set_{axis}lim")(low, high)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for marks in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [mark * 10.0**decade for decade in decades for mark in marks if low <= mark * 10.0**decade <= high]
        if len(found) <= most:
            break
    found = found[:: math.ceil(len(found) / most)] if len(found) > 1 else [low, high]
    which = ax.yaxis if axis == "y" else ax.xaxis
    which.set_minor_locator(NullLocator())
    which.set_minor_formatter(NullFormatter())
    which.set_major_locator(FixedLocator(found))
    which.set_major_formatter(FixedFormatter([number(float(f"{x:.3g}")) for x in found]))


def around(values: Sequence[float], *, room: float = 0.06) -> tuple[float, float]:
    """Limits of a logarithmic axis around positive values.

    >>> [round(x, 2) for x in around([1.0, 100.0], room=0.5)]
    [0.1, 1000.0]
    """
    finite = [x for x in values if math.isfinite(x) and x > 0] or [1.0]
    low, high = min(finite), max(finite)
    share = max((high / low) ** room, 1.08)
    return low / share, high * share


def _tally(count: int, of: int, room: float) -> str:
    """`count` of `of` in `room` points; where there is too little room, the count alone, or nothing if it is all.

    >>> [_tally(2, 3, room) for room in (40.0, 14.0, 5.0)], _tally(3, 3, 5.0)
    (['2 of 3', '2/3', '2'], '')
    """
    for text in (f"{count} of {of}", f"{count}/{of}"):
        if text_width(text, 6.5) <= room:
            return text
    return "" if count == of else str(count)


def panel_name(ax: Axes, group_label: str, look: Look) -> None:
    """The name of an arm above its panel, smaller where the panel is narrow."""
    size = LABEL_PT * min(1.0, ax.bbox.width / text_width(group_label, LABEL_PT, bold=True))
    ax.set_title(group_label, fontsize=max(size, 5.5), fontweight="bold", color=look.ink, loc="left", pad=4)


def step_axis(ax: Axes, last: float) -> None:
    ax.set_xlim(-0.015 * last, last * 1.015)
    ax.set_xlabel("training step")


def open_marker(look: Look, size: float = 4.2) -> dict[str, Any]:
    """Keyword arguments of an open marker, which does not hide what is below it."""
    return {
        "marker": look.marker,
        "markersize": size,
        "markerfacecolor": PAPER,
        "markeredgecolor": look.color,
        "markeredgewidth": 1.1,
        "linestyle": "none",
    }


def lanes(
    ax: Axes, groups: Sequence[Group], marks: Sequence[Sequence[tuple[float, int, int]]], sign: str, word: str
) -> None:
    """Above the axes, a row for each arm that has marks: `sign` at x, with the count of its runs."""
    height = ax.bbox.height
    row = 0
    for group, wanted in zip(groups, marks, strict=True):
        if not wanted:
            continue
        y = 1 + (9 + 12 * row) / height
        places = [float(ax.transData.transform((x, 1.0))[0]) for x, _, _ in wanted]
        rooms = [*(b - a - 12 for a, b in pairwise(places)), 99.0]
        for (x, count, of), room in zip(wanted, rooms, strict=True):
            filled = sign == "X"
            look: dict[str, Any] = {
                "markerfacecolor": group.look.color if filled else PAPER,
                "markeredgecolor": group.look.color,
            }
            look |= {"markeredgewidth": 0.3 if filled else 1.1, "linestyle": "none", "marker": sign}
            ax.plot(x, y, transform=ax.get_xaxis_transform(), markersize=5.5, clip_on=False, zorder=5, **look)
            beside: dict[str, Any] = {
                "xycoords": ax.get_xaxis_transform(),
                "xytext": (4.5, 0),
                "color": group.look.ink,
                "ha": "left",
            }
            ax.annotate(_tally(count, of, room), (x, y), fontsize=6.5, **beside, **BESIDE)
        row += 1
    if row:
        left: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (-5, 0), "color": MUTED, "ha": "right"}
        ax.annotate(word, (0, 1 + (9 + 6 * (row - 1)) / height), fontsize=7, **left, **BESIDE)


BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
NUDGES = sorted((6.0 * step for step in range(-26, 27)), key=abs)
"""Distances by which a label may be moved up or down, in points, the smallest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndLabel:
    """The name of a line, to be placed at its end."""

    text: str
    look: Look
    x: float
    y: float


Box = tuple[float, float, float, float]
"""Left, right, bottom, top in points of the sheet."""


def place_labels(
    ax: Axes, labels: Sequence[EndLabel], drawn: Sequence[tuple[Floats, Floats]], blocked: Sequence[Box] = ()
) -> None:
    """Put each label to the right of its point. Three or more in a column keep the order of their points, as near to
    them as there is room; others go as little above or below as keeps them off the lines and markers `drawn`, off what
    is `blocked`, and off each other."""
    points = _points(ax, drawn)
    low, high = ax.bbox.y0 + 4, ax.bbox.y1 - 4
    ends = [tuple(float(c) for c in ax.transData.transform((label.x, label.y))) for label in labels]
    taken = list(blocked)
    columns: list[list[int]] = []
    for index in sorted(range(len(labels)), key=lambda index: (-ends[index][1], index)):
        beside = [column for column in columns if abs(ends[column[0]][0] - ends[index][0]) < 30]
        if beside:
            beside[0].append(index)
        else:
            columns.append([index])
    for column in sorted(columns, key=lambda column: len(column) < 3):  # the others find their way round these
        if len(column) > 2:
            heights = spread([ends[index][1] for index in column], 12.0, low, high)
        for row, index in enumerate(column):
            left, width = ends[index][0] + 8, text_width(labels[index].text, LABEL_PT, bold=True)
            y = heights[row] if len(column) > 2 else _free(points, taken, left, width, ends[index][1], (low, high))
            taken.append((left - 2, left + width + 2, y - 5.5, y + 5.5))
            _write(ax, left, y, labels[index].text, va="center", color=labels[index].look.ink, **LABEL)


def _write(ax: Axes, left: float, y: float, text: str, **looks: Any) -> None:
    """Text with a halo, at a place in points of the sheet."""
    x, up = (float(c) for c in ax.transAxes.inverted().transform((left, y)))
    ax.text(x, up, text, transform=ax.transAxes, ha="left", path_effects=HALO, zorder=6, **looks)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights, from the top down, at least `gap` apart where there is room for that between `low` and `high`, and as
    near as possible to the wanted ones, which are given from the top down.

    >>> spread([10.0, 9.0, 1.0], 4.0, 0.0, 20.0)
    [11.5, 7.5, 1.0]
    """
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    # As in isotonic regression, labels that touch move together, to the mean of their wanted heights.
    blocks: list[list[float]] = []  # of each: the sum of what is wanted of its first, its size
    for y in wanted:
        blocks.append([y, 1])
        while len(blocks) > 1:
            (above, size), (below, more) = blocks[-2:]
            if above / size - gap * size >= below / more:
                break
            blocks[-2:] = [[above + below + gap * size * more, size + more]]
    found = [total / size - gap * row for total, size in blocks for row in range(int(size))]
    for row in range(len(found)):  # inside the limits, from above and then from below
        found[row] = min(found[row], high - gap * row)
    for row in range(len(found)):
        found[-1 - row] = max(found[-1 - row], low + gap * row)
    return found


def _free(
    points: Floats, taken: Sequence[Box], left: float, width: float, wanted: float, limits: tuple[float, float]
) -> float:
    """The height near the wanted one at which a label hides least."""

    def cost(y: float) -> float:
        box = (left - 2, left + width + 2, y - 5.5, y + 5.5)
        clashes = sum(
            box[0] < other[1] and other[0] < box[1] and box[2] < other[3] and other[2] < box[3] for other in taken
        )
        return 3 * _inside(points, box) + 1000 * clashes + abs(y - wanted)

    return min((min(max(wanted + nudge, limits[0]), limits[1]) for nudge in NUDGES), key=cost)


def line_note(ax: Axes, y: float, text: str, drawn: Sequence[tuple[Floats, Floats]]) -> Box:
    """A dotted line across, with a small grey note below it, at the end where less is drawn; the box of the note."""
    ax.axhline(y, color="#555555", linestyle=(0, (1, 2)), linewidth=1, zorder=1)
    points = _points(ax, drawn)
    height = float(ax.transData.transform((ax.get_xlim()[0], y))[1])
    width = text_width(text, 7.5)
    boxes: list[Box] = [
        (ax.bbox.x0 + 4, ax.bbox.x0 + 4 + width, height - 11, height - 1),
        (ax.bbox.x1 - width, ax.bbox.x1, height - 11, height - 1),
    ]
    box = min(boxes, key=lambda box: _inside(points, box, 4))
    _write(ax, box[0], box[3], text, va="top", color=MUTED, fontsize=7.5)
    return box


def _inside(points: Floats, box: Box, margin: float = 0) -> int:
    x, y = points[:, 0], points[:, 1]
    left, right, bottom, top = box
    return int(((x > left - margin) & (x < right + margin) & (y > bottom - margin) & (y < top + margin)).sum())


def _points(ax: Axes, drawn: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Where lines and markers are, in points of the sheet."""
    found = [np.empty((0, 2))]
    for x, y in drawn:
        here = np.isfinite(x) & np.isfinite(y)
        if here.any():
            found.append(_dense(np.asarray(ax.transData.transform(np.column_stack([x[here], y[here]])))))
    return np.concatenate(found)


def _dense(points: Floats) -> Floats:
    """The points of a line, and points between them."""
    if len(points) < 2:
        return points
    share = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
    between: Floats = (points[None, :-1] * (1 - share) + points[None, 1:] * share).reshape(-1, 2)
    return np.concatenate([between, points[-1:]])


def seeds_of(view: View) -> str:
    """`6 seeds`."""
    return counted(len(view.seeds), "seed")


def optimizer(view: View) -> str:
    """`SGD`; several, one after the other."""
    return ", ".join(sorted({title_of(run, "optim") for group in view.groups for run in group.runs}))


def footnote(*parts: str) -> str:
    """The parts that are not empty, as one paragraph."""
    return " ".join(part for part in parts if part)
