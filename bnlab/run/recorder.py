"""From measured steps to records: summarized, then written to the journal and shown on the board, by dozens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import Tensor

from bnlab.board.events import Profile
from bnlab.board.run import Board, Extent
from bnlab.probes.base import Raw
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal, Record, read
from bnlab.run.observe import Observer

WRITE_AFTER, WRITE_AFTER_S = 32, 0.25
"""Records are written when there are so many, or when the last writing is so long ago."""


class Recorder:
    """The record of one run at work. Summarizing and writing dozens in a row takes a third of the time of doing each at
    once, and a GPU is waited for less often."""

    def __init__(
        self,
        folder: RunFolder,
        observer: Observer,
        listen: Callable[[Record], None],
        *,
        keep_bytes: int,
        profile: Profile,
    ) -> None:
        """Goes on from the first `keep_bytes` bytes of the journal; the events are made anew from them. The folder's
        spec is written."""
        self.folder, self.observer, self.listen = folder, observer, listen
        self.seconds = 0.0
        """Spent on measuring, summarizing and writing."""
        self._journal = Journal(folder.journal_file, keep_bytes=keep_bytes)
        schedule = observer.schedule
        self._board = Board(
            folder.path,
            [site.name for site in observer.net.sites],
            extent=Extent(records=schedule.records, steps=schedule.steps),
            profile=profile,
            spec=folder.spec(),
        )
        try:
            self._board.rewrite(read(folder.journal_file))
        except BaseException:
            self._journal.close()
            self._board.close()
            raise
        self._pending: list[tuple[Record, Mapping[str, Tensor], Mapping[str, Raw]]] = []
        self._written = time.monotonic()

    def add(
        self,
        known: Record,
        metrics: Mapping[str, Tensor],
        raw: Mapping[str, Raw] | None = None,
        *,
        seconds: float = 0.0,
    ) -> None:
        """One measured step: what is known already (its `step`, ...), scalars still on the device, and what the probes
        measured in `seconds`."""
        self._pending.append((known | {"wall_s": time.time()}, metrics, raw or {}))
        self.seconds += seconds
        if len(self._pending) >= WRITE_AFTER or time.monotonic() - self._written >= WRITE_AFTER_S:
            self.write()

    def write(self) -> None:
        """Everything added goes to the journal, the board and the listener."""
        start = time.perf_counter()
        records: list[Record] = []
        for known, metrics, raw in self._pending:
            wall_s = known.pop("wall_s")
            records.append({**known, **self.observer.metrics(raw, metrics), "wall_s": wall_s})
        self._pending.clear()
        for record in records:
            self._journal.append(record)
        for record in records:
            self._board.add(record)
        self._journal.flush()
        self._board.flush()
        self._written = time.monotonic()
        self.seconds += time.perf_counter() - start
        for record in records:
            self.listen(record)

    def sync(self) -> int:
        """Everything added reaches the disk; the length of the journal."""
        self.write()
        return self._journal.sync()

    def close(self) -> None:
        """The run has come to an end or to a stop, and its status is written."""
        self._journal.close()
        journal = self.folder.journal_file
        try:
            self._board.end(self.folder.status(), read(journal), journal.stat().st_size)
        finally:
            self._board.close()
