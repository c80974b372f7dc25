"""What single channels do to the outputs, against passes in which they really are other ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import twins

from bnlab.core.spec import RunSpec

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=none+channels", "probes.channels.batch=8", "probes.channels.channels=3", "dtype=float64", "steps=2")


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_are_those_of_nets_in_which_a_channel_really_is_another_one(
    model: str, norm: str, position: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, f"norm={norm}", f"norm.position={position}", "optim.lr=0.3", model=model))
    for step, record in enumerate(run.records):
        expected = twins.channels(run.moment(step))
        assert len(expected) == 4
        for name, values in expected.items():
            found, values = (np.array(one, dtype=float) for one in (record[name], values))
            np.testing.assert_allclose(found, values, rtol=1e-9, err_msg=name)


def test_a_batch_norm_in_between_undoes_the_scale_of_a_net_of_one_channel(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    narrow = ("norm=batch", "norm.eps=1e-12", "model.width=[4,1]", "model.depth=null", "model.activation=linear")
    for record in trained(spec_of(*PROBED, *narrow)).records:
        assert record["channel_scaled"][1] > 0.1  # the head has no norm
        assert record["channel_removed"][2] is None
