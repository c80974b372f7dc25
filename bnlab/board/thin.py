"""The values of records as bytes of events, and fewer points of a long run without losing a spike.

TensorBoard keeps a random sample of a tag's points, which loses spikes, so bnlab thins long runs before it writes them.
Records are taken in buckets of one size. Of each tag, a bucket keeps the smallest and the largest value and the first
that is not finite; where these are fewer than three, its last and its first too. The first and the last point of a tag
are always kept.

Which points are kept depends only on the records and on how many there will be: a file written during a run and one
rebuilt from its journal show the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnlab.board.events import histogram, scalar
from bnlab.board.tags import Source
from bnlab.probes._histograms import HISTOGRAM_LIMIT, histogram_edges
from bnlab.record.journal import Record

PER_BUCKET = 3
MOST_STEPS = 50
"""With histograms."""
PREFIX = "histogram."
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Template:
    """The summary of records with the same keys, serialized once by protobuf; for each record only its numbers are
    replaced. Hundreds of scalars then cost little more than one."""

    def __init__(self, sources: Sequence[Source], sites: int) -> None:
        self.sites, self.tags = sites, [tag for tag, _, _ in sources]
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
        self._places = self._lengths.cumsum()[:, None] + np.arange(-4, 0)  # of each message the last four bytes

    def values(self, record: Record) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The numbers of `record`, one for each tag; NaN where one is not finite, as when a journal is read."""
        scalars = [math.nan if record[metric] is None else record[metric] for metric in self.scalars]
        vectors = np.array([record[metric] for metric in self.vectors], dtype=np.float32).reshape(-1, self.sites)
        table = np.column_stack([vectors, finite_medians(vectors)])
        numbers = np.concatenate([np.array(scalars, dtype=np.float32), table.ravel()])[self._take]
        numbers[~np.isfinite(numbers)] = np.nan
        return numbers

    def message(self, values: np.ndarray[Any, Any], kept: np.ndarray[Any, Any] | None = None) -> bytes:
        """The summary's bytes with these numbers; with `kept`, only of those tags."""
        self._bytes[self._places] = values.view(np.uint8).reshape(-1, 4)
        filled = self._bytes if kept is None else self._bytes[np.repeat(kept, self._lengths)]
        return filled.tobytes()


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TagValues:
    """The values of one record, one for each tag of its template."""

    step: int
    wall_s: float
    template: Template
    values: np.ndarray[Any, np.dtype[np.float32]]


Kept = tuple[TagValues, Mask]
"""A record's values, and which of them to write."""


