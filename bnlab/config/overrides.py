"""`key=value` as it is typed: Hydra's grammar, and which overrides may reach a spec.

Plain Hydra accepts three things that a laboratory must not: `+key` (a key nothing reads), `~group` (silently another
net), `hydra.*` (silently ignored).
"""

import itertools
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Union

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep, Sweep, Transformer
from hydra.errors import HydraException
from omegaconf import OmegaConf

from bnlab.config.places import available
from bnlab.core.errors import UsageError, nearest
from bnlab.core.safe import MOST_DEPTH
from bnlab.core.spec import GROUPS
from bnlab.core.text import in_quotes, typed

MOST_CHARACTERS, MOST_VALUES = 100_000, 20_000
"""Of an override, and of an axis or a grid: of so many cells, half a minute goes into their specs."""

LEVEL = {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}


class Overrides:
    """Reads overrides over `dirs`; each text is parsed once. Needs Hydra set up (compose.py)."""

    def __init__(self, dirs: Sequence[Path]) -> None:
        self.dirs = dirs
        self._parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        self._parser.functions.register(name="logspace", func=logspace)
        self._read: dict[str, Override] = {}

    @cached_property
    def options(self) -> dict[str, list[str]]:
        """The options of every group."""
        return {group: list(available(group, self.dirs)) for group in GROUPS}

    def offer(self, folder: str, name: str, tree: Mapping[str, Any]) -> None:
        """Write the YAML of a further option to the last of `dirs`, which is temporary.

        Raises:
            OmegaConfBaseException: a value that YAML cannot hold.
        """
        file = self.dirs[-1] / folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(dict(tree)), file)
        if folder in self.options and name not in self.options[folder]:
            self.options[folder].append(name)

    def read(self, text: str) -> Override:
        """One override of a key or a group that a spec may have. `probes=[A,B]` is `probes=A+B`.

        Raises:
            UsageError: it cannot be read, or does something else than giving a value.
        """
        if text not in self._read:
            listed = re.fullmatch(r"probes=\[([\w,+ ]+)\]", text)
            names = "+".join(name.strip() for name in listed[1].split(",")) if listed else ""
            self._read[text] = self._checked(f"probes={names}" if listed else text)
        return self._read[text]

    def split(self, overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, Override]]:
        """Choices of a group's option, and values of keys, of one run.

        Raises:
            UsageError: several values, a key given twice, no such option.
        """
        choices: dict[str, str] = {}
        values: dict[str, Override] = {}
        for text in overrides:
            override = self.read(text)
            key = override.key_or_group
            if override.is_sweep_override():
                several = "several values, and `train` makes one run"
                remedy = "Give one of them, or use `bnlab sweep`."
                raise UsageError(key, several, override.get_value_string(), remedy)
            if key in choices or key in values:
                raise UsageError(key, "given twice", text, "Give it once.")
            if key in GROUPS:
                choices[key] = self.option(key, override.value())
            else:
                values[key] = override
        return choices, values

    def option(self, group: str, value: Any) -> str:
        """The name of a group's option.

        Raises:
            UsageError: there is none of that name.
        """
        name = str(value)
        if name not in self.options[group]:
            raise UsageError(group, "no such option", name, nearest(name, self.options[group]))
        return name

    def _checked(self, text: str) -> Override:
        deepest = max(itertools.accumulate(LEVEL.get(sign, 0) for sign in text), default=0)
        limits = (len(text), MOST_CHARACTERS, "characters"), (deepest, MOST_DEPTH, "brackets in each other")
        for has, most, what in limits:
            if has > most:
                raise UsageError(text, f"has {has:,} {what}, and can have {most:,}", remedy="Write less.")
        try:
            override = self._parser.parse_overrides([text])[0]
        except HydraException as error:
            if isinstance(error.__cause__, UsageError):  # one of our own functions
                raise error.__cause__ from None
            if error.__cause__ is not None:  # one of Hydra's, with what it cannot take
                problem = str(error.__cause__).splitlines()[0].rstrip(".")
                raise UsageError(text, f"cannot be read: {problem}") from None
            raise UsageError(text, "cannot be read as an override", remedy=self._as_text(text)) from None
        except ValueError:
            raise UsageError(text, "has a number of thousands of digits", remedy="Write fewer.") from None
        key = override.key_or_group
        if override.package is not None:
            raise UsageError(f"{key}@{override.package}", "a group has one place", remedy=f"Write {key}=...")
        if override.is_delete():
            raise UsageError(text, "nothing can be removed from a spec", remedy=f"Give {key} another value.")
        if override.is_add() or override.is_force_add():
            remedy = f"Where the key exists, write {key}=... without the +."
            raise UsageError(text, "nothing can be added to a spec, its keys are fixed", remedy=remedy)
        if key == "hydra" or key.startswith("hydra."):
            problem = "bnlab is not run by Hydra, so its own settings have no effect"
            raise UsageError(text, problem, remedy="Leave it out.")
        return override

    def _as_text(self, text: str) -> str:
        """What to type instead: a name, or the texts of a list, in quotes where that can be read."""
        key, _, value = text.partition("=")
        part = {"name": r".+", "plugins": r"[^\[\],]+", "launch.extra": r"[^\[\],]+"}.get(key)
        if key == "launch.extra" and not value.startswith("["):
            value = f"[{value}]"
        mended = f"{key}={re.sub(part, lambda found: in_quotes(found[0]), value)}" if part else text
        try:
            self._parser.parse_overrides([mended])
        except HydraException:
            return "Write key=value."
        return "Put it in quotes: " + (shlex.quote(mended) if set(text) & set('"$`!') else f'"{mended}"')


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
    refuse_many(name, n)
    if n < 2:
        raise UsageError(name, "n must be at least 2, since both ends are values", n)
    ratio = math.log(hi / lo) / (n - 1)
    inner = [float(f"{lo * math.exp(ratio * index):.{DIGITS}g}") for index in range(1, n - 1)]
    values = [int(value) if float(value).is_integer() else value for value in (lo, *inner, hi)]
    if len(set(values)) < n:
        raise UsageError(name, f"{n} values between {lo:g} and {hi:g} are not {n} to {DIGITS} digits")
    return ChoiceSweep(list=list(values))


