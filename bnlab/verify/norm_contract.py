"""What every norm must do, checked on one layer. Legend: B batch, C channels, H W space.

A check raises `BrokenError` with the one line that says what is wrong.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.overrides import TorchFunctionMode

from bnlab.core.registry import NORMS
from bnlab.core.state import Mode, State, outputs_at, outputs_now
from bnlab.norms.base import DrawsNumbers
from bnlab.verify.checks import BrokenError, bits, global_random_states, unlike

C = 6
SHAPES = {0: (12, C), 2: (4, C, 3, 2)}
KINDS = {0: "dense", 2: "convolution"}
MODES: tuple[Mode, ...] = ("batch", "running")
TRAITS = frozenset({"batch_statistics", "space_statistics", "cancels_bias", "stops_gradient"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A norm with its options, and how many axes of space its input has."""

    name: str
    options: Mapping[str, Any]
    dims: int

    @property
    def traits(self) -> frozenset[str]:
        return NORMS.entry(self.name).traits

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A fresh one, as a net's builder makes it; what stands for nothing is the identity."""
        layer = NORMS.build(self.name, self.options, C, self.dims)
        if layer is None:
            return nn.Identity()
        if not isinstance(layer, nn.Module):
            raise BrokenError(f"its constructor gives a {type(layer).__name__}, and not an nn.Module or None")
        if isinstance(layer, DrawsNumbers):
            layer.bind(0, "L00_fc")
        return layer.to(dtype)

    def batch(self, seed: int = 0) -> Tensor:
        """x [B, C] or [B, C, H, W]."""
        generator = torch.Generator().manual_seed(seed)
        return 3 * torch.randn(SHAPES[self.dims], generator=generator, dtype=torch.float64) + 1

    def trained(self, steps: int = 3) -> nn.Module:
        """After a few steps of gradient descent, on always the same batches."""
        layer = self.build()
        params = list(layer.parameters())
        for seed in range(steps):
            loss = layer(self.batch(seed).requires_grad_()).pow(3).mean()  # as amid a net
            grads = torch.autograd.grad(loss, params, allow_unused=True) if params else ()
            with torch.no_grad():
                for param, grad in zip(params, grads, strict=True):
                    if grad is not None:
                        param.sub_(0.01 * grad)
        return layer


def shape_and_dtype_stay(case: Layer) -> None:
    for dtype in (torch.float64, torch.float32):
        layer = case.build(dtype)
        for training in (True, False):
            x = case.batch().to(dtype)
            given = x.clone()
            out, where = layer.train(training)(x), "training" if training else "use"
            if not isinstance(out, Tensor) or out.shape != x.shape:
                shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise BrokenError(f"gives {shape} for {list(x.shape)} in {where}")
            if out.dtype != dtype:
                raise BrokenError(f"gives {_short(out.dtype)} for {_short(dtype)} in {where}")
            if not bool(torch.isfinite(out).all()):
                raise BrokenError(f"gives values that are not finite in {where}")
            if not torch.equal(x, given):
                raise BrokenError(f"changes its input in place in {where}")


def the_gradient_is_the_derivative(case: Layer) -> None:
    """In float64, at the input and at every parameter, against finite differences. A norm with the trait
    `stops_gradient` takes what it detaches for constants, in training."""
    layer = case.trained(1)
    state = State.of(layer)
    names = list(state.params)
    given = [tensor.clone().requires_grad_() for tensor in (case.batch()[:3], *state.params.values())]
    for mode in MODES:
        call = _call(layer, names, state, mode)
        wrong = _differs_from_the_derivative(call, given, names)
        stops = "stops_gradient" in case.traits and mode == "batch"
        if wrong and not stops:
            way_out = " If it is meant to take what it detaches for constant, declare the trait stops_gradient."
            raise BrokenError(f"{wrong} in {mode} mode.{way_out if mode == 'batch' else ''}")
        if stops and not wrong:
            raise BrokenError("declares stops_gradient, and its gradient is the derivative")
        if stops and (wrong := _differs_from_the_derivative(_with_what_is_detached_held(call), given, names)):
            raise BrokenError(f"{wrong} in {mode} mode, even where what it detaches is held constant")


