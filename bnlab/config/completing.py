"""Completions of an override. No torch: options are found by their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from bnlab.config.compose import Composer, hydra_over
from bnlab.config.places import available, config_dirs, description
from bnlab.config.studies import find
from bnlab.core.errors import UsageError
from bnlab.core.spec import GROUPS, RunSpec
from bnlab.core.text import typed
from bnlab.core.typed import words_of

Offer = tuple[str, str]
"""A word and what it means. One that ends with `=` or `.` is not whole."""

START = "deep_mlp"
"""The experiment whose keys are offered where none is typed."""


def overrides(
    begun: str, given: Sequence[str], *, config: str | None, config_dir: Path | None, several: bool
) -> list[Offer]:
    """The overrides that begin with `begun` and go with those `given`; `several`: values may stand between commas.

    Raises:
        UsageError: a config or an option that there is not.
    """
    dirs = config_dirs(config_dir)
    key, equals, value = begun.partition("=")
    if equals and key in GROUPS:
        known = [(name, description(file)) for name, file in available(key, dirs).items()]
        return list(_behind(key, value, known, several))
    values = _values(config, dirs, given)
    if equals:
        return list(_behind(key, value, _words(key, values), several)) if key in values else []
    used = {text.partition("=")[0] for text in given}
    return list(_keys(begun, values, used))


def conditions(begun: str, given: Sequence[str], keys: Sequence[str]) -> list[Offer]:
    """The same for the conditions of an evaluation."""
    key, equals, value = begun.partition("=")
    if equals:
        return list(_behind(key, value, _words(key, {}), several=True)) if key in keys else []
    used = {text.partition("=")[0] for text in given}
    return [(f"{name}=", "") for name in keys if name.startswith(begun) and name not in used]


def _behind(key: str, value: str, known: Iterable[Offer], several: bool) -> Iterator[Offer]:
    """`key=` with the words that the value, or the last one of several, begins."""
    before, comma, last = value.rpartition(",") if several else ("", "", value)
    taken = before.split(",")
    for word, meaning in known:
        if word.startswith(last) and not (comma and word in taken):
            yield f"{key}={before}{comma}{word}", meaning


def _keys(begun: str, values: dict[str, Any], used: Iterable[str]) -> Iterator[Offer]:
    """Keys that begin so. Groups open step by step: `optim=` and `optim.` first, what is in it behind the dot."""
    depth = begun.count(".")
    for group in GROUPS if not depth else ():
        if group.startswith(begun):
            if group not in used:
                yield f"{group}=", "a choice of the group"
            yield f"{group}.", "keys of the group"
    seen: set[str] = set()
    for key, value in values.items():
        if not key.startswith(begun) or key in used or (key.endswith(".name") and key.partition(".")[0] in GROUPS):
            continue
        parts = key.split(".")
        if len(parts) > depth + 1:
            opening = ".".join(parts[: depth + 1]) + "."
            if depth and opening not in seen:
                seen.add(opening)
                yield opening, ""
        else:
            yield f"{key}=", f"{typed(value)} if it is not set"


def _words(key: str, values: dict[str, Any]) -> list[Offer]:
    """The words that a key can be, and what it is now."""
    group, dot, name = key.partition(".")
    kind = GROUPS.get(group) if dot else RunSpec
    hints = get_type_hints(kind, include_extras=True) if kind else {}
    now = values.get(key)
    words = words_of(hints[name or group]) if (name or group) in hints else words_of(type(now))
    shown = typed(now)
    if key in values and shown not in words:
        words = [shown, *words]
    return [(word, "if it is not set" if key in values and word == shown else "") for word in words]


def _values(config: str | None, dirs: Sequence[Path], given: Sequence[str]) -> dict[str, Any]:
    """The keys of an experiment, or of a study's, with the options of groups that are typed, of several the first."""
    with hydra_over(dirs) as reader:
        try:
            base = find(config or START, dirs).base
        except UsageError:
            base = START
        choices = dict(text.split("=", 1) for text in given if text.partition("=")[0] in GROUPS)
        first = {group: names.partition(",")[0] for group, names in choices.items()}
        known = {group: name for group, name in first.items() if name in reader.options[group]}
        return Composer(base, reader).values(known)
