"""Losses and gradients at a state: equal to those of a net that really is in that state, and the net untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bnlab.core.state import (
    Loss,
    Mode,
    State,
    gradient_at,
    hessian_product_at,
    in_mode,
    line,
    loss_at,
    outputs_at,
    outputs_now,
    staircase,
)

LOSS = Loss("cross_entropy", "mean")


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    net(torch.randn(9, 5, dtype=torch.float64))  # running statistics that are not 0 and 1
    return net


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (8,), generator=generator)


def _moved(net: nn.Module, by: float) -> State:
    state = State.of(net)
    generator = torch.Generator().manual_seed(2)
    params = {
        name: value + by * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in state.params.items()
    }
    buffers = {name: value + 1 for name, value in state.buffers.items()}
    return State(params, buffers)


def _really_there(net: nn.Module, state: State, mode: Mode) -> nn.Module:
    """The slow twin: a deep copy of the net, loaded with the state."""
    twin = copy.deepcopy(net)
    twin.load_state_dict(state.params | state.buffers)
    return twin.train(mode == "batch")


@pytest.mark.parametrize("mode", ["batch", "running"])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_loss_and_gradient_at_a_state_are_those_of_a_net_in_it(
    mode: Mode, training: bool, bits_of: Callable[[Any], Any]
) -> None:
    net = _net().train(training)
    x, y = _batch()
    state = _moved(net, 0.3)
    before, state_before = bits_of(net.state_dict()), bits_of([state.params, state.buffers])

    twin = _really_there(net, state, mode)
    outputs = twin(x)
    loss = LOSS(outputs, y)
    loss.backward()

    torch.testing.assert_close(outputs_at(net, state, x, mode), outputs, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(loss_at(net, state, x, y, LOSS, mode), loss, rtol=1e-13, atol=1e-13)
    found, grads = gradient_at(net, state, x, y, LOSS, mode)
    torch.testing.assert_close(found, loss.detach(), rtol=1e-13, atol=1e-13)
    assert list(grads) == [name for name, _ in net.named_parameters()]
    for name, param in twin.named_parameters():
        torch.testing.assert_close(grads[name], param.grad, rtol=1e-12, atol=1e-14)

    assert bits_of(net.state_dict()) == before
    assert bits_of([state.params, state.buffers]) == state_before
    assert all(param.grad is None for param in net.parameters())
    assert all(part.training is training for part in net.modules())


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_outputs_now_are_those_of_the_net_and_move_nothing(mode: Mode, bits_of: Callable[[Any], Any]) -> None:
    net = _net()
    x, _ = _batch()
    expected = _really_there(net, State.of(net), mode)(x)
    before = bits_of(net.state_dict())
    assert torch.equal(outputs_now(net, x, mode), expected)
    assert bits_of(net.state_dict()) == before


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_buffers_are_put_back_also_after_an_error(mode: Mode, bits_of: Callable[[Any], Any]) -> None:
    net = _net()
    net.append(nn.Linear(7, 7).double())  # 3 inputs come: the last part fails, after the batch norm has counted
    x, _ = _batch()
    before = bits_of(net.state_dict())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        outputs_now(net, x, mode)
    assert bits_of(net.state_dict()) == before
    assert all(part.training for part in net.modules())


def test_the_two_modes_differ() -> None:
    net, (x, _) = _net(), _batch()
    assert not torch.allclose(outputs_now(net, x, "batch"), outputs_now(net, x, "running"))


def test_a_mode_is_given_back_part_by_part_also_after_an_error() -> None:
    net = _net()
    net[1].eval()
    expected = [part.training for part in net.modules()]
    seen = []

    def inside() -> None:
        with in_mode(net.modules(), "running"):
            seen.extend(part.training for part in net.modules())
            raise ArithmeticError("inside")

    with pytest.raises(ArithmeticError, match="inside"):
        inside()
    assert seen == [False] * 5
    assert [part.training for part in net.modules()] == expected


def test_a_state_is_a_copy() -> None:
    net = _net()
    state = State.of(net)
    kept = {name: value.clone() for name, value in (state.params | state.buffers).items()}
    with torch.no_grad():
        for value in (*net.parameters(), *net.buffers()):
            value.add_(1)
    for name, value in (state.params | state.buffers).items():
        assert torch.equal(value, kept[name])
    assert not any(value.requires_grad for value in state.params.values())
    assert set(state.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_the_loss_along_a_line_has_the_gradient_s_slope() -> None:
    net, (x, y) = _net(), _batch()
    state = State.of(net)
    loss, grads = gradient_at(net, state, x, y, LOSS)
    squared = sum(float((grad**2).sum()) for grad in grads.values())
    assert loss_at(net, line(state, grads, 0.0), x, y, LOSS).item() == loss.item()
    a = 1e-5
    ends = [loss_at(net, line(state, grads, sign * a), x, y, LOSS).item() for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * a) == pytest.approx(squared, rel=1e-7)
    assert line(state, grads, 2.0).buffers is state.buffers


def test_a_staircase_updates_the_layers_before_the_i_th() -> None:
    before = State({name: torch.tensor(float(i)) for i, name in enumerate("abcd")}, {"r": torch.tensor(9.0)})
    after = State({name: value + 10 for name, value in before.params.items()}, {"r": torch.tensor(99.0)})
    steps = [
        [state.params[name].item() for name in "abcd"] for state in staircase(before, after, [["a"], ["b", "c"], ["d"]])
    ]
    assert steps == [[0, 1, 2, 3], [10, 1, 2, 3], [10, 11, 12, 3]]
    buffers = [state.buffers["r"].item() for state in staircase(before, after, [["a"], ["b", "c"], ["d"]])]
    assert buffers == [9, 9, 9]


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_products_with_the_hessian_are_differences_of_gradients(mode: Mode, bits_of: Callable[[Any], Any]) -> None:
    net, (x, y) = _net(), _batch()
    net[2] = nn.Tanh()
    state = _moved(net, 0.3)
    before, state_before = bits_of(net.state_dict()), bits_of([state.params, state.buffers])
    product = hessian_product_at(net, state, x, y, LOSS, mode)
    v = {name: torch.randn_like(value) for name, value in state.params.items()}
    a = 1e-5
    ends = [gradient_at(net, line(state, v, sign * a), x, y, LOSS, mode)[1] for sign in (1, -1)]
    expected = torch.cat([((ends[0][name] - ends[1][name]) / (2 * a)).flatten() for name in v])
    found = product(torch.cat([direction.flatten() for direction in v.values()]))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert bits_of(net.state_dict()) == before
    assert bits_of([state.params, state.buffers]) == state_before
    assert all(param.grad is None for param in net.parameters())


def test_a_gradient_can_be_taken_for_some_parameters_only() -> None:
    net, (x, y) = _net(), _batch()
    state = State.of(net)
    loss, grads = gradient_at(net, state, x, y, LOSS)
    for names in (["3.weight"], ["3.bias", "0.weight"]):
        same, some = gradient_at(net, state, x, y, LOSS, wrt=names)
        assert torch.equal(same, loss)
        assert list(some) == names
        for name in names:
            torch.testing.assert_close(some[name], grads[name], rtol=1e-14, atol=0)
