"""What a worker of a sweep does: it trains a group of runs, several at once where they can be in one stack."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bnlab.core.errors import UsageError
from bnlab.core.registry import READ, Plugin
from bnlab.core.spec import RunSpec
from bnlab.launch.local import stop_reason
from bnlab.record.folder import BusyError, RunFolder

if TYPE_CHECKING:
    from bnlab.board.events import Profile

BUSY, REFUSED = "busy", "refused"
"""Further results of a run, beside the status of a run: another process trains the run; its spec cannot be set up, and
nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A run to train or to resume: what an executor receives. `fresh`: from step 0, unless it began `since` then, as
    where a scheduler starts its process a second time. `plugins` are as the sweep has read them, so that all its runs
    are made with one content whenever they start; `provenance` goes into its spec.yaml; `profile` is that of its event
    file (board/run.py)."""

    spec: RunSpec
    folder: RunFolder
    fresh: bool
    plugins: Mapping[Path, Plugin]
    provenance: Mapping[str, Any]
    profile: Profile
    since: float = math.inf

    @property
    def specs(self) -> tuple[RunSpec, ...]:
        return (self.spec,)


@dataclass(frozen=True, slots=True)
class Group:
    """Runs for one process, which may train several at once (run/lockstep.py). A parcel (launch/base.py)."""

    tasks: tuple[Task, ...]
    owns: ClassVar[bool] = True

    @property
    def folders(self) -> list[Path]:
        return [task.folder.path for task in self.tasks]

    def moved(self, folders: Sequence[Path]) -> Group:
        pairs = zip(self.tasks, folders, strict=True)
        return Group(tuple(dataclasses.replace(task, folder=RunFolder(path)) for task, path in pairs))

    def without(self, folders: Container[Path]) -> Group | None:
        left = tuple(task for task in self.tasks if task.folder.path.absolute() not in folders)
        return Group(left) if left else None

    def tree(self) -> dict[str, Any]:
        names = ("fresh", "profile", "since")
        tasks = [
            {"spec": task.spec.tree(), "folder": str(task.folder.path), **{name: getattr(task, name) for name in names}}
            for task in self.tasks
        ]
        return {"tasks": tasks, "plugins": sent(self.tasks), "provenance": dict(self.tasks[0].provenance)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Group:
        plugins, provenance = received(tree["plugins"]), tree["provenance"]
        return cls(
            tuple(
                Task(
                    spec=RunSpec.from_tree(one["spec"]),
                    folder=RunFolder(Path(one["folder"])),
                    fresh=one["fresh"],
                    plugins=plugins,
                    provenance=provenance,
                    profile=one["profile"],
                    since=one["since"],
                )
                for one in tree["tasks"]
            )
        )


def sent(tasks: Iterable[Any]) -> dict[str, Any]:
    """The plugins of tasks for another machine, by their names in the specs."""
    plugins = {file: task.plugins for task in tasks for spec in task.specs for file in spec.plugins}
    return {file: read[Path(file).resolve()].tree() for file, read in plugins.items()}


def received(plugins: Mapping[str, Any]) -> dict[Path, Plugin]:
    """What `sent` gave, as this process reads plugins."""
    paths = {file: Path(file).resolve() for file in plugins}
    return {path: Plugin.from_tree(path, plugins[file]) for file, path in paths.items()}


def train_group(group: Group, stopped: Callable[[], str | None]) -> dict[str, dict[str, Any]]:
    """Train the runs in this process; returns the final status of each by its id. An error in a run gives the status
    `failed`, with its `error`. Runs that cannot be trained at once are left, but for the first."""
    from bnlab.run import host, lockstep
    from bnlab.run.setup import assemble
    from bnlab.run.train import Run, opened

    found: dict[str, dict[str, Any]] = {}
    waiting = deque(group.tasks)
    begun: list[contextlib.ExitStack] = []
    shared: dict[str, Any] = {}

    def following() -> lockstep.Member[str] | None:
        while waiting and stopped() is None:
            task = waiting.popleft()
            closing = contextlib.ExitStack()
            READ.update(task.plugins)
            host.limit(task.spec.launch.timeout)
            try:
                entered = opened(
                    assemble(task.spec, shared),
                    task.folder,
                    fresh=task.fresh and not task.folder.begun_since(task.since),
                    provenance=task.provenance,
                    profile=task.profile,
                )
                run = closing.enter_context(entered)
            except (Exception, SystemExit) as error:
                found[task.spec.id] = _failure(lockstep.error_of(error))
                continue
            begun.append(closing)
            if isinstance(run, Run):
                return lockstep.Member(key=task.spec.id, run=run, closing=closing)
            closing.close()
            found[task.spec.id] = run
        return None

    spec = group.tasks[0].spec
    host.prepare(spec.threads)
    first = following()
    if first is None:
        return found
    setup = first.run.setup
    alone = spec.launch.lockstep == "off" or lockstep.alone_because(setup)
    size = 1 if alone else min(len(group.tasks), lockstep.places(setup, spec.launch.lockstep))
    if size == 1:
        done = iter([lockstep.closed(lockstep.go_on_alone(first, stopped, begin=True))])
    else:
        done = lockstep.train_together(first, size, following, stopped)
    try:
        for member in done:
            result = member.result
            found[member.key] = _failure(result) if isinstance(result, Exception) else result or {}
    finally:
        host.limit(None)
        for closing in begun:  # of runs that something stopped which is no error of theirs, such as Ctrl-C
            closing.close()
    return found


def _failure(error: Exception) -> dict[str, Any]:
    """What an error makes of a run."""
    from bnlab.run.train import RunFailedError

    if isinstance(error, UsageError):
        return {"status": BUSY if isinstance(error, BusyError) else REFUSED, "error": str(error)}
    cause = (error.__cause__ or error) if isinstance(error, RunFailedError) else error
    return {"status": "failed", "error": f"{type(cause).__name__}: {cause}"}


def train_isolated(group: Group) -> dict[str, dict[str, Any]]:
    """The same in a process of its own: its output goes to the first run's log, and it stops at the sweep's signal or
    when the sweep has ended."""
    log = group.tasks[0].folder.path / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for output in (sys.stdout, sys.stderr):
        output.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable()
    found = train_group(group, stop_reason)
    if found.get(group.tasks[0].spec.id, {}).get("status") == REFUSED:
        with contextlib.suppress(OSError):
            if log.stat().st_size == 0:
                log.unlink()
            os.removedirs(log.parent)  # as far up as they are empty
    return found
