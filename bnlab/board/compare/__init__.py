"""The arms of a sweep side by side in TensorBoard, averaged over seeds: from run folders alone to a log directory."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import struct
from collections.abc import Collection as AnyOf
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean

from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layouts
from tensorboard.plugins.image import metadata as images
from tensorboard.plugins.text import metadata as texts

from bnlab.analysis.claims import Verdict
from bnlab.analysis.load import Collection
from bnlab.analysis.metrics.losses import SMOOTHED
from bnlab.analysis.verdicts import judge
from bnlab.board.card import RESULTS, results_of, table_results, table_row
from bnlab.board.compare.lines import (
    AROUND,
    AVERAGED,
    DEPTH,
    LANDSCAPE,
    PLACES,
    ROWS,
    SMALLEST,
    UNITS,
    Comparison,
    GridPoint,
    by_step,
    comparison_of,
    moments_of,
    series_of,
)
from bnlab.board.events import PATTERN, strings, write
from bnlab.board.tags import ASIDE, hidden_sites
from bnlab.core.text import count, markdown
from bnlab.record.folder import find_runs
from bnlab.report.build import draw_all
from bnlab.report.page import card_of
from bnlab.report.prepare import prepare

MOST_HEADS = 8
"""Verdicts on top of the Custom Scalars page."""

T_INTERVAL = "95 % t-interval of the mean over seeds"
BOTH = "both seeds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart of the Custom Scalars page. Each run has a line for each tag; in a `band`, a line with an interval around
    it, whose three tags have the same steps."""

    title: str
    tags: tuple[str, ...]
    band: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison that was written: the names of its lines, those shown at first, the number of its runs, what is not
    in it, and its colours (`Comparison`)."""

    names: tuple[str, ...]
    shown: tuple[str, ...]
    runs: int
    apart: tuple[str, ...]
    colours: Mapping[str, str]


def files_of(root: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files that a comparison is made of: while these stay the same, so does it."""
    found = []
    for file in (file for run in find_runs(root) for file in (run.journal_file, run.status_file)):
        with contextlib.suppress(OSError):
            seen = file.stat()
            found.append((str(file), seen.st_size, seen.st_mtime_ns))
    return found


def build(root: Path, logs: Path) -> Compared:
    """Make `logs` show the sweep at `root`: a run of TensorBoard for every arm and learning rate, and at the top the
    layout of the Custom Scalars page, figures and verdicts. What has not changed is not written again.

    Raises:
        UsageError: as `comparison_of` and `judge`.
    """
    found = comparison_of(root)
    moments = moments_of(found.begun)
    tags: set[str] = set()
    # TensorBoard lists runs in the order of their files: what is shown at first comes first.
    place = {name: number for number, name in enumerate(found.shown)}
    for point in sorted(found.points, key=lambda point: place.get(point.name, len(place))):
        series = series_of(point.runs, moments)
        tags |= set(series)
        steps = by_step(series) or {0: b""}
        steps[min(steps)] = row_of(point) + steps[min(steps)]
        steps[max(steps)] += results_of_line(point)
        write(logs / point.name, steps)
    names = [point.name for point in found.points]
    for file in logs.glob(f"*/*/{PATTERN}"):  # lines whose runs are gone
        if file.parent.relative_to(logs).as_posix() not in names:
            shutil.rmtree(file.parent)
    rows = page(tags, band=_band(found.points), layers=_layers(found), moments=moments)
    shown = {"2_how_to_read": how_to_read(found.points, found.shown), "3_runs": table_of_runs(found.points)}
    figures, heads = [], []
    if found.ended.runs:
        verdicts = judge(found.ended)
        if verdicts:
            heads = verdict_lines(verdicts, found.ended)
            shown["1_verdicts"] = verdict_list(verdicts, found.ended)
        drawn, _ = draw_all(prepare(found.ended, verdicts))
        for number, figure in enumerate(drawn, 1):
            about = f"**{markdown(figure.drawn.title)}.** {markdown(figure.drawn.note)}"
            figures.append(image(f"0_figures/{number:02d}_{figure.drawn.name}", figure.png, about))
    messages = [layout(rows, heads), *(text(f"0_text/{name}", shown[name]) for name in sorted(shown)), *figures]
    write(logs / ASIDE, {0: b"".join(messages)})
    return Compared(
        names=tuple(names),
        shown=found.shown,
        runs=sum(len(point.runs) for point in found.points),
        apart=tuple(found.ended.apart),
        colours=found.colours,
    )


def row_of(point: GridPoint) -> bytes:
    """A line's row in the HParams table."""
    about = {
        name: f"{'geometric mean' if name.endswith('loss') else 'mean'} over the seeds, {meaning}"
        for name, meaning in RESULTS.items()
    }
    values: dict[str, str | float] = {"arm": point.arm, "optim.lr": point.lr}
    return table_row(values, tuple(values), about | {"diverged": "share of the seeds that diverged"}, point.name, 0.0)


def results_of_line(point: GridPoint) -> bytes:
    """The results in that row; none where no run has ended."""
    seeds = [
        results_of(run.status, next(iter(run.series("train_loss").values.tolist()), math.nan))
        for run in point.runs
        if run.ended
    ]
    found = {}
    for name in RESULTS:
        values = [max(seed[name], SMALLEST) if name.endswith("loss") else seed[name] for seed in seeds if name in seed]
        if values:
            found[name] = geometric_mean(values) if name.endswith("loss") else fmean(values)
    return table_results(found) if found else b""


