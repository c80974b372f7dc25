"""`bnlab view`: TensorBoard on a folder of runs or on a comparison of them, at a link that sets up its page."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import socket
import sys
import tempfile
import time
import urllib.parse
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from bnlab.board.events import PATTERN, Profile, profile_of
from bnlab.board.serve.page import Look
from bnlab.board.serve.server import (
    LOG_AXES,
    Server,
    command,
    compare_link,
    deep_link,
    interruptible,
    look_of,
    tags_to_pin,
)
from bnlab.board.tags import FULL_RUNS
from bnlab.core.errors import UsageError
from bnlab.core.text import count
from bnlab.record.folder import TRAIN_FIRST, RunFolder, find_runs

MANY_RUNS = 500
"""Above this, TensorBoard selects no run at first and shows an empty page."""

MANY_LINES = 20
"""Above this, a card is hard to read."""

EVERY_S = 60.0
"""Between two looks at the run folders of a comparison."""

IDLE_SHARE = 10
"""A comparison is updated at most once in this many times the time that it takes: training must not feel it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What every kind of view takes: options of the command line, and where lines for the user go."""

    port: int = 0
    open_browser: bool = True
    run_filter: str | None = None
    bind_all: bool = False
    say: Callable[[str], None] = print

    def check(self) -> None:
        """
        Raises:
            UsageError: a filter that is not a regular expression, or no TensorBoard.
        """
        if self.run_filter is not None:
            try:
                re.compile(self.run_filter)
            except re.error as error:
                raise UsageError("--filter", f"not a regular expression ({error})", self.run_filter) from None
        if importlib.util.find_spec("tensorboard") is None:
            remedy = "Install it: pip install 'tensorboard>=2.21'."
            raise UsageError("view", "tensorboard is not installed", remedy=remedy)

    def refuse_no_match(self, names: Sequence[str]) -> None:
        """
        Raises:
            UsageError: the filter matches none of these names.
        """
        if self.run_filter is not None and not any(re.search(self.run_filter, name) for name in names):
            raise UsageError("--filter", "matches none of the runs", self.run_filter, f"The first is {names[0]}.")

    def serve(
        self,
        logs: Path,
        runs: int,
        look: Look,
        link: Callable[[str], str],
        lines: Sequence[str],
        meanwhile: Callable[[Server], None] = Server.wait,
    ) -> None:
        """Start TensorBoard on `logs` with so many runs, print `lines` and the link, open it, and call `meanwhile`,
        until a KeyboardInterrupt.

        Raises:
            UsageError: the server does not start, or ends.
        """
        words = command(logs, port=self.port, bind_all=self.bind_all, runs=runs, look=look)
        with Server(words) as server:
            base = server.address()
            for line in lines:
                self.say(line)
            if self.bind_all:
                self.say("--bind-all: anybody who reaches this machine can see these runs; there is no login")
            seen = with_browser(os.environ, sys.platform)
            if not seen:
                self.say(f"from your own machine: {tunnel(urllib.parse.urlsplit(base).port or 80)}")
            address = link(base)
            self.say(address)
            if seen and self.open_browser:
                webbrowser.open(address)
            meanwhile(server)


def view(root: Path, serving: Serving, *, full: bool = False) -> None:
    """Serve a comparison where there are more runs than lines that one can read, else the runs. A filter and `full` ask
    for runs; and of several sweeps, or without two seeds at a learning rate, there is no comparison.

    Raises:
        UsageError: as `view_runs`.
    """
    asked = full or serving.run_filter is not None
    if not asked and root.is_dir() and len(find_runs(root)) > MANY_LINES:
        from bnlab.board.compare.lines import NoComparisonError

        line = f"every run by itself: bnlab view {shlex.quote(str(root))} --single"
        with contextlib.suppress(NoComparisonError):
            return view_comparison(root, serving, [line])
    return view_runs(root, serving, full=full)


def view_runs(root: Path, serving: Serving, *, full: bool = False) -> None:
    """Serve the runs at or below `root`. `full`: with all tags, however many runs there are.

    Raises:
        UsageError: no runs, a filter that is not a regular expression, or a server that does not start or ends.
    """
    serving.check()
    if root.is_dir():
        with interruptible():
            update_events(root, full=full, say=serving.say)
    files = event_files(root)
    runs = list(files)
    serving.refuse_no_match(runs)
    lines = [f"{count(len(runs), 'run')} in {root}, Ctrl-C ends it"]
    if len(runs) > MANY_RUNS:
        chosen = [run for run in runs if serving.run_filter is not None and re.search(serving.run_filter, run)]
        if 0 < len(chosen) <= MANY_RUNS:
            runs = chosen
            lines.append(f"showing the {len(runs)} that --filter matches now")
        else:
            remedy = "tick the box above the list, or match fewer with --filter"
            lines.append(f"above {MANY_RUNS} runs TensorBoard ticks none at first: {remedy}")

    def link(base: str) -> str:
        return deep_link(base, runs, tags_to_pin(files[run] for run in runs), serving.run_filter)

    with interruptible(), contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as temporary:
        few = len(runs) < len(files)
        logs = temporary.enter_context(links_to(root.resolve(), runs)) if few else root.resolve()
        serving.serve(logs, len(runs), look_of(runs), link, lines)


def view_comparison(root: Path, serving: Serving, lines: Sequence[str] = (), *, every_s: float = EVERY_S) -> None:
    """Build the comparison of a sweep in a temporary directory and serve it; while runs are running, it is updated
    about once a minute. It is not stored among the runs, where `bnlab view` would show means beside their runs.

    Raises:
        UsageError: nothing to compare, a filter that is not a regular expression, or a server that does not start or
            ends.
    """
    from bnlab.board.compare import build, files_of

    serving.check()
    with (
        interruptible(),
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="bnlab-compare-") as made,
    ):
        logs = Path(made) / "compare"
        seen, start = files_of(root), time.monotonic()
        found = build(root, logs)
        took_s = time.monotonic() - start
        serving.refuse_no_match(found.names)
        drawn = f"{count(found.runs, 'run')} of {root} as {count(len(found.names), 'line')}"
        line = f"{drawn}, averaged over seeds, Ctrl-C ends it"

        def link(base: str) -> str:
            files = sorted(logs.rglob(PATTERN))
            return compare_link(base, found.names, found.shown, tags_to_pin(files), serving.run_filter)

        update = partial(follow, root, logs, seen, max(every_s, IDLE_SHARE * took_s))
        look = Look(colours=found.colours, log=LOG_AXES)
        serving.serve(logs, len(found.names), look, link, [line, *lines, *found.apart], update)


def follow(root: Path, logs: Path, seen: object, every_s: float, server: Server) -> None:
    """Keep the comparison in `logs` up to date until the server ends, which is an error, or this is interrupted."""
    from bnlab.board.compare import build, files_of

    while True:
        server.wait(every_s)
        now = files_of(root)
        if now == seen:
            continue
        seen, start = now, time.monotonic()
        with contextlib.suppress(UsageError, OSError, KeyError, ValueError):  # runs are being moved or deleted
            build(root, logs)
            every_s = max(every_s, IDLE_SHARE * (time.monotonic() - start))


def update_events(root: Path, *, full: bool, say: Callable[[str], None]) -> None:
    """Bring event files to the profile for so many runs. With `full`, every run at or below `root` shows all its tags.
    Otherwise, where more than 50 runs show all tags, they get the light profile; and a file that does not show its
    whole journal, because its process was killed, is rebuilt. Running runs are left alone; folders that cannot be
    written are reported."""
    runs = find_runs(root)
    many = not full and sum(_is_full(run) for run in runs) > FULL_RUNS
    wanted: list[tuple[RunFolder, Profile]] = []
    for run in runs:
        target: Profile = "full" if full or (_is_full(run) and not many) else "light"
        as_it_is = target == "full" and _is_old(run)
        if run.journal_file.is_file() and profile_of(run) != target and not as_it_is and not run.alive():
            wanted.append((run, target))
    if not wanted:
        return
    from bnlab.board.run import rebuild

    if many:
        say(f"more than {FULL_RUNS} runs: shown with a dozen tags each; all tags: bnlab view RUNS --full")
    elif full:
        say(f"writing all tags of {count(len(wanted), 'run')}")
    failed = 0
    for run, target in wanted:
        try:
            rebuild(run, target)
        except (OSError, ValueError, KeyError, yaml.YAMLError):
            failed += 1
    if failed:
        say(f"could not write the events of {count(failed, 'run')}; the old ones stay")


def _is_old(run: RunFolder) -> bool:
    """Whether its events are from a version without profiles: they show all tags and have the names of the sites, which
    that version wrote nowhere else."""
    return any(not file.name.endswith((".light", ".full")) for file in run.path.glob(PATTERN))


def _is_full(run: RunFolder) -> bool:
    """Whether its events show all tags."""
    return any(not file.name.endswith(".light") for file in run.path.glob(PATTERN))


def event_files(root: Path) -> dict[str, Path]:
    """Run name in TensorBoard (its path below `root`) -> its event file.

    Raises:
        UsageError: no such directory, or no run in it has written an event yet.
    """
    if not root.is_dir():
        raise UsageError("RUNS", "no such directory", str(root), TRAIN_FIRST)
    found = {file.parent.relative_to(root).as_posix(): file for file in sorted(root.rglob(PATTERN))}
    if not found:
        raise UsageError("RUNS", "no TensorBoard events in this directory", str(root), TRAIN_FIRST)
    return found


@contextlib.contextmanager
def links_to(root: Path, runs: Sequence[str]) -> Iterator[Path]:
    """A temporary directory with links to these runs of `root`."""
    with tempfile.TemporaryDirectory(prefix="bnlab-view-") as made:
        for run in runs:
            link = Path(made) / run
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(root / run, target_is_directory=True)
        yield Path(made)


def with_browser(environment: Mapping[str, str], platform: str) -> bool:
    """Whether the user would see a browser started here: there is a display, and this is not a remote login."""
    if environment.get("SSH_CONNECTION") or environment.get("SSH_TTY"):
        return False
    return platform in ("darwin", "win32") or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def tunnel(port: int) -> str:
    """The command that makes a server on this machine reachable from another one."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or "USER"
    return shlex.join(["ssh", "-N", "-L", f"{port}:127.0.0.1:{port}", f"{user}@{socket.gethostname()}"])
