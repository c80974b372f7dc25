"""The append-only record of a run, and its reader.

`journal.jsonl` has one JSON object a measured step: `{"step": 40, "train_loss": 0.41, "drift_mean.pre": [...],
...}`. What was not measured is absent, what was not finite is null. Readings of the clock stand under keys ending in
`_s` and nowhere else, so that two runs of one spec agree in every other byte.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

Record = dict[str, Any]


class Journal:
    """Appends records. They reach the operating system in blocks, and the disk with `sync`: what a process that is
    killed had not written yet, it measures again when it goes on from its checkpoint."""

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Opens `path`, cut to its first `keep_bytes` bytes: what a checkpoint vouches for."""
        self._file = open(path, "ab")  # noqa: SIM115  (closed by close())
        self._file.truncate(keep_bytes)

    def append(self, record: Mapping[str, Any]) -> None:
        """One line. Values may be numbers, strings, or numpy arrays; NaN and infinities become null."""
        self._file.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")

    def sync(self) -> int:
        """Force everything to the disk; how many bytes there are."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def flush(self) -> None:
        """Hand everything to the operating system, for others to read."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path, *, keep_bytes: int | None = None) -> Iterator[Record]:
    """The records in order, of the first `keep_bytes` bytes if given. A last line without its end, left by a process
    killed in the middle of writing it, is not a record."""
    with open(path, "rb") as file:
        read_bytes = 0
        for text in file:
            read_bytes += len(text)
            if not text.endswith(b"\n") or (keep_bytes is not None and read_bytes > keep_bytes):
                return
            yield orjson.loads(text)


def without_clock(record: Mapping[str, Any]) -> Record:
    """The record less its readings of the clock: what must be equal in two runs of one spec.

    >>> without_clock({"step": 3, "wall_s": 0.2})
    {'step': 3}
    """
    return {key: value for key, value in record.items() if not key.endswith("_s")}
