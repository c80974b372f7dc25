"""TensorBoard as a child process that does not outlive this one."""

from __future__ import annotations

import collections
import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from bnlab.core.errors import UsageError

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


def samples(runs: int) -> str:
    """How many points TensorBoard keeps of each tag: the more runs, the fewer, or its memory grows to gigabytes. It
    picks them at random, and would lose spikes; bnlab's event files have no more than 500 (board/thin.py)."""
    scalars, histograms = (2000, 100) if runs <= 20 else (500, 50) if runs <= 200 else (500, 10)
    return f"scalars={scalars},histograms={histograms}"


def command(root: Path, *, port: int, bind_all: bool, runs: int) -> list[str]:
    """The command line of the server."""
    address = ["--bind_all"] if bind_all else ["--host", "127.0.0.1"]
    words = ["--logdir", str(root), "--port", str(port), *address]
    return [sys.executable, "-c", CHILD, *words, "--samples_per_plugin", samples(runs), "--reload_interval", "5"]


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

    def wait(self, at_most_s: float | None = None) -> None:
        """Until it ends, which it does not do by itself, or for so long.

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
def interruptible() -> Iterator[None]:
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
