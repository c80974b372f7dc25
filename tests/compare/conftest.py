"""A tiny sweep that both kinds of tests of comparisons read: two norms, a learning rate that works and one that does
not, three seeds."""

from __future__ import annotations

import contextlib
import io
import signal
from pathlib import Path

import pytest

from bnlab.cli import main

NAME = "quickstart"


def sweep(runs: Path, *words: str) -> Path:
    """A sweep of tiny nets in this process; its folder."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    small = ("steps=24", "model.depth=3", "model.width=8", "launch=inline", "probes=standard", "probes.points=24")
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit, match=r"^0$"):
        main(["sweep", "--config", NAME, *small, *words, "--runs", str(runs)])
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    return runs / NAME


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it; write nothing into it."""
    return sweep(tmp_path_factory.mktemp("swept"), "norm=none,batch", "optim.lr=0.05,1e6", "seed=range(0,3)")
