"""Contestants that take turns, so that a noisy machine affects all of them alike.

Each runs in its own thread, or in its own process, but only one at a time: it is given a number of steps, is timed for
just those, and waits until its next turn.
"""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection


class _Over(BaseException):
    """Raised inside a contestant to end it."""


@dataclass
class Contestant:
    """`body(tick)` trains, and calls `tick()` before every step."""

    name: str
    body: Callable[[Callable[[], None]], object]
    slices: list[float] = field(default_factory=list)
    """Seconds for each turn."""

    def __post_init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._granted, self._left, self._over = 0, 0, False
        self._start = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self._thread.start()

    def turn(self, steps: int) -> None:
        """Let it take `steps` steps."""
        self._granted = steps
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise RuntimeError(f"{self.name} failed") from self._error

    def end(self) -> None:
        """Stop it where it waits."""
        self._over = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.body(self._tick)
        except _Over:
            return
        except BaseException as error:
            self._error = error
        self._done.release()

    def _tick(self) -> None:
        if self._left == 0:
            if self._start:
                self.slices.append(time.perf_counter() - self._start)
                self._done.release()
            self._go.acquire()
            if self._over:
                raise _Over
            self._left = self._granted
            self._start = time.perf_counter()
        self._left -= 1


class Apart:
    """A contestant in a process of its own, on its main thread, like a run. A C library may allocate memory differently
    for other threads, which matters where large tensors are created and freed."""

    def __init__(self, name: str, body: Callable[[Callable[[], None]], object]) -> None:
        """`body` runs in a fork of this process, which must have no other threads."""
        self.name, self.slices = name, list[float]()
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run_apart, args=(body, theirs), daemon=True)
        self._process.start()

    def turn(self, steps: int) -> None:
        """Let it take `steps` steps."""
        self._pipe.send(steps)
        took = self._pipe.recv()
        if isinstance(took, str):
            raise RuntimeError(f"{self.name} failed: {took}")
        self.slices.append(took)

    def end(self) -> None:
        """Stop it where it waits."""
        self._pipe.send(None)
        self._process.join()


def _run_apart(body: Callable[[Callable[[], None]], object], pipe: Connection) -> None:
    """The loop of the child process."""
    left, start = 0, 0.0

    def tick() -> None:
        nonlocal left, start
        if left == 0:
            if start:
                pipe.send(time.perf_counter() - start)
            granted = pipe.recv()
            if granted is None:
                raise _Over
            left, start = granted, time.perf_counter()
        left -= 1

    try:
        body(tick)
    except _Over:
        return
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")


def race(contestants: Sequence[Contestant | Apart], *, turns: int, steps: int, warm_up: int = 1) -> None:
    """`turns` turns of `steps` steps for each, in an order that rotates; the first `warm_up` turns are not counted."""
    for index in range(turns):
        shift = index % len(contestants)
        for contestant in [*contestants[shift:], *contestants[:shift]]:
            contestant.turn(steps)
    for contestant in contestants:
        contestant.end()
        del contestant.slices[:warm_up]


def ratio(contestant: Contestant | Apart, reference: Contestant | Apart) -> float:
    """The median over turns of its time over that of the reference in the same round."""
    pairs = zip(contestant.slices, reference.slices, strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)
