"""Composing a spec with Hydra's Compose API: once for each combination of groups, then values are set in copies.
Entries of plugins that have no YAML are options too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.config.overrides import Overrides, texts
from bnlab.config.places import available, config_dirs
from bnlab.core.errors import UsageError, nearest
from bnlab.core.registry import Registry, load_plugins
from bnlab.core.spec import GROUPS, RunSpec
from bnlab.core.text import leaves
from bnlab.core.typed import option_defaults, option_names


@dataclass(frozen=True, slots=True)
class _Base:
    """What one combination of groups composes to, as Hydra has it and plain, and the keys in it."""

    tree: DictConfig
    plain: dict[str, Any]
    known: tuple[str, ...]


class Composer:
    """Specs of the experiment `name`. To compose takes Hydra 40 ms, so that a grid composes once for each combination
    of its groups; and a copy of what it composed 8 ms, so that values are set in a plain copy, unless one refers to
    another (`seed=${model.depth}`), which takes OmegaConf to resolve. Needs Hydra set up."""

    def __init__(self, name: str, dirs: Sequence[Path], overrides: Overrides) -> None:
        """Raises UsageError for an unknown experiment."""
        experiments = available("experiments", dirs)
        if name not in experiments:
            raise UsageError("--config", "no such experiment", name, nearest(name, experiments))
        self.name, self.file, self.overrides = name, experiments[name], overrides
        self._bases: dict[tuple[str, ...], _Base] = {}

    def spec(self, overrides: Sequence[str]) -> RunSpec:
        """The spec of one run.

        Raises:
            UsageError: an unknown group option or key, a wrong type or value, an override bnlab does not take.
        """
        choices, values = self.overrides.split(overrides)
        base = self._base(tuple(f"{group}={option}" for group, option in choices.items()))
        for override in values.values():
            _refuse_unknown_key(override, base.known)
        set_values = {key: override.value() for key, override in values.items()}
        plain = self._resolved(base, set_values) if _refers([base.plain, set_values]) else _with(base, set_values)
        _one_length(plain, list(values))
        return RunSpec.from_tree(resolved(rounded(plain)))

    def values(self, choices: Mapping[str, str]) -> dict[str, Any]:
        """Every key that can be set where these options of groups are chosen, and what it is if it is not.

        Raises:
            UsageError: an unknown group option.
        """
        chosen = tuple(f"{group}={self.overrides.option(group, option)}" for group, option in choices.items())
        return dict(leaves(self._base(chosen).plain))

    def _resolved(self, base: _Base, values: Mapping[str, Any]) -> dict[str, Any]:
        tree = copy.deepcopy(base.tree)
        for key, value in values.items():
            try:
                OmegaConf.update(tree, key, value)
            except OmegaConfBaseException:
                raise UsageError(key, "cannot take this", value) from None
        try:
            plain: Any = OmegaConf.to_container(tree, resolve=True)
        except OmegaConfBaseException as error:
            problem = str(error).splitlines()[0]
            raise UsageError(str(error.full_key or self.name), problem[:1].lower() + problem[1:]) from None
        assert isinstance(plain, dict)
        return plain

    def _base(self, choices: tuple[str, ...]) -> _Base:
        if choices not in self._bases:
            tree = self._composed(list(choices))
            plain: Any = OmegaConf.to_container(tree)
            self._bases[choices] = _Base(tree, plain, tuple(key for key, _ in leaves(plain)))
        return self._bases[choices]

    def _composed(self, choices: list[str]) -> DictConfig:
        try:
            tree = compose(f"experiments/{self.name}", overrides=choices)
            if choices:
                # What the experiment says of its own model does not hold for another one that the user puts in its
                # place.
                plain = compose("run", overrides=choices)
                for group in (choice.partition("=")[0] for choice in choices):
                    tree[group] = OmegaConf.masked_copy(tree[group], list(plain[group]))
            OmegaConf.set_struct(tree, True)
            missing = OmegaConf.missing_keys(tree)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise UsageError(str(self.file), " ".join(str(error).split()).rstrip(".")) from None
        if missing:
            raise UsageError(min(missing), "missing", remedy=f"Experiment {self.name} must give it a value.")
        return tree


@contextmanager
def hydra_over(dirs: Sequence[Path]) -> Iterator[None]:
    """Hydra's global state, set up over `dirs` and taken down again."""
    GlobalHydra.instance().clear()
    _MorePaths.dirs = [str(folder) for folder in dirs[1:]]
    Plugins.instance().register(_MorePaths)
    base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
    store = ConfigStore.instance()
    kept = store.repo
    store.repo = copy.deepcopy(kept)  # what plugins offer to one call is not there for the next
    try:
        with initialize_config_dir(str(dirs[0].resolve()), job_name="bnlab", **base):
            yield
    finally:
        store.repo = kept


class _MorePaths(SearchPathPlugin):
    """Appends the packaged configs behind the user's."""

    dirs: tuple[str, ...] | list[str] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.dirs:
            search_path.append("bnlab", f"file://{folder}")


def _refuse_unknown_key(override: Override, known: Sequence[str]) -> None:
    """Raises UsageError for a key that does not exist, or is a group of keys."""
    key = override.key_or_group
    if key not in known:
        below = [leaf for leaf in known if leaf.startswith(f"{key}.")]
        if below:
            raise UsageError(key, "a group of keys, not a key", override.value(), f"Set one of {', '.join(below)}.")
        raise UsageError(key, "no such key", remedy=nearest(key, [*known, *GROUPS]))


