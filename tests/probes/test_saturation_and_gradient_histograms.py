"""Saturation and the distributions of gradients, number by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import twins
from torch import nn

from bnlab.core.spec import RunSpec
from bnlab.probes.saturation import _saturated

SpecOf = Callable[..., RunSpec]
EXACT = ("dtype=float64", "steps=4", "probes.points=100")
SATURATION = ("probes=none+saturation", "probes.saturation.batch=22", *EXACT)
HISTOGRAMS = ("probes=none+gradient_histograms", "probes.gradient_histograms.histogram_every=2", *EXACT)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_saturated_share_is_counted_value_by_value(
    model: str, norm: str, activation: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    settings = ("model.init_scale=6", f"model.activation={activation}", f"norm={norm}")
    run = trained(spec_of(*SATURATION, *settings, model=model))
    shares = [record["saturated_fraction"] for record in run.records]
    assert shares == [twins.saturation(run.moment(step))["saturated_fraction"] for step in range(4)]
    if activation == "tanh":
        assert all(0 < share < 1 for share in shares[0][:-1])


def test_large_initial_weights_saturate_a_tanh_and_batch_norm_does_not_let_them(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """A tanh of a normal variable of sd 1 is beyond 0.97 with a probability of 0.036."""
    large = ("model.activation=tanh", "model.init_scale=50", "model.width=64", "probes.saturation.batch=256")
    first = {norm: trained(spec_of(*SATURATION, *large, f"norm={norm}")).records[0] for norm in ("none", "batch")}
    assert min(first["none"]["saturated_fraction"][:-1]) > 0.9
    assert max(first["batch"]["saturated_fraction"][:-1]) < 0.1


def test_a_share_of_what_is_not_a_number_is_none() -> None:
    assert _saturated(nn.Tanh(), torch.tensor([9.0, torch.nan])).isnan()
    assert _saturated(nn.ReLU(), torch.tensor([9.0])).isnan()


@pytest.mark.parametrize(
    "settings", [("norm=none",), ("norm=batch", "model.bias=true"), ("norm=batch", "norm.position=after")]
)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_spreads_and_histograms_are_those_of_autograd(
    model: str, settings: tuple[str, ...], spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*HISTOGRAMS, *settings, model=model))
    for step, record in enumerate(run.records):
        expected = twins.gradient_histograms(run.moment(step))
        found = {name: record[name] for name in expected if name in record}
        assert len(found) == (len(expected) if step % 2 == 0 else 2)
        for name, values in found.items():
            assert values == pytest.approx(expected[name], rel=1e-8), name


def test_an_entry_of_each_weight_and_of_each_pre_activation_is_counted(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*HISTOGRAMS, "norm=batch"))
    for site in run.setup.net.sites:
        weight = site.affine.get_parameter("weight")
        counted = {point: sum(run.records[0][f"histogram.{point}.{site.name}"]) for point in ("weight_grad", "delta")}
        assert counted == {"weight_grad": weight.numel(), "delta": 16 * len(weight)}
