"""One cell of a grid, trained: what an executor is given to do. Torch is imported where it trains."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.record.folder import BusyError, RunFolder
from bnlab.sweep.executors import asked

if TYPE_CHECKING:
    from bnlab.board.events import Profile

BUSY, REFUSED = "busy", "refused"
"""How else a task may end, beside a run's status: another process trains it; its spec cannot be set up, and nothing was
written."""


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