def page(tags: AnyOf[str], *, band: str, layers: Sequence[str], moments: Sequence[int]) -> dict[str, list[Chart]]:
    """Title -> charts, the rows of the Custom Scalars page for which there are `tags`. `band` says what the intervals
    are; `layers` names the first, the middle and the last hidden layer; `moments` are the steps of depth profiles."""
    rows: dict[str, list[Chart]] = {f"{row}; band: {band}": [] for row in ROWS}
    around = Chart(title="train_loss; band: within reach of a step", tags=tuple(AROUND.values()), band=True)
    rows[f"{LANDSCAPE}; band: {band}"].append(around)
    for line in AVERAGED:
        if line.title:
            chart = Chart(title=line.title, tags=(line.tag, f"{line.tag}.lo", f"{line.tag}.hi"), band=True)
            rows[f"{line.row}; band: {band}"].append(chart)
    rows["Percentiles 15, 50, 85 of the input of one activation (Ioffe & Szegedy 2015, figure 1)"] = [
        Chart(
            title=f"{layer}: from above p85, p50, p15",
            tags=tuple(f"6_act_percentiles_act_in/{place}_{suffix}" for suffix in UNITS.values()),
        )
        for place, layer in zip(PLACES, layers, strict=True)
    ]
    for tag, title in DEPTH.values():
        rows[f"{title}, layer by layer (x axis: layer, the last is the head)"] = [
            Chart(title=f"{title} at step {moment}", tags=(f"{tag}_{place}",))
            for place, moment in zip(PLACES, moments, strict=True)
        ]
    there = {title: [chart for chart in charts if set(chart.tags) <= set(tags)] for title, charts in rows.items()}
    shown = [(title, charts) for title, charts in there.items() if charts]
    return {f"{number}. {title}": charts for number, (title, charts) in enumerate(shown, 1)}


def layout(rows: Mapping[str, Sequence[Chart]], heads: Sequence[str] = ()) -> bytes:
    """The layout of the Custom Scalars page, as a Summary: `heads` as rows without charts, since the page has no text,
    then rows of charts, which are all bands or none."""
    found = layout_pb2.Layout(category=[layout_pb2.Category(title=head) for head in heads])
    for title, charts in rows.items():
        bands = [chart for chart in charts if chart.band]
        assert len(bands) in (0, len(charts)), "the page would reorder them"
        added = found.category.add(title=title)
        for chart in reversed(bands):  # the page reverses them
            value, low, high = chart.tags
            series = layout_pb2.MarginChartContent.Series(value=value, lower=low, upper=high)
            added.chart.add(title=chart.title, margin=layout_pb2.MarginChartContent(series=[series]))
        for chart in charts[len(bands) :]:
            content = layout_pb2.MultilineChartContent(tag=map(exactly, chart.tags))
            added.chart.add(title=chart.title, multiline=content)
    return strings(layouts.CONFIG_SUMMARY_TAG, layouts.create_summary_metadata(), [found.SerializeToString()])


def exactly(tag: str) -> str:
    """A regular expression that matches only this tag: the page shows every tag that begins with a match.

    >>> exactly("9_depth/log10_act_var.first")
    '^9_depth/log10_act_var\\\\.first$'
    """
    return f"^{re.escape(tag)}$"


def text(tag: str, markdown: str) -> bytes:
    """A Summary of a text."""
    return strings(tag, texts.create_summary_metadata(tag, ""), [markdown.encode()])


def image(tag: str, png: bytes, about: str) -> bytes:
    """A Summary of an image and the text below it."""
    size = [str(pixels).encode() for pixels in struct.unpack(">II", png[16:24])]  # width and height
    return strings(tag, images.create_summary_metadata(tag, about), [*size, png], is_vector=True)


def verdict_lines(found: Sequence[Verdict], collection: Collection) -> list[str]:
    """The verdict on each of the first claims in a line, without Markdown."""
    lines = []
    for verdict in found[:MOST_HEADS]:
        card = card_of(verdict, collection, {run.id: "" for run in collection.runs})
        effect = (
            f": {card['effect']}" + (f" ({card['interval']})" if card["interval"] else "") if card["effect"] else ""
        )
        lines.append(f"{card['sign']} {card['decision']}: {verdict.claim.text.rstrip('.')}{effect}")
    if len(found) > MOST_HEADS:
        lines.append(f"{len(found) - MOST_HEADS} more verdicts on the Text page")
    return lines


def verdict_list(found: Sequence[Verdict], collection: Collection) -> str:
    """The verdict on each claim, with its numbers."""
    no_lines = {run.id: "" for run in collection.runs}
    lines = []
    for verdict in found:
        card = card_of(verdict, collection, no_lines)
        effect = (
            f"**{card['effect']}** (95 % interval {card['interval']})"
            if card["interval"]
            else card["effect"] or markdown(verdict.why)
        )
        cautions = "".join(f"; *{markdown(caution)}*" for caution in card["cautions"])
        claim = markdown(card["text"])
        lines.append(f"- **{card['sign']} {card['decision']}**: {claim}: {effect}; {card['facts']}{cautions}")
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
        "In the depth profiles the x axis is the layer: 0 is next to the input, the last is the head. A median over "
        "layers is taken before the mean.",
        f"Shown at first: {', '.join(shown)}. Every other line can be ticked at the left, on the Time Series page "
        "once its filter is empty.",
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
    return [f"layer {layer}" for layer in hidden_sites(depths.pop())]
