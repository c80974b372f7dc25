"""How far a sweep is: counts, how long the rest takes, and the plain lines where there is no screen."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from bnlab.sweep.ledger import DONE, seconds
from bnlab.sweep.run import Standing
from bnlab.terminal.progress import next_mark
from bnlab.terminal.signs import duration, say


class Tally:
    """Hears of every standing that changes, and is ticked meanwhile."""

    def __init__(self, standings: Iterable[Standing], workers: int, out: TextIO) -> None:
        self.standings = {standing.cell.spec.id: standing for standing in standings}
        self.workers, self.out = workers, out
        self.elsewhere = 0
        self._start = time.monotonic()
        self._begun: dict[str, float] = {}

    def tell(self, standing: Standing) -> None:
        """A cell stands elsewhere than before."""
        key = standing.cell.spec.id
        self.standings[key] = standing
        if standing.state == "running":
            self._begun.setdefault(key, time.monotonic())
        else:
            self._begun.pop(key, None)

    def wait(self, count: int) -> None:
        """Nothing is left but `count` runs that another process is at work on."""
        self.elsewhere = count

    def tick(self) -> None:
        """Time has passed."""

    def close(self) -> None:
        """Leave the terminal as it was."""

    @property
    def ended(self) -> int:
        """Cells with a result, or with none for good."""
        return sum(standing.state in DONE or standing.failed for standing in self.standings.values())

    def counts(self) -> list[str]:
        """`3 diverged`, `1 failed`: what is worth telling beside how many have ended."""
        states = Counter(standing.state for standing in self.standings.values())
        failed = sum(standing.failed for standing in self.standings.values())
        return [f"{count} {word}" for count, word in ((states["diverged"], "diverged"), (failed, "failed")) if count]

    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def eta_s(self) -> float | None:
        """From the times of runs that have ended: of the same arm at the same learning rate where there are any, else
        of the same arm, else of all. None before the first has."""
        known: dict[tuple[str, ...], list[float]] = {}
        for standing in self.standings.values():
            took = seconds(standing.status) if standing.state in DONE else None
            if took is not None:
                for kind in _kinds(standing):
                    known.setdefault(kind, []).append(took)
        if not known:
            return None
        left, now = 0.0, time.monotonic()
        for key, standing in self.standings.items():
            if standing.state in DONE or standing.failed:
                continue
            expected = next(statistics.fmean(known[kind]) for kind in _kinds(standing) if kind in known)
            left += max(0.0, expected - (now - self._begun.get(key, now)))
        return left / self.workers


def _kinds(standing: Standing) -> list[tuple[str, ...]]:
    """From the narrowest kind of run that this one is of to the widest."""
    spec = standing.cell.spec
    others = [f"{key}={value}" for key, value in standing.cell.values.items() if key not in ("seed", "optim.lr")]
    arm = (spec.norm.name, *others)
    return [(*arm, f"{spec.optim.lr:.12g}"), arm, ()]


def at_work_elsewhere(count: int) -> str:
    """`3 runs are at work in another process`."""
    return f"{count} run{'s are' if count > 1 else ' is'} at work in another process"


class TallyLines(Tally):
    """One line each tenth of the cells."""

    def __init__(self, standings: Iterable[Standing], workers: int, out: TextIO) -> None:
        super().__init__(standings, workers, out)
        if self.ended:
            say(f"{self.ended} of {len(self.standings)} runs have ended already", out)
        self._mark = next_mark(self.ended, len(self.standings))

    def wait(self, count: int) -> None:
        if count != self.elsewhere:
            say(f"{at_work_elsewhere(count)}; waiting", self.out)
        super().wait(count)

    def tell(self, standing: Standing) -> None:
        super().tell(standing)
        if self.ended >= self._mark:
            digits, count = len(str(len(self.standings))), f"{len(self.standings)}"
            figures = [*self.counts(), duration(self.elapsed_s()), f"eta {duration(self.eta_s())}"]
            say("  ".join([f"run {self.ended:>{digits}}/{count}", *figures]), self.out)
            self._mark = next_mark(self.ended, len(self.standings))
