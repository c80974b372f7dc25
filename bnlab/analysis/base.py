"""Verdicts and their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bnlab.core.study import Claim

Decision = Literal["supported", "refuted", "inconclusive", "direction only", "not tested"]


SIGNS: Mapping[Decision, str] = {
    "supported": "✓",
    "refuted": "✕",
    "inconclusive": "~",
    "direction only": "→",
    "not tested": "·",
}
"""The sign of each decision, in terminals and reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a claim: the value of the contrasted axis, and the metric's value at each of the verdict's seeds."""

    label: str
    values: tuple[float, ...]
    point: str
    """Where it was compared, in words: `lr 0.1`, `9 learning rates`."""
    runs: tuple[str, ...] = ()
    """Paths of the runs behind it, below the report's root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the runs say about a claim. `effect` and `interval` are on the scale of the claim; None where there is none,
    such as an interval of fewer than 3 seeds."""

    claim: Claim
    decision: Decision
    effect: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    """One-sided, in the direction that is nearer to a decision, adjusted by Holm over the report's claims. None where
    nothing was tested."""
    n: int = 0
    """Paired seeds."""
    seeds: tuple[int, ...] = ()
    treated: Arm | None = None
    control: Arm | None = None
    why: str
    """One line of text with the numbers."""
    cautions: tuple[str, ...] = ()
    """A best learning rate at the grid's edge, a claim edited after its first run, ..."""
