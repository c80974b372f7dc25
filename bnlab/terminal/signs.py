"""The signs of a terminal that can draw, and of one that has ASCII only; numbers in few characters."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TextIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """`spark` from low to high; `bad` stands for a value that is not finite, and a run that diverged; `gap` for what is
    left out of a name."""

    spark: str
    bad: str
    done: str
    rest: str
    line: str
    cut: str
    finished: str
    running: str
    waiting: str
    gap: str
    failed: str = "!"

    @property
    def all(self) -> str:
        return "".join(getattr(self, field.name) for field in fields(self))


DRAWN = Signs(
    spark="▁▂▃▄▅▆▇█", bad="✕", done="━", rest="─", line="─", cut="⋮", finished="●", running="◐", waiting="·", gap="…"
)
ASCII = Signs(
    spark="_.:-=+*#", bad="x", done="#", rest=".", line="-", cut=":", finished="o", running=">", waiting=".", gap="~"
)


def signs_for(encoding: str | None) -> Signs:
    """The signs an output of this encoding can show.

    >>> signs_for("utf-8") is DRAWN, signs_for("ascii") is ASCII, signs_for("latin-1") is ASCII
    (True, True, True)
    """
    try:
        DRAWN.all.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return DRAWN


def is_screen(out: TextIO) -> bool:
    """Whether `out` is a terminal whose cursor can be moved. Only the file itself is asked: in the logs of automated
    builds, FORCE_COLOR makes libraries believe in a terminal."""
    return out.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def say(text: str, out: TextIO | None = None) -> None:
    """One line; signs that the output cannot show become `?`. A reader that has gone away is no error."""
    out = out or sys.stdout
    encoding = out.encoding or "ascii"
    try:
        print(text.encode(encoding, "replace").decode(encoding), file=out, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        # Point the file at nothing, or the interpreter complains again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def complain(text: str) -> None:
    """One line on stderr, whatever line breaks the text has."""
    say(" ".join(text.split()), sys.stderr)


def print_json(tree: Mapping[str, Any]) -> None:
    """One object on one line; what is not finite is null."""
    say(json.dumps(_finite(tree), allow_nan=False, default=str))


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
    # Divided before it is subtracted: the range of two large numbers may not be finite.
    unit = max(abs(low), abs(high)) or 1.0
    span = high / unit - low / unit or 1.0
    top = len(signs.spark) - 1
    levels = [round((value / unit - low / unit) / span * top) if math.isfinite(value) else -1 for value in shown]
    return "".join(signs.spark[level] if level >= 0 else signs.bad for level in levels)


def thinned(values: Sequence[float], width: int) -> list[float]:
    """All of `values` in at most `width` ones: each stands for a stretch, as its last value, or its bad one if any.

    >>> thinned([1.0, 2.0, 3.0, 4.0, 5.0], 2)
    [2.0, 5.0]
    """
    if len(values) <= width or width < 1:
        return list(values)[: max(0, width)]
    ends = [round((index + 1) * len(values) / width) for index in range(width)]
    stretches = [values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [next((x for x in stretch if not math.isfinite(x)), stretch[-1]) for stretch in stretches]


def shortened(text: str, width: int, signs: Signs) -> str:
    """At most `width` signs, cut in the middle: names begin alike, and end with what tells them apart.

    >>> shortened("L03_features.layer1.conv2", 12, DRAWN), shortened("L03_fc", 12, DRAWN)
    ('L03_fe…conv2', 'L03_fc')
    """
    if len(text) <= width:
        return text
    kept = max(0, width - len(signs.gap))
    return text[: kept - kept // 2] + signs.gap[:width] + text[len(text) - kept // 2 :]


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """In few characters; `-` for what was not measured.

    >>> number(0.0123456), number(1234.5), number(None), number(float("inf")), number(0.5, sign=True)
    ('0.0123', '1.23e+03', '-', 'inf', '+0.5')
    """
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}g}"


def duration(seconds: float | None) -> str:
    """As a clock: minutes and seconds, hours where there are any.

    >>> duration(3.2), duration(75), duration(3 * 3600 + 62), duration(None)
    ('0:03', '1:15', '3:01:02', '-:--')
    """
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def age(seconds: float) -> str:
    """How long ago, in one unit.

    >>> age(4), age(200), age(3 * 3600), age(3 * 86400)
    ('4 s', '3 min', '3 h', '3 d')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
