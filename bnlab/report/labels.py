"""Names of lines, put where they hide least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from bnlab.report.base import Floats
from bnlab.report.canvas import HALO, LABEL_PT, text_width
from bnlab.report.style import MUTED, Look

NUDGES = sorted((6.0 * step for step in range(-26, 27)), key=abs)
"""How far a label may be moved up or down, in points; as little as will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndLabel:
    """The name of a line, wanted at its end."""

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
            across, up = (float(c) for c in ax.transAxes.inverted().transform((left, y)))
            ax.text(
                across,
                up,
                labels[index].text,
                transform=ax.transAxes,
                color=labels[index].look.ink,
                fontsize=LABEL_PT,
                fontweight="bold",
                va="center",
                ha="left",
                path_effects=HALO,
                zorder=6,
            )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights, from the top down, at least `gap` apart where there is room for that between `low` and `high`, and as
    near as can be to the wanted ones, which come from the top down.

    >>> spread([10.0, 9.0, 1.0], 4.0, 0.0, 20.0)
    [11.5, 7.5, 1.0]
    """
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    # As isotonic regression: what touches moves together, to the mean of what its members want.
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
    """The height near the wanted one where a label hides least."""

    def cost(y: float) -> float:
        box = (left - 2, left + width + 2, y - 5.5, y + 5.5)
        clashes = sum(
            box[0] < other[1] and other[0] < box[1] and box[2] < other[3] and other[2] < box[3] for other in taken
        )
        return 3 * _inside(points, box) + 1000 * clashes + abs(y - wanted)

    return min((min(max(wanted + nudge, limits[0]), limits[1]) for nudge in NUDGES), key=cost)


def line_note(ax: Axes, y: float, text: str, drawn: Sequence[tuple[Floats, Floats]]) -> Box:
    """A dotted line across, and small grey words under it at the end where less is drawn; the box of the words."""
    ax.axhline(y, color="#555555", linestyle=(0, (1, 2)), linewidth=1, zorder=1)
    points = _points(ax, drawn)
    height = float(ax.transData.transform((ax.get_xlim()[0], y))[1])
    width = text_width(text, 7.5)
    boxes: list[Box] = [
        (ax.bbox.x0 + 4, ax.bbox.x0 + 4 + width, height - 11, height - 1),
        (ax.bbox.x1 - width, ax.bbox.x1, height - 11, height - 1),
    ]
    box = min(boxes, key=lambda box: _inside(points, box, 4))
    x, top = ax.transAxes.inverted().transform((box[0], box[3]))
    ax.text(
        x,
        top,
        text,
        transform=ax.transAxes,
        fontsize=7.5,
        color=MUTED,
        ha="left",
        va="top",
        path_effects=HALO,
        zorder=6,
    )
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
    """The points of a line and some between them."""
    if len(points) < 2:
        return points
    share = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
    between: Floats = (points[None, :-1] * (1 - share) + points[None, 1:] * share).reshape(-1, 2)
    return np.concatenate([between, points[-1:]])
