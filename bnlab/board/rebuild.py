"""Event files of runs that nobody is at work on, made anew from their journals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from bnlab.board.events import Profile, shown
from bnlab.board.run import Board, Extent
from bnlab.record.folder import BusyError, RunFolder
from bnlab.record.journal import Record, read


def rebuild(folder: RunFolder, profile: Profile) -> bool:
    """Whether the run's events were made anew: not where they are as wanted, nor where somebody is at work on the run.

    Raises:
        KeyError, ValueError: a spec or a journal that cannot be read.
        OSError: a folder that cannot be written.
    """
    if not folder.journal_file.is_file() or shown(folder) == profile or folder.alive():
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
    extent = Extent(records=len(records), steps=records[-1]["step"])
    board = Board(folder.path, _sites(spec, records), extent=extent, profile=profile, spec=spec)
    try:
        board.whole(records, folder.status(), folder.journal_file.stat().st_size)
    finally:
        board.close()


def _sites(spec: Mapping[str, Any], records: list[Record]) -> list[str]:
    """The sites' names; where no one wrote them down, their numbers."""
    names: list[str] = (spec.get("provenance") or {}).get("sites") or []
    values = itertools.chain.from_iterable(record.items() for record in records)
    lengths = {len(value) for key, value in values if isinstance(value, list) and not key.startswith("histogram.")}
    count = max(lengths, default=0)
    return names if len(names) == count or not count else [f"L{index:02d}" for index in range(count)]
