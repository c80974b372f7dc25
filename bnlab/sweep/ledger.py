"""How far the cells of a grid are. There is no ledger but the run folders themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

import bnlab
from bnlab.errors import UsageError
from bnlab.folder import ENDED, RunFolder, write_atomically
from bnlab.study import Study

State = Literal["missing", "interrupted", "running", "failed", "finished", "diverged"]
Status = Mapping[str, Any]

DONE = ENDED
"""States of a cell that has its result."""


def look(folder: RunFolder) -> tuple[State, Status]:
    """The state of a cell as it is now, and its status as it was written last. A run whose process is gone is
    interrupted; one that somebody is at work on is running, whatever it was before.

    Raises:
        UsageError: a status that cannot be read, so that it is not known whether the run has ended.
    """
    try:
        status = folder.status()
    except ValueError:
        remedy = "Run it again with --fresh."
        raise UsageError(str(folder.status_file), "cannot be read", remedy=remedy) from None
    except OSError as error:
        raise UsageError("--runs", (error.strerror or str(error)).lower(), str(folder.path)) from None
    state = status.get("status")
    if state in DONE:
        return state, status
    if folder.alive():
        return "running", status
    if state == "failed":
        return "failed", status
    return ("interrupted" if state in ("running", "interrupted") else "missing"), status


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
