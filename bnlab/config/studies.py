"""From a study's name, or an experiment's for a grid of the moment, to its cells."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bnlab.config.compose import Composer, hydra_over, offer_plugins, rounded
from bnlab.config.conditions import read_grid
from bnlab.config.overrides import Overrides, refuse_many, texts, value_of
from bnlab.config.places import available, config_dirs, read
from bnlab.core.conditions import DEFAULTS, conditions, under
from bnlab.core.errors import UsageError, nearest
from bnlab.core.spec import GROUPS, NOT_HASHED
from bnlab.core.study import ARM, Cell, Study, Value
from bnlab.core.text import leaves, typed

SLOWEST = "seed"
"""The axis that varies slowest, at any place among the axes: every arm at every learning rate has a first seed, and a
first comparison, before any has a second."""


def load_study(name: str, overrides: Sequence[str], user_dir: Path | None = None) -> tuple[Study, list[Cell]]:
    """The study `name` with what was typed behind it, and the cells of its grid in the order they are run: an axis that
    was typed takes the place of the study's, a single value that of an override or an axis. Cells that are one run
    (`optim.lr=0.1,1e-1`) are listed once. Where no study has that name, an experiment is taken as one without claims.

    Raises:
        UsageError: whatever `load` refuses, for any cell; an axis without values, or one that makes no other run.
    """
    with hydra_over(config_dirs(user_dir)) as reader:
        found = find(name, reader.dirs)
        study = _typed_over(found, overrides, reader)
        composer = Composer(study.base, reader, "base")
        fixed = _as_typed(study.overrides)
        bundles = {name: _as_typed(bundle) for name, bundle in study.arms.items()}
        in_all = [*fixed, *itertools.chain(*bundles.values())]
        offer_plugins(study.base, [*in_all, *(f"{key}={text}" for key, text in study.axes.items())], reader)
        axes = {key: _axis(key, text, reader, bundles) for key, text in study.axes.items()}
        ask = [_asked(grid, reader) for grid in study.ask]
        # The study's settings of its own probes do not hold for others that the user chooses.
        typed_keys = {reader.read(text).key_or_group for text in overrides}
        droppable = {key for key in study.overrides if key.partition(".")[0] in typed_keys} - typed_keys
        if (scale := found.scales.get(_scale(overrides, reader))) and scale.base:
            droppable |= found.overrides.keys() - scale.overrides.keys() - typed_keys - set(GROUPS)
        cells: dict[str, Cell] = {}
        for chosen in _product(axes):
            given = {key: bundles[text] if key == ARM else [f"{key}={text}"] for key, text in chosen.items()}
            settings = composer.applicable([*fixed, *itertools.chain(*given.values())], droppable)
            spec = dataclasses.replace(composer.spec(settings), name=study.name)
            values = {key: chosen[ARM] if key == ARM else _value(key, reader, *given[key]) for key in chosen}
            cell = Cell(spec=spec, config=study.base, overrides=tuple(settings), values=values)
            cells.setdefault(spec.id, cell)
    resolved = {key: ",".join(values) for key, values in axes.items()}
    for condition in conditions(ask):
        with _in_place("ask"):
            under(next(iter(cells.values())).spec.tree(), condition)
    return dataclasses.replace(study, axes=resolved, ask=tuple(ask)), list(cells.values())


def find(name: str, dirs: Sequence[Path]) -> Study:
    """The study of that name, or an experiment as one without axes and claims.

    Raises:
        UsageError: there is none, or its YAML is no study.
    """
    studies, experiments = available("studies", dirs), available("experiments", dirs)
    if name in studies:
        return _read(studies[name], name)
    if name in experiments:
        return Study(name=name, base=name)
    raise UsageError("--config", "no such study or experiment", name, nearest(name, {*studies, *experiments}))


def own_plugins(user_dir: Path | None) -> list[str]:
    """The plugins that the user's own studies and experiments name: files that are trusted without being typed."""
    found: dict[str, None] = {}
    own = config_dirs(user_dir)[:-1]
    for file in [*available("studies", own).values(), *available("experiments", own).values()]:
        with contextlib.suppress(UsageError):  # it is refused where it is used
            for key, value in leaves({"": OmegaConf.to_container(read(file))}):
                if key.endswith(".plugins") and isinstance(value, list):
                    found |= dict.fromkeys(map(str, value))
    return list(found)


def _read(file: Path, name: str) -> Study:
    """A study's YAML; its keys may be nested or dotted, its axes lists or in the grammar of the command line."""
    try:
        tree: Any = OmegaConf.to_container(read(file))
        tree = {"name": name, **_grid(tree, "")}
        for part in ("scales", "arms"):
            each = _mapping(tree.get(part), part).items()
            tree[part] = {one: _mapping(settings, f"{part}.{one}") for one, settings in each}
        tree["scales"] = {one: _grid(scale, f"scales.{one}.") for one, scale in tree["scales"].items()}
        tree["arms"] = {one: dict(leaves(bundle)) for one, bundle in tree["arms"].items()}
        grids = tree.get("ask") or []
        grids = [_mapping(grid, "ask") for grid in (grids if isinstance(grids, list) else [grids])]
        tree["ask"] = [{key: _axis_text(value) for key, value in leaves(grid)} for grid in grids]
        if tree["arms"]:
            tree["axes"] = {ARM: ",".join(tree["arms"]), **tree["axes"]}
        return Study.from_tree({**tree, "claims": tree.get("claims") or []})
    except UsageError as error:
        known = str(error).startswith(str(file))
        raise error if known else UsageError(str(file), str(error).rstrip(".")) from None


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value or {}, Mapping):
        raise UsageError(place, "must have keys and values", value)
    return value or {}


