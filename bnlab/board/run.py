"""The TensorBoard view of a run's journal.

The event file is a view. It is written from the same records as the journal, one event a record, and written anew from
the journal when a run resumes, so that every reader agrees with the journal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

from bnlab.board.events import PATTERN, EventFile
from bnlab.board.tags import Source, tags
from bnlab.journal import Record
from bnlab.probes.activations import HISTOGRAM_LIMIT, histogram_edges


class Board:
    """Writes one run's event file."""

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        self.folder, self.sites = folder, list(sites)
        self._templates: dict[tuple[str, ...], _Template] = {}
        self._file: Any = None

    def rewrite(self, records: Iterable[Record]) -> None:
        """A new event file that shows `records`, in place of what was there."""
        for old in self.folder.glob(PATTERN):
            old.unlink()
        self._file = EventFile(self.folder)
        for record in records:
            self.add(record)
        self.flush()

    def add(self, record: Record) -> None:
        """One event for one record. A value that is not finite is shown as NaN, which TensorBoard marks."""
        keys = tuple(record)
        if keys not in self._templates:
            self._templates[keys] = _Template(tags(record, self.sites), len(self.sites))
        summary = self._templates[keys].filled(record)
        histograms = [_histogram(key, record[key]) for key in keys if key.startswith("histogram.")]
        if histograms:
            summary += Summary(value=histograms).SerializeToString()
        self._file.add(record["step"], record["wall_s"], summary)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Template:
    """The summary of records with the same keys, serialized once by protobuf; for each record its numbers are put in
    their places. Hundreds of scalars then cost little more than one."""

    def __init__(self, sources: Sequence[Source], sites: int) -> None:
        self.sites = sites
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
        message, ends = b"", []
        for tag, _, _ in sources:
            message += Summary(value=[Summary.Value(tag=tag, simple_value=1.0)]).SerializeToString()
            ends.append(len(message))  # a float's four bytes are the last of its value
        self._bytes = np.frombuffer(message, dtype=np.uint8).copy()
        self._places = np.asarray(ends, dtype=np.int64)[:, None] + np.arange(-4, 0)

    def filled(self, record: Record) -> bytes:
        """The summary's bytes with the numbers of `record`."""
        scalars = [math.nan if record[metric] is None else record[metric] for metric in self.scalars]
        vectors = np.array([record[metric] for metric in self.vectors], dtype=np.float32).reshape(-1, self.sites)
        table = np.column_stack([vectors, finite_medians(vectors)])
        numbers = np.concatenate([np.array(scalars, dtype=np.float32), table.ravel()])[self._take]
        self._bytes[self._places] = numbers.view(np.uint8).reshape(-1, 4)
        message: bytes = self._bytes.tobytes()
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


def _histogram(key: str, counts: Sequence[float]) -> Any:
    """`histogram.act_in.L03_fc` with its counts, as TensorBoard's histogram. TensorBoard draws from the first bucket
    to the last on a linear axis, so empty ones at the ends are left out; each tail bin is drawn just outside the
    limit."""
    _, point, site = key.split(".", 2)
    limits = [-2 * HISTOGRAM_LIMIT, *histogram_edges(), 2 * HISTOGRAM_LIMIT]  # bin i lies between limits i and i + 1
    filled = [index for index, count in enumerate(counts) if count] or [len(counts) // 2]
    kept = range(filled[0], filled[-1] + 1)
    middles = [(limits[index] + limits[index + 1]) / 2 for index in kept]
    histo = HistogramProto(
        min=limits[kept[0]],
        max=limits[kept[-1] + 1],
        num=float(sum(counts)),
        sum=float(sum(counts[index] * x for index, x in zip(kept, middles, strict=True))),
        sum_squares=float(sum(counts[index] * x * x for index, x in zip(kept, middles, strict=True))),
        bucket_limit=[limits[index + 1] for index in kept],
        bucket=[float(counts[index]) for index in kept],
    )
    return Summary.Value(tag=f"9_hist_{point}/{site}", histo=histo)
