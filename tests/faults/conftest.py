"""Shared by the tests of faults: runs that are stopped in the middle, and commands in this process."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli import main
from bnlab.cli import sweep as sweeping
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.run.setup import assemble
from bnlab.run.train import train

SpecOf = Callable[..., RunSpec]


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@pytest.fixture
def bnlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Said]]:
    """Runs a command in this process and this folder; an exception that leaves it is a traceback. A sweep makes no
    report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping, "_reported", lambda *_: None)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    def run(*words: str | Path) -> Said:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as ended,
        ):
            main([str(word) for word in words])
        return Said(ended.value.code or 0, out.getvalue(), err.getvalue())  # type: ignore[arg-type]

    yield run
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


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
