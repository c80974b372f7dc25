"""A real study, the servers and the browser that look at it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

WAIT_S = 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


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
def browser() -> Iterator[Any]:
    """A headless browser: the system's, or playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the [browser] extra")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with api.sync_playwright() as playwright:
        try:
            launched = playwright.chromium.launch(executable_path=path, args=QUIET.split())
        except Exception as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield launched
        launched.close()


@dataclass(frozen=True, slots=True)
class Opened:
    """A page, and what went wrong on it."""

    page: Any
    errors: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    """The hosts that it sent requests to."""


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Opens an address in a new page."""
    pages = []

    def open_it(address: str, *, width: int = 1500, height: int = 1000, **more: Any) -> Opened:
        page = browser.new_page(viewport={"width": width, "height": height}, **more)
        pages.append(page)
        found = Opened(page)
        page.on("console", lambda message: found.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: found.asked.add(urllib.parse.urlsplit(request.url).netloc))
        page.goto(address)
        return found

    yield open_it
    for page in pages:
        page.close()


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
