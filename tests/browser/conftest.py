"""A real study, and the servers that show it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

WAIT_S = 120


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `quickstart` study as it is shipped, 120 runs and their report: swept once, whichever process of the tests
    comes first."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    runs = base / "study"
    with FileLock(base / "study.lock"):
        if not (runs / "quickstart" / "report.html").exists():
            words = [sys.executable, "-m", "bnlab", "sweep", "--config", "quickstart", "--plain", "--runs", str(runs)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return runs / "quickstart"


@pytest.fixture(scope="session")
def viewed() -> Iterator[Callable[..., str]]:
    """Starts `bnlab view` with these words; the link that it prints."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> str:
        process = subprocess.Popen(
            [sys.executable, "-m", "bnlab", "view", "--no-open", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("http"):
                return line.strip()
        raise AssertionError(process.communicate()[1])

    yield begin
    for process in processes:
        with process:
            process.terminate()
