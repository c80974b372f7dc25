"""A study: a base experiment, axes, and claims; and a cell of its grid. No torch here.

A claim is data: it names a metric (bnlab.analysis.metrics), two arms, the point at which they are compared, the
direction, and the smallest effect that matters, all before the first run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt, MinLen

from bnlab.core.errors import UsageError, refuse_path
from bnlab.core.spec import GROUPS, RunSpec, canonical, refuse_unknown
from bnlab.core.text import command, in_quotes, typed
from bnlab.core.typed import check_tree

Value = bool | int | float | str | None | list[Any]
"""A value of an axis; a list is one value."""

Point = Literal["curve", "matched_lr", "best_lr", "matched_loss", "every_run"]
"""Where two arms are compared, seed by seed:

- `curve`: the metric is one of the arm's whole curve over the learning rates, such as its largest stable one
- `matched_lr`: at equal learning rates, the mean over all at which both arms train
- `best_lr`: each arm at the learning rate that is best for it by this metric, the same for all its seeds
- `matched_loss`: at equal learning rates and equal training losses, the mean over the losses that both arms pass
- `every_run`: at equal learning rates, the mean over all, whether the nets train or not
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence that runs can support or refute.

    `contrast` names one axis and its two values, the treated arm before the control; of the axis `metric`, two metrics
    of the same runs. In its place `against` is a number, or `theory.NAME` for what bnlab.core.theory computes from a
    run's spec: then there is one arm. `beyond` is a second contrast, whose effect is taken off that of the first.
    `where` narrows to runs with these values. `options` go to the metric.

    The effect is the treated arm over the control (`ratio`) or minus it (`difference`), turned round for `expect:
    smaller`, so that above 1 or 0 it speaks for the claim. It must be above `smallest_effect`, which below 1 or 0 says
    how much worse the treated arm may be; for `expect: same` it must be nearer to 1 or 0 than `within`. `notes` says on
    which sentence of which note the claim bears, and whether its support agrees with it: `"002:9": agrees`.
    """

    name: Annotated[str, MinLen(1)]
    text: Annotated[str, MinLen(1)]
    source: Annotated[str, MinLen(1)]
    metric: str
    contrast: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    against: float | str | None = None
    beyond: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    at: Point
    expect: Literal["larger", "smaller", "same"]
    compare: Literal["ratio", "difference"]
    smallest_effect: Annotated[float, Lt(math.inf)] | None = None
    within: Annotated[float, Gt(0), Lt(math.inf)] | None = None
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Literal["agrees", "opposes"]] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """First 10 hex digits of the sha256 of what it claims; an edited claim has another one."""
        tree = dataclasses.asdict(self)
        for key in _NOT_ALWAYS_HASHED:
            if tree[key] in (None, {}) or key == "notes":
                del tree[key]
        return hashlib.sha256(canonical(tree).encode()).hexdigest()[:10]


_NOT_ALWAYS_HASHED = ("against", "beyond", "within", "contrast", "notes")
"""Keys that are no part of a claim's digest where they are empty, so that those of runs of bnlab 0.2 hold."""

HERE = ("local", "inline")
"""Values of `launch` that run on this machine, in processes of the command."""
ARM = "arm"
"""The axis of a study's named `arms`; in a collection, the key of a run's spec that has the arm's name."""


METRIC = "metric"
"""The axis of a contrast of two metrics of the same runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Another size of a study, `scale=NAME`: what takes the place of its own base, overrides, axes and figures.
    Overrides of the study that the other base does not have are left out."""

    base: str = ""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    figures: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A grid over a base experiment, and the claims that it tests.

    `overrides` hold for every cell. `axes` are written in the grammar of the command line: `norm: none,batch`,
    `optim.lr: logspace(1e-3, 10, 9)`, `seed: range(0, 6)`. `arms` are an axis of named settings: `dropout: {norm: none,
    model.dropout: 0.3}`. `ask` are grids of conditions (bnlab.core.conditions) under which each trained net is
    evaluated, which is no part of a run. `title` is the question that it asks, `minutes` about how long it takes on two
    cores. `figures` are drawn before those of every report.
    """

    name: str
    base: Annotated[str, MinLen(1)]
    title: str = ""
    minutes: Annotated[float, Gt(0)] | None = None
    arms: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    scales: Mapping[str, Scale] = dataclasses.field(default_factory=dict)
    figures: tuple[Mapping[str, Any], ...] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ask: tuple[Mapping[str, Any], ...] = ()
    claims: tuple[Claim, ...] = ()

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Study:
        """From YAML.

        Raises:
            UsageError: an unknown key, a value of the wrong type or out of range, by its key; two claims of one name.
        """
        refuse_unknown(cls, tree, "")
        claims = tree.get("claims") or []
        if not isinstance(claims, list | tuple):
            raise UsageError("claims", "must be a list", claims)
        for index, claim in enumerate(claims):  # one by one, so that errors name the claim's place
            if not isinstance(claim, Mapping):
                raise UsageError(f"claims.{index}", "must have keys and values", claim)
            refuse_unknown(Claim, claim, f"claims.{index}.")
            check_tree(Claim, claim, f"claims.{index}.")
        claims = [
            {key: _as_read(item) if key in ("contrast", "beyond", "where") else item for key, item in claim.items()}
            for claim in claims
        ]
        names = [claim["name"] for claim in claims]
        for name in names:
            if names.count(name) > 1:
                raise UsageError("claims", "two of one name", name, "Rename one of them.")
        for name, scale in (tree.get("scales") or {}).items():
            refuse_unknown(Scale, scale, f"scales.{name}.")
        study: Study = check_tree(cls, {**tree, "claims": claims})
        refuse_path("name", *study.name.split("/"))
        return study

    def tree(self) -> dict[str, Any]:
        """As YAML has it: `from_tree(study.tree()) == study`."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value or key not in _NOT_WRITTEN}

    def varied(self) -> set[str]:
        """The keys in which its runs, and their answers, are meant to differ."""
        return {*self.axes, *(key for grid in self.ask for key in grid)}

    def settings_of_arms(self) -> set[str]:
        """The keys in which arms differ."""
        return {key for bundle in self.arms.values() for key in bundle}

    def arm_of(self, spec: Mapping[str, Any]) -> str | None:
        """The name of the arm that a flat spec is in: of those whose settings it has, the one with most."""
        fits = [
            name
            for name, bundle in self.arms.items()
            if all(key in spec and canonical(spec[key]) == canonical(value) for key, value in bundle.items())
        ]
        return max(fits, key=lambda name: len(self.arms[name]), default=None)


