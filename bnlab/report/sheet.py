"""The sheet a figure is drawn on: title above, footnote below, axes placed in inches, labels at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from bnlab.analysis.arms import title as title_of
from bnlab.core.text import count as counted
from bnlab.core.text import number
from bnlab.report.style import FORMAT, INK, MUTED, PAPER, Look
from bnlab.report.views import Drawn, Floats, Group, Number, View

LEFT = 0.74
"""The left edge of the leftmost axes of a sheet, in inches."""
TITLE_PT, NOTE_PT, LABEL_PT = 10.5, 7.0, 9.0
HALO = [withStroke(linewidth=2.6, foreground=PAPER)]


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

    def __init__(self, title: str, note: str, *, plot_height: float) -> None:
        shape = FORMAT.get()
        self.width = shape.sheet
        head = [] if shape.is_bare else balanced(title, TITLE_PT, self.width - LEFT - 0.1)
        foot = [] if shape.is_bare else wrapped(note, NOTE_PT, self.width - 0.25)
        self.bottom = 0.1 + 0.135 * len(foot)
        self.top = self.bottom + plot_height
        self.height = self.top + 0.19 * len(head) + 0.12
        self.figure = Figure(figsize=(self.width, self.height))
        self._text(LEFT, self.height - 0.08, "\n".join(head), fontsize=TITLE_PT, fontweight="bold", color=INK)
        self._text(0.12, self.bottom - 0.03, "\n".join(foot), fontsize=NOTE_PT, color=MUTED, linespacing=1.35)
        self.title, self.note = title, note

    def drawn(self, name: str, about: str, columns: tuple[str, ...], rows: Sequence[tuple[Number, ...]]) -> Drawn:
        """The sheet as a figure of a report, with the numbers in it."""
        return Drawn(name, self.title, self.note, about, columns, rows, self.figure)

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

    def panels(self, groups: Sequence[Group], right: float, gap: float, left: float = LEFT) -> list[Axes]:
        """Axes side by side from `left` to `right` inches, one for each arm, with its name above, smaller where it is
        narrow."""
        width = (right - left - gap * (len(groups) - 1)) / len(groups)
        found = []
        for index, group in enumerate(groups):
            start = left + index * (width + gap)
            ax = self.axes(left=start, right=start + width, above=0.28, first=index == 0)
            ax.grid(False)
            size = LABEL_PT * min(1.0, ax.bbox.width / text_width(group.label, LABEL_PT, bold=True))
            name: dict[str, Any] = {"fontsize": max(size, 5.5), "fontweight": "bold", "color": group.look.ink}
            ax.set_title(group.label, loc="left", pad=4, **name)
            found.append(ax)
        return found


def rate_axis(ax: Axes, rates: Sequence[float], optimizer: str) -> None:
    """A logarithmic axis with a tick at every rate that was swept, labelled as densely as there is room."""
    ax.set_xscale("log")
    low, high = rates[0], rates[-1]
    margin = (high / low) ** 0.05 if high > low else 2.0
    ax.set_xlim(low / margin, high * margin)
    ax.set_xticks(rates, labels=thinned([number(lr) for lr in rates], ax, rates))
    ax.set_xticks([], minor=True)
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


def log_ticks(ax: Axes, low: float, high: float, *, most: int = 8, axis: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis with round numbers as ticks: the finest set of at most `most`."""
    ax.set(**{f"{axis}scale": "log", f"{axis}lim": (low, high)})
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for marks in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [mark * 10.0**decade for decade in decades for mark in marks if low <= mark * 10.0**decade <= high]
        if len(found) <= most:
            break
    found = found[:: math.ceil(len(found) / most)] if len(found) > 1 else [low, high]
    ticks = ax.yaxis if axis == "y" else ax.xaxis
    ticks.set_ticks(found, labels=[number(float(f"{x:.3g}")) for x in found])
    ticks.set_ticks([], minor=True)


def value_axis(ax: Axes, values: Sequence[float], log: bool, axis: Literal["x", "y"] = "y") -> None:
    """Limits around the values, with ticks."""
    if log:
        log_ticks(ax, *around(values), axis=axis)
        return
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    ax.set(**{f"{axis}lim": (low - room, high + room)})


