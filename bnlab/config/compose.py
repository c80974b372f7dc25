"""Composing a spec with Hydra's Compose API: once for each combination of groups, then values are set in copies.
Entries of plugins that have no YAML are options too.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.config.overrides import Overrides, texts, value_of
from bnlab.config.places import FOR_EDITORS, available, below, config_dirs, contents, packaged_dir, read
from bnlab.core.errors import UsageError, nearest
from bnlab.core.registry import READ, Registry, load_plugins
from bnlab.core.spec import GROUPS, RunSpec
from bnlab.core.text import leaves
from bnlab.core.typed import option_defaults, option_names

RENAMED = {
    "quickstart": "deep_mlp",
    "santurkar_dln": "santurkar_linear",
    "santurkar_dln_small": "santurkar_linear_small",
}
"""Experiments that once had the name of a study, whose folder their runs then shared."""


@dataclass(frozen=True, slots=True)
class _Composed:
    """What Hydra composed, as it has it and plain, and the files that it read, by their names below the directories of
    configs. Nobody changes it."""

    tree: DictConfig
    plain: dict[str, Any]
    files: dict[str, bytes]


_COMPOSED: dict[tuple[str, tuple[str, ...]], _Composed] = {}
"""By experiment and options of groups: what this process composed last."""


class Composer:
    """Specs of the experiment `name`. To compose takes Hydra 40 ms, so that a process composes once for each
    combination of groups; and a copy of what it composed 8 ms, so that values are set in a plain copy, unless one
    refers to another (`seed=${model.depth}`), which takes OmegaConf to resolve. Needs Hydra set up."""

    def __init__(self, name: str, overrides: Overrides, key: str = "--config") -> None:
        """Raises UsageError for an unknown experiment, as the mistake of `key`."""
        experiments = available("experiments", overrides.dirs)
        if name not in experiments:
            hint = nearest(name, experiments)
            if name in RENAMED:
                hint = f"It is named {RENAMED[name]} now."
            elif name in available("studies", overrides.dirs):
                hint = f"It is a study: bnlab sweep --config {name}."
            raise UsageError(key, "no such experiment", name, hint)
        self.name, self.file, self.overrides = name, experiments[name], overrides
        self._bases: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any]]] = {}

    def spec(self, overrides: Sequence[str]) -> RunSpec:
        """The spec of one run.

        Raises:
            UsageError: an unknown group option or key, a wrong type or value, an override bnlab does not take.
        """
        choices, values = self.overrides.split(overrides)
        tree, plain = self._base(choices)
        known = dict(leaves(plain))
        for override in values.values():
            _refuse_unknown_key(override, known)
        typed = {key: value_of(override) for key, override in values.items()}
        refers = "${" in f"{plain}{typed}"  # a value refers to another key
        found = self._resolved(tree, typed) if refers else _with(plain, typed)
        _one_length(found, list(values))
        return RunSpec.from_tree(resolved(rounded(found)))

    def applicable(self, overrides: Sequence[str], droppable: Collection[str]) -> list[str]:
        """The overrides, less those of `droppable` keys that the chosen options do not have."""
        known = dict(leaves(self._base(self.overrides.split(overrides)[0])[1])) if droppable else {}
        return [text for text in overrides if (key := text.partition("=")[0]) not in droppable or key in known]

    def values(self, choices: Mapping[str, str]) -> dict[str, Any]:
        """Every key that can be set where these options of groups are chosen, and what it is if it is not.

        Raises:
            UsageError: an unknown group option.
        """
        chosen = {group: self.overrides.option(group, option) for group, option in choices.items()}
        return dict(leaves(self._base(chosen)[1]))

    def _resolved(self, base: DictConfig, values: Mapping[str, Any]) -> dict[str, Any]:
        tree = copy.deepcopy(base)
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

    def _base(self, choices: Mapping[str, str]) -> tuple[DictConfig, dict[str, Any]]:
        """What these options of groups compose to, as Hydra has it and plain."""
        key = tuple(f"{group}={option}" for group, option in choices.items())
        if key not in self._bases:
            dirs = self.overrides.dirs
            found = _COMPOSED.get((self.name, key))
            if found is None or found.files != contents(found.files, dirs):
                _Checked.loaded = {self.file}
                tree = self._composed(list(key))
                plain: Any = OmegaConf.to_container(tree)
                names = {below(file, dirs) for file in _Checked.loaded}
                found = _Composed(tree, plain, contents(names, dirs))
                _COMPOSED[self.name, key] = found
            self._bases[key] = found.tree, found.plain
        return self._bases[key]

    def _read(self, choices: list[str]) -> tuple[DictConfig, DictConfig]:
        """The experiment as Hydra composes it, and the groups without its settings. A file without `defaults` holds
        what is other than in `run.yaml`: keys, and options of groups by their names, such as `norm: layer`."""
        own = read(self.file)
        if "defaults" in own:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of `defaults` without _self_, which then comes last
                tree = compose(f"experiments/{self.name}", overrides=choices)
            if "steps" not in tree:
                problem = "has `defaults` without /run"
                raise UsageError(str(self.file), problem, remedy="Put /run first, or leave out all.")
            return tree, compose("run", overrides=choices) if choices else tree
        named = [group for group in GROUPS if isinstance(own.get(group), str)]
        chosen = {group: self.overrides.option(group, own.pop(group)) for group in named}
        typed = dict(choice.split("=", 1) for choice in choices)
        plain = compose("run", overrides=[f"{group}={option}" for group, option in {**chosen, **typed}.items()])
        OmegaConf.set_struct(plain, False)
        return cast(DictConfig, OmegaConf.merge(plain, {"name": self.name}, own)), plain

    def _composed(self, choices: list[str]) -> DictConfig:
        try:
            tree, plain = self._read(choices)
            # The experiment's settings of its own model do not hold for another one that the user chooses.
            for group in (choice.partition("=")[0] for choice in choices):
                tree[group] = OmegaConf.masked_copy(tree[group], list(plain[group]))
            OmegaConf.set_struct(tree, True)
            missing = OmegaConf.missing_keys(tree)
        except (HydraException, OmegaConfBaseException) as error:
            problem = " ".join(str(error).partition("Config search path")[0].split())
            raise UsageError(str(self.file), problem.rstrip(".")) from None
        except RecursionError:
            raise UsageError(str(self.file), "its defaults, or values, refer to each other without an end") from None
        if missing:
            raise UsageError(min(missing), "missing", remedy=f"Experiment {self.name} must give it a value.")
        return tree


@contextmanager
def hydra_over(dirs: Sequence[Path]) -> Iterator[Overrides]:
    """Hydra's global state, set up over `dirs` and taken down again; what reads overrides meanwhile. A last directory,
    empty at first, is for entries of plugins: what they add for one call is not there for the next."""
    READ.clear()  # an edited plugin makes other runs
    with tempfile.TemporaryDirectory(prefix="bnlab-") as own:
        searched = [*dirs, Path(own)]
        GlobalHydra.instance().clear()
        _MorePaths.dirs = [str(folder.resolve()) for folder in dirs]
        Plugins.instance().register(_MorePaths)
        Plugins.instance().register(_Checked)
        base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
        with initialize_config_dir(own, job_name="bnlab", **base):
            yield Overrides(searched)


class _MorePaths(SearchPathPlugin):
    """Appends the user's configs, and the packaged ones behind them."""

    dirs: Sequence[str] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.dirs:
            search_path.append("bnlab", f"{_Checked.scheme()}://{folder}")


