"""What an example's neighbours do to its outputs, and what norms keep of it, against passes of single batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import twins

from bnlab.core.spec import RunSpec
from bnlab.probes import neighbours

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=none+neighbours", "probes.neighbours.size=4", "dtype=float64", "steps=2", "optim.lr=0.3")


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_are_those_of_each_example_in_two_batches_of_its_own(
    model: str, norm: str, position: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, f"norm={norm}", f"norm.position={position}", model=model))
    for step, record in enumerate(run.records):
        expected = twins.neighbours(run.moment(step))
        assert len(expected) == 3
        for name, values in expected.items():
            found, values = (np.array(one, dtype=float) for one in (record[name], values))
            np.testing.assert_allclose(found, values, rtol=1e-8, atol=1e-12, err_msg=name)
        assert (record["neighbour_change"] > 0.1) == (norm == "batch")


def test_layer_norm_leaves_outputs_to_their_examples_and_keeps_neither_mean_nor_scale(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    record = trained(spec_of(*PROBED, "norm=layer")).records[0]
    assert record["neighbour_change"] < 1e-12
    assert record["example_mean_kept"][:-1] == record["example_scale_kept"][:-1] == [0.0, 0.0]


def test_residual_sums_have_no_norm_of_their_own(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    spec = spec_of(*PROBED, "norm=batch", model="resnet")
    run = trained(spec)
    for site, kept in zip(run.setup.net.sites, run.records[0]["example_mean_kept"], strict=True):
        assert (kept is None) == site.residual_sum


@pytest.mark.parametrize("random", ["model.dropout=0.5", "norm=noisy_none"])
def test_what_is_drawn_for_an_example_is_not_its_neighbours_doing(
    random: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, "norm=none", random))
    assert [record["neighbour_change"] for record in run.records] == [pytest.approx(0, abs=1e-12)] * 2


def test_dropout_and_batch_norm_together(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    run = trained(spec_of(*PROBED, "norm=batch", "model.dropout=0.5"))
    expected = twins.neighbours(run.moment(1))["neighbour_change"]
    assert run.records[1]["neighbour_change"] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("size", [1e-30, 1e-13, 1.0, 1e12, 1e30])
def test_what_is_kept_does_not_depend_on_the_size_of_values(size: float) -> None:
    z, y = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(neighbours.kept(size * z, size * y), neighbours.kept(z, y))


@pytest.mark.filterwarnings("error")
def test_one_channel_has_no_scale_to_keep() -> None:
    z = torch.arange(6.0).view(6, 1)
    torch.testing.assert_close(neighbours.kept(z, 2 * z), torch.tensor([1.0, torch.nan]), equal_nan=True)
