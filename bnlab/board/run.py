"""The TensorBoard view of a run's journal.

The event file is a view: it is written from the same records as the journal, and rebuilt from the journal when a run
resumes, so that every reader agrees with the journal. The `full` profile shows all measurements, at most 500 points a
tag; the `light` profile a dozen tags of at most 200 points, for sweeps of many runs: TensorBoard's memory and time grow
with the number of points.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnlab.board.card import head, tail
from bnlab.board.events import EventFile, Profile, profile_of
from bnlab.board.tags import LIGHT, tags
from bnlab.board.thin import PREFIX, Histograms, Kept, TagValues, Template, Thinner
from bnlab.core.registry import load_plugins
from bnlab.record.findings import findings
from bnlab.record.folder import BusyError, RunFolder
from bnlab.record.journal import Record, read
from bnlab.record.runs import read_run

POINTS: dict[Profile, int] = {"full": 500, "light": 200}
"""At most so many a tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The length of a run, which decides what its file leaves out."""

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
        """`extent`: the planned one. `spec`: the run's spec.yaml, for its card and its row in the HParams table."""
        self.folder, self.sites, self.extent, self.profile, self.spec = folder, list(sites), extent, profile, spec
        self._file = EventFile(folder)
        self._templates: dict[tuple[str, ...], tuple[Template, bool]] = {}
        """By the keys of a record; and whether such a record has histograms to show."""
        self._thinner = Thinner(limit=POINTS[profile], records=extent.records)
        self._histograms = Histograms(extent.steps)
        self._records, self._last, self._first_loss = 0, (0, 0.0), math.nan

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replace the run's event files by one that shows `records`; `add` appends to it."""
        for record in records:
            self.add(record)
        self._file.publish(self.profile)

    def write_whole(self, records: Iterable[Record], status: Mapping[str, Any], journal_bytes: int) -> None:
        """Replace the event files of a run that has ended or stopped; the old ones stay until the new is complete."""
        with contextlib.closing(self):
            for record in records:
                self.add(record)
            self._finish(status, journal_bytes)
            self._file.publish(self.profile)

    def add(self, record: Record) -> None:
        """One record. A value that is not finite is shown as NaN, which TensorBoard marks."""
        step, wall_s = self._last = record["step"], record["wall_s"]
        if self._records == 0:
            loss = record.get("train_loss")
            self._first_loss = math.nan if loss is None else float(np.float32(loss))
            if self.spec is not None:  # at the time of the first record, so that a rebuilt file is the same
                self._file.add(0, wall_s, head(self.spec, self.folder, wall_s))
        self._records += 1
        keys = tuple(record)
        if keys not in self._templates:
            sources = tags(record, self.sites)
            shown = sources if self.profile == "full" else [source for source in sources if source[0] in LIGHT]
            has_histograms = self.profile == "full" and any(key.startswith(PREFIX) for key in keys)
            self._templates[keys] = Template(shown, len(self.sites)), has_histograms
        template, has_histograms = self._templates[keys]
        values = template.values(record)
        histograms = self._histograms.of(record) if has_histograms else b""
        if self._thinner.thins:
            self._file.add(step, wall_s, histograms)
            self._write(self._thinner.add(TagValues(step=step, wall_s=wall_s, template=template, values=values)))
        else:
            self._file.add(step, wall_s, template.message(values) + histograms)

    def flush(self) -> None:
        self._file.flush()

    def end(self, status: Mapping[str, Any], journal: Iterable[Record], journal_bytes: int) -> None:
        """Write what was held back, and the results. If the run ended before its planned end and points were left out,
        the file is written again with all the points that there is room for."""
        actual = Extent(records=self._records, steps=self._last[0])
        if actual == self.extent or not (self._thinner.thins or self._histograms.left_out):
            self._finish(status, journal_bytes)
            self.close()
        else:
            self.close()
            board = Board(self.folder, self.sites, extent=actual, profile=self.profile, spec=self.spec)
            board.write_whole(journal, status, journal_bytes)

    def close(self) -> None:
        """Without results, as of a run that will resume."""
        self._file.close()

    def _finish(self, status: Mapping[str, Any], journal_bytes: int) -> None:
        self._write(self._thinner.end())
        of_run = self.profile == "full" and self.spec is not None
        found = findings(read_run(RunFolder(self.folder))) if of_run else ()
        self._file.add(*self._last, tail(status, self._first_loss, found))
        self._file.seal(self._last[1], journal_bytes)

    def _write(self, kept: Iterable[Kept]) -> None:
        for row, mask in kept:
            self._file.add(row.step, row.wall_s, row.template.message(row.values, mask))


def rebuild(folder: RunFolder, profile: Profile) -> bool:
    """Write a run's event file again from its journal. Returns False, and changes nothing, if it already shows the
    journal in that profile, or if the run is running.

    Raises:
        KeyError, ValueError: a spec or a journal that cannot be read.
        OSError: a folder that cannot be written.
    """
    if not folder.journal_file.is_file() or profile_of(folder) == profile or folder.alive():
        return False
    with contextlib.suppress(BusyError), folder.owned():
        _rebuild(folder, profile)
        return True
    return False


def _rebuild(folder: RunFolder, profile: Profile) -> None:
    spec, records, status = folder.spec(), list(read(folder.journal_file)), folder.status()
    if not spec:
        raise ValueError(f"{folder.spec_file}: not a spec")
    if not records:
        return
    load_plugins((), only=True)  # none: a run that is only shown runs no code. Groups follow from measurements' names
    extent = Extent(records=len(records), steps=records[-1]["step"])
    board = Board(folder.path, _sites(spec, records), extent=extent, profile=profile, spec=spec)
    board.write_whole(records, status, folder.journal_bytes)


def _sites(spec: Mapping[str, Any], records: list[Record]) -> list[str]:
    """The names of the sites; their numbers, for old runs whose provenance has no names."""
    names: list[str] = (spec.get("provenance") or {}).get("sites") or []
    values = itertools.chain.from_iterable(record.items() for record in records)
    lengths = {len(value) for key, value in values if isinstance(value, list) and not key.startswith(PREFIX)}
    count = max(lengths, default=0)
    return names if len(names) == count or not count else [f"L{index:02d}" for index in range(count)]
