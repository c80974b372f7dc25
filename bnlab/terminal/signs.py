"""What an output can show: signs, lines of text, a JSON object, a curve in one line, a shortened name."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from bnlab.core.text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """`spark` from low to high; `bad` is a value that is not finite; `cut` is what is left out of a table, `gap` what
    is left out of a name; `states` has the sign of each run state."""

    spark: str
    bad: str
    done: str
    rest: str
    line: str
    cut: str
    gap: str
    states: Mapping[str, str]


DRAWN = Signs(
    spark="▁▂▃▄▅▆▇█", bad="✕", done="━", rest="─", line="─", cut="⋮", gap="…",
    states={"finished": "●", "running": "◐", "diverged": "✕", "failed": "!", "interrupted": "○", "not started": "·"},
)  # fmt: skip
ASCII = Signs(
    spark="_.:-=+*#", bad="x", done="#", rest=".", line="-", cut=":", gap="~",
    states={"finished": "o", "running": ">", "diverged": "x", "failed": "!", "interrupted": "=", "not started": "."},
)  # fmt: skip


def signs_for(encoding: str | None) -> Signs:
    """The signs that an output of this encoding can show.

    >>> signs_for("utf-8") is DRAWN, signs_for("ascii") is ASCII, signs_for("latin-1") is ASCII
    (True, True, True)
    """
    try:
        f"{DRAWN}".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return DRAWN


def is_screen(out: TextIO) -> bool:
    """Whether `out` is a terminal whose cursor can be moved. Only the file itself decides: FORCE_COLOR in the logs of
    automated builds makes libraries assume a terminal."""
    return out.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def say(text: str, out: TextIO | None = None) -> None:
    """Print a text; what a terminal would take for a command is escaped (`printable`)."""
    put(printable(text, keep="\n\t"), out)


def put(text: str, out: TextIO | None = None) -> None:
    """Print a text that may have colours, and what users name in it escaped already. Signs that the output cannot show
    become `?`. A closed pipe is not an error."""
    out = out or sys.stdout
    encoding = out.encoding or "ascii"
    try:
        print(text.encode(encoding, "replace").decode(encoding), file=out, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        give_up(out)


def give_up(out: TextIO) -> None:
    """Point the file at nothing, or the interpreter complains again when it flushes at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


@contextlib.contextmanager
def waiting(text: str, out: TextIO, *, plain: bool = False) -> Iterator[None]:
    """On a screen, the text until what is inside is done: imports of large libraries take seconds."""
    if plain or not is_screen(out):
        yield
        return
    out.write(printable(text))
    out.flush()
    try:
        yield
    finally:
        out.write("\r\x1b[K")
        out.flush()


def complain(text: str) -> None:
    """Print one line on stderr, without the line breaks of the text."""
    say(" ".join(text.split()), sys.stderr)


def print_json(tree: Mapping[str, Any]) -> None:
    """Print one object on one line; a number that is not finite is null."""
    say(json.dumps(_finite(tree), allow_nan=False, default=str), _stdout[-1] if _stdout else None)


_stdout: list[TextIO] = []


@contextlib.contextmanager
def only_json() -> Iterator[None]:
    """Inside it, only `print_json` writes to stdout: what a plugin prints, or a process that it starts, goes to
    stderr."""
    with contextlib.ExitStack() as stack:
        _stdout.append(stack.enter_context(_apart(sys.stdout)))
        stack.callback(_stdout.pop)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


@contextlib.contextmanager
def _apart(out: TextIO) -> Iterator[TextIO]:
    """Inside it, the file under the number of `out` is that of stderr; yields the file that it was."""
    try:
        number, errors = out.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # in memory
        yield out
        return
    out.flush()
    with open(os.dup(number), "w", encoding=out.encoding, errors=out.errors) as kept:
        os.dup2(errors, number)
        try:
            yield kept
        finally:
            os.dup2(kept.fileno(), number)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sparkline(values: Sequence[float], width: int, signs: Signs) -> str:
    """The last `width` values as signs between their smallest and their largest.

    >>> sparkline([0.0, 1.0, 2.0, 7.0], 8, DRAWN)
    '▁▂▃█'
    >>> sparkline([1.0, 1.0, float("nan")], 2, ASCII)
    '_x'
    """
    shown = [float(value) for value in values[-width:]] if width > 0 else []
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return signs.bad * len(shown)
    low, high = min(finite), max(finite)
    # Divide before subtracting: the range of two large numbers may not be finite.
    unit = max(abs(low), abs(high)) or 1.0
    span = high / unit - low / unit or 1.0
    top = len(signs.spark) - 1
    levels = [round((value / unit - low / unit) / span * top) if math.isfinite(value) else -1 for value in shown]
    return "".join(signs.spark[level] if level >= 0 else signs.bad for level in levels)


def thinned(values: Sequence[float], width: int) -> list[float]:
    """At most `width` of the values: each is the last one of a stretch, or one in it that is not finite.

    >>> thinned([1.0, 2.0, 3.0, 4.0, 5.0], 2)
    [2.0, 5.0]
    """
    if len(values) <= width or width < 1:
        return list(values)[: max(0, width)]
    ends = [round((index + 1) * len(values) / width) for index in range(width)]
    stretches = [values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [next((x for x in stretch if not math.isfinite(x)), stretch[-1]) for stretch in stretches]


def shortened(text: str, width: int, signs: Signs) -> str:
    """At most `width` characters, cut in the middle: names begin alike and end with what tells them apart.

    >>> shortened("L03_features.layer1.conv2", 12, DRAWN), shortened("L03_fc", 12, DRAWN)
    ('L03_fe…conv2', 'L03_fc')
    """
    if len(text) <= width:
        return text
    kept = max(0, width - len(signs.gap))
    return text[: kept - kept // 2] + signs.gap[:width] + text[len(text) - kept // 2 :]
