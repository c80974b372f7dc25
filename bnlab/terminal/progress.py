"""How far a run is, told as it trains: the base of the live display, and the plain lines where there is no screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from bnlab.terminal.signs import duration, number, say

Record = Mapping[str, Any]
LINES = 10
"""Plain lines of a whole run."""


class Progress:
    """Counts steps: `tick` is called before every one, `listen` with every record, `finish` with the final status.

    `begun` tells the step the run begins at; it is asked once, at the first tick, since only then it is known.
    """

    def __init__(self, title: str, steps: int, begun: Callable[[], int], out: TextIO) -> None:
        self.title, self.steps, self.begun, self.out = title, steps, begun, out
        self.step = -1  # steps done; below 0 before the first tick
        self.latest: dict[str, Any] = {}
        self._first, self._start = 0, time.monotonic()

    def tick(self) -> None:
        """A step is about to begin."""
        if self.step < 0:
            self._begin()
        else:
            self.step += 1
        self.advanced()

    def listen(self, record: Record) -> None:
        """Remember a record, each figure until its next value comes."""
        self.latest.update(record)

    def finish(self, status: Mapping[str, Any]) -> None:
        """The run has ended with this status."""
        self.step = int(status.get("step", self.step))

    def advanced(self) -> None:
        """`step` is up to date."""

    def close(self) -> None:
        """Leave the terminal as it was."""

    def rate(self) -> float | None:
        """Steps a second since the beginning in this process."""
        elapsed = time.monotonic() - self._start
        return (self.step - self._first) / elapsed if self.step > self._first and elapsed > 0 else None

    def pace(self) -> str:
        """Steps a second, and how long the rest takes."""
        rate = self.rate()
        left = None if rate is None else (self.steps - self.step) / rate
        return f"{number(rate)}/s  eta {duration(left)}"

    def _begin(self) -> None:
        self.step = self._first = self.begun()
        self._start = time.monotonic()
        if self.step > 0:
            say(f"going on from step {self.step} of {self.steps}", self.out)


class PlainLines(Progress):
    """One line each tenth of the run."""

    def __init__(self, title: str, steps: int, begun: Callable[[], int], out: TextIO) -> None:
        super().__init__(title, steps, begun, out)
        self._mark = steps

    def advanced(self) -> None:
        if self.step >= self._mark:
            self._line()
            self._mark = next_mark(self.step, self.steps)

    def finish(self, status: Mapping[str, Any]) -> None:
        super().finish(status)
        if status.get("status") == "finished" and self.step > self._first:
            self._line()

    def _begin(self) -> None:
        say(self.title, self.out)
        super()._begin()
        self._mark = next_mark(self.step, self.steps)

    def _line(self) -> None:
        figures = [
            f"{shown} {number(self.latest[name], 4)}"
            for name, shown in (
                ("train_loss", "loss"),
                ("train_accuracy", "accuracy"),
                ("test_accuracy", "test accuracy"),
            )
            if name in self.latest
        ]
        digits = len(str(self.steps))
        say("  ".join([f"step {self.step:>{digits}}/{self.steps}", *figures, self.pace()]), self.out)


def next_mark(step: int, steps: int) -> int:
    """The first step after `step` that ends a tenth of the run.

    >>> [next_mark(step, 1000) for step in (0, 99, 100, 999)], next_mark(0, 3)
    ([100, 100, 200, 1000], 1)
    """
    tenth = step * LINES // steps
    mark = step
    while mark <= step:
        tenth += 1
        mark = -(-tenth * steps // LINES)
    return mark
