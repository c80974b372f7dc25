"""The drift between training and test inputs against a loop that keeps every value, and where it is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import twins

from bnlab.core.spec import RunSpec

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=shift", "probes.activations.batch=24", "probes.shift_drift.every=1", "dtype=float64")
BRIGHT = ("data.shift=brightness", "data.shift_strength=0.5")


@pytest.mark.parametrize("shift", [(), BRIGHT])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_are_those_of_a_loop_that_keeps_every_value(
    model: str, norm: str, shift: tuple[str, ...], spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    options = ("probes.shift_drift.examples=70", f"norm={norm}", "steps=3", "optim.lr=0.3", *shift)
    run = trained(spec_of(*PROBED, *options, model=model))
    for step, record in enumerate(run.records):
        expected = twins.shift_drift(run.moment(step))
        assert len(expected) == 4
        for name, values in expected.items():
            assert len(record[name]) == len(run.setup.net.sites)
            np.testing.assert_allclose(record[name], values, rtol=1e-8, atol=1e-10, err_msg=name)


def _last(trained: Callable[..., Any], spec: RunSpec) -> dict[str, Any]:
    record: dict[str, Any] = trained(spec).records[-1]
    return record


def test_brightness_reaches_every_layer_of_a_dense_net_in_use_and_none_above_the_first_norm_by_batch_statistics(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    plain, bright = (
        _last(trained, spec_of(*PROBED, *shift, "probes.shift_drift.examples=320", "steps=8")) for shift in ((), BRIGHT)
    )
    assert all(b > a + 0.2 for a, b in zip(plain["shift_mean.running"], bright["shift_mean.running"], strict=True))
    # A constant is added to every pixel: the first layer's means move, its variances do not.
    assert bright["shift_logvar.running"][0] == pytest.approx(plain["shift_logvar.running"][0], abs=1e-5)
    assert bright["shift_mean.batch"][0] == pytest.approx(bright["shift_mean.running"][0])
    for name in ("shift_mean.batch", "shift_logvar.batch"):
        assert bright[name][1:] == pytest.approx(plain[name][1:], abs=1e-5)


def test_noise_of_known_size_widens_the_first_layer_by_what_it_adds(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """A Gaussian cloud, one class: x ~ N(c, I) in either split, N(c, (1 + s^2) I) under noise, and so is w x + b by
    its variance: log(1 + s^2), whatever w is. 2,000 values a side give a log variance to sqrt(4 / 2000) = 0.045."""
    data = ("data=gaussian_clusters", "data.separation=0", "data.test_size=2000", "data.shift=noise")
    record = _last(trained, spec_of(*PROBED, *data, "data.shift_strength=2", "steps=1", "norm=none"))
    assert record["shift_logvar.running"][0] == pytest.approx(math.log(5), abs=0.1)
    assert record["shift_mean.running"][0] < 0.1
    assert record["shift_mean.batch"] == record["shift_mean.running"]
