"""What every registered norm must do: the checks that `bnlab verify --plugin` makes of a user's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bnlab import config
from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.core.spec import RunSpec
from bnlab.verify.norm_contract import CHECKS, KINDS, TRAITS, C, Layer

NAMES = [name for name in config.available("norm", [config.packaged_dir()]) if name != "own"]
CASES = [(name, dims) for name in NAMES for dims in KINDS if (name, dims) != ("instance", 0)]
STOPPED = {"stopgrad_batch", "batch_renorm"}
"""Norms whose gradient is not the derivative: it takes what the norm detaches for constants."""

SpecOf = Callable[..., RunSpec]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}d")
def layer(request: pytest.FixtureRequest, spec_of: SpecOf) -> Layer:
    """The norm with the options of its YAML."""
    name, dims = request.param
    return Layer(name=name, options=spec_of(f"norm={name}").norm.options, dims=dims)


@pytest.mark.parametrize("check", sorted(CHECKS))
def test_a_norm_keeps_the_contract(layer: Layer, check: str) -> None:
    CHECKS[check](layer)


def test_only_none_is_nothing(spec_of: SpecOf) -> None:
    nothing = [name for name in NAMES if NORMS.build(name, spec_of(f"norm={name}").norm.options, C, 2) is None]
    assert nothing == ["none"]


def test_only_instance_norm_refuses_dense_layers(spec_of: SpecOf) -> None:
    with pytest.raises(UsageError, match="a dense layer has one value per channel and example"):
        Layer(name="instance", options=spec_of("norm=instance").norm.options, dims=0).build()


def test_every_trait_is_some_norm_s_and_those_that_stop_gradients_are_two() -> None:
    by_norm = {name: NORMS.entry(name).traits for name in NAMES}
    assert frozenset().union(*by_norm.values()) == TRAITS
    assert {name for name, traits in by_norm.items() if "stops_gradient" in traits} == STOPPED
