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
    """A norm with its options, and the number of spatial dimensions of its input."""

    name: str
    options: Mapping[str, Any]
    dims: int

    @property
    def traits(self) -> frozenset[str]:
        return NORMS.entry(self.name).traits

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A new layer, as a net's builder makes it; the identity where the norm adds no layer."""
        layer = NORMS.build(self.name, self.options, C, self.dims)
        if layer is None:
            return nn.Identity()
        if not isinstance(layer, nn.Module):
            raise BrokenError(f"its constructor must return an nn.Module or None, got a {type(layer).__name__}")
        if isinstance(layer, DrawsNumbers):
            layer.bind(0, "L00_fc")
        return layer.to(dtype)

    def batch(self, seed: int = 0) -> Tensor:
        """x [B, C] or [B, C, H, W]."""
        generator = torch.Generator().manual_seed(seed)
        return 3 * torch.randn(SHAPES[self.dims], generator=generator, dtype=torch.float64) + 1

    def trained(self, steps: int = 3) -> nn.Module:
        """The layer after a few steps of gradient descent, on the same batches each time."""
        layer = self.build()
        params = list(layer.parameters())
        for seed in range(steps):
            loss = layer(self.batch(seed).requires_grad_()).pow(3).mean()  # inputs with a gradient, as inside a net
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
            out, where = layer.train(training)(x), "training" if training else "evaluation"
            if not isinstance(out, Tensor) or out.shape != x.shape:
                shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise BrokenError(f"returns {shape} for {list(x.shape)} in {where}")
            if out.dtype != dtype:
                raise BrokenError(f"returns {_short(out.dtype)} for {_short(dtype)} in {where}")
            if not bool(torch.isfinite(out).all()):
                raise BrokenError(f"returns values that are not finite in {where}")
            if not torch.equal(x, given):
                raise BrokenError(f"changes its input in place in {where}")
            if not out.is_contiguous():  # by which a convolution picks its kernel
                raise BrokenError(f"returns another memory layout in {where}: end with .contiguous()")


def the_gradient_is_the_derivative(case: Layer) -> None:
    """In float64, at the input and at every parameter, against finite differences. A norm with the trait
    `stops_gradient` treats what it detaches as constant, in training."""
    layer = case.trained(1)
    state = State.of(layer)
    names = list(state.params)
    given = [tensor.clone().requires_grad_() for tensor in (case.batch()[:3], *state.params.values())]
    for mode in MODES:
        call = _call(layer, names, state, mode)
        wrong = _differs_from_the_derivative(call, given, names)
        stops = "stops_gradient" in case.traits and mode == "batch"
        if wrong and not stops:
            remedy = " If it treats what it detaches as constant on purpose, declare the trait stops_gradient."
            raise BrokenError(f"{wrong} in {mode} mode.{remedy if mode == 'batch' else ''}")
        if stops and not wrong:
            raise BrokenError("declares stops_gradient, but its gradient is the derivative")
        if stops and (wrong := _differs_from_the_derivative(_with_detached_values_held(call), given, names)):
            raise BrokenError(f"{wrong} in {mode} mode, even where what it detaches is held constant")


def _call(layer: nn.Module, names: Sequence[str], state: State, mode: Mode) -> Callable[..., Tensor]:
    """A function x, *params -> outputs that uses the same random numbers at each call."""

    def call(x: Tensor, *params: Tensor) -> Tensor:
        torch.manual_seed(0)
        return outputs_at(layer, State(dict(zip(names, params, strict=True)), state.buffers), x, mode)

    return call


def _differs_from_the_derivative(call: Callable[..., Tensor], given: list[Tensor], names: Sequence[str]) -> str:
    """How the gradient differs, in words; empty if it does not."""
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