def layer_ticks(depth: int) -> list[int]:
    """The first layer, the last, and every fifth between them; in deep nets fewer, at most fifteen in all.

    >>> layer_ticks(12), layer_ticks(100)
    ([0, 5, 11], [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99])
    """
    step = next(5 * factor for factor in (1, 2, 4, 10, 20, 40, depth) if depth <= 65 * factor)
    return sorted({0, depth - 1, *range(step, depth - 1 - step // 5, step)})


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
    ax: Axes, looks: Sequence[Look], marks: Sequence[Sequence[tuple[float, int, int]]], sign: str, word: str
) -> None:
    """Above the axes, a row for each arm that has marks: `sign` at x, with the count of its runs."""
    height, across = ax.bbox.height, ax.get_xaxis_transform()
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    rows = [(look, wanted) for look, wanted in zip(looks, marks, strict=True) if wanted]
    for row, (look, wanted) in enumerate(rows):
        y = 1 + (9 + 12 * row) / height
        marker = open_marker(look, 5.5) | {"marker": sign}
        if sign == "X":
            marker |= {"markerfacecolor": look.color, "markeredgewidth": 0.3}
        places = [float(ax.transData.transform((x, 1.0))[0]) for x, _, _ in wanted]
        rooms = [*(b - a - 12 for a, b in pairwise(places)), 99.0]
        for (x, count, of), room in zip(wanted, rooms, strict=True):
            ax.plot(x, y, transform=across, clip_on=False, zorder=5, **marker)
            text: dict[str, Any] = {"fontsize": 6.5, "color": look.ink, "ha": "left", **beside}
            ax.annotate(_tally(count, of, room), (x, y), xycoords=across, xytext=(4.5, 0), **text)
    if rows:
        at = (0, 1 + (9 + 6 * (len(rows) - 1)) / height)
        text = {"fontsize": 7, "color": MUTED, "ha": "right", **beside}
        ax.annotate(word, at, xycoords="axes fraction", xytext=(-5, 0), **text)


class Chart(Sheet):
    """A sheet with one plot, whose lines have their `names` at their ends; above it is room for `rows` of marks."""

    def __init__(self, view: View, title: str, note: str, names: Sequence[str], rows: int = 0) -> None:
        above = 0.17 * rows + (0.06 if rows else 0)
        super().__init__(view.titled(title), view.noted(note), plot_height=3.15 + above)
        widest = max(text_width(name, LABEL_PT, bold=True) for name in names)
        right = max(self.width - widest / 72 - 0.22, self.width * 0.62)  # the axes keep the larger part of the sheet
        self.ax = self.axes(left=LEFT, right=right, above=0.1 + above)
        self._lines: list[tuple[Floats, Floats]] = []
        self._names: list[tuple[str, Look, float, float]] = []
        self._taken: list[Bbox] = []

    def line(self, x: Floats, y: Floats, look: Look | None = None, **how: Any) -> None:
        """Draw a line, which names keep off."""
        style = {"color": look.color, "linestyle": look.dash, "zorder": 3} if look else {}
        self.ax.plot(x, y, **(style | how))
        self.keep_off(x, y)

    def keep_off(self, x: Floats, y: Floats) -> None:
        """Names are placed off this line or marker where there is room."""
        self._lines.append((x, y))

    def name(self, text: str, look: Look, x: float, y: float) -> None:
        """Put a name at the end of a line, once everything is drawn."""
        self._names.append((text, look, x, y))

    def line_across(self, y: float, text: str) -> None:
        """A dotted line across, with a small grey note below it, at the end where less is drawn."""
        box = self.ax.bbox
        self.ax.axhline(y, color="#555555", linestyle=(0, (1, 2)), linewidth=1, zorder=1)
        height = float(self.ax.transData.transform((self.ax.get_xlim()[0], y))[1])
        width = text_width(text, 7.5)
        places = [Bbox.from_extents(x, height - 11, x + width, height - 1) for x in (box.x0 + 4, box.x1 - width)]
        points = self._points()
        place = min(places, key=lambda place: place.padded(4).count_contains(points))
        self._write(place.x0, place.y1, text, va="top", color=MUTED, fontsize=7.5)
        self._taken.append(place)

    def drawn(self, name: str, about: str, columns: tuple[str, ...], rows: Sequence[tuple[Number, ...]]) -> Drawn:
        """The sheet as a figure of a report, with the names at their lines."""
        self._place_names()
        return super().drawn(name, about, columns, rows)

    def _place_names(self) -> None:
        """Put each name to the right of its point. Three or more in a column keep the order of their points, as near to
        them as there is room; others move as little up or down as keeps them off lines, markers, notes and each
        other. Where a name would still hide some, all stand right of the axes, each with a piece of its line."""
        points, limits = self._points(), (self.ax.bbox.y0 + 4, self.ax.bbox.y1 - 4)
        ends = [self.ax.transData.transform((x, y)) for _, _, x, y in self._names]
        columns: list[list[int]] = []
        for index in sorted(range(len(ends)), key=lambda index: (-ends[index][1], index)):
            beside = [column for column in columns if abs(ends[column[0]][0] - ends[index][0]) < 30]
            if beside:
                beside[0].append(index)
            else:
                columns.append([index])
        places: list[tuple[int, float, float]] = []
        hidden = 0
        for column in sorted(columns, key=lambda column: len(column) < 3):  # the others are placed around these
            heights = spread([ends[index][1] for index in column], 12.0, *limits) if len(column) > 2 else []
            for row, index in enumerate(column):
                left, wanted = ends[index][0] + 8, ends[index][1]
                width = text_width(self._names[index][0], LABEL_PT, bold=True)
                y = heights[row] if heights else self._free(points, left, width, wanted, limits)
                self._taken.append(_box(left, width, y))
                hidden += int(_box(left, width, y).count_contains(points))
                places.append((index, left, y))
        if hidden:
            order = sorted(range(len(ends)), key=lambda index: (-ends[index][1], index))
            heights = spread([ends[index][1] for index in order], 12.0, *limits)
            places = [(index, self.ax.bbox.x1 + 26, y) for index, y in zip(order, heights, strict=True)]
        for index, left, y in places:
            text, look, _, _ = self._names[index]
            size = LABEL_PT * min(1.0, (72 * self.width - 3 - left) / text_width(text, LABEL_PT, bold=True))
            self._write(left, y, text, va="center", color=look.ink, fontsize=size, fontweight="bold")
            if hidden:
                piece = self.ax.transAxes.inverted().transform([(left - 20, y), (left - 12, y), (left - 4, y)])
                how: dict[str, Any] = {"transform": self.ax.transAxes, "clip_on": False, "color": look.color}
                self.ax.plot(*piece.T, linestyle=look.dash, **how)
                self.ax.plot(*piece[1], **(open_marker(look) | {key: how[key] for key in ("transform", "clip_on")}))

    def _free(self, points: Floats, left: float, width: float, wanted: float, limits: tuple[float, float]) -> float:
        """The height near the wanted one at which a name hides least."""

        def cost(y: float) -> float:
            box = _box(left, width, y)
            return 3 * box.count_contains(points) + 1000 * box.count_overlaps(self._taken) + abs(y - wanted)

        return min((min(max(wanted + nudge, limits[0]), limits[1]) for nudge in NUDGES), key=cost)

    def _write(self, left: float, y: float, text: str, **looks: Any) -> None:
        """Text with a halo, at a place in points of the sheet."""
        x, up = self.ax.transAxes.inverted().transform((left, y))
        self.ax.text(x, up, text, transform=self.ax.transAxes, ha="left", path_effects=HALO, zorder=6, **looks)

    def _points(self) -> Floats:
        """Where lines and markers are, in points of the sheet: eight from each point of a line to the next."""
        found = [np.empty((0, 2))]
        share = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
        for line in self._lines:
            ends = np.column_stack(line)
            ends = self.ax.transData.transform(ends[np.isfinite(ends).all(axis=1)])
            found += [(ends[None, :-1] * (1 - share) + ends[None, 1:] * share).reshape(-1, 2), ends[-1:]]
        return np.concatenate(found)


NUDGES = sorted((6.0 * step for step in range(-26, 27)), key=abs)
"""Distances by which a name may be moved up or down, in points, the smallest first."""


def _box(left: float, width: float, y: float) -> Bbox:
    """What a name takes, in points of the sheet."""
    return Bbox.from_extents(left - 2, y - 5.5, left + width + 2, y + 5.5)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights, from the top down, at least `gap` apart where there is room for that between `low` and `high`, and as
    near as possible to the wanted ones, which are given from the top down.

    >>> spread([10.0, 9.0, 1.0], 4.0, 0.0, 20.0)
    [11.5, 7.5, 1.0]
    """
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    # Labels that touch move together, to the mean of their wanted heights, as in isotonic regression.
    below = gap * np.arange(len(wanted))
    found = isotonic_regression(wanted + below, increasing=False).x - below
    found = np.maximum(np.minimum(found, high - below), low + below[::-1])
    return [float(y) for y in found]


def seeds_of(view: View) -> str:
    """`6 seeds`."""
    return counted(len(view.seeds), "seed")


def optimizer(view: View) -> str:
    """`SGD`; several, one after the other."""
    return ", ".join(sorted({title_of(run, "optim") for group in view.groups for run in group.runs}))