class _Checked(ConfigSource):
    """The YAML below a folder, each file checked before Hydra has it."""

    loaded: ClassVar[set[Path]] = set()

    @staticmethod
    def scheme() -> str:
        return "checked"

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        config = read(file)
        self.loaded.add(file)
        try:
            # Hydra's header ends at the first other comment.
            lines = file.read_text(encoding="utf-8")[:512].splitlines()
            header = self._get_header_dict("\n".join(line for line in lines if not line.startswith(FOR_EDITORS)))
        except ValueError as error:
            raise UsageError(str(file), f"its first lines cannot be read: {error}") from None
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header=header)

    def available(self) -> bool:
        return self.is_group("")

    def is_group(self, config_path: str) -> bool:
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        there = Path(self.path, config_path).iterdir()
        wanted = {True, False} if results_filter is None else {results_filter is ObjectType.GROUP}
        return sorted({path.stem for path in there if path.is_dir() in wanted})

    def _file(self, config_path: str) -> Path:
        return Path(self.path, self._normalize_file_name(config_path))


def _refuse_unknown_key(override: Override, known: Mapping[str, Any]) -> None:
    """Raises UsageError for a key that does not exist, that the chosen option of its group lacks, or that is a group of
    keys."""
    key = override.key_or_group
    if key in known:
        return
    if below := [leaf for leaf in known if leaf.startswith(f"{key}.")]:
        raise UsageError(key, "a group of keys, not a key", override.value(), f"Set one of {', '.join(below)}.")
    group, _, last = key.partition(".")
    if group not in GROUPS:
        raise UsageError(key, "no such key", remedy=nearest(key, [*known, *GROUPS]))
    inside = [leaf.partition(".")[2] for leaf in known if leaf.startswith(f"{group}.") and leaf != f"{group}.name"]
    hint, chosen = nearest(last, inside), known.get(f"{group}.name")
    if hint.startswith("Did you mean: "):
        raise UsageError(key, "no such key", remedy=hint.replace(": ", f": {group}."))
    owner = f"{group}={chosen} has" if chosen else "the chosen probes have"
    raise UsageError(key, f"{owner} no such option", override.value(), hint)


