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

C = 6
SHAPES = {0: (12, C), 2: (4, C, 3, 3)}
NAMES = list(config.available("norm", [config.packaged_dir()]))
CASES = [(name, dims) for name in NAMES for dims in (0, 2) if (name, dims) != ("instance", 0)]
STOPPED = ("stopgrad_batch", "batch_renorm")
"""Norms whose gradient is not the derivative: it takes what the norm detaches for constants."""


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}d")
def case(
    request: pytest.FixtureRequest, spec_of: Callable[..., RunSpec]
) -> tuple[nn.Module | None, int, frozenset[str]]:
    """The norm with the options of its YAML, in float64; how many axes of space its input has; its traits."""
    name, dims = request.param
    layer = NORMS.build(name, spec_of(f"norm={name}").norm.options, C, dims)
    return (None if layer is None else layer.double()), dims, NORMS.entry(name).traits


def _batch(dims: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(SHAPES[dims], generator=generator, dtype=torch.float64) + 1


Case = tuple["nn.Module | None", int, "frozenset[str]"]


def test_only_none_is_nothing(spec_of: Callable[..., RunSpec]) -> None:
    nothing = [name for name in NAMES if NORMS.build(name, spec_of(f"norm={name}").norm.options, C, 2) is None]
    assert nothing == ["none"]


def test_the_shape_stays(case: Case) -> None:
    layer, dims, _ = case
    if layer is not None:
        for mode in (True, False):
            assert layer.train(mode)(_batch(dims)).shape == SHAPES[dims]


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_gradients_pass_finite_differences(case: Case, mode: Any, request: pytest.FixtureRequest) -> None:
    layer, dims, _ = case
    if layer is None:
        return
    layer(_batch(dims, seed=1))
    state, x = State.of(layer), _batch(dims)[:3].requires_grad_()

    def call(x: Tensor) -> Tensor:
        return outputs_at(layer, state, x, mode)

    stopped = request.node.callspec.params["case"][0] in STOPPED and mode == "batch"
    assert torch.autograd.gradcheck(call, (x,), raise_exception=False) == (not stopped)
    assert torch.autograd.gradcheck(_with_what_is_detached_held(call), (x,))


def _with_what_is_detached_held(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`call` in which every `.detach()` gives, at any x, what it gave at the first one."""
    first: list[Tensor] = []
    detach = Tensor.detach
    called = False

    def held(x: Tensor) -> Tensor:
        nonlocal called
        made = iter(first)

        def again(value: Tensor) -> Tensor:
            if called:
                return next(made)
            first.append(detach(value).clone())
            return first[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "detach", again)
            out = call(x)
        called = True
        return out

    return held


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
    """By value, since a gradient may have been stopped; at the first batch, where even frozen statistics are made."""
    layer, dims, traits = case
    x = _batch(dims)
    others = torch.cat([x[:1], _batch(dims, seed=5)[1:]])
    one, other = (x if layer is None else copy.deepcopy(layer)(x) for x in (x, others))
    assert (float((one[0] - other[0]).abs().max().detach()) > 1e-6) == ("batch_statistics" in traits)


def test_cancels_bias_is_declared_exactly_where_a_constant_per_channel_has_no_effect(case: Case) -> None:
    layer, dims, traits = case
    x = _batch(dims)
    shifted = x + torch.arange(1, C + 1, dtype=x.dtype).reshape(1, C, *([1] * dims))
    if layer is not None:
        layer(_batch(dims, seed=1))
    one, other = (x if layer is None else copy.deepcopy(layer)(x) for x in (x, shifted))
    assert (float((one - other).abs().max().detach()) < 1e-9) == ("cancels_bias" in traits)


def test_parameters_get_gradients(case: Case) -> None:
    layer, dims, _ = case
    if layer is not None:
        layer(_batch(dims).requires_grad_()).pow(3).sum().backward()
        assert all(param.grad is not None and bool(param.grad.abs().min() > 0) for param in layer.parameters())
