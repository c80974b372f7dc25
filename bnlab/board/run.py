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
from bnlab.board.events import PART, PATTERN, EventFile, Profile, histogram, new_name, profile_of
from bnlab.board.tags import LIGHT, tags
from bnlab.board.thin import Kept, TagValues, Template, Thinner
from bnlab.core.errors import UsageError
from bnlab.core.registry import load_plugins
from bnlab.probes.activations import HISTOGRAM_LIMIT, histogram_edges
from bnlab.record.folder import BusyError, RunFolder
from bnlab.record.journal import Record, read

POINTS: dict[Profile, int] = {"full": 500, "light": 200}
"""At most so many a tag."""

MOST_STEPS = 50
"""With histograms."""

PREFIX = "histogram."


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
        self._file: EventFile | None = None
        self._begin()

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replace the run's event files by one that shows `records`; `add` appends to it."""
        self._write_part(records)
        self._replace()

    def write_whole(self, records: Iterable[Record], status: Mapping[str, Any], journal_bytes: int) -> None:
        """Replace the event files of a run that has ended or stopped; the old ones stay until the new is complete."""
        self._write_part(records)
        self._finish(status, journal_bytes)
        self._replace()
        self.close()

    def add(self, record: Record) -> None:
        """One record. A value that is not finite is shown as NaN, which TensorBoard marks."""
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
                self.file.add(record["step"], record["wall_s"], summary)
            return
        if histograms:
            self.file.add(record["step"], record["wall_s"], histograms)
        row = TagValues(step=record["step"], wall_s=record["wall_s"], template=template, values=values)
        self._write(self._thinner.add(row))

    def flush(self) -> None:
        self.file.flush()

    def end(self, status: Mapping[str, Any], journal: Iterable[Record], journal_bytes: int) -> None:
        """Write what was held back, and the results. If the run ended before its planned end and points were left out,
        the file is written again with all the points that there is room for."""
        actual = Extent(records=self.records, steps=self._last[0])
        if actual != self.extent and (self._thinner.thins or self._histograms.left_out):
            self.extent = actual
            self.write_whole(journal, status, journal_bytes)
        else:
            self._finish(status, journal_bytes)
            self.close()

    def close(self) -> None:
        """Without results, as of a run that will resume. An incomplete file is removed."""
        if self._file is not None:
            self._file.close()
            if self._file.path.name == PART:
                self._file.path.unlink()
            self._file = None

    @property
    def file(self) -> EventFile:
        assert self._file is not None, "rewrite() opens it"
        return self._file

    def _write_part(self, records: Iterable[Record]) -> None:
        """To a file that TensorBoard does not read yet."""
        self.close()
        self._file = EventFile(self.folder, name=PART)
        self._begin()
        for record in records:
            self.add(record)

    def _replace(self) -> None:
        old = list(self.folder.glob(PATTERN))
        self.file.move(new_name(self.profile))
        for file in old:
            file.unlink()

    def _finish(self, status: Mapping[str, Any], journal_bytes: int) -> None:
        self._write(self._thinner.end())
        if results := tail(status, self._first_loss):
            self.file.add(*self._last, results)
        self.file.seal(self._last[1], journal_bytes)

    def _begin(self) -> None:
        self._templates: dict[tuple[str, ...], Template] = {}
        self._thinner = Thinner(limit=POINTS[self.profile], records=self.extent.records)
        self._histograms = Histograms(self.extent.steps)
        self.records, self._last, self._first_loss = 0, (0, 0.0), math.nan

    def _head(self, record: Record) -> None:
        """The card, at the time of the first record, so that a rebuilt file is the same."""
        loss = record.get("train_loss")
        self._first_loss = math.nan if loss is None else float(np.float32(loss))
        if self.spec is not None:
            self.file.add(0, record["wall_s"], head(self.spec, self.folder, record["wall_s"]))

    def _template(self, record: Record) -> Template:
        sources = tags(record, self.sites)
        shown = sources if self.profile == "full" else [source for source in sources if source[0] in LIGHT]
        return Template(shown, len(self.sites), histograms=any(key.startswith(PREFIX) for key in record))

    def _write(self, kept: Iterable[Kept]) -> None:
        for row, mask in kept:
            self.file.add(row.step, row.wall_s, row.template.message(row.values, mask))


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
        if not keys:
            return b""
        part = min(record["step"] * MOST_STEPS // self.steps, MOST_STEPS - 1)
        if part == self._part:
            self.left_out = True
            return b""
        self._part = part
        return b"".join(self._one(key, record[key]) for key in keys)

    def _one(self, key: str, counts: Sequence[float]) -> bytes:
        """TensorBoard's linear axis runs from the first bin to the last, so empty bins at the ends are left out."""
        _, point, site = key.split(".", 2)
        counts = np.asarray(counts, dtype=np.float64).tolist()  # a running record has float32, whose sums would differ
        filled = [index for index, count in enumerate(counts) if count] or [len(counts) // 2]
        low, high = filled[0], filled[-1]
        return histogram(f"9_hist_{point}/{site}", counts[low : high + 1], self._limits[low : high + 2])


def rebuild(folder: RunFolder, profile: Profile) -> bool:
    """Write a run's event file again from its journal. Returns False, and changes nothing, if it already shows the
    journal in that profile, or if the run is running.

    Raises:
        KeyError, ValueError: a spec or a journal that cannot be read.
        OSError: a folder that cannot be written.
    """
    if not folder.journal_file.is_file() or profile_of(folder) == profile or folder.alive():
        return False
    try:
        with folder.owned():
            _rewrite(folder, profile)
    except BusyError:
        return False
    return True


def _rewrite(folder: RunFolder, profile: Profile) -> None:
    spec, records = folder.spec(), list(read(folder.journal_file))
    if not isinstance(spec, dict):
        raise ValueError(f"{folder.spec_file}: not a spec")
    if not records:
        return
    with contextlib.suppress(UsageError):  # a plugin that is gone: its measurements get groups by their names
        load_plugins(spec.get("plugins") or ())
    extent = Extent(records=len(records), steps=records[-1]["step"])
    board = Board(folder.path, _sites(spec, records), extent=extent, profile=profile, spec=spec)
    try:
        board.write_whole(records, folder.status(), folder.journal_bytes)
    finally:
        board.close()


def _sites(spec: Mapping[str, Any], records: list[Record]) -> list[str]:
    """The names of the sites; their numbers, for old runs whose provenance has no names."""
    names: list[str] = (spec.get("provenance") or {}).get("sites") or []
    values = itertools.chain.from_iterable(record.items() for record in records)
    lengths = {len(value) for key, value in values if isinstance(value, list) and not key.startswith(PREFIX)}
    count = max(lengths, default=0)
    return names if len(names) == count or not count else [f"L{index:02d}" for index in range(count)]
