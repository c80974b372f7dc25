"""From a study's name, or an experiment's for a grid of the moment, to its cells."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.config.compose import Composer, hydra_over, offer_plugins, rounded
from bnlab.config.overrides import Overrides, texts, value_of
from bnlab.config.places import available, config_dirs
from bnlab.core.errors import UsageError, nearest
from bnlab.core.spec import GROUPS, NOT_HASHED
from bnlab.core.study import Cell, Study, Value
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
        study = _typed_over(find(name, reader.dirs), overrides, reader)
        composer = Composer(study.base, reader)
        fixed = [f"{key}={typed(value)}" for key, value in study.overrides.items()]
        offer_plugins(study.base, [*fixed, *(f"{key}={text}" for key, text in study.axes.items())], reader)
        axes = {key: _axis(key, text, reader) for key, text in study.axes.items()}
        # The study's settings of its own probes do not hold for others that the user chooses.
        typed_keys = {reader.read(text).key_or_group for text in overrides}
        droppable = {key for key in study.overrides if key.partition(".")[0] in typed_keys} - typed_keys
        cells: dict[str, Cell] = {}
        for chosen in _product(axes):
            given = [f"{key}={text}" for key, text in chosen.items()]
            settings = composer.applicable([*fixed, *given], droppable)
            spec = dataclasses.replace(composer.spec(settings), name=study.name)
            values = {key: _value(key, reader, text) for key, text in zip(chosen, given, strict=True)}
            cell = Cell(spec=spec, config=study.base, overrides=tuple(settings), values=values)
            cells.setdefault(spec.id, cell)
    resolved = {key: ",".join(values) for key, values in axes.items()}
    return dataclasses.replace(study, axes=resolved), list(cells.values())


def find(name: str, dirs: Sequence[Path]) -> Study:
    """The study of that name, or an experiment as one without axes and claims.

    Raises:
        UsageError: there is none, or its YAML is no study.
    """
    studies, experiments = available("studies", dirs), available("experiments", dirs)
    if name in studies:
        return _read(studies[name])
    if name in experiments:
        return Study(name=name, base=name)
    raise UsageError("--config", "no such study or experiment", name, nearest(name, {*studies, *experiments}))


def _read(file: Path) -> Study:
    """A study's YAML; its keys may be nested or dotted, its axes lists or in the grammar of the command line."""
    try:
        tree: Any = OmegaConf.to_container(
            OmegaConf.load(file)
        )  # refuses a doubled key; 1e-1 is a number, a date a text
        if not isinstance(tree, Mapping):
            raise UsageError("study", "must have keys, `base` among them")
        tree = {"name": file.stem, **tree}
        for part in ("overrides", "axes"):
            if not isinstance(tree.get(part) or {}, Mapping):
                raise UsageError(part, "must have keys and values", tree[part])
            tree[part] = dict(leaves(tree.get(part) or {}))
        tree["axes"] = {key: _axis_text(value) for key, value in tree["axes"].items()}
        return Study.from_tree({**tree, "claims": tree.get("claims") or []})
    except (UsageError, OmegaConfBaseException, OSError, yaml.YAMLError) as error:
        raise UsageError(str(file), " ".join(str(error).split()).rstrip(".")) from None


def _typed_over(study: Study, overrides: Sequence[str], reader: Overrides) -> Study:
    """The study with what was typed. `name=...` gives the study, and so its folder, another name."""
    name, values, axes = study.name, dict(study.overrides), dict(study.axes)
    given: set[str] = set()
    for text in overrides:
        override = reader.read(text)
        key = override.key_or_group
        if key in given:
            raise UsageError(key, "given twice", text, "Give it once.")
        given.add(key)
        if override.is_sweep_override():
            values.pop(key, None)
            axes[key] = override.get_value_string()
        elif key == "name":
            name = value_of(override)
        else:
            axes.pop(key, None)
            value = override.value()
            values[key] = value if isinstance(value, bool | int | float) else override.get_value_string()
    return Study.from_tree({**study.tree(), "name": name, "overrides": values, "axes": axes})


def _axis(key: str, text: str, reader: Overrides) -> list[str]:
    """The values of an axis, each as typed."""
    if key.partition(".")[0] in NOT_HASHED:
        raise UsageError(key, "cannot be an axis: with another value it is the same run", text, "Give it one value.")
    override = reader.read(f"{key}={text}")
    found = texts(override, reader.options.get(key, ()))
    if key in GROUPS:
        for option in found:
            reader.option(key, reader.read(f"{key}={option}").value())
    return found


def _product(axes: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Every combination, the last axis fastest, `seed` slowest; the keys in the order of the axes."""
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
