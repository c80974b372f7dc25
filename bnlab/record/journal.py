"""The append-only record of a run, and its reader.

`journal.jsonl` has one JSON object per measured step: `{"step": 40, "train_loss": 0.41, "drift_mean.pre": [...],
...}`. What was not measured is absent, what was not finite is null. Only keys that end in `_s` have readings of the
clock, so that two runs of one spec agree in every other byte.
"""

from __future__ import annotations

import os
import re
import zlib
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
from bnlab.record.folder import write_atomically

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


class DamagedError(ValueError):
    """A line that is no record: its number, and the bytes before it."""

    def __init__(self, line: int, before: int) -> None:
        super().__init__(f"line {line} is damaged")
        self.line, self.before = line, before


class Journal:
    """Appends records. They reach the operating system in blocks, and the disk with `sync`. Records that a killed
    process had not written are measured again after its checkpoint. `crc` is the checksum of all records."""

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Opens `path`, cut to its first `keep_bytes` bytes: the records up to the checkpoint. They go into a new file:
        an earlier owner of the run may still have the old one open, and write to it."""
        kept = path.read_bytes()[:keep_bytes] if keep_bytes else b""
        self.crc = zlib.crc32(kept)
        write_atomically(path, kept)
        self._file = open(path, "ab", opener=no_link)  # noqa: SIM115  (closed by close())

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one line. Values are numbers, strings, or numpy arrays; NaN and infinities become null."""
        line = orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
        self.crc = zlib.crc32(line, self.crc)
        self._file.write(line)

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
    process that was killed while writing it, is not a record.

    Raises:
        DamagedError: another line is no record.
    """
    with open(path, "rb") as file:
        read_bytes = 0
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n") or (keep_bytes is not None and read_bytes + len(text) > keep_bytes):
                return
            if (record := _record(text)) is None:
                raise DamagedError(number, read_bytes)
            read_bytes += len(text)
            yield record


def _record(text: bytes) -> Record | None:
    """The record of a line; None if it has none."""
    try:
        found = orjson.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step", 0), int) else None


def refuse_damage(path: Path, keep_bytes: int, crc: int | None) -> None:
    """Check the first `keep_bytes` bytes against their checksum, if it is known, and every line of them.

    Raises:
        ValueError: in one line, what is wrong.
    """
    try:
        kept = path.read_bytes()[:keep_bytes]
        records = sum(1 for _ in read(path, keep_bytes=keep_bytes))
    except OSError as error:
        raise ValueError(f"{path.name}: {(error.strerror or str(error)).lower()}") from None
    except DamagedError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if len(kept) < keep_bytes:
        raise ValueError(f"{path.name} is cut off before the {keep_bytes:,} bytes that the checkpoint counts")
    if not records or not kept.endswith(b"\n") or crc not in (None, zlib.crc32(kept)):
        raise ValueError(f"the first {keep_bytes:,} bytes of {path.name} are not those that the checkpoint counts")


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
                    return (_record(whole[-1]) if whole else None) or {}
                reach *= 4
    except (OSError, ValueError):
        return {}


def columns(file: Path, names: Iterable[str], damage: list[str] | None = None) -> dict[str, Series]:
    """The series of these names that the journal has, in one pass. Lines that are no records are left out, and counted
    in a line of `damage`.

    A record is flat, its step comes first, and callers need few of its names: searching for those takes a fifth of the
    time of parsing everything.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}
    data = data[: data.rfind(b"\n") + 1]  # an incomplete last line is not a record
    lines = data.count(b"\n")
    try:
        if not data.count(b"}\n") == data.count(b"\n{") + data.startswith(b"{") == lines > 0:
            raise ValueError
        return _columns(data, names)
    except ValueError:
        whole = [line for line in data.splitlines(keepends=True) if _record(line) is not None]
    if damage is not None and (len(whole) < lines or not lines):
        damage.append(f"{file.name}: {lines - len(whole)} of {lines} lines are damaged, and left out")
    return _columns(b"".join(whole), names)


def _columns(data: bytes, names: Iterable[str]) -> dict[str, Series]:
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
