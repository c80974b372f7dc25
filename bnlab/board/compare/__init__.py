"""The arms of a sweep side by side in TensorBoard, averaged over seeds: from run folders alone to a log directory."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection as AnyOf
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnlab.analysis.claims import Verdict
from bnlab.analysis.load import Collection
from bnlab.analysis.metrics.losses import SMOOTHED
from bnlab.analysis.verdicts import judge
from bnlab.board.compare.lines import (
    AROUND,
    DEPTH,
    PLACES,
    UNITS,
    Comparison,
    GridPoint,
    comparison_of,
    moments_of,
    series_of,
)
from bnlab.board.content import Band, Category, Content, Image, Lines, layout, write
from bnlab.board.events import PATTERN
from bnlab.board.tags import hidden_sites
from bnlab.core.text import count
from bnlab.record.folder import find_runs
from bnlab.report.build import draw_all
from bnlab.report.page import card_of
from bnlab.report.views import prepare

T_INTERVAL = "95 % t-interval of the mean over seeds"
BOTH = "both seeds"
LANDSCAPE = "Landscape along the gradient"
BANDS = (
    ("Loss and accuracy", "log10 training loss", "1_progress/log10_loss"),
    ("Loss and accuracy", "log10 test loss", "1_progress/log10_eval_loss"),
    ("Loss and accuracy", "test accuracy", "1_progress/eval_accuracy"),
    (LANDSCAPE, "log10 change of the gradient", "5_landscape/log10_grad_change"),
    (LANDSCAPE, "log10 of it over the gradient's norm", "5_landscape/log10_grad_change_rel"),
    ("Drift and gradients", "log10 drift of means, before the norm", "2_drift_mean_pre/00_log10_median_of_layers"),
    ("Drift and gradients", "log10 drift, what activations see", "2_drift_mean_act_in/00_log10_median_of_layers"),
    ("Drift and gradients", "log10 norm of the gradient", "4_grad_norm/00_log10_total"),
)
"""Rows, titles and tags of means over seeds, each with its interval. The page has no logarithmic axis in its address,
so what spans decades is shown as its logarithm."""
DEPTH_TITLES = {
    "drift_mean.pre": "log10 drift of means",
    "grad_norm": "log10 gradient norm",
    "act_var.pre": "log10 variance of pre-activations",
}

Files = tuple[tuple[str, int, int], ...]
"""Names, sizes and times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison that was written: the names of its lines, those shown at first, and the number of its runs."""

    names: tuple[str, ...]
    shown: tuple[str, ...]
    runs: int


def files_of(root: Path) -> Files:
    """The files that a comparison is made of: while these stay the same, so does it."""
    found = []
    for folder in find_runs(root):
        for file in (folder.journal_file, folder.status_file):
            with contextlib.suppress(OSError):
                seen = file.stat()
                found.append((str(file), seen.st_size, seen.st_mtime_ns))
    return tuple(found)


def build(root: Path, logs: Path) -> Compared:
    """Make `logs` show the sweep at `root`: a run of TensorBoard for every arm and learning rate, and at the top the
    layout of the Custom Scalars page, figures and verdicts. What has not changed is not written again.

    Raises:
        UsageError: as `comparison_of` and `judge`.
    """
    found = comparison_of(root)
    moments = moments_of(found.begun)
    # TensorBoard assigns its few colours in the order of the files: what is shown at first comes first.
    place = {name: number for number, name in enumerate(found.shown)}
    tags: set[str] = set()
    for point in sorted(found.points, key=lambda point: place.get(point.name, len(place))):
        series = series_of(point.runs, moments)
        tags |= set(series)
        write(logs / point.name, Content(series=series))
    names = [point.name for point in found.points]
    for file in logs.glob(f"*/*/{PATTERN}"):  # lines whose runs are gone
        if file.parent.relative_to(logs).as_posix() not in names:
            shutil.rmtree(file.parent)
    texts = {"how_to_read": how_to_read(found.points, found.shown), "runs": table_of_runs(found.points)}
    images: dict[str, Image] = {}
    if found.ended.runs:
        if verdicts := judge(found.ended):
            texts["verdicts"] = verdict_list(verdicts, found.ended)
        drawn, _ = draw_all(prepare(found.ended))
        for number, figure in enumerate(drawn, 1):
            about = f"**{figure.drawn.title}.** {figure.drawn.note}"
            images[f"0_figures/{number:02d}_{figure.drawn.name}"] = Image(png=figure.png, description=about)
    rows = page(tags, band=_band(found.points), layers=_layers(found), moments=moments)
    texts = {f"0_figures/{name}": text for name, text in texts.items()}
    write(logs, Content(texts=texts, images=images, layout=layout(rows)))
    return Compared(names=tuple(names), shown=found.shown, runs=sum(len(point.runs) for point in found.points))


def page(tags: AnyOf[str], *, band: str, layers: Sequence[str], moments: Sequence[int]) -> list[Category]:
    """The rows of charts on the Custom Scalars page for which there are `tags`. `band` says what the intervals are;
    `layers` names the first, the middle and the last hidden layer; `moments` are the steps of depth profiles."""
    rows: dict[str, list[Lines] | list[Band]] = {}
    for row, title, tag in BANDS:
        charts: list[Any] = rows.setdefault(f"{row}; band: {band}", [])
        if row == LANDSCAPE and not charts:
            value, low, high = AROUND.values()
            charts.append(Band(title="log10 loss; band: within reach of a step", value=value, low=low, high=high))
        charts.append(Band(title=title, value=tag, low=f"{tag}.lo", high=f"{tag}.hi"))
    rows["Percentiles 15, 50, 85 of the input of one activation (Ioffe & Szegedy 2015, figure 1)"] = [
        Lines(title=layer, tags=tuple(f"6_act_percentiles_act_in/{place}_{suffix}" for suffix in UNITS.values()))
        for place, layer in zip(PLACES, layers, strict=True)
    ]
    for metric, title in DEPTH_TITLES.items():
        rows[f"{title}, layer by layer (x axis: layer, the last is the head)"] = [
            Lines(title=f"at step {moment}", tags=(f"{DEPTH[metric]}_{place}",))
            for place, moment in zip(PLACES, moments, strict=True)
        ]
    there = {title: tuple(chart for chart in charts if set(chart.tags) <= set(tags)) for title, charts in rows.items()}
    shown = [(title, charts) for title, charts in there.items() if charts]
    return [Category(title=f"{number}. {title}", charts=charts) for number, (title, charts) in enumerate(shown, 1)]


def verdict_list(found: Sequence[Verdict], collection: Collection) -> str:
    """The verdict on each claim, with its numbers."""
    no_lines = {run.id: "" for run in collection.runs}
    lines = []
    for verdict in found:
        card = card_of(verdict, collection, no_lines)
        effect = (
            f"**{card['effect']}** (95 % interval {card['interval']})"
            if card["interval"]
            else card["effect"] or verdict.why
        )
        cautions = "".join(f"; *{caution}*" for caution in card["cautions"])
        lines.append(f"- **{card['sign']} {card['decision']}**: {card['text']}: {effect}; {card['facts']}{cautions}")
    return "\n".join(lines)


def table_of_runs(points: Sequence[GridPoint]) -> str:
    """The seeds of each line, and how many of them diverged, are dead, or have not ended."""
    rows: list[Sequence[str]] = [("line", "seeds", "diverged", "ended at chance", "not ended"), ["---"] * 5]
    for point in points:
        seeds, diverged = len(point.runs), point.diverged
        steps = f"{len(diverged)} of {seeds}, the first at step {diverged[0]}" if diverged else ""
        rows.append((point.name, str(seeds), steps, str(point.dead or ""), str(point.unfinished or "")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def how_to_read(points: Sequence[GridPoint], shown: Sequence[str]) -> str:
    """What is drawn and what is not."""
    two, one = ([point.name for point in points if len(point.runs) == seeds] for seeds in (2, 1))
    parts = [
        "A line is the mean over the seeds of an arm at a learning rate: geometric for losses, drifts and gradients, "
        "arithmetic for accuracies and percentiles. A mean is drawn only where every seed is finite: a line ends "
        "where the first seed diverges. Training losses and gradient norms are medians of the last "
        f"{SMOOTHED} measured batches.",
        f"Bands around them: {_band(points)}, of the logarithm where the mean is geometric. One band differs: from the "
        "lowest to the highest loss within reach of one step along the gradient, both geometric means over seeds.",
        "In the depth profiles the x axis is the layer: 1 is next to the input, the last is the head. A median over "
        "layers is taken before the mean.",
        f"Shown at first: {', '.join(shown)}. Every other line can be ticked at the left.",
    ]
    if two and _band(points) == T_INTERVAL:
        parts.append(f"Lines of two seeds, whose band is the two seeds: {', '.join(two)}.")
    if one:
        parts.append(f"{count(len(one), 'line')} of one seed, without a band: {', '.join(one)}.")
    if any(point.unfinished for point in points):
        parts.append(
            "Some runs have not ended. Such a run counts only where fewer than two runs of its line have ended: a seed "
            "that has just begun would cut the line off."
        )
    return "\n\n".join(parts)


def _band(points: Sequence[GridPoint]) -> str:
    """What the ends of the intervals are."""
    return T_INTERVAL if any(len(point.runs) > 2 for point in points) else BOTH


def _layers(found: Comparison) -> list[str]:
    """Names of the first, the middle and the last hidden layer: their numbers where all nets have the same depth."""
    first = [point.runs[0].series("act_p50.act_in").values for point in found.points]
    depths = {values.shape[-1] for values in first if values.ndim == 2}
    if len(depths) != 1:
        return [f"{place} hidden layer" for place in PLACES]
    return [f"layer {layer + 1}" for layer in hidden_sites(depths.pop())]
