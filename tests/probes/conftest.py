"""Runs whose every state is kept, and nets that really are in one of these states: for the probes' slow twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor
from twins import Moment

from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Record, read
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import train

STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run of a few steps, every one of them measured: its journal, and the state before each of its steps (and after
    the last)."""

    setup: Setup
    records: list[Record]
    states: list[dict[str, Tensor]]

    def moment(self, step: int) -> Moment:
        """What was there before and after the step."""
        return Moment(setup=self.setup, step=step, before=self.states[step], after=self.states[step + 1])


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[RunSpec], Trained]:
    """`trained(spec)` trains it, keeping the state before every step."""

    def run(spec: RunSpec) -> Trained:
        setup = assemble(spec)
        states: list[dict[str, Tensor]] = []

        def keep() -> None:
            states.append({name: value.clone() for name, value in setup.net.module.state_dict().items()})

        folder = RunFolder(tmp_path / spec.id)
        assert train(setup, folder, stopped=keep)["status"] == "finished"
        keep()
        records = list(read(folder.journal_file))[:-1]  # the last has the final test figures alone
        assert [record["step"] for record in records] == list(range(setup.steps))
        return Trained(setup=setup, records=records, states=states)

    return run
