"""The one kind of error a user can cause, in one form: `<key>: <what is wrong>, got <value>. <what to do>`."""

from __future__ import annotations

import difflib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

from bnlab.core.text import cut, printable, quoted

MOST_BYTES, MOST_PARTS = 200, 8
"""Of the names of folders, and of folders below each other: file systems take 255 bytes in a name, and a file has the
name of its folder with an ending; all with --runs before them must be less than 4,096."""

_NOTHING = object()


class UsageError(ValueError):
    """A mistake in what the user typed or wrote: one line, no traceback, exit code 2.

    >>> print(UsageError("optim.lr", "must be above 0", -1, "Try optim.lr=0.1."))
    optim.lr: must be above 0, got -1. Try optim.lr=0.1.
    """

    def __init__(self, key: str, problem: str, value: object = _NOTHING, remedy: str = "") -> None:
        got = "" if value is _NOTHING else f", got {quoted(value)}"
        line = f"{cut(key)}: {cut(problem, 600)}{got}." + (f" {cut(remedy, 600)}" if remedy else "")
        super().__init__(printable(line))

    @property
    def lines(self) -> tuple[str, ...]:
        """As a terminal shows it."""
        return (str(self),)


class DataError(UsageError):
    """A data set that is missing or damaged: two lines, what is wrong and what to do, since both are long."""

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(key, problem, remedy=remedy)
        self._lines = (printable(f"{key}: {problem}."), printable(remedy))

    @property
    def lines(self) -> tuple[str, ...]:
        return self._lines


_NOT_OWN = tuple(
    folder + os.sep
    for folder in (
        str(Path(__file__).parents[1]),
        *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
    )
)
"""Folders of bnlab, of Python, and of installed packages."""


def cause(error: BaseException) -> str:
    """An error in a user's own code, in one line: `ValueError in my_metric.py, line 20: no data`. The place is the last
    one outside of bnlab and of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_OWN)]
    place = (own or frames)[-1]
    return f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {said(error)}".rstrip(": ")


def said(error: BaseException) -> str:
    """The text of an error, in one line: a user's own may fail to make one."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return "an error without a text"


def refuse_path(key: str, *parts: str) -> None:
    """Refuse `parts` that are not each the name of a folder below the one before.

    Raises:
        UsageError: one is empty, has only dots, or has a slash, a `$` or a control character; or they are too long.
    """
    remedy = "Write letters, digits, _ or -, such as my_run."
    if any(not part.strip(". ") or not part.isprintable() or set("/\\$") & set(part) for part in parts):
        raise UsageError(key, "cannot be the name of a folder", "/".join(parts), remedy)
    if any(len(part.encode()) > MOST_BYTES for part in parts) or len(parts) > MOST_PARTS:
        raise UsageError(key, "is too long for the name of a folder", "/".join(parts), remedy)


def nearest(word: object, known: Iterable[object]) -> str:
    """`Did you mean: optim.lr?` where a known word is close, else the list of known words.

    >>> nearest("bach", ["none", "batch"]), nearest("batch_size", ["eval_batch_size", "data.batch_size"])
    ('Did you mean: batch?', 'Did you mean: data.batch_size?')
    >>> nearest("depht", ["seed", "model.depth"])
    'Did you mean: model.depth?'
    """
    word, known = str(word), sorted(map(str, known))
    last = word.rpartition(".")[2]
    close = [name for name in known if name.rpartition(".")[2] == last][:1]  # `lr` for `optim.lr`
    close = close or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    ends = {name.rpartition(".")[2]: name for name in known}
    close = close or [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.75)]
    if close:
        return f"Did you mean: {close[0]}?"
    return f"There are: {', '.join(known)}." if len(known) <= 40 else ""
