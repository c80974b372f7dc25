"""A grid brought to its end: what is done is skipped, what was interrupted goes on, and no run is made twice.

Several sweeps may work on one folder at once. The lock of each run (folder.py) decides who has it; the others leave it
alone, and take its result when there is one, or take it over when its process is gone. Torch is imported by the process
that trains.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import bnlab
from bnlab.board.tags import FULL_RUNS
from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.core.study import Cell, Study, varying
from bnlab.record.folder import ENDED, BusyError, RunFolder, write_atomically
from bnlab.record.runs import State, Status, state_of
from bnlab.sweep.executors import Executor, Outcome, asked

if TYPE_CHECKING:
    from bnlab.board.events import Profile

POLL_S = 0.25
"""How often runs that another process trains are looked at, once nothing else is left to do."""

BUSY, REFUSED = "busy", "refused"
"""How else a task may end, beside a run's status: another process trains it; its spec cannot be set up, and nothing was
written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a cell stands. `error` tells in one line why it has no result, where that is known."""

    cell: Cell
    folder: RunFolder
    state: State
    status: Status
    error: str | None = None

    @property
    def failed(self) -> bool:
        return self.state not in DONE and self.error is not None

    @property
    def log(self) -> Path | None:
        """Its log, if it has come so far."""
        path = self.folder.path / "log.txt"
        return path if path.is_file() else None


class Sweep:
    """The cells of a grid below `root`, and where each stands: `standings`, by key, in the order of the cells."""

    def __init__(
        self,
        cells: Sequence[Cell],
        root: Path,
        *,
        fresh: bool = False,
        retry_failed: bool = False,
        provenance: Mapping[str, Any] | None = None,
        tell: Callable[[Standing], None] = lambda standing: None,
    ) -> None:
        """`tell` hears whenever a cell's standing changes.

        Raises:
            UsageError: a status that cannot be read.
        """
        self.fresh, self.tell = fresh, tell
        self.provenance = {**(provenance or {}), "axes": varying(cell.values for cell in cells)}
        self.standings: dict[str, Standing] = {}
        self._has_failed, self._begun_s = False, time.time()
        self._again = {cell.spec.id for cell in cells} if fresh else set()
        """Cells that are run although they have ended, as long as nobody has run them since this sweep began."""
        for cell in cells:
            folder = RunFolder(root / cell.spec.folder)
            state, status = self._now(cell.spec.id, folder)
            error = str(status.get("error", "failed")) if state == "failed" else None
            if error is not None and retry_failed:
                self._again.add(cell.spec.id)
                state, error = "not started", None
            self.standings[cell.spec.id] = Standing(cell=cell, folder=folder, state=state, status=status, error=error)
        self._left = [key for key, standing in self.standings.items() if standing.state not in (*DONE, "failed")]

    @property
    def failures(self) -> list[Standing]:
        """Cells that have no result, and why."""
        return [standing for standing in self.standings.values() if standing.failed]

    @property
    def left(self) -> list[Standing]:
        """Cells that are still to run, or running."""
        return [self.standings[key] for key in self._left]

    def run(
        self,
        executor: Executor,
        *,
        fail_fast: bool = False,
        stopped: Callable[[], str | None] = lambda: None,
        tick: Callable[[], None] = lambda: None,
        elsewhere: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Run what is left, until nothing is, or `stopped` names a reason, or, with `fail_fast`, a run has failed.
        `tick` is called several times a second; `elsewhere` is called with the number of runs that another process
        trains."""

        def stop() -> bool:
            tick()
            return stopped() is not None or (fail_fast and self._has_failed)

        function = train_apart if executor.apart else functools.partial(train_task, stopped=stopped)
        while self._left:
            for outcome in executor.run(function, self._tasks(), begun=self._begun, stopped=stop):
                self._take(outcome)
            if self._left and not stop():
                elsewhere(len(self._left))
            until = time.monotonic() + POLL_S
            while self._left and not stop() and time.monotonic() < until:
                time.sleep(POLL_S / 10)
            if stop():
                return

    def _tasks(self) -> Iterator[Task]:
        """What is left and not running elsewhere; its state is read again just before it is begun."""
        for key in list(self._left):
            standing = self.standings[key]
            state, status = self._now(key, standing.folder)
            if state in (*DONE, "failed"):
                self._settle(key, state, status, str(status.get("error", "failed")) if state == "failed" else None)
            elif state == "running":
                self._stand(key, state, status)
            else:
                yield Task(
                    spec=standing.cell.spec,
                    folder=standing.folder,
                    fresh=self.fresh and key in self._again,
                    provenance=self.provenance,
                    profile="light" if len(self.standings) > FULL_RUNS else "full",
                )

    def _now(self, key: str, folder: RunFolder) -> tuple[State, Status]:
        """The state, and for a cell to be run again that of a run since this sweep began."""
        if key in self._again:
            try:
                run_since = folder.status_file.stat().st_mtime >= self._begun_s
            except OSError:
                run_since = False
            if not run_since:
                return ("running" if folder.alive() else "not started"), {}
        return look(folder)

    def _begun(self, task: Task) -> None:
        self._stand(task.spec.id, "running", {})

    def _take(self, outcome: Outcome[Task]) -> None:
        key, folder = outcome.item.spec.id, outcome.item.folder
        if outcome.error is not None:
            state, status = look(folder)
            self._settle(key, state, status, outcome.error)
            return
        ended = outcome.value["status"]
        if ended == BUSY:
            self._stand(key, "running", {})
        elif ended == REFUSED:
            self._settle(key, "not started", {}, outcome.value["error"])
        elif ended == "interrupted":
            self._again.discard(key)
            self._stand(key, "interrupted", outcome.value)
        else:
            self._settle(key, ended, outcome.value, outcome.value.get("error"))

    def _settle(self, key: str, state: State, status: Status, error: str | None) -> None:
        """Nothing more is to be done about it in this sweep."""
        self._left.remove(key)
        self._again.discard(key)
        self._has_failed |= error is not None
        self._stand(key, state, status, error)

    def _stand(self, key: str, state: State, status: Status, error: str | None = None) -> None:
        before = self.standings[key]
        self.standings[key] = Standing(cell=before.cell, folder=before.folder, state=state, status=status, error=error)
        self.tell(self.standings[key])


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A run to train or to resume. `provenance` goes into its spec.yaml; `profile` is of its
    event file (board/run.py)."""

    spec: RunSpec
    folder: RunFolder
    fresh: bool
    provenance: Mapping[str, Any]
    profile: Profile = "full"


def train_task(task: Task, stopped: Callable[[], str | None]) -> dict[str, Any]:
    """Train it in this process; the final status. An error of the run is a status too: `failed`, with its `error`."""
    from bnlab.run import host
    from bnlab.run.setup import assemble
    from bnlab.run.train import RunFailedError, train

    host.prepare(task.spec.threads)
    try:
        setup = assemble(task.spec)
        return train(
            setup,
            task.folder,
            fresh=task.fresh,
            provenance=task.provenance,
            stopped=stopped,
            profile=task.profile,
        )
    except BusyError as error:
        return {"status": BUSY, "error": str(error)}
    except UsageError as error:
        return {"status": REFUSED, "error": str(error)}
    except RunFailedError as error:
        cause = error.__cause__ or error
        return {"status": "failed", "error": f"{type(cause).__name__}: {cause}"}


def train_apart(task: Task) -> dict[str, Any]:
    """The same in a process that has nothing else to do: what it prints goes to the run's log, and it stops when the
    sweep signals it, or has ended."""
    log = task.folder.path / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for output in (sys.stdout, sys.stderr):
        output.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable()
    status = train_task(task, asked)
    if status["status"] == REFUSED:
        with contextlib.suppress(OSError):
            if log.stat().st_size == 0:
                log.unlink()
            os.removedirs(log.parent)  # as far up as they are empty
    return status


DONE = ENDED
"""States of a cell that has its result."""


def look(folder: RunFolder) -> tuple[State, Status]:
    """The state of a cell now, and its status as it was last written.

    Raises:
        UsageError: a status that cannot be read, so that it is not known whether the run has ended.
    """
    state, status = state_of(folder)
    if state == "unreadable":
        raise UsageError(str(folder.status_file), "cannot be read", remedy="Run it again with --fresh.")
    return state, status


def seconds(status: Status) -> float | None:
    """How long the run took, if it has ended."""
    timing = status.get("timing")
    return timing.get("run_s") if isinstance(timing, Mapping) else None


def write_study(root: Path, study: Study, line: str) -> None:
    """`study.yaml` beside the runs: what they were made for, and the line that was typed.

    Raises:
        UsageError: it cannot be written.
    """
    provenance = {"bnlab": bnlab.__version__, "line": line, "claims": digests(study)}
    text = yaml.safe_dump({**study.tree(), "provenance": provenance}, sort_keys=False, allow_unicode=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(root / "study.yaml", text.encode())
    except OSError as error:
        raise UsageError("--runs", (error.strerror or str(error)).lower(), str(root)) from None


def digests(study: Study) -> dict[str, str]:
    """A digest of each claim: a claim edited after a run was begun has another than is written in that run."""
    return {claim.name: claim.digest for claim in study.claims}