class Thinner:
    """Takes the values of a run's records one by one and returns what to write: at most `limit` points a tag."""

    def __init__(self, *, limit: int, records: int) -> None:
        """`records`: how many there will be. Up to `limit`, all are kept."""
        self.size = 1 if records <= limit else math.ceil(records / ((limit - 2) // PER_BUCKET))
        self._bucket: list[TagValues] = []
        self._column: dict[str, int] = {}
        self._columns: dict[int, np.ndarray[Any, Any]] = {}
        self._last: dict[int, Kept] = {}
        """By column, the last point of every tag for which it has not been written."""
        self._seen: Mask = np.zeros(0, dtype=np.bool_)

    @property
    def thins(self) -> bool:
        """Whether anything may be left out."""
        return self.size > 1

    def add(self, row: TagValues) -> list[Kept]:
        """What can be written now, in the order of the steps."""
        if not self.thins:
            return [(row, np.ones(len(row.values), dtype=bool))]
        self._bucket.append(row)
        return self._empty_bucket() if len(self._bucket) == self.size else []

    def end(self) -> list[Kept]:
        """The rest, after the last record. The points of each tag are in the order of the steps."""
        rest = self._empty_bucket() if self._bucket else []
        last: dict[int, Kept] = {}
        for row, mask in sorted(self._last.values(), key=lambda kept: kept[0].step):
            last[id(row)] = (row, mask | last[id(row)][1] if id(row) in last else mask)
        self._last.clear()
        return [*rest, *last.values()]

    def _places(self, template: Template) -> np.ndarray[Any, Any]:
        """The column of each of the template's tags."""
        if id(template) not in self._columns:
            places = [self._column.setdefault(tag, len(self._column)) for tag in template.tags]
            self._columns[id(template)] = np.array(places, dtype=np.int64)
        return self._columns[id(template)]

    def _empty_bucket(self) -> list[Kept]:
        """What is kept of the bucket."""
        rows, self._bucket = self._bucket, []
        # A table [rows, tags] of the bucket: records may have different tags.
        places = [self._places(row.template) for row in rows]
        there = np.zeros((len(rows), len(self._column)), dtype=bool)
        table = np.zeros(there.shape, dtype=np.float32)
        for number, (row, columns) in enumerate(zip(rows, places, strict=True)):
            there[number, columns], table[number, columns] = True, row.values
        keep = self._chosen(there, table)
        # A tag's last point is written when the run ends, unless a later one replaces it.
        present, end = np.any(there, axis=0), _last_row(there)
        written = keep[end, np.arange(len(end))]
        self._last = {column: kept for column, kept in self._last.items() if not present[column]}
        for column in np.flatnonzero(present & ~written).tolist():
            number = int(end[column])
            self._last[column] = (rows[number], np.equal(places[number], column))
        return [
            (row, keep[number, columns])
            for number, (row, columns) in enumerate(zip(rows, places, strict=True))
            if keep[number].any()
        ]

    def _chosen(self, there: Mask, table: np.ndarray[Any, Any]) -> Mask:
        """Which values [rows, tags] are kept."""
        keep = np.zeros_like(there)
        finite = there & np.isfinite(table)

        def take(numbers: np.ndarray[Any, Any], of: Mask) -> None:
            keep[numbers[of], np.flatnonzero(of)] = True

        # The smallest, the largest, and the first that is not finite.
        take(np.where(finite, table, np.inf).argmin(axis=0), np.any(finite, axis=0))
        take(np.where(finite, table, -np.inf).argmax(axis=0), np.any(finite, axis=0))
        bad = there & ~finite
        take(bad.argmax(axis=0), np.any(bad, axis=0))
        # The last and the first, where there is room.
        first, present = there.argmax(axis=0), np.any(there, axis=0)
        for numbers in (_last_row(there), first):
            take(numbers, present & (keep.sum(axis=0) < PER_BUCKET))
        # The first point of a tag, in any case.
        self._seen = np.pad(self._seen, (0, len(present) - len(self._seen)))
        take(first, present & ~self._seen)
        self._seen |= present
        return keep


def _last_row(there: Mask) -> np.ndarray[Any, Any]:
    """The last row in which a tag is present; of one that is absent, the last."""
    rows: np.ndarray[Any, Any] = len(there) - 1 - np.flip(there, axis=0).argmax(axis=0)
    return rows


class Histograms:
    """The histograms of a run's records at 50 steps at most: one in each of 50 equal parts of the run."""

    def __init__(self, steps: int) -> None:
        """`steps`: of the whole run."""
        self.steps, self.left_out = max(1, steps), False
        self._part = -1
        self._limits = [-2 * HISTOGRAM_LIMIT, *histogram_edges(), 2 * HISTOGRAM_LIMIT]  # tails just outside the limit

    def of(self, record: Record) -> bytes:
        """Those to write for this record, such as `histogram.act_in.L03_fc` under `9_hist_act_in/L03_fc`."""
        keys = [key for key in record if key.startswith(PREFIX)]
        part = min(record["step"] * MOST_STEPS // self.steps, MOST_STEPS - 1)
        if part == self._part:
            self.left_out |= bool(keys)
            return b""
        if keys:
            self._part = part
        return b"".join(self._one(key, record[key]) for key in keys)

    def _one(self, key: str, counts: Sequence[float]) -> bytes:
        """TensorBoard's linear axis runs from the first bin to the last, so empty bins at the ends are left out."""
        _, point, site = key.split(".", 2)
        counts = np.asarray(counts, dtype=np.float64).tolist()  # a running record has float32, whose sums would differ
        filled = [index for index, count in enumerate(counts) if count] or [len(counts) // 2]
        low, high = filled[0], filled[-1]
        return histogram(f"9_hist_{point}/{site}", counts[low : high + 1], self._limits[low : high + 2])