def _refers(value: Any) -> bool:
    """Whether a string anywhere in it refers to another key."""
    if isinstance(value, Mapping):
        return any(_refers(item) for item in value.values())
    if isinstance(value, list):
        return any(_refers(item) for item in value)
    return isinstance(value, str) and "${" in value


def _with(base: _Base, values: Mapping[str, Any]) -> dict[str, Any]:
    plain = copy.deepcopy(base.plain)
    for key, value in values.items():
        *groups, last = key.split(".")
        node = plain
        for group in groups:
            node = node[group]
        node[last] = value
    return plain


def _one_length(tree: dict[str, Any], given: Sequence[str]) -> None:
    """`steps` or `epochs`, not both: the one that was typed wins over the one in the file.

    Raises:
        UsageError: both were typed, or neither is set.
    """
    typed = [key for key in ("steps", "epochs") if key in given and tree[key] is not None]
    if len(typed) == 2:
        raise UsageError("epochs", "cannot go with steps", tree["epochs"], "Give one of the two.")
    if tree["steps"] is not None and tree["epochs"] is not None:
        if not typed:
            raise UsageError("epochs", "cannot go with steps", tree["epochs"], "Write `steps: null` beside it.")
        tree["steps" if typed == ["epochs"] else "epochs"] = None
    if tree["steps"] is None and tree["epochs"] is None:
        raise UsageError("steps", "missing", remedy="Give steps or epochs.")


def resolved(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """`device=auto` as the device that it is here."""
    if tree.get("device") != "auto":
        return tree
    from bnlab.run.host import best_device  # which asks torch

    return {**tree, "device": best_device()}


def rounded(value: Any) -> Any:
    """Floats to 12 significant digits, so that 0.1 + 0.2 and 0.3 are one learning rate and one run."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


SHARED = {"model": "_common", "norm": "_placement", "data": "_feed", "optim": "_rate"}
"""The YAML of each group with the keys that all its entries share."""


def offer_plugins(experiment: str, overrides: Sequence[str], reader: Overrides) -> None:
    """Add to the options of `reader`, and to what Hydra finds, the entries without a YAML of the plugins that the
    overrides name, or else the experiment. They are loaded only where an option is asked for that is not found without
    them, since that imports torch.

    Raises:
        UsageError: a plugin that cannot be loaded, or an entry that is asked for with an option that has no value.
    """
    read = [reader.read(text) for text in overrides]
    groups = [override for override in read if override.key_or_group in GROUPS]
    asked = {(one.key_or_group, name) for one in groups for name in texts(one, reader.options[one.key_or_group])}
    for name in {name for group, name in asked if group == "probes"} & available("probes/one", reader.dirs).keys():
        _offer_probe(name, reader)
    if all(name in reader.options[group] for group, name in asked):
        return
    given = [one.value() for one in read if one.key_or_group == "plugins" and not one.is_sweep_override()]
    files: Any = given[0] if given else _plugins_of(experiment, reader)
    for registry, name in load_plugins([str(file) for file in files] if isinstance(files, list) else []):
        if registry.group in GROUPS:
            _offer(registry, name, reader, asked=(registry.group, name) in asked)


def _plugins_of(experiment: str, reader: Overrides) -> Any:
    if experiment not in available("experiments", reader.dirs):
        return []
    return OmegaConf.to_container(compose(f"experiments/{experiment}").plugins)


def _offer(registry: Registry[Any], name: str, reader: Overrides, *, asked: bool) -> None:
    group, constructor, store = registry.group, registry.entry(name).constructor, ConfigStore.instance()
    defaults = option_defaults(constructor)
    folder, shared = ("probes/one", {"every": 1}) if group == "probes" else (group, {"name": name})
    if name not in available(folder, reader.dirs):
        lacking = [option for option in option_names(constructor) if option not in defaults]
        if lacking and asked:
            remedy = f"Give it a default in the constructor of {name}, or a value in configs/{folder}/{name}.yaml."
            raise UsageError(f"{group}.{lacking[0]}", "missing", remedy=remedy)
        first = [] if group == "probes" else [SHARED[group], "_self_"]
        try:
            store.store(group=folder, name=name, node={"defaults": first, **shared, **defaults})
        except OmegaConfBaseException:
            raise UsageError(f"{group}={name}", "a default in its constructor is nothing YAML has") from None
    if group == "probes":
        _offer_probe(name, reader)
    elif name not in reader.options[group]:
        reader.options[group].append(name)


def _offer_probe(name: str, reader: Overrides) -> None:
    """Make `probes=NAME` the probes of `economy` and that one, unless there is a YAML of this name."""
    presets = available("probes", reader.dirs)
    if name not in presets:
        single = f"one/{name}@{name}"
        more = [] if single in presets["economy"].read_text(encoding="utf-8") else [single]
        ConfigStore.instance().store(group="probes", name=name, node={"defaults": ["economy", *more, "_self_"]})
    if name not in reader.options["probes"]:
        reader.options["probes"].append(name)


def load(name: str, overrides: Sequence[str], user_dir: Path | None = None) -> RunSpec:
    """The spec of experiment `name` with the overrides of one run.

    Raises:
        UsageError: an unknown experiment, group option or key, a wrong type or value, an override bnlab does not take.
    """
    dirs = config_dirs(user_dir)
    with hydra_over(dirs):
        reader = Overrides(dirs)
        composer = Composer(name, dirs, reader)
        offer_plugins(name, overrides, reader)
        return composer.spec(overrides)
