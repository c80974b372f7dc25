"""What every executor does: it runs a function on items, and yields the outcome of each."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import bnlab
from bnlab.core.errors import UsageError
from bnlab.core.registry import EXECUTORS
from bnlab.core.spec import RunSpec

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[Item]):
    """The result of one item: a value, or an error in one line if the function raised or its process died. `whole`: the
    error is one of all that the item has, whether begun or not."""

    item: Item
    value: Any = None
    error: str | None = None
    whole: bool = False


class Executor(Protocol):
    """Runs items. `isolated`: each in its own process; `workers` of them at once."""

    @property
    def isolated(self) -> bool: ...

    @property
    def workers(self) -> int: ...

    def run(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        on_start: Callable[[Item], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Item]]:
        """Yields outcomes in the order in which they are completed. The function must be importable by name, and
        running it twice on an item must do no harm. Takes an item whenever a worker is free, and calls `on_start` with
        it. Calls `stopped` several times a second: once it returns true, no further item starts, and those that run
        stop early. Closing the iterator early stops all of them, without outcomes."""
        ...


@runtime_checkable
class Detaching(Executor, Protocol):
    """An executor whose items run without this process, once they are submitted."""

    say: Callable[[str], None]
    """Is called with lines for the user."""

    def submit(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Any:
        """Have them run, unless an earlier command has done so. `run` collects their outcomes."""
        ...

    def tidy(self, root: Path) -> None:
        """Remove what earlier commands have left in the folder of a study, as far as nothing uses it."""
        ...


class Parcel(Protocol):
    """An item that can go to another machine: plain data of its own, and the run folders that it works on. With `owns`,
    nobody else may work on them meanwhile."""

    @property
    def owns(self) -> bool: ...

    @property
    def folders(self) -> Sequence[Path]: ...

    def moved(self, folders: Sequence[Path]) -> Parcel:
        """The same, with these in the place of its folders."""
        ...

    def without(self, folders: Container[Path]) -> Parcel | None:
        """What is left of it without the runs in these folders, which are absolute."""
        ...

    def tree(self) -> dict[str, Any]:
        """As JSON has it."""
        ...

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Parcel: ...


def to_text(function: Callable[[Any], Any], item: Parcel) -> str:
    """A function of bnlab and its item for a process on another machine. It names code, and has none but plugins, as
    they were read, with their hashes."""
    job = {"bnlab": bnlab.__version__, "function": _name(function), "item": _name(type(item)), "tree": item.tree()}
    return json.dumps(job)


def from_text(text: str) -> tuple[Callable[[Any], Any], Parcel]:
    """What `to_text` was given.

    Raises:
        UsageError: it was written by another version of bnlab, or names what is not bnlab's.
    """
    job = json.loads(text)
    if (sent := job["bnlab"]) != bnlab.__version__:
        remedy = f"Install bnlab {sent} there, or start the sweep with the version that is there."
        raise UsageError("launch", f"the sweep has bnlab {sent}, and this machine another", bnlab.__version__, remedy)
    return _found(job["function"]), _found(job["item"]).from_tree(job["tree"])


def _name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _found(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] != "bnlab" or "." in attribute:
        raise UsageError("launch", "not a part of bnlab", name)
    return getattr(importlib.import_module(module), attribute)


def executor(spec: RunSpec) -> Executor:
    """The executor for runs like this one, with the settings of `launch`.

    Raises:
        UsageError: no such executor, or it does not support the settings.
    """
    found: Executor = EXECUTORS.build(spec.launch.name, spec.launch.options, spec)
    return found


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
