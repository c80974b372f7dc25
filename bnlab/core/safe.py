"""YAML and JSON of a file that anybody may have written: plain trees, within limits that are checked before objects are
built. No file can run code, hang, or end the process. And files that are written where others may write too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import orjson
import yaml

MOST_DEPTH, MOST_NODES = 64, 200_000
"""Levels in each other, and values with those that aliases repeat."""

PLAIN = {None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map"))}
"""Tags that a value may have; no dates, sets, binaries, or objects of a language."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads what looks like a date as text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def no_link(path: str, flags: int) -> int:
    """For `open(path, mode, opener=no_link)`: what is opened to be written is no symbolic link, by which somebody who
    may write to a folder of runs would have another file of its owner overwritten."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def safe_yaml(data: str | bytes) -> Any:
    """What a YAML document says: None, booleans, numbers, texts, lists, and mappings with texts as keys.

    >>> safe_yaml("a: [1, 2.5, x]")
    {'a': [1, 2.5, 'x']}

    Raises:
        ValueError: in one line, with the line number where there is one: not UTF-8, not YAML, more than one document,
            deeper than `MOST_DEPTH`, more values than `MOST_NODES`, an alias within itself, a tag that is not plain, a
            number that is none, a key that is not a text.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        _measure(text)
        try:
            tree = yaml.load(text, Loader=_Loader)
        except ValueError:
            raise ValueError("a number is none, or has more than 64 bits") from None
    except UnicodeError as error:
        raise ValueError(f"is not UTF-8 ({error.reason if isinstance(error, UnicodeDecodeError) else error})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(" ".join(f"{where}{error.problem or error.context or error}".split())) from None
    except (yaml.YAMLError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    return _plain(tree)


def safe_json(data: bytes) -> dict[str, Any]:
    """The object in a JSON text.

    Raises:
        ValueError: in one line: not UTF-8, not JSON, not an object, or deeper than `MOST_DEPTH`.
    """
    tree = _plain(orjson.loads(data))
    if not isinstance(tree, dict):
        raise ValueError(f"is not an object but {type(tree).__name__}")
    return tree


def _measure(text: str) -> None:
    """Refuse what would be too deep or too large once it is built. Only the parser runs here, which builds nothing."""
    whole: dict[str, int] = {}  # by anchor: values in it, aliases repeated
    within: list[list[Any]] = [[None, 0]]  # of each open level: its anchor, values so far
    events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = within.pop()
            whole[anchor] = size
            within[-1][1] += size
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in within):
                raise ValueError(f"line {line}: *{event.anchor} is within itself")
            within[-1][1] += whole.get(str(event.anchor), 1)
        elif hasattr(event, "tag"):  # a value
            if event.tag not in PLAIN:
                raise ValueError(f"line {line}: a value of the type {event.tag.rpartition(':')[2]} has no place here")
            within[-1][1] += 1
            if isinstance(event, yaml.CollectionStartEvent):
                within.append([event.anchor, 0])
            elif event.anchor is not None:
                whole[event.anchor] = 1
        if len(within) > MOST_DEPTH:
            raise ValueError(f"line {line}: more than {MOST_DEPTH} levels in each other")
        if within[-1][1] > MOST_NODES:
            raise ValueError(f"line {line}: more than {MOST_NODES:,} values")


def _plain(value: Any, levels: int = MOST_DEPTH) -> Any:
    """The same tree, checked."""
    if levels < 0:
        raise ValueError(f"more than {MOST_DEPTH} levels in each other")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not a text")
        return {key: _plain(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, levels - 1) for item in value]
    if isinstance(value, int) and value.bit_length() > 64:  # written as hexadecimal, which has no limit
        raise ValueError("a number has more than 64 bits")
    return value
