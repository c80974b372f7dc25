"""A real TensorBoard server, asked over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnlab.board.serve.server import Server, command


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
