"""Claims that can be judged, and the verdicts that are expected of them (`--expect-verdicts FILE`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from bnlab.analysis.base import Decision, Verdict
from bnlab.analysis.metrics import METRICS
from bnlab.core.errors import UsageError, nearest
from bnlab.core.registry import load_plugins
from bnlab.core.spec import GROUPS
from bnlab.core.study import Claim, Study


def check(study: Study, plugins: Iterable[str] = ()) -> None:
    """Refuse claims that could never be judged, before anything runs. The plugins are loaded only where a claim names
    a metric that is not bnlab's own, since they may import torch.

    Raises:
        UsageError: no such metric or option, a point that does not go with the metric, ...
    """
    if any(map(unknown_metric, study.claims)):
        load_plugins(plugins)
    for claim in study.claims:
        check_claim(claim)


def check_claim(claim: Claim) -> None:
    """Refuse a claim that could never be judged.

    Raises:
        UsageError: as `check`.
    """
    key, metric = f"claims.{claim.name}", METRICS[claim.metric]
    options = METRICS.checked(claim.metric, claim.options, f"{key}.options")
    if (metric.of == "curve") != (claim.at == "curve"):
        fit = "at: curve" if metric.of == "curve" else "at: matched_lr or best_lr"
        raise UsageError(f"{key}.at", f"{claim.metric} is a metric of a {metric.of}", claim.at, f"Write {fit}.")
    if claim.at == "matched_loss" and metric.course is None:
        having = ", ".join(other.name for other in METRICS.entries() if other.course is not None)
        raise UsageError(f"{key}.at", f"{claim.metric} has no value at a step", claim.at, f"These have: {having}.")
    if claim.at in ("matched_lr", "matched_loss") and metric.about_failure:
        raise UsageError(f"{key}.at", "compares only runs that train", claim.at, "Write at: best_lr, or curve.")
    for axis, (treated, control) in claim.contrast.items():
        if axis.removesuffix(".name") in GROUPS and axis.endswith(".name"):
            raise UsageError(f"{key}.contrast", "no such axis", axis, f"Write {axis.removesuffix('.name')}.")
        if axis == "seed" and _count(treated) != _count(control):
            raise UsageError(f"{key}.contrast.seed", "two lists of unequal length", [treated, control])
    if metric.of == "arm":
        spread = METRICS[options["of"]]
        if spread.of != "run" or spread.shown_with is None:
            raise UsageError(f"{key}.options.of", "must be a metric of a run without options", options["of"])
        if claim.compare == "ratio":
            raise UsageError(f"{key}.compare", f"{claim.metric} may be 0", "ratio", "Write compare: difference.")
    if claim.compare == "ratio" and claim.smallest_effect < 1:
        raise UsageError(
            f"{key}.smallest_effect", "a ratio must be at least 1", claim.smallest_effect, "2 means twice as much."
        )


def _count(value: Any) -> int | None:
    return len(value) if isinstance(value, list | tuple) else None


def unknown_metric(claim: Claim) -> str | None:
    """The metric that the claim names and that is not registered, if there is one."""
    named = [claim.metric]
    if claim.metric in METRICS.names() and METRICS[claim.metric].of == "arm":
        named.append(str(claim.options.get("of")))
    return next((name for name in named if name not in METRICS.names()), None)


def threshold(claim: Claim) -> float:
    """The smallest effect on the scale of the differences."""
    return math.log(claim.smallest_effect) if claim.compare == "ratio" else claim.smallest_effect


def read_expected(file: Path, study: Study) -> dict[str, str]:
    """Claim -> expected decision, from YAML or JSON.

    Raises:
        UsageError: no such file, not a mapping, a claim that the study does not have, no such decision.
    """
    option, form = "--expect-verdicts", "Write a line for each claim: name: decision."
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(option, (error.strerror or str(error)).lower(), str(file)) from None
    except (ValueError, yaml.YAMLError):
        raise UsageError(option, "cannot be read", str(file), form) from None
    if not isinstance(tree, Mapping) or not tree:
        raise UsageError(option, "has no claims", str(file), form)
    claims, decisions = [claim.name for claim in study.claims], list(get_args(Decision))
    for name, decision in tree.items():
        if name not in claims:
            raise UsageError(option, f"study {study.name} has no such claim", name, nearest(str(name), claims))
        if decision not in decisions:
            raise UsageError(option, f"no such decision for {name}", decision, nearest(str(decision), decisions))
    return dict(tree)


def unexpected(expected: Mapping[str, str], verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each claim whose decision is another than expected."""
    decided = {verdict.claim.name: verdict.decision for verdict in verdicts}
    return [
        f"{name}: expected {decision}, found {decided.get(name, 'not tested')}"
        for name, decision in expected.items()
        if decided.get(name, "not tested") != decision
    ]
