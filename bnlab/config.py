"""From `--config NAME` and overrides to a spec: the only importer of hydra.

Hydra's Compose API builds the tree; which overrides may reach it is decided here, since plain Hydra accepts three
things that a laboratory must not: `+key` (a key nothing reads), `~group` (silently another net), `hydra.*` (silently
ignored).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.errors import UsageError, nearest
from bnlab.registry import load_plugins
from bnlab.spec import GROUPS, RunSpec
from bnlab.typed import option_defaults, option_names

SHARED = {"model": "_common", "norm": "_placement", "data": "_feed", "optim": "_rate"}
"""The YAML of each group with the keys that all its entries share."""


def packaged_dir() -> Path:
    """The configs that come with bnlab: in an installed wheel beside the code, in a checkout at its root."""
    here = Path(__file__).parent
    for candidate in (here / "_configs", here.parent / "configs"):
        if (candidate / "run.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"bnlab's own configs are missing from {here}: install bnlab again")


def config_dirs(user_dir: Path | None) -> list[Path]:
    """Where configs are looked for, in this order: the user's directory (`--config-dir`, else ./configs), the
    packaged one.

    Raises:
        UsageError: a `--config-dir` that is not there.
    """
    if user_dir is not None and not user_dir.is_dir():
        raise UsageError("--config-dir", "no such directory", str(user_dir))
    mine = user_dir or Path("configs")
    packaged = packaged_dir()
    if not mine.is_dir() or mine.resolve() == packaged.resolve():
        return [packaged]
    return [mine.resolve(), packaged]


def available(kind: str, dirs: Sequence[Path]) -> dict[str, Path]:
    """Name -> file of every YAML in the folder `kind` of `dirs`; the first directory that has a name wins."""
    found: dict[str, Path] = {}
    for folder in dirs:
        for file in sorted((folder / kind).glob("*.yaml")):
            if not file.stem.startswith("_"):
                found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def description(file: Path) -> str:
    """The comment at the top of a YAML, in one line."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def load(name: str, overrides: Sequence[str], user_dir: Path | None = None) -> RunSpec:
    """The spec of experiment `name` with the overrides of one run.

    Raises:
        UsageError: an unknown experiment, group option or key, a wrong type or value, an override bnlab does not take.
    """
    dirs = config_dirs(user_dir)
    experiments = available("experiments", dirs)
    if name not in experiments:
        raise UsageError("--config", "no such experiment", name, nearest(name, experiments))
    with _hydra(dirs):
        choices, values = _sorted_overrides(overrides)
        offered = _offered(name, choices, values, dirs)
        for key, option in choices.items():
            known = [*available(key, dirs), *offered[key]]
            if option not in known:
                raise UsageError(key, "no such option", option, nearest(option, known))
        tree = _composed(name, [f"{key}={option}" for key, option in choices.items()], dirs)
        for override in values:
            _apply(tree, override)
    try:
        plain: Any = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        raise UsageError(str(error.full_key or name), problem[:1].lower() + problem[1:]) from None
    _one_length(plain, [override.key_or_group for override in values])
    return RunSpec.from_tree(_rounded(plain))


@contextmanager
def _hydra(dirs: Sequence[Path]) -> Iterator[None]:
    """Hydra's global state, set up over `dirs` and taken down again."""
    GlobalHydra.instance().clear()
    _MorePaths.dirs = [str(folder) for folder in dirs[1:]]
    Plugins.instance().register(_MorePaths)
    base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
    store = ConfigStore.instance()
    kept = store.repo
    store.repo = copy.deepcopy(kept)  # what is offered for one spec is not there for the next
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


