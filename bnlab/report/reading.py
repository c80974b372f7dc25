"""The findings of runs, as cards of a report: run by run where there are few, else counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bnlab.core.text import capital, number
from bnlab.record.findings import NOTHING, RULES, Finding, findings
from bnlab.record.runs import Run

FEW = 4
"""Runs whose findings are listed one by one."""


def cards_of(runs: Sequence[Run], arms: Mapping[str, str]) -> list[dict[str, Any]]:
    """A card for each run, or for each finding that occurs; `arms` has that of every run by its id. Each has the class
    of its colour, a title, lines, and its sources."""
    found = {run.id: findings(run) for run in runs}
    if len(runs) > FEW:
        return [card for rule in RULES if (card := _counted(rule.name, found, arms))] or [
            _card([], title=f"Nothing stands out in {len(runs)} runs", lines=[])
        ]
    return [
        _card(
            found[run.id],
            title=f"{capital(arms[run.id])}, lr {number(run.lr)}, seed {run.seed}",
            lines=[finding.text for finding in found[run.id]],
        )
        for run in runs
    ]


def _counted(name: str, found: Mapping[str, Sequence[Finding]], arms: Mapping[str, str]) -> dict[str, Any]:
    """How many runs have a finding, in all and by arm, and the sentence of the first; empty if none has."""
    having = {run: one for run, those in found.items() for one in those if one.name == name}
    if not having:
        return {}
    by_arm: dict[str, int] = {}
    for run in having:
        by_arm[arms[run]] = by_arm.get(arms[run], 0) + 1
    lines = [", ".join(f"{arm}: {many} of {list(map(arms.get, found)).count(arm)}" for arm, many in by_arm.items())]
    first = next(iter(having))
    lines.append(f"In run {first}: {having[first].text}")
    return _card(
        [having[first]],
        title=f"{capital(name.replace('_', ' '))}: {len(having)} of {len(found)} runs",
        lines=lines,
    )


def _card(found: Iterable[Finding], *, title: str, lines: Sequence[str]) -> dict[str, Any]:
    alarms = [one for one in found if one.name != NOTHING]
    sources = "; ".join(f"{one.name.replace('_', ' ')}: {one.source}" for one in alarms)
    return {"kind": "open" if alarms else "none", "title": title, "lines": lines, "sources": sources}
