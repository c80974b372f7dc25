"""How a change of the first layer propagates, against nets that really have it, and where it is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import twins

from bnlab.core.spec import RunSpec

SpecOf = Callable[..., RunSpec]
NAMES = ("propagation.own", "propagation.random", "propagation.all")


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "deep_linear"])
def test_figures_are_those_of_nets_that_really_have_the_change(
    model: str, norm: str, position: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    options = ("probes=none+propagation", "dtype=float64", "steps=3", "optim.momentum=0.5", "data.batch_size=15")
    run = trained(spec_of(*options, f"norm={norm}", f"norm.position={position}", model=model))
    for step, record in enumerate(run.records):
        expected = twins.propagation(run.moment(step))
        assert list(expected) == list(NAMES)
        for name, values in expected.items():
            assert len(record[name]) == len(run.setup.net.sites)
            np.testing.assert_allclose(record[name], values, rtol=1e-7, atol=1e-13, err_msg=name)


def test_at_the_first_site_the_updates_of_one_layer_and_of_all_are_the_same(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    for record in trained(spec_of("probes=none+propagation", "norm=batch", "steps=4")).records:
        assert record["propagation.own"][0] == record["propagation.all"][0]
        assert record["propagation.own"][1:] != record["propagation.all"][1:]


def test_a_step_that_moves_nothing_changes_nothing(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    run = trained(spec_of("probes=none+propagation", "norm=batch", "optim.lr=1e-40", "steps=2"))
    for record in run.records:
        sites = len(run.setup.net.sites)
        assert record["propagation.own"] == record["propagation.all"] == [0.0] * sites
        assert all(value > 0 for value in record["propagation.random"])


def test_a_linear_net_without_a_norm_passes_a_change_of_its_first_weight_on_as_it_is(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """h_l = W_l ... W_1 x: with W_1 of one row, every h_l is a multiple of h_1, and every change of it the same."""
    options = ("norm=none", "model.activation=linear", "model.depth=3", "model.width=1", "model.bias=false")
    run = trained(spec_of("probes=none+propagation", "dtype=float64", "steps=2", *options))
    for record in run.records:
        first, *others = record["propagation.random"]
        assert others == pytest.approx([first] * len(others), rel=1e-10)


def test_a_batch_norm_removes_what_only_scales_or_shifts(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    """One input feature: a change of the first layer's one weight scales its output, and the norm above undoes that."""
    data = ("data=gaussian_clusters", "data.dimension=1", "norm=batch", "norm.eps=1e-12", "model.width=1")
    run = trained(spec_of("probes=none+propagation", "dtype=float64", "steps=2", *data))
    for record in run.records:
        assert record["propagation.random"][0] == pytest.approx(1e-3)
        assert record["propagation.random"][1:] == pytest.approx([0.0] * 2, abs=1e-9)
