"""The values of records with the same keys, as bytes of an event."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary

from bnlab.board.tags import Source
from bnlab.record.journal import Record


class Template:
    """The summary of records with the same keys, serialized once by protobuf; for each record its numbers are put in
    their places. Hundreds of scalars then cost little more than one."""

    def __init__(self, sources: Sequence[Source], sites: int, *, histograms: bool = False) -> None:
        """`histograms`: whether such records have some; they are not in the template."""
        self.histograms, self.sites, self.tags = histograms, sites, [tag for tag, _, _ in sources]
        self.scalars = [metric for _, metric, index in sources if index == -1]
        self.vectors = list(dict.fromkeys(metric for _, metric, index in sources if index != -1))
        row = {metric: number for number, metric in enumerate(self.vectors)}
        width = sites + 1  # every site, then the median
        self._take = [
            self.scalars.index(metric)
            if index == -1
            else len(self.scalars) + row[metric] * width + (sites if index is None else index)
            for _, metric, index in sources
        ]
        messages = [scalar(tag, 1.0) for tag in self.tags]
        self._lengths = np.array([len(message) for message in messages], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(messages), dtype=np.uint8).copy()
        # A float's four bytes are the last of its value.
        self._places = self._lengths.cumsum()[:, None] + np.arange(-4, 0)

    def values(self, record: Record) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The numbers of `record`, one for each tag; NaN where one is not finite, as in a journal that is read."""
        scalars = [math.nan if record[metric] is None else record[metric] for metric in self.scalars]
        vectors = np.array([record[metric] for metric in self.vectors], dtype=np.float32).reshape(-1, self.sites)
        table = np.column_stack([vectors, finite_medians(vectors)])
        numbers = np.concatenate([np.array(scalars, dtype=np.float32), table.ravel()])[self._take]
        numbers[~np.isfinite(numbers)] = np.nan
        return numbers

    def message(self, values: np.ndarray[Any, Any], kept: np.ndarray[Any, Any] | None = None) -> bytes:
        """The summary's bytes with these numbers; with `kept`, of those tags alone."""
        self._bytes[self._places] = values.view(np.uint8).reshape(-1, 4)
        filled = self._bytes if kept is None else self._bytes[np.repeat(kept, self._lengths)]
        return filled.tobytes()


def scalar(tag: str, value: float) -> bytes:
    """A number under a tag."""
    message: bytes = Summary(value=[Summary.Value(tag=tag, simple_value=value)]).SerializeToString()
    return message


def finite_medians(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The median of each row's finite values, NaN where there is none.

    >>> finite_medians(np.array([[3.0, 1.0, np.nan, 2.0], [np.inf, 1.0, 4.0, np.nan]])).tolist()
    [2.0, 2.5]
    """
    finite = np.isfinite(rows)
    ordered = np.sort(np.where(finite, rows, np.nan), axis=1)  # NaN comes last
    count = finite.sum(axis=1)
    line = np.arange(len(rows))
    middle: np.ndarray[Any, Any] = ordered[line, np.maximum(count - 1, 0) // 2] + ordered[line, count // 2]
    return middle / 2
