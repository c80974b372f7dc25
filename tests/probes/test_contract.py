"""What every registered probe must do: the checks that `bnlab verify --plugin` makes of a user's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bnlab import config
from bnlab.core.spec import RunSpec
from bnlab.verify.contract import PROBE_CHECKS as CHECKS
from bnlab.verify.contract import Measured, measured_by

NAMES = list(config.available("probes/one", [config.packaged_dir()]))
SMALL = (
    "probes=full",
    "probes.activations.batch=24",
    "probes.activations.histogram_every=1",
    "probes.shift_drift.examples=100",
    "steps=7",
)


@pytest.fixture(scope="module")
def probe(request: pytest.FixtureRequest, small: Callable[..., RunSpec]) -> Measured:
    """The probe with the options of the preset `full`, or of its YAML where that has it not, but for its cadence, on a
    dense net and a convolutional one."""
    name: str = request.param
    specs = [small("norm=batch", *SMALL, model=model) for model in ("mlp", "cnn")]
    options = specs[0].probes.options.get(name) or small(f"probes={name}").probes.options[name]
    return measured_by(name, {**options, "every": 1}, specs)


@pytest.mark.parametrize(("probe", "check"), [(name, check) for name in NAMES for check in CHECKS], indirect=["probe"])
def test_a_probe_keeps_the_contract(probe: Measured, check: str) -> None:
    CHECKS[check](probe)