def refuse_many(key: str, count: float) -> None:
    """Refuse values before there are too many of them.

    Raises:
        UsageError: more than `MOST_VALUES`.
    """
    if not count <= MOST_VALUES:
        remedy = "Give fewer, and more in another sweep of the same name."
        has = f"{count:,.0f}" if count < 1e15 else f"{count:.0e}"
        raise UsageError(key, f"has {has} values, and a sweep has at most {MOST_VALUES:,}", remedy=remedy)


def texts(override: Override, options: Sequence[str]) -> list[str]:
    """The values of an axis, each as it would be typed alone, none twice, floats to 12 digits; `options` are the
    names of the group it is of, if it is one. A `shuffle()` has no effect: an order that differs from call to call
    would be of no use here.

    Raises:
        UsageError: what names no values: `interval()`, a `glob()` of a key, a sweep inside a list of values.
    """
    key = override.key_or_group
    if not override.is_sweep_override():
        return [_text(_parsed(override))]
    if override.is_interval_sweep():
        remedy = "Name its values: logspace(lo, hi, n) or range(start, stop, step)."
        raise UsageError(key, "an interval has no values to run", override.get_value_string(), remedy)
    found = list(dict.fromkeys(_text(value) for value in _values(override, options)))
    if not found:
        raise UsageError(key, "names no value", override.get_value_string())
    return found


def _values(override: Override, options: Sequence[str]) -> Iterator[Any]:
    swept = _parsed(override)
    key = override.key_or_group
    if isinstance(swept, Glob):
        if key not in GROUPS:
            remedy = "It chooses among the options of a group, such as norm=glob(*)."
            raise UsageError(key, "glob() has nothing to choose from", override.get_value_string(), remedy)
        yield from swept.filter(list(options))
        return
    if isinstance(swept, RangeSweep):
        start, stop, step = (float(end or 0) for end in (swept.start, swept.stop, swept.step))
        if not step:
            raise UsageError(key, "the step of a range must not be 0", override.get_value_string())
        refuse_many(key, (stop - start) / step)
    if isinstance(swept, ChoiceSweep | RangeSweep):
        swept.shuffle = False
    try:
        for value in override.sweep_iterator(transformer=Transformer.identity):
            if isinstance(value, Sweep):
                raise UsageError(key, "several values inside one", override.get_value_string(), "Name them one by one.")
            yield value
    except HydraException as error:
        raise UsageError(key, str(error).splitlines()[0], override.get_value_string()) from None


def value_of(override: Override) -> Any:
    """The value; a name stays as it was typed, since 2024 is a name too."""
    value = override.value()
    is_number = override.key_or_group == "name" and isinstance(value, bool | int | float)
    return str(override.input_line).partition("=")[2] if is_number else value


def _parsed(override: Override) -> Any:
    """The value as Hydra's parser made it: a sweep as an object, a quoted string with its quotes."""
    # A private name: `Override.value()` refuses sweeps and drops the quotes, and nothing public gives them.
    return override._value


def _text(value: Any) -> str:
    """As it would be typed.

    >>> _text(0.1 + 0.2), _text(None), _text([1, 2.0]), _text(True), _text("batch")
    ('0.3', 'null', '[1,2.0]', 'true', 'batch')
    """
    if value is None or isinstance(value, bool | float):
        return typed(value)
    return str(Transformer.str(value))
