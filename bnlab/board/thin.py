"""Fewer points of a long run, and no spike lost.

TensorBoard keeps a random sample of a tag's points, which loses spikes; so long runs are thinned before they are
written. Records are taken in buckets of one size. Of each tag a bucket keeps the smallest and the largest value and the
first that is not finite; where these are fewer than three, its last and its first too. The first and the last point of
a tag are always kept.

Which points are kept depends on the records, on how many there will be, and on nothing else: a file written while a
run goes on and one made anew from its journal show the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnlab.board.template import Template

PER_BUCKET = 3
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """The values of one record, one for each tag of its template."""

    step: int
    wall_s: float
    template: Template
    values: np.ndarray[Any, np.dtype[np.float32]]


Kept = tuple[Row, Mask]
"""A row, and which of its values are to be written."""


class Thinner:
    """Takes the rows of a run one by one, and gives back what is to be written: at most `limit` points a tag."""

    def __init__(self, *, limit: int, records: int) -> None:
        """`records`: how many rows there will be; up to `limit` of them are all kept."""
        self.size = 1 if records <= limit else math.ceil(records / ((limit - 2) // PER_BUCKET))
        self._bucket: list[Row] = []
        self._column: dict[str, int] = {}
        self._columns: dict[int, np.ndarray[Any, Any]] = {}
        self._last: dict[int, Kept] = {}
        """The last point of every tag for which it has not been written."""
        self._seen: Mask = np.zeros(0, dtype=np.bool_)

    @property
    def thins(self) -> bool:
        """Whether anything may be left out."""
        return self.size > 1

    def add(self, row: Row) -> list[Kept]:
        """What can be written now, in the order of the steps."""
        if not self.thins:
            return [(row, np.ones(len(row.values), dtype=bool))]
        self._bucket.append(row)
        return self._emptied() if len(self._bucket) == self.size else []

    def end(self) -> list[Kept]:
        """The rest, when there are no more rows. Of each tag its points are in the order of the steps."""
        rest = self._emptied() if self._bucket else []
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

    def _emptied(self) -> list[Kept]:
        """What is kept of the bucket, which is empty then."""
        rows, self._bucket = self._bucket, []
        places = [self._places(row.template) for row in rows]
        there = np.zeros((len(rows), len(self._column)), dtype=bool)
        table = np.zeros(there.shape, dtype=np.float32)
        for number, (row, columns) in enumerate(zip(rows, places, strict=True)):
            there[number, columns], table[number, columns] = True, row.values
        keep = self._chosen(there, table)
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

        take(np.where(finite, table, np.inf).argmin(axis=0), np.any(finite, axis=0))
        take(np.where(finite, table, -np.inf).argmax(axis=0), np.any(finite, axis=0))
        bad = there & ~finite
        take(bad.argmax(axis=0), np.any(bad, axis=0))
        first, present = there.argmax(axis=0), np.any(there, axis=0)
        for numbers in (_last_row(there), first):
            take(numbers, present & (keep.sum(axis=0) < PER_BUCKET))
        self._seen = np.pad(self._seen, (0, len(present) - len(self._seen)))
        take(first, present & ~self._seen)
        self._seen |= present
        return keep


def _last_row(there: Mask) -> np.ndarray[Any, Any]:
    """The last row in which a tag is there; of one that is nowhere, the last."""
    rows: np.ndarray[Any, Any] = len(there) - 1 - np.flip(there, axis=0).argmax(axis=0)
    return rows
