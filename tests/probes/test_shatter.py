"""Gradients with respect to the input, against another way to them, and where they are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import twins

from bnlab.core.spec import RunSpec
from bnlab.probes.shatter import Shatter

SpecOf = Callable[..., RunSpec]


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_autocorrelation_is_that_of_the_derivative_along_the_line(
    model: str, norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of("probes=none+shatter", "dtype=float64", "steps=3", f"norm={norm}", model=model))
    for step, record in enumerate(run.records):
        assert record["input_grad_lag_1"] == pytest.approx(
            twins.shatter(run.moment(step))["input_grad_lag_1"], rel=1e-8
        )


def test_the_line_is_the_same_at_every_step_and_another_for_another_seed(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    still = ("probes=none+shatter", "norm=batch", "optim.lr=1e-40", "steps=3")
    first, *others = (record["input_grad_lag_1"] for record in trained(spec_of(*still)).records)
    assert others == [first] * len(others)
    assert trained(spec_of(*still, "seed=1")).records[0]["input_grad_lag_1"] != first


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_a_linear_net_is_constant_and_has_none(
    dtype: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    linear = ("norm=none", "model.activation=linear", f"dtype={dtype}", "steps=2")
    assert [record["input_grad_lag_1"] for record in trained(spec_of("probes=none+shatter", *linear)).records] == [
        None
    ] * 2


@pytest.mark.parametrize(
    ("g", "expected"),
    [
        (np.cos(np.pi * np.arange(256)), -255 / 256),
        (np.arange(256.0), 0.98828),  # of a ramp: 1 - 3 / T, but for terms in 1 / T^2
        (np.random.default_rng(0).normal(size=256), 0.0),
    ],
)
def test_known_series_have_their_autocorrelations(g: np.ndarray[Any, Any], expected: float) -> None:
    found, _ = Shatter().summarize({"g": g}, {})
    assert float(found["input_grad_lag_1"]) == pytest.approx(expected, abs=0.15 if expected == 0 else 1e-3)


def test_deeper_nets_with_batch_norm_are_less_smooth(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    """Balduzzi et al. 2017, figure 1, in small."""
    wide = ("probes=none+shatter", "norm=batch", "model.width=128", "steps=1", "optim.lr=1e-6")
    shallow, deep = (
        np.mean(
            [
                trained(spec_of(*wide, f"model.depth={depth}", f"seed={seed}")).records[0]["input_grad_lag_1"]
                for seed in range(4)
            ]
        )
        for depth in (1, 16)
    )
    assert shallow > 0.8
    assert deep < 0.3
