"""What a run is: frozen, typed, hashable to an id. No torch here.

A group (`model`, `norm`, ...) has the keys every entry shares, typed below, and `options`: the keys of that entry
alone, typed by its constructor. In YAML and on the command line both are written flat, as `norm.layers` and `norm.eps`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from bnlab.core.errors import UsageError, nearest, refuse_path
from bnlab.core.registry import digest
from bnlab.core.typed import check_tree

SCHEMA_VERSION = 1
"""Part of every id: raised when the meaning of a key changes, so that old runs are not taken for new ones."""

NOT_HASHED = ("name", "launch")
"""Keys that say where a run runs and what it is called: recorded, but two runs that differ only here are one run."""

NEWER = (("model", "dropout", 0), ("data", "shuffle", "every_epoch"))
"""Group, key and value of what runs had before there was such a key: it is no part of their ids."""

Options = Mapping[str, Any]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Finite = Annotated[float, Gt(-math.inf), Lt(math.inf)]
NotNegative = Annotated[float, Ge(0), Lt(math.inf)]
AtLeastOne = Annotated[int, Ge(1)]
Activation = Literal["relu", "sigmoid", "tanh", "linear"]
Shift = Literal["none", "brightness", "contrast", "blur", "noise", "rotation", "colour", "hue", "prior"]
EvalBN = Literal["running", "batch", "population", "adapted"]
"""The statistics that norms use in an evaluation; see bnlab/net/evaluate.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """An architecture, its nonlinearity and its initialization."""

    name: str
    activation: Activation
    init: Literal["he", "glorot", "orthogonal", "gaussian", "lsuv", "own"]
    init_scale: Positive
    init_std: Positive
    bias: Literal["auto"] | bool
    options: Options
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """The share of values that is dropped after each hidden nonlinearity, and a norm behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSpec:
    """A normalization and the layers that have it."""

    name: str
    layers: Literal["all"] | Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)]
    every: AtLeastOne
    position: Literal["before", "after"]
    options: Options


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """A data set and how it is fed."""

    name: str
    batch_size: Literal["full"] | AtLeastOne
    subset: AtLeastOne | None
    normalize: Literal["channel", "feature", "none"]
    binarize: bool
    crop: Annotated[int, Ge(0)]
    flip: bool
    label_noise: Annotated[float, Ge(0), Le(1)]
    shift: Shift
    shift_strength: Finite | None
    options: Options
    shuffle: Literal["every_epoch", "once"] = "every_epoch"

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return self.crop > 0 or self.flip


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSpec:
    """An optimizer and its learning-rate schedule."""

    name: str
    lr: Positive
    schedule: Literal["constant", "step", "cosine"]
    warmup_steps: Annotated[int, Ge(0)]
    drop_at: tuple[Annotated[float, Gt(0), Lt(1)], ...]
    drop_factor: Annotated[float, Gt(0), Le(1)]
    options: Options


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbesSpec:
    """When and what to measure. `options` maps each probe's name to that probe's options."""

    points: AtLeastOne
    eval_points: AtLeastOne
    options: Options


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """Where and how runs run: recorded, not hashed. `name` is an executor's; `workers` of them run at once, on a GPU
    `per_device` on each."""

    name: str
    workers: Literal["auto"] | AtLeastOne
    per_device: AtLeastOne
    checkpoint_s: NotNegative
    options: Options
    lockstep: Literal["auto", "off"] | AtLeastOne = "auto"
    """How many small nets of one kind a worker trains at once, with the bits that each has alone."""
    timeout: Positive | None = None
    """Seconds without a step, after which a worker of a sweep is killed and its runs fail."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything a run depends on."""

    name: str
    seed: Annotated[int, Ge(0)]
    steps: AtLeastOne | None
    epochs: Positive | None
    loss: Literal["cross_entropy", "mse"]
    reduction: Literal["mean", "sum"]
    eval_bn: EvalBN
    eval_batch_size: Literal["auto", "full"] | AtLeastOne
    device: Literal["cpu", "cuda", "mps", "auto"]
    """`auto` is gone once a config is read (config/compose.py), so that an id says where bits are from."""
    dtype: Literal["float32", "float64"]
    precision: Literal["float32", "tf32", "bfloat16"]
    threads: AtLeastOne
    plugins: tuple[str, ...]
    model: ModelSpec
    norm: NormSpec
    data: DataSpec
    optim: OptimSpec
    probes: ProbesSpec
    launch: LaunchSpec

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> RunSpec:
        """From the flat form of YAML.

        Raises:
            UsageError: a value of the wrong type or out of range, by its key.
        """
        refuse_unknown(cls, tree, "")
        spec: RunSpec = check_tree(cls, {key: _with_options(key, value) for key, value in tree.items()})
        refuse_path("name", *spec.name.split("/"))
        return spec

    def tree(self) -> dict[str, Any]:
        """The flat form of YAML: `from_tree(spec.tree()) == spec`."""
        nested = dataclasses.asdict(self)
        for key in GROUPS:
            nested[key] |= nested[key].pop("options", {})
        tree: dict[str, Any] = _plain(nested)
        return tree

    @property
    def id(self) -> str:
        """First 10 hex digits of the sha256 of the whole spec: one id, one set of bits (on one kind of machine)."""
        return self._hash() if self.plugins else self._id  # what is read of plugins may change

    @cached_property
    def _id(self) -> str:
        return self._hash()

    def _hash(self) -> str:
        return id_of(self.tree(), [digest(file) or file for file in self.plugins])

    @property
    def folder(self) -> str:
        """Its path in the runs folder: the arm first, so that TensorBoard can colour by it."""
        return f"{self.name}/{self.norm.name}/lr={self.optim.lr:.12g}/seed={self.seed}-{self.id}"


