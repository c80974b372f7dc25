"""What the tests share: small specs, runs, and comparisons bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from bnlab import config
from bnlab.folder import RunFolder
from bnlab.journal import Record, read, without_clock
from bnlab.setup import Setup, assemble
from bnlab.spec import RunSpec
from bnlab.train import Status, train
from bnlab.verify.findings import bits

torch.set_num_threads(1)
settings.register_profile(
    "bnlab",
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("bnlab")

SMALL: dict[str, tuple[str, ...]] = {
    "mlp": ("quickstart", "model.depth=2", "model.width=6"),
    "cnn": ("cnn_digits", "model.channels=[3,4]", "model.strides=[1,2]"),
    "deep_linear": ("deep_linear", "model.depth=4", "model.width=5", "data.size=150", "data.test_size=50"),
}
"""An experiment with each architecture, and what makes it small. One that is not listed is tried as it comes."""
GROUPED = {"cnn": ("model.channels=[4,6]",), "deep_linear": ("model.width=6",)}
"""What norm=group needs there: layers that its groups divide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that has ended: its parts, its final status, its journal, its folder."""

    setup: Setup
    status: Status
    records: list[Record]
    folder: RunFolder

    @property
    def clockless(self) -> list[Record]:
        """The journal less its readings of the clock."""
        return [without_clock(record) for record in self.records]


@cache
def _loaded(experiment: str, overrides: tuple[str, ...]) -> RunSpec:
    return config.load(experiment, overrides)


def small_spec(*overrides: str, model: str = "mlp") -> RunSpec:
    """A run of 12 steps of 16 examples, measured at every step; `overrides` win over these."""
    experiment, *small = SMALL.get(model, ("mlp_digits", f"model={model}"))
    merged = {"steps": "12", "data.batch_size": "16", "probes.points": "100", "optim.lr": "0.05"}
    if experiment == "deep_linear":
        merged |= {"optim.lr": "1e-4"}
    needed = GROUPED.get(model, ()) if "norm=group" in overrides else ()
    for text in (*small, *needed, *overrides):
        key, _, value = text.partition("=")
        merged[key] = value
    return _loaded(experiment, tuple(f"{key}={value}" for key, value in merged.items()))


@pytest.fixture(scope="session")
def small() -> Callable[..., RunSpec]:
    """As `spec_of`, for fixtures of a wider scope."""
    return small_spec


@pytest.fixture
def spec_of() -> Callable[..., RunSpec]:
    """`spec_of("norm=none", model="cnn")`: see `small_spec`."""
    return small_spec


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ended]:
    """`run(spec, where="a")` trains it to its end in its own folder."""

    def run_it(spec: RunSpec, where: str = "run", **more: Any) -> Ended:
        folder = RunFolder(tmp_path / where)
        setup = assemble(spec)
        status = train(setup, folder, **more)
        return Ended(setup=setup, status=status, records=list(read(folder.journal_file)), folder=folder)

    return run_it


@pytest.fixture
def bits_of() -> Callable[[Any], Any]:
    """See `bnlab.verify.findings.bits`."""
    return bits


@pytest.fixture
def state_bits() -> Callable[[Setup], dict[str, Any]]:
    """Weights, buffers and the optimizer's state of a run, bit by bit."""

    def state(setup: Setup) -> dict[str, Any]:
        content = {"module": setup.net.module.state_dict(), "optimizer": setup.optimizer.state_dict()}
        found: dict[str, Any] = bits(content)
        return found

    return state
