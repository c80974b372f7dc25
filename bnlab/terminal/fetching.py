"""How far a download is: a bar where there is a screen, else a line each tenth."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bnlab.core.errors import UsageError
from bnlab.core.registry import DATA
from bnlab.files.sources import SOURCES, Source
from bnlab.terminal.signs import complain, is_screen, print_json, say
from bnlab.terminal.tables import console

MEGABYTE = 10**6
DONE, INTERRUPTED = 0, 130


class Lines:
    """One line when a file begins, and one each tenth of a large one."""

    def __init__(self, out: TextIO) -> None:
        self.out, self._name, self._tenth = out, "", 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def __call__(self, name: str, done: int, total: int | None) -> None:
        tenth = 10 * done // total if total else 0
        if name != self._name:
            self._name, self._tenth = name, tenth
            size = f"{total / MEGABYTE:.1f} MB" if total and total >= MEGABYTE else f"{total} bytes"
            say(f"{name}  {size}" if total else name, self.out)
        elif total and total >= MEGABYTE and tenth > self._tenth:
            self._tenth = tenth
            say(f"{name}  {done / MEGABYTE:.1f} of {total / MEGABYTE:.1f} MB", self.out)


class Bar:
    """One bar a file."""

    def __init__(self, out: TextIO) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console(out), refresh_per_second=4)
        self._name, self._task = "", TaskID(0)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, name: str, done: int, total: int | None) -> None:
        if name != self._name:
            self._name, self._task = name, self._progress.add_task(name, total=total)
        self._progress.update(self._task, completed=done, total=total)


def show_fetch(name: str, origin: Path | None, as_json: bool, plain: bool) -> int:
    """Fetch a data set and say where it is; the exit code.

    Raises:
        UsageError: there is no such data set, it cannot be had, or it has no files.
    """
    from bnlab.files.fetch import fetch

    DATA.entry(name)
    source = SOURCES.get(name)
    if source is None:
        raise UsageError(f"data={name}", "has no files to fetch", remedy="It comes with bnlab: use it as it is.")
    if origin is not None and not origin.is_dir():
        raise UsageError("--from", "no such directory", str(origin))
    out = sys.stderr if as_json else sys.stdout
    try:
        with _progress(out, plain or as_json) as report:
            fetched = fetch(source, report, origin)
    except KeyboardInterrupt:
        complain("interrupted; typed again, it goes on where it stopped")
        return INTERRUPTED
    if as_json:
        print_json({"data": name, "folder": str(fetched.folder), "how": fetched.how})
    else:
        told = {"present": "is there already", "copied": "copied and checked", "downloaded": "downloaded and checked"}
        say(f"{name}: {told[fetched.how]}, in {fetched.folder}")
    return DONE


def download(source: Source, out: TextIO, plain: bool, stopped: Callable[[], str | None]) -> bool:
    """Download the data set of a run; False if `stopped` named a reason to give up before it was there.

    Raises:
        UsageError: it cannot be had.
    """
    from bnlab.files.fetch import fetch

    with _progress(out, plain) as report:

        def checked(what: str, done: int, total: int | None) -> None:
            if stopped():
                raise KeyboardInterrupt
            report(what, done, total)

        try:
            fetch(source, checked)
        except KeyboardInterrupt:
            return False
    return True


def _progress(out: TextIO, plain: bool) -> Lines | Bar:
    return Lines(out) if plain or not is_screen(out) else Bar(out)
