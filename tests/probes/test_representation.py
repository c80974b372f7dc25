"""The Gram matrix of a layer's outputs against loops over eigenvalues, pairs and channels, and where it is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import twins

from bnlab.core.spec import RunSpec
from bnlab.probes.representation import isometry_gap, of_representation

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=none+representation", "probes.representation.batch=8", "dtype=float64", "steps=3")


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("norm", ["none", "batch", "batch_reference"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_are_those_of_loops_over_eigenvalues_pairs_and_channels(
    model: str, norm: str, position: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    more = (f"norm={norm}", f"norm.position={position}", *(["model.width=30"] if model == "mlp" else []))
    run = trained(spec_of(*PROBED, *more, "model.activation=tanh", "optim.lr=0.3", model=model))
    for step, record in enumerate(run.records):
        expected = twins.representation(run.moment(step))
        assert len(expected) == 7
        if position == "before":  # after it, the examples add up to 0
            assert expected["isometry_gap"][0] is not None
        for name, values in expected.items():
            assert [value is None for value in record[name]] == [value is None for value in values], name
            found, values = (np.array(one, dtype=float) for one in (record[name], values))
            np.testing.assert_allclose(found, values, rtol=1e-7, atol=1e-10, err_msg=name)


def test_rank_and_cosine_at_depth_are_those_of_collapse_without_a_norm_and_not_with_batch_norm(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """Daneshmand et al. 2020: without a norm all examples become one; with batch norm the rank grows as sqrt(width)."""
    deep = ("model.activation=relu", "model.depth=50", "model.width=128", "probes.representation.batch=128")
    last = {}
    for norm in ("none", "batch"):
        record = trained(spec_of(*PROBED, *deep, f"norm={norm}", "optim.lr=1e-12")).records[0]
        last[norm] = record["gram_rank"][-2], record["gram_cos"][-2]
    assert last["none"][0] < 1.1
    assert last["none"][1] > 0.95
    assert 5 < last["batch"][0] < 12
    assert last["batch"][1] == pytest.approx(1 / np.pi, abs=0.05)  # of independent normal values after ReLU


def test_outliers_are_the_examples_that_no_chain_of_small_angles_joins_to_the_largest_cluster() -> None:
    def outliers(degrees: list[float]) -> float:
        angles = torch.tensor(degrees).deg2rad()
        return of_representation(torch.stack([angles.cos(), angles.sin()], dim=1))[4].item()

    assert outliers([0, 25, 50, 75, 100]) == 0  # a cosine of 0.906 from one to the next
    assert outliers([0, 27, 54, 81]) == 3  # 0.891
    assert outliers([0, 5, 10, 90, 95, 180]) == 3
    with_zero = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 0.0]])
    assert of_representation(with_zero)[4].item() == 1


def test_with_centring_and_relu_at_depth_one_example_is_far_from_all_others(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """Nachum et al. 2024; with batch norm's scaling, every example is far from every other one."""
    deep = ("model.activation=relu", "model.depth=100", "model.width=128", "probes.representation.batch=32")
    last = {}
    for norm in ("mean_only_batch", "batch"):
        record = trained(spec_of(*PROBED, *deep, f"norm={norm}", "optim.lr=1e-12")).records[0]
        last[norm] = record["gram_outliers"][-2]
    assert last == {"mean_only_batch": 1, "batch": 31}


def test_examples_that_are_0_have_no_cosine_and_a_layer_that_is_0_has_no_figures() -> None:
    h = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    assert of_representation(h)[1].item() == pytest.approx(2**-0.5)
    assert of_representation(torch.zeros(3, 3)).isnan().all()
    assert of_representation(torch.tensor([[1.0, torch.nan], [1.0, 2.0]])).isnan().all()


def test_figures_do_not_depend_on_the_scale_also_near_the_ends_of_float32() -> None:
    h = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(of_representation(scale * h), of_representation(h), rtol=1e-5)


@pytest.mark.parametrize("units", [5, 6, 40])
def test_the_isometry_gap_is_null_with_more_examples_than_units(units: int) -> None:
    h = torch.randn(6, units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert bool(isometry_gap(h @ h.T).isnan()) == (units < 6)