_NOT_WRITTEN = ("title", "minutes", "arms", "scales", "figures", "ask")
"""Keys that a study's file has only where they say something."""


def _as_read(value: Any) -> Any:
    """Values of keys of a spec as the command line and axes read them: 1e-1 is a number, which to YAML is a text.

    >>> _as_read({"optim.lr": ["1e-1", 0.3], "norm": ("batch", "none")})
    {'optim.lr': [0.1, 0.3], 'norm': ['batch', 'none']}
    """
    if isinstance(value, Mapping):
        return {key: _as_read(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_read(item) for item in value]
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+e[+-]?\d+", value, re.I) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a grid. `values` are its values of the axes; `overrides` are all overrides of the experiment `config`,
    as typed."""

    spec: RunSpec
    config: str
    overrides: tuple[str, ...]
    values: Mapping[str, Value]

    def line(self, **options: Any) -> str:
        """The command that runs this cell alone, to the same bits and in the same folder; with more `options`."""
        name = self.spec.name
        plain = re.fullmatch(r"[\w.-][\w./-]*", name, re.ASCII) and name.lower() != "null"
        far = () if self.spec.launch.name in HERE else ("launch=", "launch.")  # `bnlab train` runs in its own process
        settings = [word for word in self.overrides if not word.startswith(far)]
        words = ("--config", self.config, *settings, f"name={name if plain else in_quotes(name)}")
        return command("bnlab", "train", *words, **options)


def varying(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys in which settings differ, in the order in which they first appear. A setting without a key has null.

    >>> varying([{"norm": "batch", "optim.lr": 0.1, "seed": 0}, {"norm": "none", "optim.lr": 0.1}])
    ['norm', 'seed']
    """
    settings = list(settings)
    keys = dict.fromkeys(key for setting in settings for key in setting)
    return [key for key in keys if len({canonical(setting.get(key)) for setting in settings}) > 1]


def tied(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys that have the seed as their value in every setting, such as `data.data_seed: ${seed}` in a study, which
    draws other data for each seed.

    >>> tied([{"seed": 0, "data.data_seed": 0, "model.depth": 1}, {"seed": 1, "data.data_seed": 1, "model.depth": 1}])
    {'data.data_seed'}
    """
    keys = settings[0] if settings else {}
    return {key for key in keys if key != "seed" and all(key in it and it[key] == it.get("seed") for it in settings)}


NOT_AN_AXIS = ("seed", "optim.lr", "threads", "plugins", "epochs")


def axes_of(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that tell the flat specs of runs apart beside learning rate, seed, and what is tied to the seed. An
    option of a group counts only where it differs between two runs of the same choice: `norm.ghost_size` is no axis
    because one norm has it and the other does not."""
    first: dict[tuple[str, Any], Any] = {}
    found, left_out = set(), {*NOT_AN_AXIS, *tied(settings)}
    for setting in settings:
        for key, value in setting.items():
            group = key.partition(".")[0]
            if group == "probes" or key in left_out or key in found:
                continue
            before = first.setdefault((key, setting.get(group) if key != group else None), value)
            same = before is value or (type(before) is type(value) and before == value)  # most are, at less cost
            if not same and canonical(before) != canonical(value):
                found.add(key)
    return sorted(found)


def evenly(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of `count` indices, evenly spread, the first and the last among them.

    >>> evenly(11, 5), evenly(3, 5), evenly(4, 1)
    ([0, 2, 5, 8, 10], [0, 1, 2], [0])
    """
    if wanted >= count:
        return list(range(count))
    return sorted({round(index * (count - 1) / max(1, wanted - 1)) for index in range(wanted)})


def label(values: Mapping[str, Any], *, full: bool = False) -> str:
    """A setting in few words. A group's choice needs no key; of other keys the last part is shown, or the `full` key.

    >>> label({"norm": "none", "optim.lr": 0.1, "seed": 3})
    'none lr=0.1 seed=3'
    >>> label({"norm": "none", "optim.lr": 0.1}, full=True)
    'none, optim.lr=0.1'
    """
    words = [
        typed(value) if key in GROUPS or key == ARM else f"{key if full else key.rpartition('.')[2]}={typed(value)}"
        for key, value in values.items()
    ]
    return (", " if full else " ").join(words)
