"""How far a run, a sweep, a count or a download is: plain lines at the tenths, or a bar on a screen."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from bnlab.core.study import varying
from bnlab.core.text import count, duration, file_size, number
from bnlab.record.folder import ENDED
from bnlab.terminal.signs import is_screen, say

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars

    from bnlab.grids.run import Standing

Record = Mapping[str, Any]
INTERVAL_S = 0.25
"""At most four frames a second."""
HEAD_S = 5.0
"""Runs that end sooner after its start have run before a sweep that only collects them."""
BAR_AFTER_S, LINES_AFTER_S = 1.0, 5.0
"""What takes less has no bar, and no lines."""
MEGABYTE = 10**6


class Tenths:
    """The tenths of `total`, as `done` passes them."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self._tenth = total, 0
        self.passed(done)

    def passed(self, done: int) -> bool:
        """Whether a tenth has ended since the last call.

        >>> tenths = Tenths(1000)
        >>> [done for done in range(0, 1001, 50) if tenths.passed(done)][:3]
        [100, 200, 300]
        """
        before, self._tenth = self._tenth, 10 * done // self.total if self.total else 0
        return self._tenth > before


def position(what: str, done: int, total: int) -> str:
    """
    >>> position("step", 2, 100)
    'step   2/100'
    """
    return f"{what} {done:>{len(str(total))}}/{total}"


class Progress:
    """Steps of a run: `tick` is called before every one, `listen` with every record, `finish` with the final status.

    `begun` gives the step at which the run begins; it is called once, at the first tick, when that is known.
    """

    def __init__(self, title: str, steps: int, begun: Callable[[], int], out: TextIO) -> None:
        self.title, self.steps, self.begun, self.out = title, steps, begun, out
        self.step = -1  # steps done; below 0 before the first tick
        self.latest: dict[str, Any] = {}
        self._first, self._start, self._stopped = 0, time.monotonic(), False

    def tick(self) -> None:
        """A step is about to begin."""
        if self.step < 0:
            self._begin()
        else:
            self.step += 1
        self.advanced()

    def listen(self, record: Record) -> None:
        """Keep the latest value of each measurement."""
        self.latest.update(record)

    def finish(self, status: Mapping[str, Any]) -> None:
        """The run has ended with this status."""
        self.step = int(status.get("step", self.step))
        self._stopped = status.get("status") != "finished"

    def advanced(self) -> None:
        """`step` is up to date."""

    def close(self) -> None:
        """Restore the terminal."""

    def rate(self) -> float | None:
        """Steps per second in this process."""
        elapsed = time.monotonic() - self._start
        return (self.step - self._first) / elapsed if self.step > self._first and elapsed > 0 else None

    def pace(self) -> str:
        """Steps per second, and how long the rest takes; nothing of a rest that will not come."""
        rate = self.rate()
        left = None if rate is None else (self.steps - self.step) / rate
        return f"{number(rate)}/s" + ("" if self._stopped else f"  eta {duration(left)}")

    def _begin(self) -> None:
        self.step = self._first = self.begun()
        self._start = time.monotonic()
        if self.step > 0:
            say(f"resuming at step {self.step} of {self.steps}", self.out)


class PlainLines(Progress):
    """One line each tenth of the run, with the latest measurements, and their steps where they are others."""

    def __init__(self, title: str, steps: int, begun: Callable[[], int], out: TextIO) -> None:
        super().__init__(title, steps, begun, out)
        self._tenths = Tenths(steps)
        self._measured: dict[str, int] = {}

    def listen(self, record: Record) -> None:
        super().listen(record)
        self._measured |= dict.fromkeys(record, int(record["step"]))

    def advanced(self) -> None:
        if self._tenths.passed(self.step):
            self._line()

    def finish(self, status: Mapping[str, Any]) -> None:
        begun = self.step >= 0
        super().finish(status)
        if begun and status.get("status") == "finished" and self.step > self._first:
            self._line()

    def _begin(self) -> None:
        say(self.title, self.out)
        super()._begin()
        self._tenths = Tenths(self.steps, self.step)

    def _line(self) -> None:
        shown = {"train_loss": "loss", "train_accuracy": "accuracy", "test_accuracy": "test accuracy"}
        known = {name: word for name, word in shown.items() if name in self.latest}
        values = [f"{word} {number(self.latest[name], 4)}{self._at(name)}" for name, word in known.items()]
        say("  ".join([position("step", self.step, self.steps), *values, self.pace()]), self.out)

    def _at(self, name: str) -> str:
        """The step of a measurement, unless it is this one."""
        return "" if self._measured[name] == self.step else f" at {self._measured[name]}"


