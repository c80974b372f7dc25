"""The append-only record of a run, and its reader.

`journal.jsonl` has one JSON object per measured step: `{"step": 40, "train_loss": 0.41, "drift_mean.pre": [...],
...}`. What was not measured is absent, what was not finite is null. Only keys that end in `_s` have readings of the
clock, so that two runs of one spec agree in every other byte.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bnlab.core.safe import no_link

Record = dict[str, Any]
Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Series:
    """One measurement of a journal: `steps` [T], `values` [T] or, per site, [T, L]. What was not finite is NaN."""

    steps: Steps
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Any]:
        """`steps, values = series`."""
        return iter((self.steps, self.values))


NOTHING = Series(np.zeros(0, np.int64), np.zeros(0))
"""The series of a name that was not measured."""


class Journal:
    """Appends records. They reach the operating system in blocks, and the disk with `sync`. Records that a killed
    process had not written are measured again after its checkpoint."""

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Opens `path`, cut to its first `keep_bytes` bytes: the records up to the checkpoint."""
        self._file = open(path, "ab", opener=no_link)  # noqa: SIM115  (closed by close())
        self._file.truncate(keep_bytes)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one line. Values are numbers, strings, or numpy arrays; NaN and infinities become null."""
        self._file.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")

    def sync(self) -> int:
        """Write everything to the disk; returns the size of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def flush(self) -> None:
        """Pass everything to the operating system, so that others can read it."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path, *, keep_bytes: int | None = None) -> Iterator[Record]:
    """The records in order; with `keep_bytes`, those in the first so many bytes. An incomplete last line, left by a
    process that was killed while writing it, is not a record."""
    with open(path, "rb") as file:
        read_bytes = 0
        for text in file:
            read_bytes += len(text)
            if not text.endswith(b"\n") or (keep_bytes is not None and read_bytes > keep_bytes):
                return
            yield orjson.loads(text)


def without_clock(record: Mapping[str, Any]) -> Record:
    """The record without readings of the clock: what must be equal in two runs of one spec.

    >>> without_clock({"step": 3, "wall_s": 0.2})
    {'step': 3}
    """
    return {key: value for key, value in record.items() if not key.endswith("_s")}


def first_record(path: Path) -> Record:
    """The first record; empty if there is none."""
    try:
        return next(islice(read(path), 1), {})
    except (OSError, ValueError):
        return {}


def last_record(path: Path) -> Record:
    """The last complete record, read from the end of the file; empty if there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            reach = 1 << 16
            while True:
                file.seek(max(0, size - reach))
                lines = file.read().split(b"\n")
                # The first piece may be the end of a line, the last one is an incomplete line.
                whole = lines[(0 if reach >= size else 1) : -1]
                if whole or reach >= size:
                    found = json.loads(whole[-1]) if whole else {}
                    return found if isinstance(found, dict) else {}
                reach *= 4
    except (OSError, ValueError):
        return {}


def columns(file: Path, names: Iterable[str]) -> dict[str, Series]:
    """The series of these names that the journal has, in one pass.

    A record is flat, its step comes first, and callers need few of its names: searching for those takes a fifth of the
    time of parsing everything.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}
    data = data[: data.rfind(b"\n") + 1]  # an incomplete last line is not a record
    step = b"0"
    steps: dict[bytes, list[bytes]] = {}
    values: dict[bytes, list[bytes]] = {}
    for name, text in _wanted(frozenset(names)).findall(data):
        if name == b"step":
            step = text
        else:
            steps.setdefault(name, []).append(step)
            values.setdefault(name, []).append(text)
    return {
        name.decode(): Series(np.array(_numbers(steps[name]), np.int64), np.array(_numbers(values[name]), np.float64))
        for name in values
    }


@cache
def _wanted(names: frozenset[str]) -> re.Pattern[bytes]:
    either = b"|".join(re.escape(name.encode()) for name in sorted(names))
    return re.compile(rb'"(step|%s)"\s*:\s*(\[[^\]]*\]|[^,}\n]*)' % either)


def _numbers(texts: list[bytes]) -> list[Any]:
    """The numbers in JSON; null becomes None, which is NaN in an array."""
    numbers: list[Any] = orjson.loads(b"[" + b",".join(texts) + b"]")
    return numbers
