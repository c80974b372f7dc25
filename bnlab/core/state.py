"""A net's loss and gradients *at* a state, without touching the net: the only caller of `functional_call`.

Legend: B batch, P parameters of the net (flat).

A forward in `batch` mode is one as in training: batch norms normalize with the batch's own statistics and move running
statistics, here copies of them, and every part is in the mode in which the module's own `train()` puts it. A forward in
`running` mode is one as in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Mode = Literal["batch", "running"]


def for_lists(name: str, single: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """torch's function of that private name, which takes lists of tensors in one call, in a fraction of the time; in a
    torch without it, `single` for one tensor after another."""

    def one_by_one(*lists: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(single(*tensors) for tensors in zip(*lists, strict=True))

    together = getattr(torch, name, one_by_one)
    return lambda *lists: together(*lists) if lists[0] else ()  # torch refuses empty lists


norm_each = for_lists("_foreach_norm", torch.linalg.vector_norm)
"""The Euclidean norm of each tensor of a list, a scalar."""
subtract_each = for_lists("_foreach_sub", torch.sub)
"""The differences of two lists."""
copy_each = for_lists("_foreach_copy_", Tensor.copy_)
"""Copies the tensors of the second list into those of the first."""


class Objective(Protocol):
    """A loss: outputs [B, K] and targets [B] or [B, K] to a scalar, in nats for cross entropy."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor: ...


RandomState = tuple[Tensor, ...]
"""Of torch's global generators: the CPU's, and that of another device."""


def random_state(device: torch.device) -> RandomState:
    """The state now, for a net on this device."""
    own = _GENERATORS.get(device.type)
    return (torch.get_rng_state(),) if own is None else (torch.get_rng_state(), own.get_rng_state())


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Make it draw what it drew after `random_state(device)` returned `state`."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        _GENERATORS[device.type].set_rng_state(state[1])


_GENERATORS: Mapping[str, Any] = {"cuda": torch.cuda, "mps": torch.mps}


@contextmanager
def untouched_random_state(device: torch.device) -> Iterator[RandomState]:
    """Restores the global random state, so that a module that draws from it draws the same numbers when measured."""
    before = random_state(device)
    try:
        yield before
    finally:
        set_random_state(before, device)


@dataclass(frozen=True, slots=True)
class State:
    """The parameters and buffers of a net at one moment, detached copies. With `random`, every forward at this state
    begins with that random state: it draws the same dropout masks."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    random: RandomState | None = None

    @classmethod
    def of(cls, module: nn.Module) -> State:
        """A copy of the module's state now."""
        return cls(
            {name: value.detach().clone() for name, value in module.named_parameters()},
            {name: value.detach().clone() for name, value in module.named_buffers()},
        )


@contextmanager
def in_mode(parts: Iterable[nn.Module], mode: Mode) -> Iterator[None]:
    """The given parts of a module in train mode for `batch`, in eval mode for `running`; afterwards each as it was."""
    wanted = mode == "batch"
    changed = [part for part in parts if part.training != wanted]
    for part in changed:
        part.training = wanted
    try:
        yield
    finally:
        for part in changed:
            part.training = not wanted


@contextmanager
def as_in(module: nn.Module, mode: Mode) -> Iterator[None]:
    """The whole module as in training for `batch`, as in evaluation for `running`; afterwards each part as it was.

    As in training is what the module's own `train()` makes of it, which may keep a part in eval mode. A module in
    train mode is taken to be so already.
    """
    if mode == "batch" and module.training:
        yield
        return
    modes = {part: part.training for part in module.modules()}
    try:
        if mode == "batch":
            module.train()
        else:
            for part in modes:
                part.training = False
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class PreservedBuffers(AbstractContextManager["PreservedBuffers"]):
    """A module's buffers: after the `with` they are what they were before it, whatever a forward did to them. Made once
    and used often; the module's buffers must not be replaced by others meanwhile."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = list(module.modules())
        by_dtype: dict[torch.dtype, list[tuple[dict[str, Tensor | None], str, Tensor]]] = {}
        for part in self.parts:
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    kept = (part._buffers, name, torch.empty_like(buffer))
                    by_dtype.setdefault(buffer.dtype, []).append(kept)
        self._kept = list(by_dtype.values())
        self._buffers: list[list[Tensor]] = []

    def __enter__(self) -> PreservedBuffers:
        self._buffers = [[buffers[name] for buffers, name, _ in kept] for kept in self._kept]  # type: ignore[misc]
        for now, kept in zip(self._buffers, self._kept, strict=True):
            copy_each([copy for *_, copy in kept], now)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for now, kept in zip(self._buffers, self._kept, strict=True):
            for (buffers, name, _), buffer in zip(kept, now, strict=True):
                buffers[name] = buffer  # a forward may have put another tensor in its place
            copy_each(now, [copy for *_, copy in kept])


def outputs_now(module: nn.Module, x: Tensor, mode: Mode, preserved: PreservedBuffers | None = None) -> Tensor:
    """Outputs [B, ...] at the module's present weights, without a graph; its buffers stay as they are. Who asks often
    passes the module's `PreservedBuffers`."""
    with torch.no_grad(), as_in(module, mode), preserved or PreservedBuffers(module):
        out = module(x)
    assert isinstance(out, Tensor)
    return out