class Tally:
    """Runs of a sweep: `tell` is called with every standing that changes, `tick` in between. Without `workers` it is
    not known how many run at once."""

    def __init__(self, standings: Iterable[Standing], workers: int | None, out: TextIO) -> None:
        self.standings = {standing.cell.spec.id: standing for standing in standings}
        self.workers, self.out = workers, out
        self.elsewhere = 0
        cells = [standing.cell for standing in self.standings.values()]
        axes = [key for key in varying(cell.values for cell in cells) if key not in ("seed", "optim.lr")]
        self.axes = sorted(axes, key=lambda key: key != "norm")
        """The axes that tell arms apart, the norm first."""
        self._start = time.monotonic()
        self._begun: dict[str, float] = {}
        self._done_s, self._ended_at = 0.0, self._start

    def tell(self, standing: Standing) -> None:
        """The state of a cell has changed."""
        key = standing.cell.spec.id
        self.standings[key] = standing
        if standing.state == "running":
            self._begun.setdefault(key, time.monotonic())
        else:
            self._begun.pop(key, None)
        if standing.state in ENDED and self.elapsed_s() > HEAD_S:
            self._done_s += (standing.status.get("timing") or {}).get("run_s", 0.0)
            self._ended_at = time.monotonic()

    def wait(self, count: int) -> None:
        """The sweep waits for `count` runs of another process alone."""
        self.elsewhere = count

    def tick(self) -> None:
        """Time has passed."""

    def close(self) -> None:
        """Restore the terminal."""

    @property
    def waiting(self) -> str:
        """`3 runs are running in another process`."""
        return f"{count(self.elsewhere, 'run')} {'is' if self.elsewhere == 1 else 'are'} running in another process"

    @property
    def ended(self) -> int:
        """Cells that have ended or failed."""
        return sum(standing.state in ENDED or standing.failed for standing in self.standings.values())

    def counts(self) -> list[str]:
        """`3 diverged`, `1 failed`."""
        states = Counter("failed" if one.failed else one.state for one in self.standings.values())
        return [f"{states[word]} {word}" for word in ("diverged", "failed") if states[word]]

    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def eta_s(self) -> float | None:
        """From the times of runs that have ended: those of the same grid point if there are any, else of the same arm,
        else all. Where it is not known how many run at once, also from how many seconds of runs have ended since the
        start. None before the first has ended."""
        known: dict[tuple[str, ...], list[float]] = {}
        for standing in self.standings.values():
            took = (standing.status.get("timing") or {}).get("run_s") if standing.state in ENDED else None
            if took is not None:
                for kind in self._kinds(standing):
                    known.setdefault(kind, []).append(took)
        if not known:
            return None
        left, now = 0.0, time.monotonic()
        for key, standing in self.standings.items():
            if standing.state in ENDED or standing.failed:
                continue
            expected = next(statistics.fmean(known[kind]) for kind in self._kinds(standing) if kind in known)
            ran = 0.0 if self.workers is None else now - self._begun.get(key, now)
            left += max(0.0, expected - ran)
        if self.workers is not None:
            return left / self.workers
        if not self._done_s:
            return None
        return max(0.0, left * (self._ended_at - self._start) / self._done_s - (now - self._ended_at))

    def _kinds(self, standing: Standing) -> list[tuple[str, ...]]:
        """Grid point, arm, sweep: from the narrowest to the widest group of runs that take as long."""
        arm = tuple(str(standing.cell.values[key]) for key in self.axes)
        return [(*arm, f"{standing.cell.spec.optim.lr:.12g}"), arm, ("all",)]


class TallyLines(Tally):
    """One line each tenth of the cells."""

    def __init__(self, standings: Iterable[Standing], workers: int | None, out: TextIO) -> None:
        super().__init__(standings, workers, out)
        if self.ended:
            say(f"{self.ended} of {len(self.standings)} runs have ended already", out)
        self._tenths = Tenths(len(self.standings), self.ended)

    def wait(self, count: int) -> None:
        changed, self.elsewhere = count != self.elsewhere, count
        if changed:
            say(f"{self.waiting}; waiting", self.out)

    def tell(self, standing: Standing) -> None:
        super().tell(standing)
        if self._tenths.passed(self.ended):
            facts = [*self.counts(), duration(self.elapsed_s()), f"eta {duration(self.eta_s())}"]
            say("  ".join([position("run", self.ended, len(self.standings)), *facts]), self.out)


class Bars:
    """How many things, or bytes, are done of those of a name; call it inside a `with`. On a screen each name has a bar,
    and bars of things are erased at the end. Else there are lines: of things one each tenth, unless they are soon over;
    of bytes one when a file begins, and one each tenth of a large file."""

    def __init__(self, out: TextIO, *, plain: bool, of_bytes: bool = False) -> None:
        self.out, self.of_bytes = out, of_bytes
        self._start, self._drawn = time.monotonic(), 0.0
        self._name, self._tenths = "", Tenths(0)
        self._bars = None if plain or not is_screen(out) else _bars(out, of_bytes)

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None and self._drawn:
            self._bars.stop()

    def __call__(self, name: str, done: int, total: int | None) -> None:
        new, self._name = name != self._name, name
        if self._bars is not None:
            if new:
                self._bars.add_task(name, total=total)
            self._bars.update(self._bars.task_ids[-1], completed=done, total=total)
            self._draw(self._bars)
        elif new:
            large = total and (not self.of_bytes or total >= MEGABYTE)
            self._tenths = Tenths(total if total and large else 0, done)
            if self.of_bytes:
                say(f"{name}  {file_size(total)}" if total else name, self.out)
        elif self._tenths.passed(done) and total:
            took = time.monotonic() - self._start
            if self.of_bytes:
                say(f"{name}  {file_size(done)} of {file_size(total)}", self.out)
            elif took >= LINES_AFTER_S:
                left = duration(took / done * (total - done))
                say(f"{position(name, done, total)}  {duration(took)}  eta {left}", self.out)

    def _draw(self, bars: RichBars) -> None:
        now = time.monotonic()
        if now - self._start >= (0 if self.of_bytes else BAR_AFTER_S) and now - self._drawn >= INTERVAL_S:
            if not self._drawn:
                bars.start()
            self._drawn = now
            bars.refresh()


def _bars(out: TextIO, of_bytes: bool) -> RichBars:
    """Drawn only on request: no thread takes time from what is counted."""
    from rich import progress as shown

    from bnlab.terminal.tables import console

    counts = (shown.DownloadColumn(), shown.TransferSpeedColumn()) if of_bytes else (shown.MofNCompleteColumn(),)
    columns = (shown.TextColumn("{task.description}"), shown.BarColumn(), *counts, shown.TextColumn("eta"))
    left = shown.TimeRemainingColumn(compact=True)
    return shown.Progress(*columns, left, console=console(out), auto_refresh=False, transient=not of_bytes)
