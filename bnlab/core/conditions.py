"""Conditions under which a trained net is evaluated: keys of its spec that training does not depend on. No torch here.

`bnlab evaluate` and the key `ask` of a study both name them; a condition has those keys that differ from the run's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec, canonical
from bnlab.core.text import leaves

Condition = Mapping[str, Any]
"""Values by dotted key."""

DEFAULTS: Condition = {
    "data.shift": "none",
    "data.shift_strength": None,
    "eval_bn": "running",
    "eval_batch_size": "auto",
}
"""The keys, and their values in runs of versions that had none of them."""


def conditions(grids: Sequence[Mapping[str, Any]]) -> list[Condition]:
    """Every combination of the values in each grid, the last key fastest, none twice.

    >>> conditions([{"eval_bn": ["running", "batch"], "eval_batch_size": [4]}, {"eval_bn": ["running"]}])[1:]
    [{'eval_bn': 'batch', 'eval_batch_size': 4}, {'eval_bn': 'running'}]
    """
    found: dict[str, Condition] = {}
    for grid in grids:
        axes = (values if isinstance(values, list) else [values] for values in grid.values())
        for chosen in itertools.product(*axes):
            condition = dict(zip(grid, chosen, strict=True))
            found.setdefault(canonical(condition), condition)
    return list(found.values())


def settings(spec: Mapping[str, Any], condition: Condition) -> dict[str, Any]:
    """The value of each key under a condition, for a run with this flat spec. A condition that changes the shift does
    not take over the run's strength.

    >>> settings({"eval_bn": "batch", "data.shift": "blur", "data.shift_strength": 1}, {"data.shift": "none"})
    {'data.shift': 'none', 'data.shift_strength': None, 'eval_bn': 'batch', 'eval_batch_size': 'auto'}
    """
    own = {key: spec.get(key, value) for key, value in DEFAULTS.items()}
    if condition.get("data.shift", own["data.shift"]) != own["data.shift"]:
        own["data.shift_strength"] = None
    return own | {key: value for key, value in condition.items() if key in DEFAULTS}


def of_run(spec: Mapping[str, Any], each: Sequence[Condition]) -> dict[str, dict[str, Any]]:
    """`settings` under each of the conditions, by canonical text, each once; `spec` is flat."""
    return {canonical(found): found for found in (settings(spec, condition) for condition in each)}


def condition_key(answer: Mapping[str, Any]) -> str:
    """The canonical text of the conditions of an answer."""
    return canonical({key: answer[key] for key in DEFAULTS})


def under(tree: Mapping[str, Any], condition: Condition) -> RunSpec:
    """The spec of a run, as in its spec.yaml, under a condition and without probes.

    Raises:
        UsageError: a value of the wrong type; a spec that this version cannot read.
    """
    data = tree.get("data")
    if not isinstance(data, Mapping):
        raise UsageError("data", "missing in this run's spec")
    changed = {key: value for key, value in tree.items() if key != "provenance"} | {"data": dict(data)}
    changed |= {"probes": {"points": 1, "eval_points": 1}, "precision": "float32"}  # no training, no probes
    for key, value in {**condition, **settings(dict(leaves(tree)), condition)}.items():
        node = changed["data"] if key.startswith("data.") else changed
        node[key.removeprefix("data.")] = value
    return RunSpec.from_tree(changed)
