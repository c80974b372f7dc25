"""On this machine: several items at once, each in a new process.

On Linux the processes are forked from a server that has imported torch and runs nothing (preload.py). That takes 20 ms,
a new interpreter takes two seconds, and both are equally isolated. Other systems start a new interpreter.
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
from typing import Any, Generic

from bnlab.core.registry import EXECUTORS
from bnlab.core.spec import RunSpec
from bnlab.launch.base import Item, Outcome, cores

TICK_S = 0.1
"""Seconds between two checks whether to stop."""

GRACE_S = 30.0
"""How long a process may take to stop before it is killed. Its last checkpoint remains."""


@dataclass(slots=True, kw_only=True)
class _Worker(Generic[Item]):
    """A process that runs an item, with the environment of its place."""

    item: Item
    place: Mapping[str, str]
    process: process.BaseProcess
    signalled_at: float | None = None

    def stop(self) -> None:
        """Send SIGTERM at the first call; kill the process after the grace period."""
        now = time.monotonic()
        if self.signalled_at is None:
            self.signalled_at = now
            self.process.terminate()
        elif now - self.signalled_at > GRACE_S:
            self.process.kill()


class Local:
    """Runs each item in a new process. `places` are the environments of these processes: one item at a time in each."""

    isolated = True

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
        on_start: Callable[[Item], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Item]]:
        """See `base.Executor`. When `stopped` returns true, running items are signalled to stop; their outcomes are
        yielded as usual. If one item's process dies, the others are unaffected."""
        context = _context()
        waiting, places, more = iter(items), deque(self.places), True
        running: dict[connection.Connection, _Worker[Item]] = {}
        exiting: list[process.BaseProcess] = []  # have sent their outcome, but may not have ended yet
        try:
            while True:
                stop = stopped()
                while more and places and not stop:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        more = False
                        break
                    on_start(item)
                    receiver, worker = _start(context, function, item, places.popleft())
                    running[receiver] = worker
                if not running:
                    return
                for worker in running.values() if stop else ():
                    worker.stop()
                ready: Any
                for ready in connection.wait(list(running), TICK_S):
                    worker = running.pop(ready)
                    outcome = _outcome(ready, worker)
                    places.append(worker.place)
                    exiting = [one for one in [*exiting, worker.process] if one.is_alive()]
                    yield outcome
        finally:
            while any(worker.process.is_alive() for worker in running.values()):
                for worker in running.values():
                    worker.stop()
                time.sleep(TICK_S / 10)
            for one in exiting:
                one.join()


def _start(
    context: Any, function: Callable[[Item], Any], item: Item, place: Mapping[str, str]
) -> tuple[connection.Connection, _Worker[Item]]:
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(sender, function, item, dict(place)), daemon=True)
    with _shielded(), _without_main():
        child.start()
    sender.close()  # the process has its own copy; when that is closed too, the process has ended
    return receiver, _Worker(item=item, place=place, process=child)


def _work(sender: connection.Connection, function: Callable[[Item], Any], item: Item, place: dict[str, str]) -> None:
    """The main function of the process: send the value of the function, or its error."""
    watch_for_stop()
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
    """How a process ended that sent no outcome.

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
    """On Linux a server that has imported torch forks the processes; other systems start new interpreters."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bnlab.grids.preload"])
    return context


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """Blocks signals in processes that start inside the `with`, until they unblock them. In the server they stay
    blocked, since a Ctrl-C during its imports would break it."""
    if sys.platform != "linux":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # starting it unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the main script, which a new process would run again to find functions defined there: ours are imported."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_reasons: list[str] = []


def stop_reason() -> str | None:
    """Why this process should stop, if it should."""
    return _reasons[0] if _reasons else None


def watch_for_stop() -> None:
    """From now on, SIGTERM and the end of the parent process, however it ends, are reasons to stop: a run that outlives
    its sweep would block the next one. The terminal's own signals are ignored here, since the sweep handles them."""
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
"""Signals that are blocked in a new process until it handles them."""


@EXECUTORS.register("local")
def local(spec: RunSpec) -> Local:
    """An item for each core, or for each place on a GPU."""
    devices = _gpus() if spec.device == "cuda" else []
    return Local(places(spec.launch.workers, spec.threads, cores(), devices, spec.launch.per_device))


def places(
    workers: int | str, threads: int, cores: int, devices: Sequence[str], per_device: int
) -> list[dict[str, str]]:
    """The environments of runs at the same time. On GPUs `per_device` on each, taking the GPUs in turn, so that a few
    runs are spread over all of them; on CPUs as many as have a core for each of their threads.

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


def _gpus() -> list[str]:
    """Names of the GPUs for CUDA_VISIBLE_DEVICES; empty where there is none, and then every run reports the error."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name.strip() for name in named.split(",")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