def _call(layer: nn.Module, names: Sequence[str], state: State, mode: Mode) -> Callable[..., Tensor]:
    """x, *params -> outputs, by the same random numbers at each call."""

    def call(x: Tensor, *params: Tensor) -> Tensor:
        torch.manual_seed(0)
        return outputs_at(layer, State(dict(zip(names, params, strict=True)), state.buffers), x, mode)

    return call


def _differs_from_the_derivative(call: Callable[..., Tensor], given: list[Tensor], names: Sequence[str]) -> str:
    """The inputs at which it differs, in words; empty if at none."""
    with torch.random.fork_rng(devices=[]):
        passes = call(*given).requires_grad
    if not passes:
        return "no gradient passes through it"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.autograd.gradcheck(call, given)
    except GradcheckError as error:
        found = re.search(r"with respect to input (\d+)", str(error))
        if found is None:
            return f"its gradient cannot be checked ({' '.join(str(error).split())[:80]})"
        index = int(found[1])
        return f"its gradient at {'its input' if index == 0 else names[index - 1]} is not the derivative"
    return ""


def _with_what_is_detached_held(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`call` in which every `.detach()` returns, at any input, what it returned at the first one."""
    first: list[Tensor] = []
    called = False

    def held(*given: Tensor) -> Tensor:
        nonlocal called
        with _DetachHeld(first, again=called):
            out = call(*given)
        called = True
        return out

    return held


class _DetachHeld(TorchFunctionMode):
    """Notes what each `.detach()` inside the `with` returns, or returns `again` what was noted."""

    def __init__(self, first: list[Tensor], *, again: bool) -> None:
        super().__init__()
        self._first, self._made = first, iter(first) if again else None

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in (Tensor.detach, torch.detach):
            return func(*args, **(kwargs or {}))
        if self._made is not None:
            return next(self._made)
        self._first.append(func(*args, **(kwargs or {})).clone())
        return self._first[-1]


def parameters_get_gradients(case: Layer) -> None:
    layer = case.build()
    layer(case.batch().requires_grad_()).pow(3).sum().backward()
    for name, param in layer.named_parameters():
        if param.grad is None or not bool((param.grad != 0).all()):
            raise BrokenError(f"its parameter {name} gets no gradient")
        if not bool(torch.isfinite(param.grad).all()):
            raise BrokenError(f"the gradient of its parameter {name} is not finite")


def it_starts_alike(case: Layer) -> None:
    """Two arms of one seed, and a repeated run, start from the same values."""
    states = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states.append(bits(case.build().state_dict()))
    if differing := unlike(*states):
        raise BrokenError(f"{differing[0]} starts from other values each time: draw them from bnlab.core.seeds.stream")


def a_resumed_run_goes_on_alike(case: Layer) -> None:
    """A new norm with the state dict of the original continues as it does: checkpoints depend on this."""
    layer, fresh = case.trained(), case.build()
    for name, buffer in layer.named_buffers():
        if buffer.requires_grad:
            raise BrokenError(f"its buffer {name} keeps the graphs of all steps: update it under torch.no_grad()")
    fresh.load_state_dict(layer.state_dict())
    way_out = "keep all that training moves in buffers (register_buffer)"
    for training in (True, True, False):
        outs = [_drawing_alike(part.train(training), case.batch(9)) for part in (layer, fresh)]
        if bits(outs[0]) != bits(outs[1]):
            where = "training" if training else "use"
            raise BrokenError(f"a fresh one with its state_dict gives other values in {where}: {way_out}")
    if differing := unlike(bits(layer.state_dict()), bits(fresh.state_dict())):
        raise BrokenError(f"a fresh one with its state_dict ends with another {differing[0]}: {way_out}")


def _drawing_alike(layer: nn.Module, x: Tensor) -> Tensor:
    """Its output, with torch's global generator in one state, as a checkpoint brings it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        out: Tensor = layer(x)
    return out


def it_draws_from_streams(case: Layer) -> None:
    """Not from a global generator, which has other users, and of which a GPU has one that no checkpoint keeps."""
    layer = case.build()
    for training in (True, False):
        before = global_random_states()
        layer.train(training)(case.batch())
        if moved := unlike(before, global_random_states()):
            raise BrokenError(
                f"draws from {moved[0]}'s global generator: draw from bnlab.core.seeds.stream by seed, layer and a "
                "counter in a buffer, as bnlab.norms.base.Noise does"
            )


def measuring_leaves_it_alone(case: Layer) -> None:
    """Forwards made to measure (bnlab.core.state) between two steps of training."""
    measured, twin = case.trained(), case.trained()
    before = bits(measured.state_dict())
    for mode in MODES:
        with torch.random.fork_rng(devices=[]):
            outputs_now(measured, case.batch(4), mode)
            outputs_at(measured, State.of(measured), case.batch(4), mode)
    if differing := unlike(before, bits(measured.state_dict())):
        raise BrokenError(f"a forward made to measure moves {differing[0]}")
    if bits(_drawing_alike(measured, case.batch(9))) != bits(_drawing_alike(twin, case.batch(9))):
        raise BrokenError("after a forward made to measure it trains on otherwise: it keeps something outside buffers")


def in_use_each_example_is_taken_for_itself(case: Layer) -> None:
    layer = case.trained().eval()
    x, before = case.batch(), bits(layer.state_dict())
    together = layer(x)
    if bits(layer(x)) != bits(together):
        raise BrokenError("in use, the same batch gives other values the second time")
    apart = torch.cat([layer(x[i : i + 1]) for i in range(len(x))])
    if not torch.allclose(apart, together, rtol=1e-12, atol=1e-12):
        gap = (apart - together).abs().max().item()
        raise BrokenError(f"in use, an example's output depends on the others in its batch, by {gap:.2g}")
    if differing := unlike(before, bits(layer.state_dict())):
        raise BrokenError(f"in use, {differing[0]} moves")


def its_traits_are_true(case: Layer) -> None:
    """By value, since a gradient may have been stopped. Whether examples influence each other is seen at the first
    batch, where even frozen statistics are made; whether a constant per channel has an effect, at a later one."""
    if unknown := sorted(case.traits - TRAITS):
        raise BrokenError(f"declares {unknown[0]}, which is not a trait; the traits are {', '.join(sorted(TRAITS))}")
    x = case.batch()
    others = torch.cat([x[:1], case.batch(5)[1:]])
    one, other = (_drawing_alike(case.build(), given) for given in (x, others))
    _held_to("batch_statistics", "an example's output depends on its batch", _gap(one[0], other[0]) > 1e-6, case)
    shifted = x + torch.arange(1, C + 1, dtype=x.dtype).reshape(1, C, *([1] * case.dims))
    layer = case.build()
    layer(case.batch(1))
    one, other = (_drawing_alike(copy.deepcopy(layer), given) for given in (x, shifted))
    _held_to("cancels_bias", "a constant added to a channel has no effect", _gap(one, other) < 1e-9, case)


def _gap(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _held_to(trait: str, meaning: str, found: bool, case: Layer) -> None:
    if found != (trait in case.traits):
        raise BrokenError(
            f"{meaning} in training: declare the trait {trait}" if found else f"declares {trait}, but not: {meaning}"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


CHECKS: dict[str, Callable[[Layer], None]] = {
    "shape and dtype": shape_and_dtype_stay,
    "gradient": the_gradient_is_the_derivative,
    "gradients of parameters": parameters_get_gradients,
    "start": it_starts_alike,
    "state in buffers": a_resumed_run_goes_on_alike,
    "random numbers": it_draws_from_streams,
    "left alone by measuring": measuring_leaves_it_alone,
    "in use": in_use_each_example_is_taken_for_itself,
    "traits": its_traits_are_true,
}
