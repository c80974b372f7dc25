"""TensorBoard on a folder of runs, at a link that colours them by norm and pins the cards to look at first."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import socket
import sys
import tempfile
import urllib.parse
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bnlab.board.serve.link import deep_link, tags_to_pin
from bnlab.board.serve.profile import bring
from bnlab.board.serve.server import Server, command, interruptible
from bnlab.core.errors import UsageError
from bnlab.record.folder import TRAIN_FIRST

MANY_RUNS = 500
"""Above this, TensorBoard selects no run at first and shows an empty page."""

MANY_LINES = 20
"""Above this, a card is hard to read."""


def event_files(root: Path) -> dict[str, Path]:
    """Run name, as TensorBoard shows it (its path below `root`), -> its event file.

    Raises:
        UsageError: no such directory, or no run in it has written an event yet.
    """
    if not root.is_dir():
        raise UsageError("RUNS", "no such directory", str(root), TRAIN_FIRST)
    found = {file.parent.relative_to(root).as_posix(): file for file in sorted(root.rglob("events.out.tfevents.*"))}
    if not found:
        raise UsageError("RUNS", "no TensorBoard events in this directory", str(root), TRAIN_FIRST)
    return found


def with_browser(environment: Mapping[str, str], platform: str) -> bool:
    """Whether a browser started here would be seen: a display, and nobody logged in from elsewhere."""
    if environment.get("SSH_CONNECTION") or environment.get("SSH_TTY"):
        return False
    return platform in ("darwin", "win32") or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def tunnel(port: int) -> str:
    """What to type at home to reach a server that runs here."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or "USER"
    return shlex.join(["ssh", "-N", "-L", f"{port}:127.0.0.1:{port}", f"{user}@{socket.gethostname()}"])


def view(
    root: Path,
    *,
    port: int = 0,
    open_browser: bool = True,
    run_filter: str | None = None,
    bind_all: bool = False,
    full: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until Ctrl-C or SIGTERM. `full`: with all tags, however many runs there are.

    Raises:
        UsageError: nothing to show, a filter that is no regular expression, or a server that does not start or ends.
    """
    check(run_filter)
    if root.is_dir():
        with interruptible():
            bring(root, full=full, say=say)
    files = event_files(root)
    runs = list(files)
    lines = [f"{len(runs)} run{'s' * (len(runs) != 1)} in {root}, Ctrl-C ends it"]
    if len(runs) > MANY_RUNS:
        chosen = [run for run in runs if run_filter is not None and re.search(run_filter, run)]
        if 0 < len(chosen) <= MANY_RUNS:
            runs = chosen
            lines.append(f"shown are the {len(runs)} that --filter matches now")
        else:
            remedy = "tick the box above the list, or --filter fewer"
            lines.append(f"above {MANY_RUNS} runs TensorBoard ticks none at first: {remedy}")
    if len(runs) > MANY_LINES and len({run.rpartition("/seed=")[0] for run in runs}) < len(runs):
        lines.append(f"averaged over seeds: bnlab view {shlex.quote(str(root))} --compare")

    def link(base: str) -> str:
        return deep_link(base, runs, tags_to_pin(files[run] for run in runs), run_filter)

    with interruptible(), contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as aside:
        few = len(runs) < len(files)
        logs = aside.enter_context(links_to(root.resolve(), runs)) if few else root.resolve()
        words = command(logs, port=port, bind_all=bind_all, runs=len(runs))
        serve(words, link, lines, open_browser=open_browser, say=say)


@contextlib.contextmanager
def links_to(root: Path, runs: Sequence[str]) -> Iterator[Path]:
    """A directory in which these runs of `root` seem to be all that there are; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bnlab-view-") as made:
        for run in runs:
            seeming = Path(made) / run
            seeming.parent.mkdir(parents=True, exist_ok=True)
            seeming.symlink_to(root / run, target_is_directory=True)
        yield Path(made)


def check(run_filter: str | None) -> None:
    """
    Raises:
        UsageError: a filter that is no regular expression, or no TensorBoard.
    """
    if run_filter is not None:
        try:
            re.compile(run_filter)
        except re.error as error:
            raise UsageError("--filter", f"not a regular expression ({error})", run_filter) from None
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("view", "tensorboard is not installed", remedy="Install it: pip install 'tensorboard>=2.21'.")


def serve(
    words: Sequence[str],
    link: Callable[[str], str],
    lines: Sequence[str],
    *,
    open_browser: bool,
    say: Callable[[str], None],
    meanwhile: Callable[[Server], None] = Server.wait,
) -> None:
    """Start TensorBoard with this command line, say `lines` and the link, open it; then what is done `meanwhile`, until
    Ctrl-C or SIGTERM.

    Raises:
        UsageError: a server that does not start or ends.
    """
    with interruptible(), contextlib.suppress(KeyboardInterrupt), Server(words) as server:
        base = server.address()
        for line in lines:
            say(line)
        if "--bind_all" in words:
            say("--bind-all: anybody who reaches this machine can see these runs; there is no login")
        seen = with_browser(os.environ, sys.platform)
        if not seen:
            port = urllib.parse.urlsplit(base).port
            say(f"from your own machine: {tunnel(port or 80)}")
        address = link(base)
        say(address)
        if seen and open_browser:
            webbrowser.open(address)
        meanwhile(server)
