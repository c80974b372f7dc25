"""`bnlab view --compare`: TensorBoard on the arms of a sweep side by side, averaged over seeds."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bnlab.board.compare.build import Compared, State, build, state
from bnlab.board.serve.link import compare_link, tags_to_pin
from bnlab.board.serve.server import Server, command, interruptible
from bnlab.board.serve.show import check, serve
from bnlab.core.errors import UsageError

EVERY_S = 60.0
"""Between two looks at the run folders."""
SHARE = 10
"""Times as long as a comparison takes to make, it is left alone: beside training it should not be felt."""


def compare(
    root: Path,
    *,
    port: int = 0,
    open_browser: bool = True,
    run_filter: str | None = None,
    bind_all: bool = False,
    say: Callable[[str], None] = print,
    every_s: float = EVERY_S,
) -> None:
    """Build the comparison in a temporary directory and serve it until Ctrl-C or SIGTERM; where runs go on, it is
    brought up to date about once a minute. The directory is gone afterwards.

    It does not lie among the runs: `bnlab view` there would show means beside the runs that they are made of, and it is
    made anew in a second.

    Raises:
        UsageError: nothing to compare, a filter that is no regular expression, or a server that does not start or ends.
    """
    check(run_filter)
    with (
        interruptible(),
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="bnlab-compare-") as made,
    ):
        logs = Path(made) / "compare"
        seen, start = state(root), time.monotonic()
        found = build(root, logs)
        took_s = time.monotonic() - start
        words = command(logs, port=port, bind_all=bind_all, runs=len(found.names))
        line = f"{found.runs} runs of {root} as {len(found.names)} lines, averaged over seeds, Ctrl-C ends it"

        def link(base: str) -> str:
            files = sorted(logs.rglob("events.out.tfevents.*"))
            return compare_link(base, found.names, found.shown, tags_to_pin(files), run_filter)

        follow = partial(_follow, root, logs, seen, max(every_s, SHARE * took_s))
        serve(words, link, [line], open_browser=open_browser, say=say, meanwhile=follow)


def _follow(root: Path, logs: Path, seen: State, every_s: float, server: Server) -> None:
    """Keep `logs` up to date until the server ends, which is an error, or this is interrupted."""
    while True:
        server.wait(every_s)
        now = state(root)
        if now == seen:
            continue
        seen, start = now, time.monotonic()
        found = _again(root, logs)
        every_s = max(every_s, SHARE * (time.monotonic() - start)) if found else every_s


def _again(root: Path, logs: Path) -> Compared | None:
    """None where runs are just being moved, deleted or begun again: what is shown stays until the next look."""
    try:
        return build(root, logs)
    except (UsageError, OSError, KeyError, ValueError):
        return None
