"""What the analysis hands on: a run as it lies on the disk, and a verdict on a claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnlab.study import Claim

Decision = Literal["supported", "refuted", "inconclusive", "direction only", "not tested"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run without its journal: `spec` is the flat tree (`optim.lr` -> 0.1), `status` as in status.json."""

    path: Path
    id: str
    spec: Mapping[str, Any]
    provenance: Mapping[str, Any]
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a claim: the value of the contrasted axis, and its figure in each seed, in the order of `seeds`."""

    label: str
    figures: tuple[float, ...]
    point: str
    """Where it was taken, in words: `lr 0.1`, `9 learning rates`."""
    runs: tuple[str, ...] = ()
    """Paths of the runs behind it, below the reports's root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the runs say of a claim. `effect` and `interval` are those of `Claim`; None where there is none."""

    claim: Claim
    decision: Decision
    effect: float | None
    interval: tuple[float, float] | None
    p: float | None
    """One-sided, in the direction of the decision, adjusted by Holm over the report's claims."""
    n: int
    """Paired seeds."""
    seeds: tuple[int, ...]
    treated: Arm | None
    control: Arm | None
    why: str
    """One line of plain words with the numbers."""
    cautions: tuple[str, ...] = ()
    """A best learning rate at the grid's edge, a claim edited after its first run, ..."""
