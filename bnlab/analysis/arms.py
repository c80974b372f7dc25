"""Arms: what they are, in which order they come, what they are called. The one definition.

An arm is a setting of everything but learning rate and seed. One axis tells arms apart: the one that the study's claims
contrast, together with the options of its choices. Each setting of the other axes is a view of its own in a report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnlab.analysis.load import Collection
from bnlab.core.spec import GROUPS
from bnlab.core.study import ARM, axes_of
from bnlab.core.text import short_key
from bnlab.record.runs import Run

CONTROLS = ("none", "batch")
"""Norms that come before the others."""
_NORMS = ("batch", "layer", "group", "instance", "frozen_batch", "noisy_batch", "ghost_batch")
OLD_TITLES: Mapping[tuple[str, str], str] = {("norm", name): f"{name.replace('_', ' ')} norm" for name in _NORMS} | {
    ("norm", "none"): "no norm",
    ("norm", "rms"): "RMS norm",
    ("norm", "l1"): "L1 batch norm",
    ("norm", "l2"): "L2 batch norm",
    ("norm", "linf"): "L∞ batch norm",
    ("norm", "noisy_none"): "noise, no norm",
    ("norm", "batch_renorm"): "batch renorm",
    ("norm", "mean_only_batch"): "mean-only batch norm",
    ("norm", "stopgrad_batch"): "batch norm, gradient stopped",
    ("norm", "affine_only"): "scale and shift only",
    ("norm", "batch_reference"): "batch norm (reference)",
    ("optim", "sgd"): "SGD",
    ("optim", "adam"): "Adam",
    ("optim", "adamw"): "AdamW",
}
"""Titles of choices in runs of bnlab 0.1, whose provenance has none."""

Key = tuple[tuple[str, Any], ...]
"""Keys of a spec and their values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """The arms of some runs. `axis` tells them apart; `own` is the axis with the options that vary with it, `rest` the
    other axes. `names` has a name for every arm, controls first; `settings` one for every setting of the other axes.
    """

    axis: str
    own: tuple[str, ...]
    rest: tuple[str, ...]
    names: Mapping[Key, str]
    settings: Mapping[Key, str]

    def arm(self, run: Run) -> Key:
        return _key(run, self.own)

    def setting(self, run: Run) -> Key:
        return _key(run, self.rest)

    def label(self, run: Run) -> str:
        """The run's arm and setting: `batch norm, depth 20`."""
        return _joined(self.names[self.arm(run)], self.settings[self.setting(run)])

    def labels(self, runs: Iterable[Run]) -> list[str]:
        """The labels of these runs, each once: by setting, then by arm."""
        there = {self.label(run) for run in runs}
        ordered = (_joined(arm, setting) for setting in self.settings.values() for arm in self.names.values())
        return [label for label in ordered if label in there]


def arms_of(collection: Collection, along: Sequence[str] = (), by: str | None = None) -> Arms:
    """The arms of a collection's runs. The axes `along` tell none apart, but the norm where arms are norms;
    `by` tells them apart, if it is given."""
    runs, axes, study = collection.runs, axes_of([run.spec for run in collection.runs]), collection.study
    if study and study.arms:  # what they bundle is no axis
        bundled = study.settings_of_arms()
        inside = tuple(f"{key}." for key in bundled if key in GROUPS)
        axes = [ARM, *(key for key in axes if key not in (ARM, *bundled) and not key.startswith(inside))]
    # Where runs disagree, those that have titles in their provenance come last, and win.
    by_age = sorted(runs, key=lambda run: "titles" in run.provenance)
    titles = {
        (group, str(run.spec[group])): title(run, group) for run in by_age for group in GROUPS if group in run.spec
    }
    axis = by or _arm_axis(collection, axes)
    gone = {key for key in along if key != ARM and (key, axis) != ("norm", "norm")}
    if gone:
        axes = [key for key in axes if key not in gone]
        axis = by or _arm_axis(collection, axes)
    own = [axis, *(key for key in axes if key.startswith(f"{axis}."))]
    rest = [key for key in axes if key not in own]
    named = list(study.arms) if study else []
    arms = sorted({_key(run, own) for run in runs}, key=lambda arm: _rank(axis, arm, named))
    settings = sorted({_key(run, rest) for run in runs}, key=_sortable)
    return Arms(
        axis=axis,
        own=tuple(own),
        rest=tuple(rest),
        names={arm: _name(arm, arms, titles) for arm in arms},
        settings={setting: words(setting, titles) for setting in settings},
    )


def title(run: Run, group: str) -> str:
    """What reports call a run's choice of a group: `batch norm`, `SGD`."""
    choice = str(run.spec.get(group))
    written = (run.provenance.get("titles") or {}).get(group)
    return str(written or OLD_TITLES.get((group, choice), choice))


def words(key: Key, titles: Mapping[tuple[str, str], str]) -> str:
    """
    >>> words((("norm", "batch"), ("model.depth", 20), ("data.batch_size", 32)), OLD_TITLES)
    'batch norm, depth 20, batch size 32'
    """
    return _joined(*(_word(name, value, titles) for name, value in key))


def frozen(value: Any) -> Any:
    """A value as a part of a `Key`: lists as tuples."""
    return tuple(frozen(item) for item in value) if isinstance(value, list) else value


def _arm_axis(collection: Collection, axes: Sequence[str]) -> str:
    """What the arms differ in: the study's named arms, what its claims contrast, the norm if any does, else what
    varies."""
    if ARM in axes:
        return ARM
    claims = collection.study.claims if collection.study else ()
    contrasted = [axis for claim in claims for axis in claim.contrast if axis in axes]
    candidates = contrasted or axes
    return "norm" if "norm" in candidates or not candidates else candidates[0]


def _name(arm: Key, arms: Sequence[Key], titles: Mapping[tuple[str, str], str]) -> str:
    """Of options of the axis's choice only those that tell it from another arm with that choice."""
    same = [dict(other) for other in arms if other[:1] == arm[:1]]
    telling = [item for item in arm[1:] if any(other.get(item[0]) != item[1] for other in same)]
    return words((*arm[:1], *telling), titles) or "all runs"


def _word(name: str, value: Any, titles: Mapping[tuple[str, str], str]) -> str:
    if name == ARM:
        return str(value).replace("_", " ")
    if name in GROUPS:
        return titles.get((name, str(value)), str(value))
    if name == "eval_bn":
        return f"{value} statistics"
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return f"{short_key(name)} {f'{value:.12g}' if isinstance(value, float) else value}"


def _rank(axis: str, arm: Key, named: Sequence[str]) -> tuple[Any, ...]:
    """Controls before what is tried: no norm, then batch norm, then the others; numbers by size; named arms as the
    study has them."""
    value = dict(arm).get(axis)
    if axis == ARM:
        return (named.index(value) if value in named else len(named), "")
    control = axis == "norm" and value in CONTROLS
    return (CONTROLS.index(value) if control else len(CONTROLS), _sortable(arm))


def _sortable(key: Key) -> tuple[Any, ...]:
    return tuple(
        (name, (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))) for name, value in key
    )


def _key(run: Run, keys: Iterable[str]) -> Key:
    return tuple((key, frozen(run.spec[key])) for key in keys if key in run.spec)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