def _grid(tree: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Overrides and axes of a study or a scale, and its base if it has one."""
    parts = {part: dict(leaves(_mapping(tree.get(part), f"{place}{part}"))) for part in ("overrides", "axes")}
    parts["axes"] = {key: _axis_text(value) for key, value in parts["axes"].items()}
    return dict(tree) | parts


def _typed_over(study: Study, overrides: Sequence[str], reader: Overrides) -> Study:
    """The study with what was typed. `name=...` gives the study, and so its folder, another name; `scale=...` another
    size."""
    read = [(text, reader.read(text)) for text in overrides]
    if scale := _scale(overrides, reader):
        study = _scaled(study, scale)
    name, values, axes = study.name, dict(study.overrides), dict(study.axes)
    given: set[str] = set()
    for text, override in read:
        key = override.key_or_group
        if key == "scale":
            continue
        if key in given:
            raise UsageError(key, "given twice", text, "Give it once.")
        given.add(key)
        if override.is_sweep_override():
            values.pop(key, None)
            axes[key] = override.get_value_string()
        elif key == "name":
            name = value_of(override)
        elif key == ARM:
            axes[key] = override.get_value_string()
        else:
            axes.pop(key, None)
            value = override.value()
            values[key] = value if isinstance(value, bool | int | float) else override.get_value_string()
    return Study.from_tree({**study.tree(), "name": name, "overrides": values, "axes": axes})


def _scale(overrides: Sequence[str], reader: Overrides) -> str:
    """The scale that was typed, or none."""
    read = [reader.read(text) for text in overrides]
    return next((str(override.value()) for override in read if override.key_or_group == "scale"), "")


def _scaled(study: Study, scale: str) -> Study:
    if scale not in study.scales:
        known = ", ".join(study.scales) or "none"
        raise UsageError("scale", f"study {study.name} has no such scale", scale, f"It has: {known}.")
    of = study.scales[scale]
    tree = {"name": f"{study.name}-{scale}", "base": of.base or study.base, "scales": {}}
    tree |= {"overrides": {**study.overrides, **of.overrides}, "axes": {**study.axes, **of.axes}}
    return Study.from_tree({**study.tree(), **tree, "figures": of.figures or study.figures})


def _as_typed(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={typed(value)}" for key, value in settings.items()]


def _axis(key: str, text: str, reader: Overrides, bundles: Mapping[str, Sequence[str]]) -> list[str]:
    """The values of an axis, each as typed."""
    if key == ARM:
        for name in text.split(","):
            if name not in bundles:
                raise UsageError(ARM, "the study has no such arm", name, nearest(name, list(bundles)))
        return text.split(",")
    if key.partition(".")[0] in NOT_HASHED:
        raise UsageError(key, "cannot be an axis: with another value it is the same run", text, "Give it one value.")
    override = reader.read(f"{key}={text}")
    found = texts(override, reader.options.get(key, ()))
    if key in GROUPS:
        for option in found:
            reader.option(key, reader.read(f"{key}={option}").value())
    return found


def _asked(grid: Mapping[str, Any], reader: Overrides) -> dict[str, Any]:
    with _in_place("ask"):
        return read_grid([f"{key}={text}" for key, text in grid.items()], reader, [*DEFAULTS])


@contextmanager
def _in_place(place: str) -> Iterator[None]:
    """Errors there name the place too."""
    try:
        yield
    except UsageError as error:
        raise UsageError(place, str(error).rstrip(".")) from None


def _product(axes: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Every combination, the last axis fastest, `seed` slowest; the keys in the order of the axes."""
    refuse_many("the grid of " + " x ".join(axes), math.prod(map(len, axes.values())))
    order = sorted(axes, key=lambda key: key != SLOWEST)
    for values in itertools.product(*(axes[key] for key in order)):
        chosen = dict(zip(order, values, strict=True))
        yield {key: chosen[key] for key in axes}


def _value(key: str, reader: Overrides, text: str) -> Value:
    value: Value = rounded(reader.read(text).value())
    return str(value) if key in GROUPS else value


def _axis_text(value: Any) -> str:
    """An axis as typed: a list's items are its values.

    >>> _axis_text("range(0, 6)"), _axis_text([0.1, None, "batch"]), _axis_text([[1, 2], [3]])
    ('range(0, 6)', '0.1,null,batch', '[1,2],[3]')
    """
    return ",".join(typed(item) for item in value) if isinstance(value, list) else typed(value)
