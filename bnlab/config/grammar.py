"""What an axis may say beyond Hydra's grammar, and an axis as the texts of its values."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Union

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep, Sweep, Transformer
from hydra.errors import HydraException

from bnlab.core.errors import UsageError
from bnlab.core.spec import GROUPS

# Hydra checks the arguments of a function against its annotations, and reads real types only: neither strings, as
# `from __future__ import annotations` makes them, nor `int | float`.
Number = Union[int, float]  # noqa: UP007

DIGITS = 3
"""Significant digits of a value of `logspace`, since it becomes part of folder names: at 9 values between 1e-3 and 10
that moves a rate by less than 0.5 %."""


def logspace(lo: Number, hi: Number, n: int) -> ChoiceSweep:
    """`n` values from `lo` to `hi`, both included, each the same multiple of the one before, to 3 digits. Unlike
    numpy's, its ends are the values themselves.

    >>> logspace(1e-3, 10, 5).list
    [0.001, 0.01, 0.1, 1, 10]
    >>> logspace(0.1, 1, 3).list
    [0.1, 0.316, 1]

    Raises:
        UsageError: an end that is not above 0, fewer than two values, values that are one to 3 digits.
    """
    name = "logspace(lo, hi, n)"
    for end in (lo, hi):
        if not (0 < end < math.inf):
            raise UsageError(name, "lo and hi are the values themselves, not exponents, and must be above 0", end)
    if n < 2:
        raise UsageError(name, "n must be at least 2, since both ends are values", n)
    ratio = math.log(hi / lo) / (n - 1)
    inner = [float(f"{lo * math.exp(ratio * index):.{DIGITS}g}") for index in range(1, n - 1)]
    values = [int(value) if float(value).is_integer() else value for value in (lo, *inner, hi)]
    if len(set(values)) < n:
        raise UsageError(name, f"{n} values between {lo:g} and {hi:g} are not {n} to {DIGITS} digits")
    return ChoiceSweep(list=list(values))


def add_functions(functions: Any) -> None:
    """Make bnlab's own functions known to a parser of Hydra's."""
    functions.register(name="logspace", func=logspace)


def texts(override: Override, options: Sequence[str]) -> list[str]:
    """The values of an axis, each as it would be typed alone, none twice, floats to 12 digits; `options` are the
    names of the group it is of, if it is one. A `shuffle()` has no effect: an order that differs from call to call
    would be of no use here.

    Raises:
        UsageError: what names no values: `interval()`, a `glob()` of a key, a sweep inside a list of values.
    """
    key = override.key_or_group
    if not override.is_sweep_override():
        return [_text(override._value)]
    if override.is_interval_sweep():
        remedy = "Name its values: logspace(lo, hi, n) or range(start, stop, step)."
        raise UsageError(key, "an interval has no values to run", override.get_value_string(), remedy)
    found = list(dict.fromkeys(_text(value) for value in _values(override, options)))
    if not found:
        raise UsageError(key, "names no value", override.get_value_string())
    return found


def _values(override: Override, options: Sequence[str]) -> Iterator[Any]:
    swept: Any = override._value
    key = override.key_or_group
    if isinstance(swept, Glob):
        if key not in GROUPS:
            remedy = "It chooses among the options of a group, such as norm=glob(*)."
            raise UsageError(key, "glob() has nothing to choose from", override.get_value_string(), remedy)
        yield from swept.filter(list(options))
        return
    if isinstance(swept, ChoiceSweep | RangeSweep):
        swept.shuffle = False
    try:
        for value in override.sweep_iterator(transformer=Transformer.identity):
            if isinstance(value, Sweep):
                raise UsageError(key, "several values inside one", override.get_value_string(), "Name them one by one.")
            yield value
    except HydraException as error:
        raise UsageError(key, str(error).splitlines()[0], override.get_value_string()) from None


def _text(value: Any) -> str:
    """As it would be typed.

    >>> _text(0.1 + 0.2), _text(None), _text([1, 2.0]), _text(True), _text("batch")
    ('0.3', 'null', '[1,2.0]', 'true', 'batch')
    """
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(float(f"{value:.12g}"))
    return str(Transformer.str(value))
