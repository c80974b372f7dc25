"""A real TensorBoard server, and a tiny sweep to compare."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnlab.board.serve.server import Server, command
from bnlab.cli import main

NAME = "quickstart"


@pytest.fixture
def tensorboard(asked: Callable[[str], Any]) -> Iterator[Callable[..., Any]]:
    """`tensorboard(root)` starts one on it, which looks for news every second; with the slow loader if asked."""
    servers: list[Server] = []

    def start(root: Path, *more: str) -> Any:
        words = command(root, port=0, bind_all=False, runs=1)
        server = Server([*words[:-1], "1", *more])
        servers.append(server.__enter__())
        return asked(server.address())

    yield start
    for server in servers:
        server.__exit__(None, None, None)


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
    """Two norms, a learning rate that works and one that does not, three seeds. Read it; write nothing into it."""
    return sweep(tmp_path_factory.mktemp("swept"), "norm=none,batch", "optim.lr=0.05,1e6", "seed=range(0,3)")


@pytest.fixture
def hparams() -> Callable[..., tuple[Any, list[dict[str, Any]]]]:
    """`hparams(server, count)`: the experiment, and the rows of the table when there are so many with results."""
    groups = {"startIndex": 0, "sliceSize": 100, "colParams": [], "includeMetrics": True, "experimentName": ""}
    statuses = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]

    def table(server: Any, count: int) -> tuple[Any, list[dict[str, Any]]]:
        def complete(found: Any) -> bool:
            return sum(bool(group.get("metricValues")) for group in found.get("sessionGroups", [])) >= count

        body = groups | {"allowedStatuses": statuses}
        rows = server.poll("data/plugin/hparams/session_groups", complete, body)["sessionGroups"]
        return server.get("data/plugin/hparams/experiment", {"experimentName": ""}), rows

    return table
