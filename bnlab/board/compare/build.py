"""From run folders alone to a log directory that puts the arms of a sweep side by side."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnlab.analysis.verdicts import judge
from bnlab.board.compare import cards
from bnlab.board.compare.arms import Arms, arms_of
from bnlab.board.compare.page import page
from bnlab.board.compare.series import PLACES, READS, hidden, moments_of, series_of
from bnlab.board.layout import layout
from bnlab.board.plain import Content, Picture, write
from bnlab.record.folder import find_runs
from bnlab.report.build import draw_all
from bnlab.report.views import prepare

State = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison that was written: its lines, those to be shown at first, runs that it is made of."""

    names: tuple[str, ...]
    shown: tuple[str, ...]
    runs: int


def state(root: Path) -> State:
    """Sizes and times of what a comparison is made of: while these stay, so does it."""
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
        UsageError: as `arms_of`, and as `judge`.
    """
    arms = arms_of(root, READS)
    moments = moments_of(arms.begun)
    # TensorBoard gives its few colours in the order in which runs come: what is shown at first comes first.
    shown = {name: place for place, name in enumerate(arms.shown)}
    tags: set[str] = set()
    for cell in sorted(arms.cells, key=lambda cell: shown.get(cell.name, len(shown))):
        series = series_of(arms.begun, cell.runs, moments)
        tags |= set(series)
        write(logs / cell.name, Content(series=series))
    names = [cell.name for cell in arms.cells]
    _forget(logs, names)
    rows = page(tags, band=cards.band_of(arms.cells), layers=_layers(arms), moments=moments)
    text = {
        "0_figures/how_to_read": cards.reading(arms.cells, arms.shown),
        "0_figures/runs": cards.runs(arms.cells),
    }
    pictures: dict[str, Picture] = {}
    if arms.ended.runs:
        if verdicts := judge(arms.ended):
            text["0_figures/verdicts"] = cards.verdicts(verdicts, arms.ended)
        written, _ = draw_all(prepare(arms.ended))
        for number, figure in enumerate(written, 1):
            about = f"**{figure.drawn.title}.** {figure.drawn.note}"
            pictures[f"0_figures/{number:02d}_{figure.drawn.name}"] = Picture(png=figure.png, description=about)
    write(logs, Content(texts=text, pictures=pictures, layout=layout(rows)))
    runs = sum(len(cell.runs) for cell in arms.cells)
    return Compared(names=tuple(names), shown=arms.shown, runs=runs)


def _layers(arms: Arms) -> list[str]:
    """How the first, the middle and the last hidden layer are called: by number where all nets have as many."""
    depths = {
        values.shape[-1]
        for cell in arms.cells
        for values in [cell.runs[0].series("act_p50.act_in").values]
        if values.ndim == 2
    }
    if len(depths) != 1:
        return [f"{place} hidden layer" for place in PLACES]
    return [f"layer {layer + 1}" for layer in hidden(depths.pop())]


def _forget(logs: Path, names: Sequence[str]) -> None:
    """Lines whose runs are gone."""
    for file in logs.glob("*/*/events.out.tfevents.*"):
        if file.parent.relative_to(logs).as_posix() not in names:
            shutil.rmtree(file.parent)
