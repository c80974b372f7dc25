"""Shared by the tests of faults: runs that are stopped in the middle, and commands in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.run.setup import assemble
from bnlab.run.train import train

SpecOf = Callable[..., RunSpec]


@pytest.fixture
def bnlab(in_process: Callable[..., Any]) -> Callable[..., Any]:
    """See `in_process`."""
    return in_process


@pytest.fixture
def stopped(spec_of: SpecOf, tmp_path: Path) -> Callable[..., tuple[RunSpec, RunFolder]]:
    """`stopped(7)`: a run that was interrupted before that step, with a checkpoint of it and of the step before."""

    def stop(at: int, *overrides: str, where: str = "run") -> tuple[RunSpec, RunFolder]:
        spec = spec_of("optim.momentum=0.9", "launch.checkpoint_s=0", *overrides)
        folder, steps = RunFolder(tmp_path / where), iter(range(100))
        train(assemble(spec), folder, stopped=lambda: "a test" if next(steps) == at else None)
        assert folder.status()["status"] == "interrupted"
        return spec, folder

    return stop
