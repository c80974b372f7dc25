"""Name -> constructor, for everything that is one file and one YAML: norms, models, data sets, optimizers, probes.

A name is found by its file (`bnlab/norms/batch.py` registers `batch`), so that listing names imports nothing heavy. A
user's own file registers with the same decorators; it joins by `plugins: [my_norm.py]` or by the entry point
`bnlab.plugins`.
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
from typing import Any, TypeVar

from bnlab.errors import UsageError, nearest
from bnlab.typed import check_options

Constructor = TypeVar("Constructor", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A constructor under its name. `traits` are facts that others ask about, such as `batch_statistics`."""

    name: str
    constructor: Callable[..., Any]
    traits: frozenset[str]


class Registry:
    """The entries of one config group; `group` is the config key, `package` where the files are."""

    def __init__(self, group: str, package: str) -> None:
        self.group, self.package = group, package
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, *, traits: Iterable[str] = ()) -> Callable[[Constructor], Constructor]:
        """Decorator: put a constructor under `name`. Its keyword-only parameters are the options of its YAML."""

        def keep(constructor: Constructor) -> Constructor:
            taken = self._entries.get(name)
            others = taken is not None and taken.constructor.__module__ != constructor.__module__
            if others or (name in self._files() and constructor.__module__ != f"{self.package}.{name}"):
                raise UsageError(
                    f"{self.group}={name}", "registered twice", constructor.__module__, "Rename one of them."
                )
            self._entries[name] = Entry(name=name, constructor=constructor, traits=frozenset(traits))
            return constructor

        return keep

    def forget(self, name: str) -> None:
        """As if it had not been registered."""
        self._entries.pop(name, None)

    def names(self) -> list[str]:
        """All names, without importing what stands behind them."""
        return sorted(self._files() | set(self._entries))

    def _files(self) -> set[str]:
        """The names bnlab itself brings: its files, but for `base` and helpers that begin with `_`."""
        folder = Path(__file__).parent / self.package.rpartition(".")[2]
        names = {module.name for module in pkgutil.iter_modules([str(folder)])}
        return {name for name in names if name != "base" and not name.startswith("_")}

    def entry(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            UsageError: no such name; the nearest one is proposed.
        """
        if name not in self._entries:
            if name not in self.names():
                raise UsageError(self.group, "no such option", name, nearest(name, self.names()))
            importlib.import_module(f"{self.package}.{name}")
        return self._entries[name]

    def build(self, name: str, options: Mapping[str, Any], *given: Any, prefix: str = "") -> Any:
        """Call the constructor with what bnlab gives and the user's options, checked against its annotations."""
        constructor = self.entry(name).constructor
        return constructor(*given, **check_options(constructor, options, prefix or self.group))


NORMS = Registry("norm", "bnlab.norms")
MODELS = Registry("model", "bnlab.models")
DATA = Registry("data", "bnlab.data")
OPTIMIZERS = Registry("optim", "bnlab.optim")
PROBES = Registry("probes", "bnlab.probes")


REGISTRIES = (NORMS, MODELS, DATA, OPTIMIZERS, PROBES)

Registered = list[tuple[Registry, str]]
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
        raise UsageError("plugins", f"{type(error).__name__} in {path.name}: {error}", file, "Mend it.") from error


def _brought_by(plugin: str, run: Callable[[], object]) -> Registered:
    """Run a plugin and note what it registered; what it registered when it ran, if it ran before."""
    before = {registry.group: registry.names() for registry in REGISTRIES}

    def new() -> Registered:
        return [(one, name) for one in REGISTRIES for name in one.names() if name not in before[one.group]]

    try:
        run()
    except BaseException:
        for registry, name in new():  # half a plugin is none
            registry.forget(name)
        raise
    _BROUGHT[plugin] = new() or _BROUGHT.get(plugin, [])
    return _BROUGHT[plugin]
