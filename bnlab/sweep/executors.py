"""Executors run a function on items and yield the outcome of each: one after the other in this process (`Inline`), or
several at once on this machine, each item in a fresh process of its own (`Local`).

On Linux the processes are forked from a server that has imported torch and never run anything (preload.py): a fresh
process in 20 ms, as isolated as one that starts from nothing in two seconds. Elsewhere they start from nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, process
from typing import Any, Generic, Protocol, TypeVar

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec

TICK_S = 0.1
"""Seconds between two checks whether to stop."""

GRACE_S = 30.0
"""How long a process may take to stop before it is killed; its last checkpoint remains."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[Item]):
    """What came of one item: a value, or an error in one line when the function raised or its process died."""

    item: Item
    value: Any = None
    error: str | None = None


class Executor(Protocol):
    """`run(function, items)` yields outcomes as they are completed, in whatever order. The function must be one that
    can be imported by name, and running it twice on an item must do no harm. One item's death costs that item alone."""

    @property
    def apart(self) -> bool:
        """Whether every item runs in a process of its own."""
        ...

    @property
    def workers(self) -> int:
        """How many items run at once."""
        ...

    def run(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        begun: Callable[[Item], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Item]]:
        """`items` are taken one by one, when a worker is free; `begun` is called with each. `stopped` is called several
        times a second: once it is true no item is begun, and running ones are signalled to stop and have their
        outcomes as usual. Closing the iterator early does the same, without outcomes."""
        ...


class Inline:
    """An executor. An item that kills its process kills the sweep."""

    apart, workers = False, 1

    def run(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        begun: Callable[[Item], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Item]]:
        """See `Executor`; the function itself must ask whether it should stop."""
        waiting = iter(items)
        while not stopped():
            try:
                item = next(waiting)
            except StopIteration:
                return
            begun(item)
            try:
                value = function(item)
            except Exception as error:
                yield Outcome(item=item, error=f"{type(error).__name__}: {error}")
            else:
                yield Outcome(item=item, value=value)


@dataclass(slots=True, kw_only=True)
class _Worker(Generic[Item]):
    """A process that works on an item, with the environment of its place."""

    item: Item
    place: Mapping[str, str]
    process: process.BaseProcess
    asked_at: float | None = None

    def stop(self) -> None:
        """Signal it once; kill it after the grace period."""
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            self.process.terminate()
        elif now - self.asked_at > GRACE_S:
            self.process.kill()


class Local:
    """An executor. `places` are the environments in which items run, one item at a time in each."""

    apart = True

    def __init__(self, places: Sequence[Mapping[str, str]]) -> None:
        self.places = places

    @property
    def workers(self) -> int:
        return len(self.places)

    def run(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        begun: Callable[[Item], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Item]]:
        """See `Executor`."""
        context = _context()
        waiting, places, more = iter(items), deque(self.places), True
        at_work: dict[connection.Connection, _Worker[Item]] = {}
        leaving: list[process.BaseProcess] = []  # have answered already; their end need not be waited for
        try:
            while True:
                stop = stopped()
                while more and places and not stop:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        more = False
                        break
                    begun(item)
                    receiver, worker = _started(context, function, item, places.popleft())
                    at_work[receiver] = worker
                if not at_work:
                    return
                for worker in at_work.values() if stop else ():
                    worker.stop()
                ready: Any
                for ready in connection.wait(list(at_work), TICK_S):
                    worker = at_work.pop(ready)
                    outcome = _outcome(ready, worker)
                    places.append(worker.place)
                    leaving = [one for one in [*leaving, worker.process] if one.is_alive()]
                    yield outcome
        finally:
            while any(worker.process.is_alive() for worker in at_work.values()):
                for worker in at_work.values():
                    worker.stop()
                time.sleep(TICK_S / 10)
            for one in leaving:
                one.join()


def _started(
    context: Any, function: Callable[[Item], Any], item: Item, place: Mapping[str, str]
) -> tuple[connection.Connection, _Worker[Item]]:
    receiver, sender = context.Pipe(duplex=False)
    made = context.Process(target=_work, args=(sender, function, item, dict(place)), daemon=True)
    with _shielded(), _without_main():
        made.start()
    sender.close()  # the process has its own; when that is closed too, it has ended
    return receiver, _Worker(item=item, place=place, process=made)


