"""What plugins bring that has no YAML: an option of its group all the same, with the defaults in its constructor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.config.grammar import texts
from bnlab.config.overrides import Overrides
from bnlab.config.places import available
from bnlab.core.errors import UsageError
from bnlab.core.registry import Registry, load_plugins
from bnlab.core.spec import GROUPS
from bnlab.core.typed import option_defaults, option_names

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
    if group == "probes" and name not in available(group, reader.dirs):
        store.store(group=group, name=name, node={"defaults": ["economy", f"one/{name}@{name}", "_self_"]})
    if name not in reader.options[group]:
        reader.options[group].append(name)
