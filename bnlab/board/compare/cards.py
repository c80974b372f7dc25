"""Cards of text beside the charts, in Markdown: verdicts, runs, how to read it."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.analysis.base import Verdict
from bnlab.analysis.load import Collection
from bnlab.analysis.metrics.losses import SMOOTHED
from bnlab.board.compare.arms import Cell
from bnlab.core.text import count
from bnlab.report.page import card_of

T_INTERVAL = "95 % t-interval of the mean over seeds"
BOTH = "both seeds"


def band_of(cells: Sequence[Cell]) -> str:
    """What the ends of the intervals are."""
    return T_INTERVAL if any(len(cell.runs) > 2 for cell in cells) else BOTH


def verdicts(found: Sequence[Verdict], collection: Collection) -> str:
    """What was decided of each claim, with its numbers."""
    no_lines = {run.id: "" for run in collection.runs}
    lines = []
    for verdict in found:
        card = card_of(verdict, collection, no_lines)
        effect = f"**{card.effect}** (95 % interval {card.interval})" if card.interval else card.effect or verdict.why
        cautions = "".join(f"; *{caution}*" for caution in card.cautions)
        lines.append(f"- **{card.sign} {card.decision}**: {card.text}: {effect}; {card.facts}{cautions}")
    return "\n".join(lines)


def runs(cells: Sequence[Cell]) -> str:
    """What each line is made of, and how many of its seeds came to grief."""
    rows = [
        (
            cell.name,
            str(len(cell.runs)),
            f"{len(cell.diverged)} of {len(cell.runs)}, the first at step {cell.diverged[0]}" if cell.diverged else "",
            str(cell.dead or ""),
            str(cell.going or ""),
        )
        for cell in cells
    ]
    return table(("line", "seeds", "diverged", "ended at chance", "not ended"), rows)


def reading(cells: Sequence[Cell], shown: Sequence[str]) -> str:
    """What is drawn and what is not."""
    few = [cell.name for cell in cells if len(cell.runs) == 2]
    single = [cell.name for cell in cells if len(cell.runs) == 1]
    parts = [
        "Lines are means over the seeds of an arm at a learning rate: geometric ones of losses, drifts, gradients; "
        "arithmetic ones of accuracies and percentiles. A mean is drawn only where every seed is finite: a line ends "
        "where the first seed diverges. Training losses and norms of gradients are medians of the last "
        f"{SMOOTHED} measured batches.",
        f"Bands around them: {band_of(cells)}, of the logarithm where the mean is geometric. One band is "
        "another: from the lowest to the highest loss within reach of one step along the gradient, geometric means "
        "over seeds themselves.",
        "In the profiles the x axis is the layer: 1 is next to the input, the last is the head. A median over layers "
        "is taken before the mean.",
        f"Shown at first: {', '.join(shown)}. Every other line can be ticked at the left.",
    ]
    if few and band_of(cells) == T_INTERVAL:
        parts.append(f"With two seeds, which are their band: {', '.join(few)}.")
    if single:
        parts.append(f"{count(len(single), 'line')} of one seed, without a band: {', '.join(single)}.")
    if any(cell.going for cell in cells):
        parts.append(
            "Runs go on. A run that has not ended counts only where fewer than two of its line have: else a seed that "
            "has just begun would cut the line off."
        )
    return "\n\n".join(parts)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    >>> print(table(("a", "b"), [("1", "x|y")]))
    | a | b |
    | --- | --- |
    | 1 | x/y |
    """
    lines = [heads, ["---"] * len(heads), *[[cell.replace("|", "/") for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
