"""A real study, and the servers that show it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

WAIT_S = 120


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `quickstart` study as it is shipped, 60 runs and their report: swept once, whichever process of the tests
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


@pytest.fixture
def told() -> Callable[..., Any]:
    """`told(link, path, wanted)`: what TensorBoard answers there, once it is as wanted; it reads runs as it goes."""

    def ask(link: str, path: str, wanted: Callable[[Any], bool]) -> Any:
        parts = urllib.parse.urlsplit(link)
        limit = time.monotonic() + WAIT_S
        while True:
            with urllib.request.urlopen(f"{parts.scheme}://{parts.netloc}/{path}", timeout=30) as answer:
                found = json.loads(answer.read())
            if wanted(found):
                return found
            assert time.monotonic() < limit, str(found)[:2000]
            time.sleep(0.1)

    return ask


@pytest.fixture
def norm_of() -> Callable[[str], str]:
    """The norm in a run's name."""

    def norm(run: str) -> str:
        found = re.search(r"([^/]+)/lr=", run)
        assert found is not None, run
        return found.group(1)

    return norm