def outputs_at(module: nn.Module, state: State, x: Tensor, mode: Mode) -> Tensor:
    """Outputs [B, ...] at `state`. Neither the module's buffers nor the state's are moved."""
    everything = state.params | {name: value.clone() for name, value in state.buffers.items()}
    if state.random is not None:
        set_random_state(state.random, x.device)
    with as_in(module, mode):
        return called_with(module, everything, x)


def called_with(module: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The module's outputs with these parameters and buffers in place of its own."""
    # Without tie_weights: it would leave a part that has two paths with the state's tensors (torch 2.13).
    out = functional_call(module, tensors, (x,), tie_weights=False)
    assert isinstance(out, Tensor)
    return out


def loss_at(
    module: nn.Module, state: State, x: Tensor, y: Tensor, objective: Objective, mode: Mode = "batch"
) -> Tensor:
    """L(state) on one batch, a scalar."""
    return objective(outputs_at(module, state, x, mode), y)


def gradient_at(
    module: nn.Module,
    state: State,
    x: Tensor,
    y: Tensor,
    objective: Objective,
    mode: Mode = "batch",
    *,
    wrt: Sequence[str] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L(state), and dL/dparams by parameter name, each of its parameter's shape; with `wrt`, of these parameters alone,
    so that the backward pass ends at the first of them. The gradient of a parameter that the loss does not depend on is
    0.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> state = State({"weight": torch.tensor([[3.0]])}, {})
    >>> square = lambda outputs, targets: ((outputs - targets) ** 2).sum()
    >>> loss, grads = gradient_at(net, state, torch.tensor([[2.0]]), torch.tensor([[1.0]]), square)
    >>> loss.item(), grads["weight"].item()  # (3*2 - 1)^2 and 2*(3*2 - 1)*2
    (25.0, 20.0)
    """
    wanted = {name: state.params[name].detach().requires_grad_() for name in wrt or state.params}
    with torch.enable_grad():
        loss = loss_at(module, replace(state, params=state.params | wanted), x, y, objective, mode)
        grads = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    return loss.detach(), dict(zip(wanted, grads, strict=True))


def hessian_product_at(
    module: nn.Module, state: State, x: Tensor, y: Tensor, objective: Objective, mode: Mode = "batch"
) -> Callable[[Tensor], Tensor]:
    """The map v -> H v, H the Hessian of L at `state` over all parameters; v and H v [P], the parameters in their
    order, flat. A forward and a backward pass now, kept for as long as the map; a further backward pass a product.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> square = lambda outputs, targets: ((outputs - targets) ** 2).sum()
    >>> product = hessian_product_at(net, State.of(net), torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0]]), square)
    >>> product(torch.tensor([1.0, 0.0])).tolist()  # H = 2 x x'
    [2.0, 4.0]
    """
    params = {name: value.detach().requires_grad_() for name, value in state.params.items()}
    with torch.enable_grad():
        loss = loss_at(module, replace(state, params=params), x, y, objective, mode)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True, materialize_grads=True)
        gradient = torch.cat([grad.flatten() for grad in grads])  # [P]

    def product(v: Tensor) -> Tensor:
        rows = torch.autograd.grad(gradient, list(params.values()), v, retain_graph=True, materialize_grads=True)
        return torch.cat([row.flatten() for row in rows])

    return product


def line(state: State, direction: Mapping[str, Tensor], a: float) -> State:
    """state + a * direction: the parameters moved along a line, the buffers kept.

    >>> line(State({"w": torch.tensor([1.0, 2.0])}, {}), {"w": torch.tensor([1.0, -1.0])}, 0.5).params["w"].tolist()
    [1.5, 1.5]
    """
    return replace(state, params={name: value + a * direction[name] for name, value in state.params.items()})


def staircase(before: State, after: State, groups: Sequence[Sequence[str]]) -> Iterator[State]:
    """For each group i of parameter names, in the order of the layers: the state whose groups before i are updated and
    whose group i and later are not. This is the W of G' in Santurkar et al. 2018, definition 2.1, with the preceding
    layers updated; the first state is `before` itself."""
    params = dict(before.params)
    for names in groups:
        yield replace(before, params=dict(params))
        params |= {name: after.params[name] for name in names}


@dataclass(frozen=True, slots=True)
class Loss:
    """`cross_entropy` in nats, or `mse`; over the samples (and, for mse, outputs) `mean` or `sum`. Class targets [B]
    become one-hot rows for mse."""

    name: str
    reduction: str

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.name == "cross_entropy":
            return F.cross_entropy(outputs, targets, reduction=self.reduction)
        return self._reduced(outputs, targets, self.reduction)

    def of_each(self, outputs: Tensor, targets: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The losses of K nets, and the gradient [K, B, O] of each at its outputs, for outputs [K, B, O] and K targets;
        with the bits of single calls, in fewer of them."""
        leaf = outputs.detach().flatten(0, 1).requires_grad_()
        together = torch.cat(list(targets))
        with torch.enable_grad():
            seen = leaf if self.name == "mse" else F.log_softmax(leaf, dim=1)
            each = self._reduced(seen, together, "none")  # [K B] or [K B, O]
        share = len(targets) / each.numel() if self.reduction == "mean" else 1.0
        (gradients,) = torch.autograd.grad(each, leaf, torch.full_like(each, share))
        parts = zip(seen.detach().view_as(outputs), targets, strict=True)
        return [self._reduced(one, y, self.reduction) for one, y in parts], gradients.view_as(outputs)

    def _reduced(self, seen: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """From log probabilities for cross entropy, from outputs for mse."""
        if self.name == "cross_entropy":
            return F.nll_loss(seen, targets, reduction=reduction)
        if targets.dtype == torch.int64:
            targets = F.one_hot(targets, seen.shape[1]).to(seen.dtype)
        return F.mse_loss(seen, targets, reduction=reduction)


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many rows of `outputs` [B, K] have their largest entry at the target class [B]: a scalar count. A row with
    NaN is wrong, whatever its target.

    >>> correct(torch.tensor([[2.0, 1.0], [torch.nan, torch.nan]]), torch.tensor([0, 0])).item()
    1
    """
    return ((outputs.argmax(dim=1) == targets) & ~outputs.isnan().any(dim=1)).sum()


class Moments:
    """Of all values added so far, per channel, each [C] and in float64; as if they had come at once, but for rounding:
    batches of any size are merged by the formula of Chan, Golub & LeVeque 1979, which subtracts no large numbers.

    >>> pooled = Moments()
    >>> for x in ([[0.0], [2.0]], [[7.0]]):
    ...     pooled.add(torch.tensor(x))
    >>> pooled.mean.tolist(), pooled.unbiased.tolist()
    ([3.0], [13.0])
    """

    def __init__(self) -> None:
        self.count = 0
        """Values of a channel."""
        self.mean = self._squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """The values x [B, C] or [B, C, H, W]."""
        over = [axis for axis in range(x.ndim) if axis != 1]
        wide = x.detach().to(x.dtype if x.device.type == "mps" else torch.float64)
        count, mean = x.numel() // x.shape[1], wide.mean(dim=over, keepdim=True)
        squares = (wide - mean).square().sum(dim=over)
        if self.count == 0:
            self.count, self.mean, self._squares = count, mean.flatten(), squares
            return
        total = self.count + count
        apart = mean.flatten() - self.mean
        self.mean = self.mean + apart * (count / total)
        self._squares = self._squares + squares + apart.square() * (self.count * count / total)
        self.count = total

    @property
    def biased(self) -> Tensor:
        """The mean square distance from the mean."""
        return self._squares / self.count

    @property
    def unbiased(self) -> Tensor:
        """The variance with n - 1 in place of n; NaN of a single value."""
        return self._squares / (self.count - 1) if self.count > 1 else torch.full_like(self._squares, torch.nan)
