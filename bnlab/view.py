"""TensorBoard on a folder of runs, at a link that colours them by norm and pins the cards to look at first."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bnlab.errors import UsageError
from bnlab.terminal.runs import TRAIN_FIRST

OVERVIEW = (
    "1_progress/loss",
    "1_progress/accuracy",
    "1_progress/eval_loss",
    "1_progress/eval_accuracy",
    "2_drift_mean_pre/00_median_of_layers",
    "4_grad_norm/00_total",
)
"""The tags to pin, where a run has them; board/tags.py gives them their names."""

MANY_RUNS = 500
"""Above this, TensorBoard selects no run at first and shows an empty page."""

CHILD = """
import os, runpy, threading

def end_with_parent():
    while os.read(0, 1):
        pass
    os._exit(0)

threading.Thread(target=end_with_parent, daemon=True).start()
runpy.run_module("tensorboard.main", run_name="__main__", alter_sys=True)
"""
"""`python -m tensorboard.main` that ends with the process which started it, however that ends, SIGKILL included: the
system then closes the other end of its stdin."""

START_S = 120.0
HEAD_BYTES = 1 << 18
"""Of an event file: its first event, which names the tags, and more."""


def event_files(root: Path) -> dict[str, Path]:
    """Run name, as TensorBoard shows it (its path below `root`), -> its event file.

    Raises:
        UsageError: no such directory, or no run in it has written an event yet.
    """
    if not root.is_dir():
        raise UsageError("RUNS", "no such directory", str(root), TRAIN_FIRST)
    found = {file.parent.relative_to(root).as_posix(): file for file in sorted(root.rglob("events.out.tfevents.*"))}
    if not found:
        raise UsageError("RUNS", "no TensorBoard events in this directory", str(root), TRAIN_FIRST)
    return found


def norm_names(runs: Iterable[str]) -> list[str]:
    """The norms that the run names tell apart, in the order of the names: the part before `lr=...`.

    >>> norm_names(["a/batch/lr=1/seed=0-f", "a/none/lr=1/seed=0-e", "lr=2/seed=0-d"])
    ['batch', 'none']
    """
    found = (match.group(1) for run in runs if (match := re.search(r"(?:^|/)([^/]+)/lr=", run)))
    return list(dict.fromkeys(found))


def colour_regex(runs: Sequence[str]) -> str | None:
    """What runs are grouped by for their colour: the norm, or the learning rate where there is one norm only.

    >>> colour_regex(["batch/lr=1/seed=0", "none/lr=1/seed=0"])
    '(?:^|/)(batch|none)/lr='
    >>> colour_regex(["batch/lr=1/seed=0", "batch/lr=2/seed=0"])
    '(?:^|/)(lr=[^/]+)/'
    """
    norms = norm_names(runs)
    if len(norms) > 1:
        return f"(?:^|/)({'|'.join(re.escape(norm) for norm in sorted(norms))})/lr="
    rates = {match.group(1) for run in runs if (match := re.search(r"(?:^|/)(lr=[^/]+)/", run))}
    return "(?:^|/)(lr=[^/]+)/" if len(rates) > 1 else None


def tags_to_pin(files: Iterable[Path]) -> list[str]:
    """Those of `OVERVIEW` that a file names: tags stand in event files as they are."""
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


def samples(runs: int) -> str:
    """How many points TensorBoard keeps of each tag: the more runs, the fewer, or its memory grows to gigabytes."""
    scalars, histograms = (2000, 100) if runs <= 20 else (500, 50) if runs <= 200 else (200, 10)
    return f"scalars={scalars},histograms={histograms}"


def command(root: Path, *, port: int, bind_all: bool, runs: int) -> list[str]:
    """The command line of the server."""
    address = ["--bind_all"] if bind_all else ["--host", "127.0.0.1"]
    words = ["--logdir", str(root), "--port", str(port), *address]
    return [sys.executable, "-c", CHILD, *words, "--samples_per_plugin", samples(runs), "--reload_interval", "5"]


def with_browser(environment: Mapping[str, str], platform: str) -> bool:
    """Whether a browser started here would be seen: a display, and nobody logged in from elsewhere."""
    if environment.get("SSH_CONNECTION") or environment.get("SSH_TTY"):
        return False
    return platform in ("darwin", "win32") or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def tunnel(port: int) -> str:
    """What to type at home to reach a server that runs here."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or "USER"
    return shlex.join(["ssh", "-N", "-L", f"{port}:127.0.0.1:{port}", f"{user}@{socket.gethostname()}"])


def view(
    root: Path,
    *,
    port: int = 0,
    open_browser: bool = True,
    run_filter: str | None = None,
    bind_all: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        UsageError: nothing to show, a filter that is no regular expression, or a server that does not start or ends.
    """
    if run_filter is not None:
        try:
            re.compile(run_filter)
        except re.error as error:
            raise UsageError("--filter", f"not a regular expression ({error})", run_filter) from None
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("view", "tensorboard is not installed", remedy="Install it: pip install 'tensorboard>=2.21'.")
    files = event_files(root)
    runs = list(files)
    words = command(root.resolve(), port=port, bind_all=bind_all, runs=len(runs))
    with _interruptible(), contextlib.suppress(KeyboardInterrupt), Server(words) as server:
        base = server.address()
        link = deep_link(base, runs, tags_to_pin(files.values()), run_filter)
        say(f"{len(runs)} run{'s' * (len(runs) != 1)} in {root}, Ctrl-C ends it")
        if len(runs) > MANY_RUNS:
            say(f"above {MANY_RUNS} runs TensorBoard selects none at first: narrow them with --filter")
        if bind_all:
            say("--bind-all: anybody who reaches this machine can see these runs; there is no login")
        say(link)
        if open_browser and with_browser(os.environ, sys.platform):
            webbrowser.open(link)
        elif os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY"):
            say(f"from your own machine: {tunnel(urllib.parse.urlsplit(base).port or port)}")
        server.wait()


class Server:
    """TensorBoard as a child process that does not outlive this one."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def __enter__(self) -> Server:
        # In a session of its own, so that Ctrl-C reaches this process alone, which then ends the child.
        self._child = subprocess.Popen(
            self.words,
            stdin=subprocess.PIPE,  # never written to: its end is what the child waits for
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._told: collections.deque[str] = collections.deque(maxlen=20)
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
        """Where it answers; the real port is told on its stderr.

        Raises:
            UsageError: it does not start.
        """
        self._known.wait(START_S)
        if self._address is None:
            raise UsageError("view", f"TensorBoard did not start: {self._why()}")
        return self._address

    def wait(self) -> None:
        """Until it ends, which it does not do by itself.

        Raises:
            UsageError: it has.
        """
        code = self._child.wait()
        raise UsageError("view", f"TensorBoard ended with code {code}: {self._why()}")

    def _listen(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as lines:
            for line in lines:
                self._told.append(line.strip())
                if match := re.match(r"TensorBoard \S+ at (http\S+)", line):
                    self._address = match.group(1)
                    self._known.set()
        self._known.set()

    def _why(self) -> str:
        """The last lines that say something."""
        if self._child.poll() is None and not self._told:
            return f"no answer in {START_S:.0f} s"
        said = [line for line in self._told if line and not line.startswith(("NOTE:", "Traceback", "TensorFlow"))]
        return (said[-1] if said else f"code {self._child.wait()}").removeprefix("ERROR: ").rstrip(".")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is inside as Ctrl-C does, so that the child is ended too; a second one is not heard
    while it is being ended."""
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
