"""Name -> entry, for everything that one file adds: norms, models, data sets, optimizers, probes, metrics, figures.

A norm, model, data set, optimizer or probe is found by its file (`bnlab/norms/batch.py` registers `batch`), so that
listing names imports nothing heavy. The files of metrics and figures may register several entries each; all of them are
imported on the first look-up. A user's own file registers with the same decorators; it joins by `plugins: [my_norm.py]`
or by the entry point `bnlab.plugins`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from bnlab.core.errors import UsageError, nearest, refuse_path
from bnlab.core.typed import check_options

Constructor = TypeVar("Constructor", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A constructor under its name. `traits` are facts that others ask about, such as `batch_statistics`; `title` is
    what reports call it, such as `batch norm`, by default its name."""

    name: str
    constructor: Callable[..., Any]
    traits: frozenset[str] = frozenset()
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "traits", frozenset(self.traits))
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """The entries of one kind. `group` is the config key, or the word of an error; `package` is where the files are;
    `kind` is the dataclass that an entry is made of; with `by_file`, a file has the name of its one entry."""

    def __init__(self, group: str, package: str, kind: type[E], *, by_file: bool = True) -> None:
        self.group, self.package, self.kind, self.by_file = group, package, kind, by_file
        self._entries: dict[str, E] = {}
        self._all_imported = by_file
        REGISTRIES.append(self)

    def register(self, name: str, **facts: Any) -> Callable[[Constructor], Constructor]:
        """Decorator: put a constructor or function under `name`. Its keyword-only parameters are its options; `facts`
        are the other fields of the entry, such as `traits` and `title`.

        Raises:
            UsageError: the name is taken, or cannot be that of a file.
        """
        refuse_path(f"{self.group}={name}", name)

        def keep(constructor: Constructor) -> Constructor:
            module = constructor.__module__
            if not module.startswith(f"{self.package}."):
                self._import_all()
            taken = self._entries.get(name)
            others = taken is not None and taken.constructor.__module__ != module
            if others or (self.by_file and name in self._files() and module != f"{self.package}.{name}"):
                raise UsageError(f"{self.group}={name}", "registered twice", module, "Rename one of them.")
            self._entries[name] = self.kind(name=name, constructor=constructor, **facts)
            return constructor

        return keep

    def forget(self, name: str) -> None:
        """As if it had not been registered."""
        self._entries.pop(name, None)

    def names(self) -> list[str]:
        """All names; where each has a file of its own, without importing it."""
        self._import_all()
        return sorted((self._files() if self.by_file else set()) | set(self._entries))

    def entries(self) -> list[E]:
        """All entries, by name."""
        return [self[name] for name in self.names()]

    def _files(self) -> set[str]:
        """The files of bnlab's own entries: those of the package, but for `base` and helpers that begin with `_`."""
        folder = Path(__file__).parents[2].joinpath(*self.package.split("."))
        names = {module.name for module in pkgutil.iter_modules([str(folder)])}
        return {name for name in names if name != "base" and not name.startswith("_")}

    def _import_all(self) -> None:
        if not self._all_imported:
            self._all_imported = True  # first: the files ask for names themselves
            for name in sorted(self._files()):
                importlib.import_module(f"{self.package}.{name}")

    def __getitem__(self, name: str) -> E:
        """The entry of that name.

        Raises:
            UsageError: no such name; the nearest one is proposed.
        """
        if name not in self._entries:
            if name not in self.names():
                raise UsageError(self.group, f"no such {self.noun}", name, nearest(name, self.names()))
            if self.by_file:
                importlib.import_module(f"{self.package}.{name}")
        return self._entries[name]

    entry = __getitem__

    @property
    def noun(self) -> str:
        """What an error calls an entry."""
        return "option" if self.by_file else self.group

    def checked(self, name: str, options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """The user's options as the entry takes them.

        Raises:
            UsageError: no such entry, or an option that it does not know, lacks, or that has the wrong type.
        """
        return check_options(self[name].constructor, options, prefix or self.group)

    def build(self, name: str, options: Mapping[str, Any], *given: Any, prefix: str = "") -> Any:
        """Call the constructor with what bnlab gives and the user's options, checked against its annotations."""
        return self[name].constructor(*given, **self.checked(name, options, prefix))


REGISTRIES: list[Registry[Any]] = []
"""Every registry that has been imported."""

NORMS = Registry("norm", "bnlab.norms", Entry)
MODELS = Registry("model", "bnlab.models", Entry)
DATA = Registry("data", "bnlab.data", Entry)
OPTIMIZERS = Registry("optim", "bnlab.optim", Entry)
PROBES = Registry("probes", "bnlab.probes", Entry)

Registered = list[tuple[Registry[Any], str]]
"""What a plugin brought: registries and names in them."""

_BROUGHT: dict[str, Registered] = {}
"""By plugin, since it runs once in a process."""


def load_plugins(files: Iterable[str]) -> Registered:
    """Run the user's own files, and what installed packages offer under `bnlab.plugins`, so that they register; what
    they registered, now or when they ran before.

    Raises:
        UsageError: a file that is not there, or that raises an error.
    """
    brought: Registered = []
    for point in importlib.metadata.entry_points(group="bnlab.plugins"):
        brought += _brought_by(f"entry point {point.name}", point.load)
    for file in files:
        brought += load_plugin(file)
    return brought


def load_plugin(file: str) -> Registered:
    """Run one file, unless it ran before; what it registered.

    Raises:
        UsageError: it is not there, or it raises an error.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise UsageError("plugins", "no such file", file, "Give a path to a Python file.")
    package = Path(__file__).parents[1]
    if path.is_relative_to(package):  # an entry of bnlab's own
        return _registered_in(".".join(("bnlab", *path.relative_to(package).with_suffix("").parts)))
    module_name = f"bnlab_plugin_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    if module_name in sys.modules:
        return _BROUGHT[module_name]
    loader = importlib.machinery.SourceFileLoader(module_name, str(path))  # whatever the file's name ends in
    module_spec = importlib.util.spec_from_loader(module_name, loader)
    assert module_spec is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    try:
        return _brought_by(module_name, lambda: loader.exec_module(module))
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, UsageError) or not isinstance(error, Exception | SystemExit):
            raise
        raise UsageError("plugins", f"{type(error).__name__} in {path.name}: {error}", file, "Fix it.") from error


def _registered_in(module: str) -> Registered:
    importlib.import_module(module)
    return [
        (registry, name)
        for registry in REGISTRIES
        for name, entry in registry._entries.items()
        if entry.constructor.__module__ == module
    ]


def _brought_by(plugin: str, run: Callable[[], object]) -> Registered:
    """Run a plugin and note what it registered; what it registered when it ran, if it ran before."""
    before = {id(entry) for registry in REGISTRIES for entry in registry._entries.values()}

    def new() -> Registered:
        """What was registered since, less bnlab's own entries that the plugin imported."""
        return [
            (registry, name)
            for registry in REGISTRIES
            for name, entry in registry._entries.items()
            if id(entry) not in before and not entry.constructor.__module__.startswith(f"{registry.package}.")
        ]

    try:
        run()
    except BaseException:
        for registry, name in new():  # half a plugin is none
            registry.forget(name)
        raise
    _BROUGHT[plugin] = new() or _BROUGHT.get(plugin, [])
    return _BROUGHT[plugin]
