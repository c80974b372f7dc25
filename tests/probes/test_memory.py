"""What a step keeps for its backward pass, against what the nodes of the graph say, and where it is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import twins

from bnlab.core.spec import RunSpec

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=none+memory", "steps=2")


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_the_bytes_are_those_that_the_nodes_of_the_graph_have_saved(
    model: str, norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, f"norm={norm}", model=model))
    for step, record in enumerate(run.records):
        assert {key: record[key] for key in ("saved_bytes", "parameters")} == twins.memory(run.moment(step))


def test_a_plain_net_keeps_its_activations_and_the_log_probabilities(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """Of B examples, float32: two layers of 7 behind their ReLUs, 10 log probabilities, and one scalar of the loss."""
    sizes = ("model.depth=2", "model.width=7", "norm=none", "model.bias=false", "data.batch_size=16")
    record, _ = trained(spec_of(*PROBED, *sizes)).records
    assert record["saved_bytes"] == 4 * (16 * (7 + 7 + 10) + 1)
    assert record["parameters"] == 64 * 7 + 7 * 7 + 7 * 10


def test_twice_the_examples_are_twice_the_bytes_but_for_what_has_no_examples(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    small, large = (
        trained(spec_of(*PROBED, "norm=batch", f"data.batch_size={size}")).records[0]["saved_bytes"]
        for size in (16, 32)
    )
    assert 1.7 < large / small < 2
