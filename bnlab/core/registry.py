"""Name -> entry, for everything that one file adds: norms, models, data sets, optimizers, probes, executors, metrics,
figures.

A norm, model, data set, optimizer, probe or executor is found by its file (`bnlab/norms/batch.py` registers `batch`),
so that listing names imports nothing heavy. The files of metrics and figures may register several entries each; all of
them are imported on the first look-up. A user's own file registers with the same decorators; it joins by
`plugins: [my_norm.py]` or by the entry point `bnlab.plugins`.

A process reads a plugin once, with the modules beside it that it imports. What it has read decides the ids of runs, is
what it executes, and is kept beside each run; an edit has an effect from the next command on.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import bnlab
from bnlab.core.errors import UsageError, cause, nearest, refuse_path, said
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
            if not constructor.__module__.startswith(f"{self.package}."):
                self._import_all()
            self.enter(self.kind(name=name, constructor=constructor, **facts))
            return constructor

        return keep

    def enter(self, entry: E) -> None:
        """Put an entry under its name.

        Raises:
            UsageError: the name is taken.
        """
        name, module = entry.name, entry.constructor.__module__
        taken = self._entries.get(name)
        others = taken is not None and taken.constructor.__module__ != module
        if others or (self.by_file and name in self._files() and module != f"{self.package}.{name}"):
            raise UsageError(f"{self.group}={name}", "registered twice", module, "Rename one of them.")
        self._entries[name] = entry

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

    def registered(self) -> list[E]:
        """Those that have registered so far."""
        return list(self._entries.values())

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
        """Call the constructor with what bnlab gives and the user's options, checked against its annotations.

        Raises:
            UsageError: see `checked`; or a plugin's constructor raises an error.
        """
        constructor, checked = self[name].constructor, self.checked(name, options, prefix)
        try:
            return constructor(*given, **checked)
        except (Exception, SystemExit) as error:
            if isinstance(error, UsageError) or not constructor.__module__.startswith(PLUGIN):
                raise
            raise UsageError(f"{self.group}={name}", f"its constructor fails: {cause(error)}") from error


REGISTRIES: list[Registry[Any]] = []
"""Every registry that has been imported."""

NORMS = Registry("norm", "bnlab.norms", Entry)
MODELS = Registry("model", "bnlab.models", Entry)
DATA = Registry("data", "bnlab.data", Entry)
OPTIMIZERS = Registry("optim", "bnlab.optim", Entry)
PROBES = Registry("probes", "bnlab.probes", Entry)
EXECUTORS = Registry("launch", "bnlab.launch", Entry)

PLUGIN = "bnlab_plugin_"
"""How the names of modules begin that plugins are executed as."""

Registered = list[tuple[Registry[Any], str]]
"""What a plugin brought: registries and names in them."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A file as it was read. `files` has its content, then that of the modules beside it that it imports and that these
    import, by their paths below its folder."""

    path: Path
    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """Of the content, wherever the files are: of one the sha256, of several that of their names and digests."""
        own, *beside = [(name, hashlib.sha256(content).hexdigest()) for name, content in self.files.items()]
        return hashlib.sha256(repr([own[1], *sorted(beside)]).encode()).hexdigest() if beside else own[1]

    @property
    def module(self) -> str:
        """The name of the module that it is executed as: one content is one module."""
        return f"{PLUGIN}{self.path.stem}_{self.digest[:8]}"

    def tree(self) -> dict[str, Any]:
        """As JSON has it, with its hash."""
        files = {name: base64.b64encode(content).decode() for name, content in self.files.items()}
        return {"digest": self.digest, "files": files}

    @classmethod
    def from_tree(cls, path: Path, tree: Mapping[str, Any]) -> Plugin:
        """What `tree` gave, for `path` on this machine.

        Raises:
            UsageError: the content has another hash.
        """
        found = cls(path, {name: base64.b64decode(content) for name, content in tree["files"].items()})
        if found.digest != tree["digest"]:
            raise UsageError("plugins", f"{path.name} has another content than when it was sent", found.digest[:8])
        return found


READ: dict[Path, Plugin] = {}
"""What this process has read, or was given by the process that started it; emptied where a command begins."""
_EXECUTED: dict[str, Plugin] = {}
"""By module, the last one last."""
_BROUGHT: dict[str, list[tuple[Registry[Any], Any]]] = {}
"""Registries and entries by module or entry point, since a plugin is executed once in a process."""


def read_plugin(file: str) -> Plugin:
    """What this process has read of a file, now or before.

    Raises:
        UsageError: there is no such file.
    """
    path = _path(file)
    if path not in READ:
        if not path.is_file():
            raise UsageError("plugins", "no such file", file, "Give a path to a Python file.")
        READ[path] = Plugin(path, _with_modules(path))
    return READ[path]


def _path(file: str) -> Path:
    if "\0" in file:
        raise UsageError("plugins", "no such file", file, "Give a path to a Python file.")
    return Path(file).resolve()


def digest(file: str) -> str | None:
    """The digest of a plugin; None where there is no such file."""
    try:
        return read_plugin(file).digest
    except UsageError:
        return None


def _with_modules(path: Path) -> dict[str, bytes]:
    """The content of the file and of the modules beside it that it imports; bnlab and the standard library are none."""
    found, waiting = {path.name: path.read_bytes()}, [path.name]
    while waiting:
        place = waiting.pop()
        for parts in _imported(found[place], PurePosixPath(place)):
            names = ["/".join(parts[: count + 1]) for count in range(len(parts))]  # `a.b` is `a` and `a/b`
            for file in (f"{name}{end}" for name in names for end in (".py", "/__init__.py")):
                if file not in found and parts[0] not in NOT_BESIDE and (path.parent / file).is_file():
                    found[file] = (path.parent / file).read_bytes()
                    waiting.append(file)
    return found


NOT_BESIDE = {"bnlab", *sys.stdlib_module_names}


def _imported(source: bytes, place: PurePosixPath) -> Iterator[list[str]]:
    """The parts of each dotted name that the file at `place` may import."""
    with contextlib.suppress(SyntaxError, ValueError, IndexError):  # told when it is executed
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                level = node.level if isinstance(node, ast.ImportFrom) else 0
                above = [*place.parents[level - 1].parts] if level else []
                above += (getattr(node, "module", None) or "").split(".")
                yield from ([part for part in (*above, *alias.name.split(".")) if part] for alias in node.names)


class _Read(importlib.abc.SourceLoader):
    """Executes what was read of a file, whatever the file has now."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: bytes | str) -> bytes:
        return self.content


