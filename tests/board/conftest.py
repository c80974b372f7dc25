"""A real TensorBoard server, asked over HTTP."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnlab.view.server import Server, command

START_S = 120


class Asked:
    """A server that has started."""

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")

    def get(self, path: str, body: Any = None) -> Any:
        """The answer to a question, which is posted if it has a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def poll(self, path: str, wanted: Callable[[Any], bool], body: Any = None) -> Any:
        limit = time.monotonic() + START_S
        while not wanted(found := self.get(path, body)):
            assert time.monotonic() < limit, found
            time.sleep(0.1)
        return found


@pytest.fixture
def tensorboard() -> Iterator[Callable[..., Asked]]:
    """`tensorboard(root)` starts one on it, which looks for news every second; with the slow loader if asked."""
    servers: list[Server] = []

    def start(root: Path, *more: str) -> Asked:
        words = command(root, port=0, bind_all=False, runs=1)
        server = Server([*words[:-1], "1", *more])
        servers.append(server.__enter__())
        return Asked(server.address())

    yield start
    for server in servers:
        server.__exit__(None, None, None)
