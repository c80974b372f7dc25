"""Definition 2.1, against nets whose layers really are updated one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import twins

from bnlab.core.spec import RunSpec

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=full", "probes.activations.batch=24", "steps=5")


@pytest.mark.parametrize("norm", ["none", "batch", "batch_reference"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "deep_linear"])
def test_figures_are_those_of_a_net_whose_preceding_layers_were_updated(
    model: str, norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, "dtype=float64", f"norm={norm}", "optim.momentum=0.5", model=model))
    for step, record in enumerate(run.records):
        expected = twins.ics(run.moment(step))
        assert len(expected["ics"]) == len(run.setup.net.sites)
        assert record["ics"] == pytest.approx(expected["ics"], rel=1e-9, abs=1e-14)
        assert record["ics_rel"] == pytest.approx(expected["ics_rel"], rel=1e-9, abs=1e-13)
        assert record["ics_cos"] == pytest.approx(expected["ics_cos"], rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", ["none", "batch", "batch_reference"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "deep_linear"])
def test_the_first_site_has_none_at_all_and_the_others_have_some(
    model: str, norm: str, dtype: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, f"dtype={dtype}", f"norm={norm}", model=model))
    for record in run.records:
        assert (record["ics"][0], record["ics_rel"][0], record["ics_cos"][0]) == (0.0, 0.0, 1.0)
        assert all(value > 0 for value in record["ics"][1:])
        assert all(-1 <= value <= 1 for value in record["ics_cos"])


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_step_that_moves_nothing_shifts_nothing(norm: str, spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    run = trained(spec_of(*PROBED, f"norm={norm}", "norm.position=before", "optim.lr=1e-40"))
    for record in run.records:
        sites = len(run.setup.net.sites)
        assert (record["ics"], record["ics_rel"], record["ics_cos"]) == ([0.0] * sites, [0.0] * sites, [1.0] * sites)


def test_the_old_gradient_is_the_one_of_the_training_step(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    """||G|| = ics / ics_rel is grad_norm, which is read off the step itself."""
    run = trained(spec_of(*PROBED, "dtype=float64", "norm=batch", "model.depth=4"))
    for record in run.records:
        for change, relative, norm in zip(
            record["ics"][1:], record["ics_rel"][1:], record["grad_norm"][1:], strict=True
        ):
            assert change / relative == pytest.approx(norm, rel=1e-10)
