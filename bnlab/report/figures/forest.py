"""The verdicts on all claims: effects with their intervals, beside the smallest effects that matter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes

from bnlab.analysis.claims import SIGNS, Decision, Verdict
from bnlab.core.text import capital, count, listed, number
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import Sheet, value_axis, wrapped
from bnlab.report.style import INK, MUTED
from bnlab.report.views import Drawn, Missing, Number

COLORS: Mapping[Decision, str] = {
    "supported": "#0a7048",
    "refuted": "#b5400f",
    "inconclusive": "#7a5900",
    "direction only": "#7a5900",
    "not tested": MUTED,
}
"""As on the cards of the page."""
NAMES, EFFECTS = 0.366, 0.85
"""Where the axes begin, as a part of the width, and what is right of them, effects in figures, in inches."""
ROW, AXIS, GAP = 0.36, 0.42, 0.12
NAME_PT = 8.0


def allowed_range(verdict: Verdict) -> tuple[float, float] | None:
    """Of a claim of sameness, the effects that count as none."""
    within = verdict.claim.within
    if verdict.claim.expect != "same" or within is None:
        return None
    return (1 / within, within) if verdict.claim.compare == "ratio" else (-within, within)


def headline(verdicts: Sequence[Verdict]) -> str:
    """How many claims got which verdict."""
    counts = Counter(verdict.decision for verdict in verdicts)
    words: dict[Decision, str] = {"direction only": "with a direction only"}
    parts = [f"{counts[decision]} {words.get(decision, decision)}" for decision in SIGNS if counts[decision]]
    if len(parts) == 1:
        (decision,) = counts
        each = "The claim is" if len(verdicts) == 1 else f"All {len(verdicts)} claims are"
        text = f"{each} {words.get(decision, decision)}"
        return text.replace("are with", "have").replace("is with", "has")
    return f"Of {count(len(verdicts), 'claim')}: {listed(parts)}"


@FIGURES.register("forest", of="verdicts", order=0, subject="effects of all claims, with the smallest that matter")
def draw(verdicts: Sequence[Verdict], name: str) -> Drawn:
    """A row a claim; ratios in one panel, differences in another.

    Raises:
        Missing: no claim was tested.
    """
    if all(verdict.effect is None for verdict in verdicts):
        raise Missing("no claim was tested")
    parts: list[tuple[Literal["ratio", "difference"], list[Verdict]]] = [
        (kind, found)
        for kind in ("ratio", "difference")
        if (found := [verdict for verdict in verdicts if verdict.claim.compare == kind])
    ]
    signs = ", ".join(f"{sign} {decision}" for decision, sign in SIGNS.items())
    note = (
        "Point: effect, mean over seeds, turned so that right of the dotted line speaks for the claim; line: its 95 % "
        "interval, of three seeds or more. Upright tick: the smallest effect that matters; shade: what counts as the "
        f"same. {signs}."
    )
    heights = [ROW * len(found) + AXIS for _, found in parts]
    sheet = Sheet(headline(verdicts), note, plot_height=sum(heights) + GAP * len(parts) + 0.05)
    above = 0.05
    for (kind, found), height in zip(parts, heights, strict=True):
        below = sheet.top - sheet.bottom - above - height + AXIS
        ax = sheet.axes(left=NAMES * sheet.width, right=sheet.width - EFFECTS, above=above, below=below, first=False)
        _panel(ax, kind, found, NAMES * sheet.width)
        above += height + GAP
    return sheet.drawn(
        name,
        "A row for each claim of the study: its effect with an interval, and the smallest effect that matters.",
        ("claim", "compare", "expect", "effect", "low_95", "high_95", "smallest_effect", "within", "seeds", "decision"),
        [_row(verdict) for verdict in verdicts],
    )


def _row(verdict: Verdict) -> tuple[Number, ...]:
    claim, ends = verdict.claim, verdict.interval or (None, None)
    bounds = claim.smallest_effect, claim.within
    return (claim.name, claim.compare, claim.expect, verdict.effect, *ends, *bounds, verdict.n, verdict.decision)


def _panel(ax: Axes, kind: Literal["ratio", "difference"], verdicts: Sequence[Verdict], left_in: float) -> None:
    log = kind == "ratio"
    nothing = 1.0 if log else 0.0
    value_axis(ax, _extent(verdicts, log, nothing), log, "x")
    ax.set(ylim=(len(verdicts) - 0.5, -0.5), yticks=[])
    ax.set_xlabel("effect, as a ratio" if log else "effect, as a difference", fontsize=8, labelpad=2)
    ax.spines["left"].set_visible(False)
    ax.axvline(nothing, color="#555555", linestyle=(0, (1, 2)), linewidth=1, zorder=1)
    low, high = ax.get_xlim()
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    for row, verdict in enumerate(verdicts):
        color = COLORS[verdict.decision]
        if same := allowed_range(verdict):
            ax.fill_betweenx([row - 0.36, row + 0.36], *same, color=MUTED, alpha=0.22, linewidth=0, zorder=1)
        least = verdict.claim.smallest_effect
        if least is not None and (least > 0 or not log):
            ax.plot([least] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.3, zorder=2)
        words = wrapped(capital(verdict.claim.name.replace("_", " ")), NAME_PT, left_in - 0.2)
        lines = words[:2] if len(words) <= 2 else [words[0], f"{words[1]} …"]
        left: dict[str, Any] = {"xycoords": ax.get_yaxis_transform(), "xytext": ((0.12 - left_in) * 72, 0)} | beside
        ax.annotate("\n".join(lines), (0, row), color=INK, fontsize=NAME_PT, linespacing=1.1, **left)
        _effect(ax, row, verdict, color, low, high)
        unit = "×" if log else ""
        effect = "" if verdict.effect is None else f"{number(verdict.effect)}{unit}"
        right: dict[str, Any] = {"xycoords": ax.get_yaxis_transform(), "color": color, "fontweight": "bold"} | beside
        ax.annotate(SIGNS[verdict.decision], (1, row), xytext=(7, 0), fontsize=9, **right)
        ax.annotate(effect, (1, row), xytext=(19, 0), fontsize=8, **right)


def _effect(ax: Axes, row: int, verdict: Verdict, color: str, low: float, high: float) -> None:
    """Point and interval; an arrow where an end is beyond the axis."""
    if verdict.effect is None:
        return
    if verdict.interval:
        ends = [min(max(end, low), high) for end in verdict.interval]
        ax.plot(ends, [row, row], color=color, linewidth=2, zorder=3, solid_capstyle="butt")
        for end, marker in zip(verdict.interval, "<>", strict=True):
            if not low <= end <= high:
                at = min(max(end, low), high)
                ax.plot(at, row, marker=marker, color=color, markersize=5, clip_on=False, zorder=4)
    ax.plot(min(max(verdict.effect, low), high), row, marker="o", color=color, markersize=5.5, clip_on=False, zorder=5)


def _extent(verdicts: Sequence[Verdict], log: bool, nothing: float) -> list[float]:
    """What the axis must have room for; of intervals that reach far beyond all effects, a part."""
    found = [nothing, *(v.effect for v in verdicts if v.effect is not None and math.isfinite(v.effect))]
    found += [v.claim.smallest_effect for v in verdicts if v.claim.smallest_effect is not None]
    found += [end for v in verdicts for end in allowed_range(v) or ()]
    found = [x for x in found if x > 0 or not log]
    low, high = min(found), max(found)
    far = (low / 3, high * 3) if log else (low - (high - low) / 2, high + (high - low) / 2)
    return [*found, *(min(max(end, far[0]), far[1]) for v in verdicts for end in v.interval or ())]
