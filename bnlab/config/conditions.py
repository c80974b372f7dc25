"""Conditions under which a trained net is evaluated: keys of its spec that training does not depend on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from bnlab.config.compose import hydra_over, resolved, rounded
from bnlab.config.overrides import texts
from bnlab.config.places import config_dirs
from bnlab.core.errors import UsageError, nearest
from bnlab.core.spec import EvalBN, RunSpec

Condition = Mapping[str, Any]
"""Values by dotted key."""

KEYS = ("data.shift", "data.shift_strength", "eval_bn", "eval_batch_size", "device")
DEFAULTS: Condition = {
    "eval_bn": "running",
    "eval_batch_size": "auto",
    "data.shift": "none",
    "data.shift_strength": None,
}
"""Of runs of versions that had none of these keys."""


def load_conditions(overrides: Sequence[str], user_dir: Path | None = None) -> list[Condition]:
    """Every combination of the given values, the last key fastest; with every `eval_bn` if none is given.

    Raises:
        UsageError: another key, a key given twice, no value.
    """
    axes: dict[str, list[Any]] = {}
    with hydra_over(config_dirs(user_dir)) as reader:
        for text in overrides:
            override = reader.read(text)
            key = override.key_or_group
            if key not in KEYS:
                raise UsageError(key, "not a key of an evaluation", remedy=nearest(key, KEYS))
            if key in axes:
                raise UsageError(key, "given twice", text, "Give it once, its values between commas.")
            values = [reader.read(f"{key}={value}").value() for value in texts(override, ())]
            axes[key] = [rounded(value) for value in values]
    axes.setdefault("eval_bn", list(get_args(EvalBN)))
    order = [key for key in KEYS if key in axes]
    return [dict(zip(order, chosen, strict=True)) for chosen in itertools.product(*(axes[key] for key in order))]


def under(tree: Mapping[str, Any], condition: Condition) -> RunSpec:
    """The spec of a run, as in its spec.yaml, under a condition and without probes. A condition's shift has its own
    strength, not that of the run.

    Raises:
        UsageError: a value of the wrong type; a spec that this version cannot read.
    """
    data = tree.get("data")
    if not isinstance(data, Mapping):
        raise UsageError("data", "missing in this run's spec")
    changed = {key: value for key, value in tree.items() if key != "provenance"} | {"data": dict(data)}
    changed |= {"probes": {"points": 1, "eval_points": 1}, "precision": "float32"}  # no training, no probes
    own = "data.shift" in condition and condition["data.shift"] != data.get("shift")
    for key, value in {**({"data.shift_strength": None} if own else {}), **condition}.items():
        node = changed["data"] if key.startswith("data.") else changed
        node[key.removeprefix("data.")] = value
    for key, value in DEFAULTS.items():
        node = changed["data"] if key.startswith("data.") else changed
        node.setdefault(key.removeprefix("data."), value)
    return RunSpec.from_tree(resolved(changed))
