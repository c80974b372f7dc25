"""Shared by the tests of sweeps: a tiny grid, and comparing runs in everything but the clock."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CONFIGS = Path(__file__).parent.parent / "configs"
TINY = ("--config", "tiny", "--config-dir", str(CONFIGS))


@pytest.fixture
def sweep(in_process: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `bnlab sweep` on the tiny grid in this process, one run after the other, without a report at its end."""
    return lambda *words: in_process("sweep", *(() if "--config" in words else TINY), "launch=inline", *words)


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
def begun() -> Callable[[Path], int]:
    """The largest number of starts at step 0 among the runs below a folder."""

    def count(root: Path) -> int:
        return max(len(re.findall("from step 0 of", file.read_text())) for file in root.rglob("log.txt"))

    return count