def _with_detached_values_held(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`call`, but from the second time on every `.detach()` returns what it returned the first time."""
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
    """Records what each `.detach()` inside the `with` returns, or with `again` returns what was recorded."""

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


def initial_values_are_reproducible(case: Layer) -> None:
    """Two arms of one seed, and a repeated run, start from the same values."""
    states = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states.append(bits(case.build().state_dict()))
    if differing := unlike(*states):
        raise BrokenError(f"{differing[0]} has other initial values each time: draw them from bnlab.core.seeds.stream")


def its_state_dict_is_complete(case: Layer) -> None:
    """A new norm with the state dict of a trained one behaves like it: checkpoints depend on this."""
    layer, fresh = case.trained(), case.build()
    for name, buffer in layer.named_buffers():
        if buffer.requires_grad:
            raise BrokenError(f"its buffer {name} keeps the graphs of all steps: update it under torch.no_grad()")
    fresh.load_state_dict(layer.state_dict())
    remedy = "keep everything that training changes in buffers (register_buffer)"
    for training in (True, True, False):
        outs = [_seeded_output(part.train(training), case.batch(9)) for part in (layer, fresh)]
        if bits(outs[0]) != bits(outs[1]):
            where = "training" if training else "evaluation"
            raise BrokenError(f"a new one with its state_dict returns other values in {where}: {remedy}")
    if differing := unlike(bits(layer.state_dict()), bits(fresh.state_dict())):
        raise BrokenError(f"a new one with its state_dict ends with another {differing[0]}: {remedy}")


def _seeded_output(layer: nn.Module, x: Tensor) -> Tensor:
    """Its output, with torch's global generator always in the same state, as a checkpoint restores it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        out: Tensor = layer(x)
    return out


def it_draws_from_streams(case: Layer) -> None:
    """Not from a global generator: other code draws from it, and no checkpoint keeps the one of a GPU."""
    layer = case.build()
    for training in (True, False):
        before = global_random_states()
        layer.train(training)(case.batch())
        if drawn := unlike(before, global_random_states()):
            raise BrokenError(
                f"draws from {drawn[0]}'s global generator: draw from bnlab.core.seeds.stream by seed, layer and a "
                "counter in a buffer, as bnlab.norms.base.Noise does"
            )


def measuring_does_not_change_it(case: Layer) -> None:
    """Forward passes for measuring (bnlab.core.state) between two training steps have no effect."""
    measured, twin = case.trained(), case.trained()
    before = bits(measured.state_dict())
    for mode in MODES:
        with torch.random.fork_rng(devices=[]):
            outputs_now(measured, case.batch(4), mode)
            outputs_at(measured, State.of(measured), case.batch(4), mode)
    if differing := unlike(before, bits(measured.state_dict())):
        raise BrokenError(f"a forward pass for measuring changes {differing[0]}")
    if bits(_seeded_output(measured, case.batch(9))) != bits(_seeded_output(twin, case.batch(9))):
        raise BrokenError("a forward pass for measuring changes later training: it keeps state outside buffers")


def examples_are_independent_in_evaluation(case: Layer) -> None:
    layer = case.trained().eval()
    x, before = case.batch(), bits(layer.state_dict())
    together = layer(x)
    if bits(layer(x)) != bits(together):
        raise BrokenError("in evaluation, the same batch gives other values the second time")
    apart = torch.cat([layer(x[i : i + 1]) for i in range(len(x))])
    if not torch.allclose(apart, together, rtol=1e-12, atol=1e-12):
        gap = (apart - together).abs().max().item()
        raise BrokenError(f"in evaluation, an example's output depends on the others in its batch, by {gap:.2g}")
    if differing := unlike(before, bits(layer.state_dict())):
        raise BrokenError(f"in evaluation, {differing[0]} changes")


def its_traits_are_true(case: Layer) -> None:
    """Checked by outputs, since a norm may stop gradients. The first batch shows whether examples influence each other
    (a norm with frozen statistics takes them from it), a later one whether a constant per channel has an effect."""
    if unknown := sorted(case.traits - TRAITS):
        raise BrokenError(f"declares {unknown[0]}, which is not a trait; the traits are {', '.join(sorted(TRAITS))}")
    x = case.batch()
    others = torch.cat([x[:1], case.batch(5)[1:]])
    one, other = (_seeded_output(case.build(), given) for given in (x, others))
    _check_trait("batch_statistics", "an example's output depends on its batch", _gap(one[0], other[0]) > 1e-6, case)
    shifted = x + torch.arange(1, C + 1, dtype=x.dtype).reshape(1, C, *([1] * case.dims))
    layer = case.build()
    layer(case.batch(1))
    one, other = (_seeded_output(copy.deepcopy(layer), given) for given in (x, shifted))
    _check_trait("cancels_bias", "a constant added to a channel has no effect", _gap(one, other) < 1e-9, case)


def _gap(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _check_trait(trait: str, meaning: str, found: bool, case: Layer) -> None:
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
    "start": initial_values_are_reproducible,
    "state in buffers": its_state_dict_is_complete,
    "random numbers": it_draws_from_streams,
    "unchanged by measuring": measuring_does_not_change_it,
    "evaluation": examples_are_independent_in_evaluation,
    "traits": its_traits_are_true,
}
