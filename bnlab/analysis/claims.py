"""Which claims can be judged at all."""

from __future__ import annotations

import math
from typing import Any

from bnlab.analysis.metrics import METRICS
from bnlab.core.errors import UsageError
from bnlab.core.spec import GROUPS
from bnlab.core.study import Claim, Study

ONLY_IF_NOT_ALL_TRAIN = ("trains", "divergence_step")
"""Metrics that say nothing at a point where only runs that train are compared."""


def check(study: Study) -> None:
    """Refuse claims that could never be judged, before anything runs.

    Raises:
        UsageError: no such metric or option, a point that does not go with the metric, two claims of one name, ...
    """
    names: set[str] = set()
    for claim in study.claims:
        key = f"claims.{claim.name}"
        if claim.name in names:
            raise UsageError(key, "two claims of this name", remedy="Rename one of them.")
        names.add(claim.name)
        metric, options = METRICS.checked(claim.metric, claim.options, f"{key}.options")
        if (metric.of == "curve") != (claim.at == "curve"):
            fit = "at: curve" if metric.of == "curve" else "at: matched_lr or best_lr"
            raise UsageError(f"{key}.at", f"{claim.metric} is a metric of a {metric.of}", claim.at, f"Write {fit}.")
        if claim.at == "matched_loss" and metric.course is None:
            with_course = [name for name in METRICS.names() if METRICS[name].course is not None]
            raise UsageError(
                f"{key}.at",
                f"{claim.metric} has no value at a step",
                claim.at,
                f"These have: {', '.join(with_course)}.",
            )
        if claim.at in ("matched_lr", "matched_loss") and claim.metric in ONLY_IF_NOT_ALL_TRAIN:
            raise UsageError(f"{key}.at", "compares only runs that train", claim.at, "Write at: best_lr, or curve.")
        for axis, (treated, control) in claim.contrast.items():
            if axis.removesuffix(".name") in GROUPS and axis.endswith(".name"):
                raise UsageError(f"{key}.contrast", "no such axis", axis, f"Write {axis.removesuffix('.name')}.")
            if axis == "seed" and _count(treated) != _count(control):
                raise UsageError(f"{key}.contrast.seed", "two lists of unequal length", [treated, control])
        if metric.of == "arm":
            inner = METRICS[options["of"]]
            if inner.of != "run" or inner.shown_with is None:
                raise UsageError(f"{key}.options.of", "must be a metric of a run without options", options["of"])
            if claim.compare == "ratio":
                raise UsageError(f"{key}.compare", f"{claim.metric} may be 0", "ratio", "Write compare: difference.")
        if claim.compare == "ratio" and claim.smallest_effect < 1:
            raise UsageError(
                f"{key}.smallest_effect", "a ratio must be at least 1", claim.smallest_effect, "2 means twice as much."
            )


def _count(value: Any) -> int | None:
    return len(value) if isinstance(value, list | tuple) else None


def threshold(claim: Claim) -> float:
    """The smallest effect on the scale of the differences."""
    return math.log(claim.smallest_effect) if claim.compare == "ratio" else claim.smallest_effect