def _with(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with these values at dotted keys."""
    plain: dict[str, Any] = copy.deepcopy(dict(tree))
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
    for key in ("steps", "epochs"):
        tree.setdefault(key, None)
    if tree["steps"] is not None and tree["epochs"] is not None:
        if not typed:
            raise UsageError("epochs", "cannot go with steps", tree["epochs"], "Write `steps: null` beside it.")
        tree["steps" if typed == ["epochs"] else "epochs"] = None
    if tree["steps"] is None and tree["epochs"] is None:
        raise UsageError("steps", "missing", remedy="Give steps or epochs.")


def resolved(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree with the device of this machine in place of `device: auto`."""
    if tree.get("device") != "auto":
        return tree
    from bnlab.run.host import best_device  # which imports torch

    return {**tree, "device": best_device()}


def rounded(value: Any) -> Any:
    """Floats to 12 significant digits, so that 0.1 + 0.2 and 0.3 are one learning rate and one run."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def offer_plugins(experiment: str, overrides: Sequence[str], reader: Overrides) -> None:
    """Add to the options of `reader`, and to what Hydra finds, the entries without a YAML of the plugins that the
    overrides name, or else the experiment. They are loaded only if an override chooses an option that is not found
    without them, since that imports torch.

    Raises:
        UsageError: a plugin that cannot be loaded, or an entry that is chosen and has an option without a value.
    """
    read = [reader.read(text) for text in overrides]
    groups = [override for override in read if override.key_or_group in GROUPS]
    chosen = {(one.key_or_group, name) for one in groups for name in texts(one, reader.options[one.key_or_group])}
    probes = [name for group, name in chosen if group == "probes"]
    chosen |= {("probes", part) for name in probes for part in name.split("+")}
    for name in sorted({name for group, name in chosen if group == "probes"}):
        _offer_probe(name, reader)
    if all(name in reader.options[group] for group, name in chosen):
        return
    given = [one.value() for one in read if one.key_or_group == "plugins" and not one.is_sweep_override()]
    files: Any = given[0] if given else []
    if not given and experiment in available("experiments", reader.dirs):
        files = OmegaConf.to_container(compose(f"experiments/{experiment}").plugins)
    for registry, name in load_plugins([str(file) for file in files] if isinstance(files, list) else []):
        if registry.group in GROUPS:
            _offer(registry, name, reader, chosen=(registry.group, name) in chosen)
    for name in probes:
        _offer_probe(name, reader)


def _offer(registry: Registry[Any], name: str, reader: Overrides, *, chosen: bool) -> None:
    """Make an entry of a plugin an option, from a YAML or from the defaults of its constructor."""
    group, constructor = registry.group, registry.entry(name).constructor
    defaults = option_defaults(constructor)
    folder, own = ("probes/one", {"every": 1}) if group == "probes" else (group, {"name": name})
    if name not in available(folder, reader.dirs):
        lacking = [option for option in option_names(constructor) if option not in defaults]
        if lacking and chosen:
            remedy = f"Give it a default in the constructor of {name}, or a value in configs/{folder}/{name}.yaml."
            raise UsageError(f"{group}.{lacking[0]}", "missing", remedy=remedy)
        # The YAML of a group whose name begins with `_` has the keys that all its entries share.
        shared = [file.stem for file in (packaged_dir() / folder).glob("_*.yaml")]
        try:
            reader.offer(folder, name, {"defaults": [*shared, "_self_"], **own, **defaults})
        except OmegaConfBaseException:
            raise UsageError(f"{group}={name}", "YAML cannot hold a default in its constructor") from None
    if group == "probes":
        _offer_probe(name, reader)


def _offer_probe(name: str, reader: Overrides) -> None:
    """Make `probes=A+B` the probes of the preset A and the single probe B, and `probes=B` those of `economy` and B,
    unless there is a YAML of this name."""
    presets, single = available("probes", reader.dirs), available("probes/one", reader.dirs)
    first, *more = name.split("+")
    base, added = (first, more) if first in presets else ("economy", [first, *more])
    if name not in presets and set(added) <= single.keys():
        there = _single_probes(base, presets)
        new = [f"one/{probe}@{probe}" for probe in dict.fromkeys(added) if probe not in there]
        reader.offer("probes", name, {"defaults": [base, *new, "_self_"]})


def _single_probes(preset: str, presets: Mapping[str, Path]) -> set[str]:
    """The probes of a preset, those of the presets in its defaults included."""
    found: set[str] = set()
    for part in read(presets[preset]).get("defaults", []):
        own = str(part).removeprefix("one/").partition("@")[0]
        found |= {own} if str(part).startswith("one/") else _single_probes(own, presets) if own in presets else set()
    return found


def load(name: str, overrides: Sequence[str], user_dir: Path | None = None) -> RunSpec:
    """The spec of experiment `name` with the overrides of one run.

    Raises:
        UsageError: an unknown experiment, group option or key, a wrong type or value, an override bnlab does not take.
    """
    with hydra_over(config_dirs(user_dir)) as reader:
        composer = Composer(name, reader)
        offer_plugins(name, overrides, reader)
        return composer.spec(overrides)
