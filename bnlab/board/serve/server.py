"""TensorBoard as a child process that does not outlive this one, and the address of its page."""

from __future__ import annotations

import base64
import collections
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bnlab.board.serve.page import NAMED, PLAIN, PROGRAM, Look
from bnlab.board.tags import ASIDE
from bnlab.core.errors import UsageError
from bnlab.report.style import looks_for

START_S = 120.0


def samples(runs: int) -> str:
    """How many points TensorBoard keeps of each tag: fewer for more runs, or its memory grows to gigabytes. It samples
    them at random, which loses spikes; bnlab's event files have at most 500 (board/thin.py)."""
    scalars, histograms = (2000, 100) if runs <= 20 else (500, 50) if runs <= 200 else (500, 10)
    return f"scalars={scalars},histograms={histograms}"


def command(root: Path, *, port: int, bind_all: bool, runs: int, look: Look = PLAIN) -> list[str]:
    """The command line of the server."""
    address = ["--bind_all"] if bind_all else ["--host", "127.0.0.1"]
    words = ["--logdir", str(root), "--port", str(port), *address]
    words += ["--samples_per_plugin", samples(runs), "--reload_interval", "5"]
    return [sys.executable, "-c", PROGRAM, look.json(), *words]


class Server:
    """TensorBoard as a child process that does not outlive this one."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def __enter__(self) -> Server:
        # In a session of its own: Ctrl-C reaches only this process, which then ends the child.
        self._child = subprocess.Popen(
            self.words,
            stdin=subprocess.PIPE,  # never written to: the child waits for its end
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._lines: collections.deque[str] = collections.deque(maxlen=20)
        self._address: str | None = None
        self._known = threading.Event()
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._reader.join()

    def address(self) -> str:
        """The address it answers at, with the real port, from its stderr.

        Raises:
            UsageError: it does not start.
        """
        self._known.wait(START_S)
        if self._address is None:
            raise UsageError("view", f"TensorBoard did not start: {self._why()}")
        return self._address

    def wait(self, at_most_s: float | None = None) -> None:
        """Block until the server ends, which it does not do by itself, or for so long.

        Raises:
            UsageError: it has ended.
        """
        try:
            code = self._child.wait(at_most_s)
        except subprocess.TimeoutExpired:
            return
        raise UsageError("view", f"TensorBoard ended with code {code}: {self._why()}")

    def _listen(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as lines:
            for line in lines:
                self._lines.append(line.strip())
                if match := re.match(r"TensorBoard \S+ at (http\S+)", line):
                    self._address = match.group(1)
                    self._known.set()
        self._known.set()

    def _why(self) -> str:
        """Its last line that gives a reason."""
        if self._child.poll() is None and not self._lines:
            return f"no answer in {START_S:.0f} s"
        said = [line for line in self._lines if line and not line.startswith(("NOTE:", "Traceback", "TensorFlow"))]
        return (said[-1] if said else f"code {self._child.wait()}").removeprefix("ERROR: ").rstrip(".")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt inside, as Ctrl-C does, so that the child is ended too; later signals
    are ignored meanwhile."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def interrupt(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


OVERVIEW = (
    "1_progress/train_loss",
    "1_progress/train_accuracy",
    "1_progress/test_loss",
    "1_progress/test_accuracy",
    "2_drift_mean_pre/00_median_of_layers",
    "4_grad_norm/00_total",
)
"""The tags to pin, if a run has them; board/tags.py names them."""

LOG_AXES = "(train|test)_loss|loss_(lo|hi|range)|drift|grad_norm|grad_change|gradient|variance"
"""Tags, and titles of charts, whose values span decades."""

TICKED = 40
"""As many runs, all of them, are ticked at first in TensorBoard's older pages; of more, none."""

HEAD_BYTES = 1 << 18
"""Of an event file: its first event, which names the tags, and more."""


def norms_of(runs: Iterable[str]) -> list[str]:
    return sorted({match[1] for run in runs if (match := re.search(NAMED, run))})


def look_of(runs: Sequence[str]) -> Look:
    """Norms in the colours that they have in the report; learning rates of one norm in TensorBoard's."""
    norms = norms_of(runs)
    colours = {norm: look.color for norm, look in zip(norms, looks_for(norms), strict=True)}
    return Look(colours=colours if len(norms) > 1 else {}, log=LOG_AXES)


def colour_regex(runs: Sequence[str]) -> str | None:
    """What runs are grouped by for their colour: the norm, or the learning rate where there is one norm only.

    >>> colour_regex(["batch/lr=1/seed=0", "none/lr=1/seed=0"])
    '(?:^|/)(batch|none)/lr='
    >>> colour_regex(["batch/lr=1/seed=0", "batch/lr=2/seed=0"])
    '(?:^|/)(lr=[^/]+)/'
    """
    norms = norms_of(runs)
    if len(norms) > 1:
        return f"(?:^|/)({'|'.join(map(escaped, norms))})/lr="
    rates = {match[1] for run in runs if (match := re.search(r"(?:^|/)(lr=[^/]+)/", run))}
    return "(?:^|/)(lr=[^/]+)/" if len(rates) > 1 else None


def escaped(name: str) -> str:
    """As a regular expression; a space stays one."""
    return re.escape(name).replace("\\ ", " ")


def tags_to_pin(files: Iterable[Path]) -> list[str]:
    """Those of `OVERVIEW` that occur in a file, which has its tags as plain text."""
    seen: set[str] = set()
    for file in files:
        with open(file, "rb") as opened:
            head = opened.read(HEAD_BYTES)
        seen |= {tag for tag in OVERVIEW if tag.encode() in head}
        if len(seen) == len(OVERVIEW):
            break
    return [tag for tag in OVERVIEW if tag in seen]


def deep_link(base: str, runs: Sequence[str], pins: Sequence[str], run_filter: str | None) -> str:
    """The address of the page, set up: no smoothing (it misleads at the start of training), colours, pins."""
    query = {"smoothing": "0"}
    if regex := colour_regex(runs):
        query["runColorGroup"] = f"regex:{regex}"
    if pins:
        query["pinnedCards"] = json.dumps([{"plugin": "scalars", "tag": tag} for tag in pins], separators=(",", ":"))
    if run_filter is not None:
        query["runFilter"] = run_filter
    return f"{base.rstrip('/')}/?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}#timeseries"


def compare_link(base: str, runs: Sequence[str], shown: Sequence[str], pins: Sequence[str], pattern: str | None) -> str:
    """The address of the Custom Scalars page on which `shown` of the `runs` are ticked, or all that match a pattern;
    the Time Series page beside it shows the same ones.

    That page keeps its state behind the `#`: the ticks as JSON in base 64. If there are few runs, the page ticks those
    that are not named there, so all are named. The run that has the figures is ticked for the pages that show them.
    """
    state = {"_smoothingWeight": "0"}
    if pattern is not None:
        state["regexInput"] = pattern
    else:
        ticks = {run: run in shown for run in (runs if len(runs) <= TICKED else shown)} | {ASIDE: True}
        state["runSelectionState"] = base64.b64encode(json.dumps(ticks, separators=(",", ":")).encode()).decode()
    behind = "&".join(f"{key}={urllib.parse.quote(value, safe='')}" for key, value in state.items())
    visible = pattern if pattern is not None else f"^({'|'.join(map(escaped, shown))})$"
    return deep_link(base, runs, pins, visible).removesuffix("timeseries") + f"custom_scalars&{behind}"
