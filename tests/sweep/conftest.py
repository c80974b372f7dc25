"""Shared by the tests of sweeps: a tiny grid, and comparing runs in everything but the clock."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli import main
from bnlab.cli import sweep as sweeping

CONFIGS = Path(__file__).parent.parent / "configs"
TINY = ("--config", "tiny", "--config-dir", str(CONFIGS))


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Said]]:
    """Runs `bnlab sweep` on the tiny grid in this process, one run after the other, without a report at its end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping, "_reported", lambda *_: None)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    def run(*words: str) -> Said:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as ended,
        ):
            main(["sweep", *(() if "--config" in words else TINY), "launch=inline", *words])
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, out.getvalue(), err.getvalue())

    yield run
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `bnlab sweep` on the tiny grid in a process of its own, two runs at once."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "bnlab", "sweep", *TINY, "launch.workers=2", *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        with process, contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """`wait_for(found, what)` calls `found` until it returns a true value, and returns that."""

    def wait(found: Callable[[], Any], what: str, seconds: float = 200) -> Any:
        limit = time.monotonic() + seconds
        while not (answer := found()):
            assert time.monotonic() < limit, f"no {what} in {seconds} s"
            time.sleep(0.01)
        return answer

    return wait


@pytest.fixture
def begun() -> Callable[[Path], int]:
    """The largest number of starts at step 0 among the runs below a folder."""

    def count(root: Path) -> int:
        return max(len(re.findall("from step 0 of", file.read_text())) for file in root.rglob("log.txt"))

    return count