def _sorted_overrides(overrides: Sequence[str]) -> tuple[dict[str, str], list[Override]]:
    """Choices of a group's option, by group, and values of keys.

    Raises:
        UsageError: what is neither.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    choices: dict[str, str] = {}
    values: dict[str, Override] = {}
    for text in overrides:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException:
            raise UsageError(text, "cannot be read as an override", remedy="Write key=value.") from None
        key = override.key_or_group
        if override.package is not None:
            raise UsageError(f"{key}@{override.package}", "a group has one place", remedy=f"Write {key}=...")
        if override.is_delete():
            raise UsageError(text, "nothing can be removed from a spec", remedy=f"Give {key} another value.")
        if override.is_add() or override.is_force_add():
            remedy = f"Where the key exists, write {key}=... without the +."
            raise UsageError(text, "nothing can be added to a spec, its keys are fixed", remedy=remedy)
        if key == "hydra" or key.startswith("hydra."):
            raise UsageError(
                text, "bnlab is not run by Hydra, so its own settings have no effect", remedy="Leave it out."
            )
        if override.is_sweep_override():
            raise UsageError(
                key, "several values, and `train` makes one run", override.get_value_string(), "Give one of them."
            )
        if key in choices or key in values:
            raise UsageError(key, "given twice", text, "Give it once.")
        if key in GROUPS:
            choices[key] = str(override.value())
        else:
            values[key] = override
    return choices, list(values.values())


def _offered(
    experiment: str, choices: Mapping[str, str], values: Sequence[Override], dirs: Sequence[Path]
) -> dict[str, list[str]]:
    """By group, what plugins bring that has no YAML, with the defaults in their constructors put in its place. They
    are loaded only where a choice is not found without them, since that imports torch.

    Raises:
        UsageError: a plugin that cannot be loaded, or a chosen entry with an option that has no value.
    """
    offered: dict[str, list[str]] = {key: [] for key in GROUPS}
    if all(option in available(key, dirs) for key, option in choices.items()):
        return offered
    given = [override.value() for override in values if override.key_or_group == "plugins"]
    files = given[0] if given else OmegaConf.to_container(_composed(experiment, [], dirs).plugins)
    store = ConfigStore.instance()
    for registry, name in load_plugins([str(file) for file in files] if isinstance(files, list) else []):
        group = registry.group
        defaults = option_defaults(registry.entry(name).constructor)
        folder, shared = ("probes/one", {"every": 1}) if group == "probes" else (group, {"name": name})
        if name not in available(folder, dirs):
            lacking = [option for option in option_names(registry.entry(name).constructor) if option not in defaults]
            if lacking and choices.get(group) == name:
                remedy = f"Give it a default in the constructor of {name}, or a value in configs/{folder}/{name}.yaml."
                raise UsageError(f"{group}.{lacking[0]}", "missing", remedy=remedy)
            first = [] if group == "probes" else [SHARED[group], "_self_"]
            try:
                store.store(group=folder, name=name, node={"defaults": first, **shared, **defaults})
            except OmegaConfBaseException:
                raise UsageError(f"{group}={name}", "a default in its constructor is nothing YAML has") from None
        if group == "probes" and name not in available(group, dirs):
            store.store(group=group, name=name, node={"defaults": ["economy", f"one/{name}@{name}", "_self_"]})
        offered[group].append(name)
    return offered


def _composed(name: str, choices: list[str], dirs: Sequence[Path]) -> DictConfig:
    try:
        tree = compose(f"experiments/{name}", overrides=choices)
        if choices:
            # What the experiment says of its own model does not hold for another one that the user puts in its place.
            plain = compose("run", overrides=choices)
            for group in (choice.partition("=")[0] for choice in choices):
                tree[group] = OmegaConf.masked_copy(tree[group], list(plain[group]))
        OmegaConf.set_struct(tree, True)
        missing = OmegaConf.missing_keys(tree)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        file = available("experiments", dirs)[name]
        raise UsageError(str(file), " ".join(str(error).split()).rstrip(".")) from None
    if missing:
        raise UsageError(min(missing), "missing", remedy=f"Experiment {name} must give it a value.")
    return tree


def _apply(tree: DictConfig, override: Override) -> None:
    """Set one key that exists.

    Raises:
        UsageError: it does not, or it is a group of keys.
    """
    key = override.key_or_group
    known = dict(_leaves(OmegaConf.to_container(tree)))
    if key not in known:
        below = [leaf for leaf in known if leaf.startswith(f"{key}.")]
        if below:
            raise UsageError(key, "a group of keys, not a key", override.value(), f"Set one of {', '.join(below)}.")
        raise UsageError(key, "no such key", remedy=nearest(key, [*known, *GROUPS]))
    try:
        OmegaConf.update(tree, key, override.value())
    except OmegaConfBaseException:
        raise UsageError(key, "cannot take this", override.value()) from None


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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


def _rounded(value: Any) -> Any:
    """Floats to 12 significant digits, so that 0.1 + 0.2 and 0.3 are one learning rate and one run."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value
