"""Margins example by example, and where their ratio is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import twins

from bnlab.core.spec import RunSpec
from bnlab.probes.margins import Margins

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=none+margins", "dtype=float64", "steps=4")


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_are_those_of_a_loop_over_examples(
    model: str, norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, f"norm={norm}", "optim.lr=0.3", model=model))
    for step, record in enumerate(run.records):
        for name, value in twins.margins(run.moment(step)).items():
            assert record[name] == (value if value is None else pytest.approx(value, rel=1e-9)), name


def test_where_nothing_is_right_there_is_no_ratio() -> None:
    raw = {"ends": np.array([-2.0, -1.0])}
    assert np.isnan(Margins().summarize(raw, {})[0]["margin_ratio"])


def test_a_linear_net_with_batch_norm_makes_the_margins_of_separable_data_equal(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """Cao et al. 2023; without batch norm they stay apart."""
    data = ("data=gaussian_clusters", "data.dimension=100", "data.classes=2", "data.subset=40", "data.batch_size=full")
    linear = (
        "data.separation=3",
        "model=deep_linear",
        "model.depth=2",
        "model.width=1",
        "optim.lr=1",
        "probes.points=300",
    )
    last = {}
    for norm in (("norm=none",), ("norm=batch", "norm.affine=false")):
        record = trained(spec_of(*PROBED, *data, *linear, *norm, "steps=300")).records[-1]
        assert record["margin_ratio"] == pytest.approx(record["margin_min"] / record["margin_max"])
        last[norm[0]] = record["margin_ratio"]
    assert last["norm=batch"] > 0.99
    assert 0 < last["norm=none"] < 0.6


def test_values_have_no_margins(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    record = trained(spec_of(*PROBED, "data=linear_teacher", "loss=mse", "data.batch_size=20")).records[0]
    assert [record[name] for name in ("margin_min", "margin_max", "margin_ratio")] == [None] * 3
