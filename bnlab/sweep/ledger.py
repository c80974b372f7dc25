"""How far the cells of a grid are. There is no ledger but the run folders themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

import bnlab
from bnlab.core.errors import UsageError
from bnlab.core.study import Study
from bnlab.record.folder import ENDED, RunFolder, write_atomically
from bnlab.record.runs import State, Status, state_of

DONE = ENDED
"""States of a cell that has its result."""


def look(folder: RunFolder) -> tuple[State, Status]:
    """The state of a cell now, and its status as it was last written.

    Raises:
        UsageError: a status that cannot be read, so that it is not known whether the run has ended.
    """
    state, status = state_of(folder)
    if state == "unreadable":
        raise UsageError(str(folder.status_file), "cannot be read", remedy="Run it again with --fresh.")
    return state, status


def seconds(status: Status) -> float | None:
    """How long the run took, if it has ended."""
    timing = status.get("timing")
    return timing.get("run_s") if isinstance(timing, Mapping) else None


def write_study(root: Path, study: Study, line: str) -> None:
    """`study.yaml` beside the runs: what they were made for, and the line that was typed.

    Raises:
        UsageError: it cannot be written.
    """
    provenance = {"bnlab": bnlab.__version__, "line": line, "claims": digests(study)}
    text = yaml.safe_dump({**study.tree(), "provenance": provenance}, sort_keys=False, allow_unicode=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(root / "study.yaml", text.encode())
    except OSError as error:
        raise UsageError("--runs", (error.strerror or str(error)).lower(), str(root)) from None


def digests(study: Study) -> dict[str, str]:
    """A digest of each claim: a claim edited after a run was begun has another than is written in that run."""
    return {claim.name: claim.digest for claim in study.claims}