def id_of(tree: Mapping[str, Any], plugins: Sequence[str]) -> str:
    """The id of the run with this tree, and plugins with this content."""
    hashed = {key: value for key, value in tree.items() if key not in (*NOT_HASHED, "provenance")}
    for group, key, value in NEWER:
        if hashed[group].get(key) == value:
            hashed[group] = {name: item for name, item in hashed[group].items() if name != key}
    hashed["plugins"] = list(plugins)
    text = f"bnlab schema {SCHEMA_VERSION} {canonical(hashed)}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]


GROUPS: dict[str, type] = {
    "model": ModelSpec,
    "norm": NormSpec,
    "data": DataSpec,
    "optim": OptimSpec,
    "probes": ProbesSpec,
    "launch": LaunchSpec,
}


def refuse_unknown(kind: type, tree: Mapping[str, Any], prefix: str) -> None:
    """Raises UsageError for a key that the dataclass `kind` does not have; pydantic would pass over it."""
    known = [field.name for field in dataclasses.fields(kind)]
    for key in tree:
        if key not in known:
            raise UsageError(f"{prefix}{key}", "no such key", tree[key], nearest(key, known))


def _with_options(key: str, value: Any) -> Any:
    """The keys of a group that its dataclass does not name go under `options`."""
    if key not in GROUPS or not isinstance(value, Mapping):
        return value
    fields = {field.name for field in dataclasses.fields(GROUPS[key])}
    shared = {name: item for name, item in value.items() if name in fields}
    return shared | {"options": {name: item for name, item in value.items() if name not in fields}}


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def canonical(value: Any) -> str:
    """One text for one meaning: sorted keys, numbers to 12 digits, `1` and `1.0` alike.

    >>> canonical({"b": 1.0, "a": [True, None, "1"], "c": 0.30000000000000004})
    '{"a":[true,null,"1"],"b":1,"c":0.3}'
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(key)}:{canonical(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    if isinstance(value, float) or (type(value) is int and abs(value) < 10**12):
        return f"{value + 0:.12g}"  # -0.0 is 0.0
    return json.dumps(value)
