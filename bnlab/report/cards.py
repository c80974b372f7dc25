"""Verdicts as cards: words and numbers of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnlab.analysis.base import Decision, Verdict
from bnlab.analysis.load import Collection
from bnlab.report.words import count, number

SIGNS: Mapping[Decision, tuple[str, str]] = {
    "supported": ("✓", "good"),
    "refuted": ("✕", "bad"),
    "inconclusive": ("?", "open"),
    "direction only": ("→", "open"),
    "not tested": ("–", "none"),
}
"""Of a decision: its sign, and its class in the style sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A verdict, in words."""

    sign: str
    kind: str
    decision: str
    name: str
    text: str
    source: str
    effect: str
    interval: str
    facts: str
    why: str
    cautions: tuple[str, ...]
    arms: tuple[tuple[str, str], ...]
    """Name of the arm and where it was compared, with its figures."""
    commands: tuple[str, ...]


def card_of(verdict: Verdict, collection: Collection, lines: Mapping[str, str]) -> Card:
    """`lines`: the command of every run by its id."""
    claim = verdict.claim
    sign, kind = SIGNS[verdict.decision]
    unit = "×" if claim.compare == "ratio" else ""
    by_place = {collection.place(run): lines[run.id] for run in collection.runs}
    both = [arm for arm in (verdict.treated, verdict.control) if arm is not None]
    facts = [count(verdict.n, "seed") if verdict.n else "", f"p = {verdict.p:.2g}" if verdict.p is not None else ""]
    asked = f"asked: {'above' if claim.smallest_effect else 'more than'} {number(claim.smallest_effect)}{unit}"
    study = collection.study
    typed = collection.study_provenance.get("line")
    again = [str(typed or f"bnlab sweep --config {study.name}")] if study else []
    return Card(
        sign=sign,
        kind=kind,
        decision=verdict.decision,
        name=claim.name,
        text=claim.text,
        source=claim.source,
        effect=f"{number(verdict.effect)}{unit}" if verdict.effect is not None else "",
        interval=f"{number(verdict.interval[0])} to {number(verdict.interval[1])}{unit}" if verdict.interval else "",
        facts=" · ".join(fact for fact in (*facts, asked) if fact),
        why=verdict.why,
        cautions=verdict.cautions,
        arms=tuple((f"{arm.label} ({arm.point})", ", ".join(number(x) for x in arm.values)) for arm in both),
        commands=tuple(again + [by_place[place] for arm in both for place in arm.runs if by_place.get(place)]),
    )


def counted(verdicts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """Sign, class and `3 supported` of every decision there is."""
    return [
        (*SIGNS[decision], f"{there} {decision}")
        for decision in SIGNS
        if (there := sum(verdict.decision == decision for verdict in verdicts))
    ]
