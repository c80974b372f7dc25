"""What every registered norm must do, whichever it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import config
from bnlab.registry import NORMS
from bnlab.spec import RunSpec
from bnlab.state import State, outputs_at

SHAPES = {0: (12, 5), 2: (4, 5, 3, 3)}
NAMES = list(config.available("norm", [config.packaged_dir()]))


@pytest.fixture(params=[(name, dims) for name in NAMES for dims in (0, 2)], ids=lambda case: f"{case[0]}-{case[1]}d")
def case(
    request: pytest.FixtureRequest, spec_of: Callable[..., RunSpec]
) -> tuple[nn.Module | None, int, frozenset[str]]:
    """The norm with the options of its YAML, in float64; how many axes of space its input has; its traits."""
    name, dims = request.param
    layer = NORMS.build(name, spec_of(f"norm={name}").norm.options, 5, dims)
    return (None if layer is None else layer.double()), dims, NORMS.entry(name).traits


def _batch(dims: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(SHAPES[dims], generator=generator, dtype=torch.float64) + 1


Case = tuple["nn.Module | None", int, "frozenset[str]"]


def test_only_none_is_nothing(spec_of: Callable[..., RunSpec]) -> None:
    nothing = [name for name in NAMES if NORMS.build(name, spec_of(f"norm={name}").norm.options, 5, 0) is None]
    assert nothing == ["none"]


def test_the_shape_stays(case: Case) -> None:
    layer, dims, _ = case
    if layer is not None:
        for mode in (True, False):
            assert layer.train(mode)(_batch(dims)).shape == SHAPES[dims]


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_gradients_pass_finite_differences(case: Case, mode: Any) -> None:
    layer, dims, _ = case
    if layer is None:
        return
    layer(_batch(dims, seed=1))
    assert torch.autograd.gradcheck(
        lambda x: outputs_at(layer, State.of(layer), x, mode), (_batch(dims)[:3].requires_grad_(),)
    )


def test_all_that_training_moves_is_in_the_state_dict(case: Case) -> None:
    """A copy that gets the state dict alone goes on exactly as the original: what a resumed run rests on."""
    layer, dims, _ = case
    if layer is None:
        return
    fresh = copy.deepcopy(layer)
    for seed in range(3):
        layer(_batch(dims, seed))
    fresh.load_state_dict(layer.state_dict())
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(_batch(dims, 9)), fresh.train(mode)(_batch(dims, 9)))
    for (name, one), (_, other) in zip(layer.state_dict().items(), fresh.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def test_in_use_each_example_is_taken_for_itself_and_nothing_moves(case: Case, bits_of: Callable[[Any], Any]) -> None:
    layer, dims, _ = case
    if layer is None:
        return
    layer(_batch(dims, seed=1))
    before = bits_of(layer.state_dict())
    layer.eval()
    x = _batch(dims)
    together = layer(x)
    torch.testing.assert_close(
        torch.cat([layer(x[i : i + 1]) for i in range(len(x))]), together, rtol=1e-12, atol=1e-12
    )
    assert bits_of(layer.state_dict()) == before


def test_batch_statistics_is_declared_exactly_where_examples_influence_each_other(case: Case) -> None:
    layer, dims, traits = case
    x = _batch(dims).requires_grad_()
    if layer is None:
        influence = 0.0
    else:
        weights = torch.linspace(1, 2, x[0].numel(), dtype=x.dtype).reshape(x[0].shape).sin()
        (layer(x)[0] * weights).sum().backward()
        assert x.grad is not None
        influence = float(x.grad[1:].abs().max())
    assert (influence > 1e-6) == ("batch_statistics" in traits)


def test_cancels_bias_is_declared_exactly_where_a_constant_per_channel_has_no_effect(case: Case) -> None:
    layer, dims, traits = case
    x = _batch(dims)
    shift = torch.arange(1, 6, dtype=x.dtype).reshape(1, 5, *([1] * dims))
    change = float(shift.max()) if layer is None else float((layer(x + shift) - layer(x)).abs().max().detach())
    assert (change < 1e-9) == ("cancels_bias" in traits)


def test_parameters_get_gradients(case: Case) -> None:
    layer, dims, _ = case
    if layer is not None:
        layer(_batch(dims)).pow(3).sum().backward()
        assert all(param.grad is not None and bool(param.grad.abs().min() > 0) for param in layer.parameters())
