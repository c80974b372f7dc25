"""Arms: what they are, and what they are called. The one definition.

An arm is a setting of everything but learning rate and seed. One axis tells arms apart, the one that claims contrast,
with the options that belong to it; each setting of the other axes is a view of its own in a report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bnlab.analysis.load import Collection
from bnlab.core.spec import GROUPS, canonical
from bnlab.record.runs import Run

NOT_AN_AXIS = ("seed", "optim.lr", "threads", "plugins", "epochs")
NAMES: Mapping[str, str] = {
    "batch": "batch norm",
    "none": "no norm",
    "layer": "layer norm",
    "group": "group norm",
    "instance": "instance norm",
    "rms": "RMS norm",
    "l1": "L1 batch norm",
    "l2": "L2 batch norm",
    "linf": "L∞ batch norm",
    "frozen_batch": "frozen batch norm",
    "noisy_batch": "noisy batch norm",
    "noisy_none": "noise, no norm",
    "ghost_batch": "ghost batch norm",
    "batch_renorm": "batch renorm",
    "mean_only_batch": "mean-only batch norm",
    "stopgrad_batch": "batch norm, gradient stopped",
    "affine_only": "scale and shift only",
    "batch_reference": "batch norm (reference)",
}
"""How figures call a norm; one that is not here goes by its own name."""

Key = tuple[tuple[str, Any], ...]


def axes_of(runs: Sequence[Run]) -> list[str]:
    """The keys that tell runs apart beside learning rate and seed. An option of a group counts only where it differs
    between two runs of the same choice: `norm.ghost_size` is no axis because one norm has it and the other does not."""
    found = []
    for key in sorted({key for run in runs for key in run.spec}):
        group = key.partition(".")[0]
        if key in NOT_AN_AXIS or group in ("probes", "launch"):
            continue
        by_choice: dict[Any, set[str]] = {}
        for run in runs:
            if key in run.spec:
                choice = run.spec.get(group) if group in GROUPS and key != group else None
                by_choice.setdefault(choice, set()).add(canonical(run.spec[key]))
        if any(len(values) > 1 for values in by_choice.values()):
            found.append(key)
    return found


def arm_axis(collection: Collection, varying: Sequence[str]) -> str:
    """What the arms differ in: what the study's claims contrast, the norm if any does, else what varies."""
    claims = collection.study.claims if collection.study else ()
    contrasted = [axis for claim in claims for axis in claim.contrast if axis in varying]
    for axis in ("norm", *contrasted, *varying):
        if axis in (contrasted or varying):
            return axis
    return "norm"


def key_of(run: Run, keys: Iterable[str]) -> Key:
    return tuple((key, frozen(run.spec[key])) for key in keys if key in run.spec)


def words(key: Key) -> str:
    """
    >>> words((("norm", "batch"), ("model.depth", 20), ("data.batch_size", 32)))
    'batch norm, depth 20, batch size 32'
    """
    return ", ".join(_word(name, value) for name, value in key)


def plain(key: str) -> str:
    """
    >>> plain("data.batch_size")
    'batch size'
    """
    return key.rpartition(".")[2].replace("_", " ")


def _word(name: str, value: Any) -> str:
    if name == "norm":
        return NAMES.get(value, str(value))
    if name in GROUPS:
        return str(value)
    text = (
        f"{value:.12g}"
        if isinstance(value, float)
        else " ".join(map(str, value))
        if isinstance(value, tuple)
        else value
    )
    return f"{plain(name)} {text}"


def arm_names(arms: Sequence[Key]) -> dict[Key, str]:
    """Of options of a norm only those that tell it from another arm with that norm."""
    found = {}
    for arm in arms:
        same = [other for other in arms if other[0] == arm[0]]
        telling = [item for item in arm[1:] if any(dict(other).get(item[0]) != item[1] for other in same)]
        found[arm] = words((arm[0], *telling)) if arm else "all runs"
    return found


def arm_rank(collection: Collection, axis: str, arm: Key) -> tuple[Any, ...]:
    """Controls before what is tried: no norm, then batch norm, then the others; numbers by size."""
    value = dict(arm).get(axis)
    first = {"none": 0, "batch": 1} if axis == "norm" else {}
    return (first.get(value, 2) if isinstance(value, str) else 2, sortable(arm))


def sortable(key: Key) -> tuple[Any, ...]:
    return tuple(
        (name, (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))) for name, value in key
    )


def joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def frozen(value: Any) -> Any:
    return tuple(frozen(item) for item in value) if isinstance(value, list) else value
