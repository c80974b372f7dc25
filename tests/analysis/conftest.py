"""Hand-made runs: facts and journals in memory, without folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnlab.analysis.load import Collection
from bnlab.core.study import Claim, Study
from bnlab.record.journal import Series
from bnlab.record.runs import Run

STEPS = 100


def made(
    *,
    norm: str = "batch",
    lr: float = 0.1,
    seed: int = 0,
    status: str = "finished",
    dead: bool = False,
    step: int = STEPS,
    series: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    **metrics: float,
) -> Run:
    """A run with these final metrics; `series` maps names to values, at steps 0, 1, 2, ..., or to (steps, values)."""
    journal = {}
    for name, given in ({"train_loss": [2.0, 1.0]} | dict(series or {})).items():
        steps, values = given if isinstance(given, tuple) else (range(len(given)), given)
        journal[name] = Series(np.array(steps, np.int64), np.array(values, np.float64))
    tree = {"norm": norm, "optim.lr": lr, "seed": seed} | dict(spec or {})
    name = "-".join(f"{key}={value}" for key, value in tree.items())
    known: dict[str, float | None] = {"train_loss": 0.5, "train_accuracy": 0.9, "test_loss": 0.6, "test_accuracy": 0.8}
    known |= metrics
    ended = {"status": status, "step": step, "steps": STEPS, "dead": dead, "metrics": known, "timing": {"run_s": 1.0}}
    if status == "diverged":
        ended["metrics"] = dict.fromkeys(known)
    run = Run(path=Path("runs") / name, id=name, spec=tree, provenance=provenance or {}, status=ended)
    run._series.update(journal)
    return run


def collected(
    runs: Sequence[Run],
    claims: Sequence[Claim] = (),
    axes: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Collection:
    """These runs and a study of these claims."""
    axes = axes or {"norm": "", "optim.lr": "", "seed": ""}
    study = Study(name="s", base="b", overrides=overrides or {}, axes=axes, claims=tuple(claims))
    return Collection(root=Path("runs"), study=study, runs=tuple(runs))


def claimed(**changes: Any) -> Claim:
    """Batch norm ends at less than half the training loss, each arm at its best learning rate."""
    fields: dict[str, Any] = {
        "name": "lower_loss",
        "text": "Batch norm trains further",
        "source": "made up",
        "metric": "final_train_loss",
        "contrast": {"norm": ("batch", "none")},
        "at": "best_lr",
        "expect": "smaller",
        "compare": "ratio",
        "smallest_effect": 2.0,
    }
    return Claim(**(fields | changes))


@pytest.fixture
def run_of() -> Callable[..., Run]:
    return made


@pytest.fixture
def collect() -> Callable[..., Collection]:
    return collected


@pytest.fixture
def claim_of() -> Callable[..., Claim]:
    return claimed
