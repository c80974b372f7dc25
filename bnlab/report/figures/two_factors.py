"""A metric of runs over two axes, as a map for each arm: drawn where a study, or `bnlab plot --map`, asks for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from bnlab.analysis.arms import frozen
from bnlab.analysis.metrics import METRICS
from bnlab.analysis.sides import RATE
from bnlab.core.text import number, typed
from bnlab.report.figures import FIGURES
from bnlab.report.figures.against import axis_name, in_order_of_size, place_name
from bnlab.report.measure import Measure, Spot
from bnlab.report.sheet import Sheet, log_ticks, text_width, thinned
from bnlab.report.style import EDGE, INK, NOT_FINITE, PAPER
from bnlab.report.views import Drawn, Missing, View, apart

Places = Sequence[Any]
Cells = Mapping[tuple[Any, Any], Spot]
"""A spot for each pair of places that has runs."""


@FIGURES.register("map", of="study", subject="a metric of runs over two axes, a map for each arm")
def draw(
    view: View,
    name: str,
    *,
    by: Annotated[str, MinLen(1)],
    versus: Annotated[str, MinLen(1)],
    metric: Annotated[str, MinLen(1)],
    options: dict[str, Any] | None = None,
    log: Literal["y", "none"] = "none",
    at: Literal["best_lr", "every_run"] = "best_lr",
) -> Drawn:
    """A cell for each setting of `by`, from left to right, and `versus`, upwards: the average over seeds in colour and
    in figures. With `log: y` colours are logarithmic and averages geometric.

    Raises:
        Missing: fewer than two values of an axis, or nothing measured.
    """
    measure = Measure(
        metric=METRICS[metric],
        options=METRICS.checked(metric, options or {}, "options"),
        every_run=at == "every_run" and RATE not in (by, versus),
        log=log == "y",
        reference=None,
    )
    runs = [run for group in view.groups for run in group.runs]
    for key in (by, versus):
        each = [{frozen(run.spec.get(key)) for run in group.runs} for group in view.groups]
        if len(set().union(*each)) > 1 and all(len(places) == 1 for places in each):
            raise Missing(f"{key} tells the arms apart, each of which has a map", "take another key")
    across, up = (in_order_of_size({frozen(run.spec.get(key)) for run in runs}) for key in (by, versus))
    for key, places in ((by, across), (versus, up)):
        if len(places) < 2:
            raise Missing(f"only one value of {key}", f"train at several: {key}=...")
    found: list[Cells] = []
    for group in view.panels:
        here: dict[tuple[Any, Any], list[Any]] = {}
        for run in group.runs:
            here.setdefault((frozen(run.spec.get(by)), frozen(run.spec.get(versus))), []).append(run)
        found.append({place: measure.spot(of_place, place, 0.0) for place, of_place in here.items()})
    middles = [spot.middle for cells in found for spot in cells.values() if math.isfinite(spot.middle)]
    if not middles:
        raise Missing(f"{measure.what} was not measured" + (", or is not above 0" if measure.log else ""))
    seeds = len(view.seeds)
    note = (
        f"{'Geometric mean' if measure.log else 'Mean'} of {seeds} seed{'s' * (seeds > 1)}"
        + ("" if RATE in (by, versus) else ", over learning rates" if measure.every_run else ", each at its best rate")
        + "."
    )
    if any(not math.isfinite(spot.middle) for cells in found for spot in cells.values()):
        note += " Grey: some seeds have no value, as where they diverge; the cell says how many have one."
    if any(spot.lost & spot.values.keys() for cells in found for spot in cells.values()):
        note += " ✕: how many diverged, which count as the worst value."
    sheet = Sheet(view.titled(_title(view, measure, by, versus, found)), view.noted(note), plot_height=2.9)
    right = sheet.width - 0.85
    low, high = min(middles), max(middles)
    colours = LogNorm(low, max(high, low * 1.01)) if measure.log else Normalize(low, high if high > low else low + 1)
    # The names of the places need room on the left.
    widest = max(text_width(place_name(place), 8) for place in up) / 72
    panels = sheet.panels(view.panels, right, 0.14, left=0.48 + widest)
    for index, (ax, cells) in enumerate(zip(panels, found, strict=True)):
        image = _panel(ax, cells, across, up, colours)
        ax.set_xlabel(axis_name(by))
        ax.set_yticks(range(len(up)), labels=[] if index else [place_name(place) for place in up])
    panels[0].set_ylabel(axis_name(versus))
    bar_ax = sheet.axes(left=right + 0.13, right=right + 0.24, above=0.28, first=False)
    bar = sheet.figure.colorbar(image, cax=bar_ax)
    bar.outline.set_edgecolor(EDGE)
    bar.set_label(measure.what)
    if measure.log:
        log_ticks(bar_ax, low, max(high, low * 1.01), most=5)
    return sheet.drawn(
        name,
        f"{measure.shown} by {axis_name(by)} and {axis_name(versus)}, a map for each arm.",
        ("arm", by, versus, "lr", "seed", metric, "bound", "mean", "low_95", "high_95"),
        [
            (group.label, typed(spot.place[0]), typed(spot.place[1]), *row[:-1])
            for group, cells in zip(view.panels, found, strict=True)
            for place in itertools.product(across, up)
            if (spot := cells.get(place))
            for row in spot.rows()
        ],
    )


def _panel(ax: Axes, cells: Cells, across: Places, up: Places, colours: Normalize) -> Any:
    """The cells of one arm, with their values where they have room."""
    values = np.array([[cells[x, y].middle if (x, y) in cells else math.nan for x in across] for y in up])
    ramp = colormaps["cividis"].with_extremes(bad=NOT_FINITE)
    image = ax.imshow(np.ma.masked_invalid(values), origin="lower", aspect="auto", cmap=ramp, norm=colours)
    ax.spines[:].set_visible(False)
    ax.set_xticks(range(len(across)))
    ax.set_xticks(range(len(across)), labels=thinned([place_name(x) for x in across], ax, range(len(across))))
    room = ax.bbox.width / len(across) - 3
    for (column, x), (row, y) in itertools.product(enumerate(across), enumerate(up)):
        spot = cells.get((x, y))
        if spot is None:
            continue
        known = math.isfinite(spot.middle)
        text = number(spot.middle, 2) if known else f"{len(spot.exact)}/{len(spot.seeds)}"
        text += f" ✕{len(spot.lost)}" if spot.lost else ""
        if text_width(text, 6.5) > room:
            continue
        dark = known and colours(spot.middle) < 0.5
        ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color=PAPER if dark else INK)
    return image


def _title(view: View, measure: Measure, by: str, versus: str, found: Sequence[Cells]) -> str:
    """In how many settings the pair's arms clearly differ; without a pair, where the highest value is."""
    what = measure.titled([run for group in view.groups for run in group.runs])
    shown = {group.label: cells for group, cells in zip(view.panels, found, strict=True)}
    if view.pair is not None and all(group.label in shown for group in view.pair):
        treated, control = (group.label for group in view.pair)
        places = shown[treated].keys() & shown[control].keys()
        said = [apart(shown[treated][at].exact, shown[control][at].exact, measure.log) for at in places]
        higher, lower = (sum(text.endswith(word) for text in said) for word in ("higher", "lower"))
        words = [f"{word} with {treated} in {n}" for word, n in (("higher", higher), ("lower", lower)) if n]
        if not words:
            return f"{what}: no clear difference between {treated} and {control} in any of {len(places)} settings"
        return f"{what}: clearly {', '.join(words)} of {len(places)} settings"
    best = {(arm, place): spot.middle for arm, cells in shown.items() for place, spot in cells.items()}
    best = {at: value for at, value in best.items() if math.isfinite(value)}
    arm, (x, y) = max(best, key=lambda at: best[at])
    of_arm = f" with {arm}" if len(shown) > 1 else ""
    where = f"{axis_name(by)} {place_name(x)} and {axis_name(versus)} {place_name(y)}"
    return f"{what}: highest{of_arm} at {where} ({number(best[arm, (x, y)])})"
