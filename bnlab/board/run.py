"""The TensorBoard view of a run's journal.

The event file is a view. It is written from the same records as the journal, and written anew from the journal when a
run resumes, so that every reader agrees with the journal. The `full` profile shows all that was measured, at most 500
points a tag; the `light` one a dozen tags of at most 200 points, for sweeps of many runs: what TensorBoard needs of
memory and time goes by the number of points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnlab.board.card import head, tail
from bnlab.board.events import PATTERN, EventFile, Profile, new_name
from bnlab.board.histograms import PREFIX, Histograms
from bnlab.board.tags import LIGHT, tags
from bnlab.board.template import Template
from bnlab.board.thin import Kept, Row, Thinner
from bnlab.record.journal import Record

POINTS: dict[Profile, int] = {"full": 500, "light": 200}
"""At most so many a tag."""

PART = ".board.part"
"""The name of a file that is not complete yet: one that TensorBoard does not look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How long a run is: what a file shows of it depends on that."""

    records: int
    steps: int


class Board:
    """Writes one run's event file."""

    def __init__(
        self,
        folder: Path,
        sites: Sequence[str],
        *,
        extent: Extent,
        profile: Profile = "full",
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        """`extent`: of the run when it will have ended. `spec`: its spec.yaml, for a card and a row in the table."""
        self.folder, self.sites, self.extent, self.profile, self.spec = folder, list(sites), extent, profile, spec
        self._file: EventFile | None = None
        self._begin()

    def rewrite(self, records: Iterable[Record]) -> None:
        """A new event file that shows `records`, in place of what was there; `add` goes on in it."""
        self._apart(records)
        self._replace()

    def whole(self, records: Iterable[Record], status: Mapping[str, Any], journal_bytes: int) -> None:
        """The event file of a run that nobody is at work on: complete before the old one goes."""
        self._apart(records)
        self._finish(status, journal_bytes)
        self._replace()
        self.close()

    def add(self, record: Record) -> None:
        """One record. A value that is not finite is shown as NaN, which TensorBoard marks."""
        assert self._file is not None
        if self.records == 0:
            self._head(record)
        self.records += 1
        self._last = record["step"], record["wall_s"]
        keys = tuple(record)
        if keys not in self._templates:
            self._templates[keys] = self._template(record)
        template = self._templates[keys]
        values = template.values(record)
        histograms = self._histograms.of(record) if template.histograms and self.profile == "full" else b""
        if not self._thinner.thins:
            if summary := template.message(values) + histograms:
                self._file.add(record["step"], record["wall_s"], summary)
            return
        if histograms:
            self._file.add(record["step"], record["wall_s"], histograms)
        row = Row(step=record["step"], wall_s=record["wall_s"], template=template, values=values)
        self._write(self._thinner.add(row))

    def flush(self) -> None:
        assert self._file is not None
        self._file.flush()

    def end(self, status: Mapping[str, Any], journal: Iterable[Record], journal_bytes: int) -> None:
        """Everything that was held back, and the results. What has come to an end earlier than it was to is written
        anew, if anything was left out, with all the points that there is room for."""
        actual = Extent(records=self.records, steps=self._last[0])
        if actual != self.extent and (self._thinner.thins or self._histograms.left_out):
            self.extent = actual
            self.whole(journal, status, journal_bytes)
        else:
            self._finish(status, journal_bytes)
            self.close()

    def close(self) -> None:
        """Without an end, as the file of a run that goes on. One that is not complete yet is removed."""
        if self._file is not None:
            self._file.close()
            if self._file.path.name == PART:
                self._file.path.unlink()
            self._file = None

    def _apart(self, records: Iterable[Record]) -> None:
        """A file at which TensorBoard does not look yet."""
        self.close()
        self._file = EventFile(self.folder, name=PART)
        self._begin()
        for record in records:
            self.add(record)

    def _replace(self) -> None:
        assert self._file is not None
        old = list(self.folder.glob(PATTERN))
        self._file.move(new_name(self.profile))
        for file in old:
            file.unlink()

    def _finish(self, status: Mapping[str, Any], journal_bytes: int) -> None:
        assert self._file is not None
        self._write(self._thinner.end())
        if results := tail(status, self._first_loss):
            self._file.add(*self._last, results)
        self._file.seal(self._last[1], journal_bytes)

    def _begin(self) -> None:
        self._templates: dict[tuple[str, ...], Template] = {}
        self._thinner = Thinner(limit=POINTS[self.profile], records=self.extent.records)
        self._histograms = Histograms(self.extent.steps)
        self.records, self._last, self._first_loss = 0, (0, 0.0), math.nan

    def _head(self, record: Record) -> None:
        """What stands before the first record, at its time: a file made anew is the same."""
        loss = record.get("train_loss")
        self._first_loss = math.nan if loss is None else float(np.float32(loss))
        if self.spec is not None:
            assert self._file is not None
            self._file.add(0, record["wall_s"], head(self.spec, self.folder.name, record["wall_s"]))

    def _template(self, record: Record) -> Template:
        sources = tags(record, self.sites)
        shown = sources if self.profile == "full" else [source for source in sources if source[0] in LIGHT]
        return Template(shown, len(self.sites), histograms=any(key.startswith(PREFIX) for key in record))

    def _write(self, kept: Iterable[Kept]) -> None:
        assert self._file is not None
        for row, mask in kept:
            self._file.add(row.step, row.wall_s, row.template.message(row.values, mask))
