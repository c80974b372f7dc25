"""Which runs of many, and in which order: conditions such as `optim.lr>=0.1`, and keys to sort by."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bnlab.core.errors import UsageError, nearest
from bnlab.core.safe import safe_yaml
from bnlab.core.spec import GROUPS, canonical

Values = Mapping[str, Any]
"""All that is known about a run, by key. None or absent: not known."""

ORDERS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
FORM = re.compile(r"\s*(?P<key>[^=!<>\s]+)\s*(?P<sign><=|>=|!=|==|=|<|>)\s*(?P<text>.*?)\s*", re.S)
SHORT_NAMES = {"lr": "optim.lr", "final_loss": "train_loss", "final_accuracy": "test_accuracy"} | {
    group: f"{group}.name" for group in GROUPS if group != "probes"
}
"""Short names of keys. A group is named as it is chosen: `model=cnn`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """`--where` and `--sort`: conditions that must all hold, and keys to sort by, the first one first; `-key` sorts
    downwards."""

    where: Sequence[str] = ()
    sort: Sequence[str] = ()

    def keys(self) -> list[str]:
        """Every key that it names, as it was typed, once."""
        conditions = [match["key"] for text in self.where if (match := FORM.fullmatch(text))]
        return list(dict.fromkeys([*conditions, *(key.removeprefix("-") for key in self.sort)]))

    def of(self, runs: Sequence[Values]) -> list[int]:
        """Positions of the selected runs, sorted; without a key to sort by, in their order.

        Raises:
            UsageError: a text that is not a condition, a key that no run has, a value of another type than the runs'.
        """
        tests = [_condition(text, runs) for text in self.where]
        orders = [(refuse_unknown_key("--sort", key.removeprefix("-"), runs), key.startswith("-")) for key in self.sort]
        chosen = [index for index, run in enumerate(runs) if all(test(run) for test in tests)]
        for key, down in reversed(orders):  # each sort keeps the previous order among equals
            have = [index for index in chosen if rank(runs[index].get(key)) is not None]
            lack = [index for index in chosen if rank(runs[index].get(key)) is None]
            chosen = [*sorted(have, key=lambda index: rank(runs[index].get(key)) or (), reverse=down), *lack]
        return chosen


def full_key(key: str) -> str:
    """
    >>> full_key("lr"), full_key("model.depth")
    ('optim.lr', 'model.depth')
    """
    return SHORT_NAMES.get(key, key)


def rank(value: Any) -> tuple[Any, ...] | None:
    """The sort key of a value: numbers before texts. None for a value that is not known or not a number.

    >>> sorted([2, "full", 0.5, True], key=rank), rank(float("nan")), rank(None)
    ([0.5, True, 2, 'full'], None, None)
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return (0, value) if isinstance(value, int | float) else (1, value if isinstance(value, str) else canonical(value))


def refuse_unknown_key(option: str, key: str, runs: Sequence[Values]) -> str:
    """The key in full.

    Raises:
        UsageError: no run has it; `option` is where it was typed.
    """
    full = full_key(key)
    known = {key for run in runs for key in run}
    ends = [name for name in known if name.endswith(f".{full}")]
    if full not in known and len(ends) == 1:
        return ends[0]
    if full not in known:
        raise UsageError(option, "no such key in these runs", key, nearest(key, known | SHORT_NAMES.keys()))
    return full


def _condition(text: str, runs: Sequence[Values]) -> Callable[[Values], bool]:
    match = FORM.fullmatch(text)
    if match is None:
        raise UsageError("--where", "not a condition", text, "Write norm=batch, or != < > <= >= in place of =.")
    key, sign = refuse_unknown_key("--where", match["key"], runs), match["sign"]
    there = [run[key] for run in runs if run.get(key) is not None]
    if sign in ORDERS:
        bound = _typed(match["text"])
        if not _is_number(bound):
            raise UsageError("--where", f"{sign} needs a number after it", text)
        if there and not any(_is_number(value) for value in there):
            raise UsageError("--where", f"{match['key']} is not a number in these runs", text, "Use = or !=.")
        compare = ORDERS[sign]
        return lambda run: _is_number(run.get(key)) and compare(run[key], bound)
    wanted = [(one, _typed(one)) for one in _several(match["text"])]
    for _, value in wanted:
        _refuse_other_type(text, match["key"], value, there)
    return lambda run: (sign == "!=") != any(_equal(run.get(key), one, value) for one, value in wanted)


def _refuse_other_type(text: str, key: str, value: Any, there: Sequence[Any]) -> None:
    for kind, is_it in (("a number", _is_number), ("true or false", lambda value: isinstance(value, bool))):
        if there and all(map(is_it, there)) and not (value is None or is_it(value)):
            raise UsageError("--where", f"{key} is {kind} in these runs", text)


def _equal(value: Any, text: str, wanted: Any) -> bool:
    """Equal to 12 digits, as are `1` and `1.0`; a text is compared as it was typed."""
    return value == text if isinstance(value, str) else canonical(value) == canonical(wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _several(text: str) -> list[str]:
    """The values between commas, of which one must match; a list is one value.

    >>> _several("none,batch"), _several("[0,2]")
    (['none', 'batch'], ['[0,2]'])
    """
    return [text] if text.startswith("[") else [part.strip() for part in text.split(",")]


def _typed(text: str) -> Any:
    """As in YAML, except that `1e-3` is a number.

    >>> _typed("1e-3"), _typed("true"), _typed("null"), _typed("[0, 2]"), _typed("batch")
    (0.001, True, None, [0, 2], 'batch')
    """
    with suppress(ValueError):
        return float(text)
    try:
        value = safe_yaml(text) if text else text
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | list) else text
