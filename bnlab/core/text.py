"""Values, numbers, times and command lines as people read and type them: the one place that prints each."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def typed(value: Any) -> str:
    """A value as one types it behind `key=`: floats to 12 digits.

    >>> [typed(x) for x in (0.1 + 0.2, 1e-05, True, None, [3, 4.0], {"a": 1}, "batch")]
    ['0.3', '1e-05', 'true', 'null', '[3,4.0]', '{a:1}', 'batch']
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    return repr(float(f"{value:.12g}")) if isinstance(value, float) else str(value)


def in_quotes(text: str) -> str:
    """A text as one types it behind `key=` where the grammar of overrides would read it as something else.

    >>> print(in_quotes("a=b"), in_quotes("it's"))
    'a=b' 'it\\'s'
    """
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def quoted(value: object) -> str:
    """A value as errors show it: `true` and `null` as one types them; strings in quotes, so that `'1'` is not `1`; the
    ends of a long one.

    >>> quoted(None), quoted("1"), quoted([0.5, 1.5])
    ('null', "'1'", '[0.5, 1.5]')
    """
    try:
        return typed(value) if value is None or isinstance(value, bool) else cut(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list in a list in ...
        return f"{type(value).__name__} that is too long to print"


def cut(text: str, most: int = 200) -> str:
    """A text with its middle left out where it is longer than `most`.

    >>> cut("x" * 1000, 20)
    'xxxxxxx ... xxxxxxxx'
    """
    kept = most - 5
    return text if len(text) <= most else f"{text[: kept // 2]} ... {text[-(kept - kept // 2) :]}"


def printable(text: str, keep: str = "") -> str:
    """A text that a terminal shows as it is: control characters, those that turn the direction of writing, and bytes
    that are no text become escapes, except those to `keep`.

    >>> print(printable("red\x1b[31m"), printable("naïve 数"))
    red\\x1b[31m naïve 数
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def markdown(text: object) -> str:
    """A text that a reader of Markdown and HTML shows as it is, in one line.

    >>> print(markdown("a|b <c>"))
    a&#124;b &#60;c&#62;
    """
    return re.sub(r"[\\`*\[\]<>&|~!]", lambda found: f"&#{ord(found[0])};", printable(" ".join(str(text).split())))


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number in few characters; `-` for one that was not measured.

    >>> [number(x) for x in (0.0123456, 1234.5, 1e-07, 30000.0, 1e6, 2.0, None, math.inf, math.nan)]
    ['0.0123', '1234', '1e-7', '30000', '1e6', '2', '-', 'inf', 'nan']
    >>> number(0.5, sign=True), number(0.123456, 4), number(921.0, 2)
    ('+0.5', '0.1235', '920')
    """
    if value is None:
        return "-"
    plus, size = "+" if sign else "", abs(value)
    if not math.isfinite(value) or size == 0 or 1e-3 <= size < 1e3:
        text = f"{value:{plus}.{digits}g}"
        return f"{float(text):{plus}.0f}" if "e" in text else text
    if size < 1e5 and size >= 1e3:
        return f"{value:{plus}.{max(0, digits - 1 - int(math.log10(size)))}f}"
    mantissa, _, exponent = f"{value:{plus}.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "seed"), count(3, "seed"), count(2, "study")
    ('1 seed', '3 seeds', '2 studies')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def listed(parts: Sequence[str]) -> str:
    """
    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def capital(text: str) -> str:
    """The first letter in upper case; the rest stays: `L1 batch norm`.

    >>> capital("batch norm"), capital("RMS norm")
    ('Batch norm', 'RMS norm')
    """
    return text[:1].upper() + text[1:]


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


def file_size(size: int) -> str:
    """In decimal units.

    >>> file_size(999), file_size(12_345), file_size(3_000_000), file_size(2_340_000_000)
    ('999 B', '12 kB', '3 MB', '2.3 GB')
    """
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB"
    for unit, scale in (("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.0f} {unit}"
    return f"{size} B"


def command(*words: str, **options: Any) -> str:
    """A line to type: `words`, then an option for each value that is neither None nor False.

    >>> command("bnlab", "train", "norm=none", runs="my runs", config_dir=None, plain=True)
    "bnlab train norm=none --runs 'my runs' --plain"
    """
    flags: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            flags += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join([*words, *flags])


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a tree of settings.

    >>> dict(leaves({"seed": 0, "optim": {"lr": 0.1}}))
    {'seed': 0, 'optim.lr': 0.1}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def short_key(key: str) -> str:
    """The last part of a dotted key, in words.

    >>> short_key("data.batch_size")
    'batch size'
    """
    return key.rpartition(".")[2].replace("_", " ")


def csv_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers to nine digits; empty where there is none or it is not finite.

    >>> csv_table(["norm", "loss"], [["batch", 0.25], ["none", math.nan]])
    'norm,loss\\nbatch,0.25\\nnone,\\n'
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(cell) for cell in row] for row in rows)
    return out.getvalue()


def _cell(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return f"{cell:.9g}" if isinstance(cell, float) else typed(cell)


def latex_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A `tabular` with the rules of booktabs; columns of numbers stand right.

    >>> print(latex_table(["norm", "loss"], [["batch_norm", "5 %"]]))
    \\begin{tabular}{lr}
    \\toprule
    norm & loss \\\\
    \\midrule
    batch\\_norm & 5 \\% \\\\
    \\bottomrule
    \\end{tabular}
    <BLANKLINE>
    """
    rows = list(rows)
    numbers = [all(re.match(r"[+-]?[\d.]|-?$", row[index]) for row in rows) for index in range(len(columns))]
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (columns, *rows)]
    sides = "".join("lr"[is_number] for is_number in numbers)
    parts = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([*parts, r"\end{tabular}", ""])


LATEX = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "×": r"$\times$", "∞": r"$\infty$", "−": "-"}
LATEX |= {"γ": r"$\gamma$", "β": r"$\beta$", "η": r"$\eta$", "²": r"$^2$"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in printable(text))