def _work(sender: connection.Connection, function: Callable[[Item], Any], item: Item, place: dict[str, str]) -> None:
    """What the process does."""
    listen()
    os.environ.update(place)
    answer: tuple[Any, str | None]
    try:
        answer = (function(item), None)
    except Exception as error:
        answer = (None, f"{type(error).__name__}: {error}")
    sender.send(answer)
    sender.close()


def _outcome(receiver: connection.Connection, worker: _Worker[Item]) -> Outcome[Item]:
    with receiver:
        try:
            value, error = receiver.recv()
        except (EOFError, OSError):
            worker.process.join()
            value, error = None, f"its process {_end(worker.process.exitcode or 0)}"
    return Outcome(item=worker.item, value=value, error=error)


def _end(code: int) -> str:
    """How a process ended that did not answer.

    >>> _end(-9), _end(1)
    ('was killed by SIGKILL', 'ended with code 1')
    """
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _context() -> Any:
    """Forks of a server that has torch ready, where processes can be forked safely; fresh interpreters elsewhere."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bnlab.sweep.preload"])
    return context


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """Processes started inside have signals blocked until they unblock them. The server keeps them blocked, since a
    Ctrl-C while it imports would break it."""
    if sys.platform != "linux":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it unblocks signals on its way
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A new process would run the main script once more, for functions defined there; ours are imported by name."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_reasons: list[str] = []


def asked() -> str | None:
    """Why this process should stop, if it should."""
    return _reasons[0] if _reasons else None


def listen() -> None:
    """From now on SIGTERM is noted, and so is the end of the process that started this one, however it ends: what
    trained on would be in the way of the next sweep. A terminal's own signals go to every process on it; they are the
    sweep's to answer."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: _reasons.append("SIGTERM"))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHIELDED)
    threading.Thread(target=_wait_for_the_parent, daemon=True).start()


def _wait_for_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        _reasons.append("the end of the sweep")


SHIELDED = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
"""Signals that are held back from a new process until it listens."""


def executor(spec: RunSpec) -> Executor:
    """The executor for runs like this one.

    Raises:
        UsageError: settings that it cannot follow.
    """
    return EXECUTORS[spec.launch.name](spec)


def _inline(spec: RunSpec) -> Executor:
    if spec.launch.workers not in ("auto", 1):
        raise UsageError(
            "launch.workers", "launch=inline runs one after the other", spec.launch.workers, "Use launch=local."
        )
    return Inline()


def _local(spec: RunSpec) -> Executor:
    devices = _gpus() if spec.device == "cuda" else []
    return Local(places(spec.launch.workers, spec.threads, cores(), devices, spec.launch.per_device))


EXECUTORS: Mapping[str, Callable[[RunSpec], Executor]] = {"inline": _inline, "local": _local}


def places(
    workers: int | str, threads: int, cores: int, devices: Sequence[str], per_device: int
) -> list[dict[str, str]]:
    """The environments of runs at once. On GPUs, `per_device` on each, the GPUs in turn, so that few runs are spread
    over all of them; else as many as have a core for each of their threads.

    >>> places("auto", 1, 16, ["0", "3"], 2)
    [{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '3'}, {'CUDA_VISIBLE_DEVICES': '0'}, \
{'CUDA_VISIBLE_DEVICES': '3'}]
    >>> len(places("auto", 4, 16, [], 1)), len(places(3, 1, 16, [], 1))
    (4, 3)
    """
    if devices:
        found = [{"CUDA_VISIBLE_DEVICES": device} for _ in range(per_device) for device in devices]
        return found if workers == "auto" else found[: int(workers)]
    count = max(1, cores // threads) if workers == "auto" else int(workers)
    return [{} for _ in range(count)]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """Their names as CUDA_VISIBLE_DEVICES takes them; empty where there is none, which every run will say."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name.strip() for name in named.split(",")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
