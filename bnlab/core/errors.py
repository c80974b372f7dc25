"""The one kind of error a user can cause, in one form: `<key>: <what is wrong>, got <value>. <what to do>`."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

from bnlab.core.text import quoted

_NOTHING = object()


class UsageError(ValueError):
    """A mistake in what the user typed or wrote: one line, no traceback, exit code 2.

    >>> print(UsageError("optim.lr", "must be above 0", -1, "Try optim.lr=0.1."))
    optim.lr: must be above 0, got -1. Try optim.lr=0.1.
    """

    def __init__(self, key: str, problem: str, value: object = _NOTHING, remedy: str = "") -> None:
        got = "" if value is _NOTHING else f", got {quoted(value)}"
        super().__init__(f"{key}: {problem}{got}." + (f" {remedy}" if remedy else ""))

    @property
    def lines(self) -> tuple[str, ...]:
        """As a terminal shows it."""
        return (str(self),)


class DataError(UsageError):
    """A data set that is missing or damaged: two lines, what is wrong and what to do, since both are long."""

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(key, problem, remedy=remedy)
        self._lines = (f"{key}: {problem}.", remedy)

    @property
    def lines(self) -> tuple[str, ...]:
        return self._lines


def cause(error: BaseException) -> str:
    """An error in a user's own code, in one line: `ValueError in my_metric.py, line 20: no data`."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())
    return f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {words}".rstrip(": ")


def refuse_path(key: str, *parts: str) -> None:
    """Refuse `parts` that are not each the name of a folder below the one before.

    Raises:
        UsageError: one is empty, has only dots, or has a slash, a `$` or a control character.
    """
    if any(not part.strip(". ") or not part.isprintable() or set("/\\$") & set(part) for part in parts):
        remedy = "Write letters, digits, _ or -, such as my_run."
        raise UsageError(key, "cannot be the name of a folder", "/".join(parts), remedy)


def nearest(word: str, known: Iterable[str]) -> str:
    """`Did you mean: optim.lr?` where a known word is close, else the list of known words.

    >>> nearest("bach", ["none", "batch"])
    'Did you mean: batch?'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # the last part alone: `lr` for `optim.lr`
        close = [name for name in known if name.rpartition(".")[2] == word.rpartition(".")[2]][:1]
    if close:
        return f"Did you mean: {close[0]}?"
    return f"There are: {', '.join(known)}." if len(known) <= 40 else ""