class _Beside(importlib.abc.MetaPathFinder):
    """Finds the modules beside plugins among what was read."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        name = fullname.replace(".", "/")
        for plugin in reversed(_EXECUTED.values()):
            for place in {f"{name}.py", f"{name}/__init__.py"} & {*plugin.files} - {plugin.path.name}:
                loader = _Read(plugin.path.parent / place, plugin.files[place])
                return importlib.util.spec_from_loader(fullname, loader)
        return None


sys.meta_path.insert(0, _Beside())


def load_plugins(files: Iterable[str], *, only: bool = False) -> Registered:
    """Execute the user's own files, and what installed packages offer under `bnlab.plugins`, so that they register;
    what they registered, now or when they were executed before. With `only`, no other plugin's entries remain.

    Raises:
        UsageError: a file that is not there, or that raises an error.
    """
    if only:
        _forget(_BROUGHT)
    brought: Registered = []
    for point in importlib.metadata.entry_points(group="bnlab.plugins"):
        brought += _brought_by(f"entry point {point.name}", point.load)
    for file in files:
        brought += load_plugin(file)
    return brought


def load_plugin(file: str) -> Registered:
    """Execute one file, unless its content was executed before; what it registered. The entries of an earlier content
    of the file are forgotten.

    Raises:
        UsageError: it is not there, or it raises an error.
    """
    path, package = _path(file), Path(bnlab.__file__).parent
    if path.is_file() and path.is_relative_to(package):  # an entry of bnlab's own
        return _registered_in(".".join(("bnlab", *path.relative_to(package).with_suffix("").parts)))
    plugin = read_plugin(file)
    name = plugin.module
    _forget(other for other, one in _EXECUTED.items() if one.path == path and other != name)
    _EXECUTED.pop(name, None)
    _EXECUTED[name] = plugin
    if name in sys.modules:
        return _brought_by(name, lambda: None)
    for place, content in plugin.files.items():  # an earlier content of a module beside it
        helper = place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        loader = getattr(getattr(sys.modules.get(helper), "__spec__", None), "loader", None)
        if isinstance(loader, _Read) and loader.content != content:
            del sys.modules[helper]
    loader = _Read(path, plugin.files[path.name])
    module_spec = importlib.util.spec_from_loader(name, loader)
    assert module_spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(module_spec)
    try:
        return _brought_by(name, lambda: loader.exec_module(module))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UsageError) or not isinstance(error, Exception | SystemExit):
            raise
        raise UsageError("plugins", f"{type(error).__name__} in {path.name}: {said(error)}", file, "Fix it.") from error


def _registered_in(module: str) -> Registered:
    importlib.import_module(module)
    return [(registry, entry.name) for registry, entry in _entries() if entry.constructor.__module__ == module]


def _entries() -> list[tuple[Registry[Any], Any]]:
    return [(registry, entry) for registry in REGISTRIES for entry in registry.registered()]


def _forget(plugins: Iterable[str]) -> None:
    """Forget the entries of these plugins, until they are loaded again."""
    now = {id(entry) for _, entry in _entries()}
    for registry, entry in [pair for plugin in plugins for pair in _BROUGHT.get(plugin, []) if id(pair[1]) in now]:
        registry.forget(entry.name)


def _brought_by(plugin: str, run: Callable[[], object]) -> Registered:
    """Execute a plugin and note what it registered; what it registered when it was executed, if it was before."""
    before = {id(entry) for _, entry in _entries()}

    def new() -> list[tuple[Registry[Any], Any]]:
        """What was registered since, less bnlab's own entries that the plugin imported."""
        found = [(registry, entry) for registry, entry in _entries() if id(entry) not in before]
        return [pair for pair in found if not pair[1].constructor.__module__.startswith(f"{pair[0].package}.")]

    try:
        run()
    except BaseException:
        for registry, entry in new():  # half a plugin is none
            registry.forget(entry.name)
        raise
    _BROUGHT[plugin] = new() or _BROUGHT.get(plugin, [])
    for registry, entry in _BROUGHT[plugin]:
        registry.enter(entry)
    return [(registry, entry.name) for registry, entry in _BROUGHT[plugin]]
