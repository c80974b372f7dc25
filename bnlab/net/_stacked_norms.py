"""The norms of K nets in one stack, and what a pass through it leaves behind. Legend: K nets, B batch, C channels.

A norm is applied in one of four ways: torch's batch norm to K * C channels, a `ChannelNorm` that `stacks` by its own
forward on stacked tensors, torch's layer norm and what is `in_turn` to one net after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.core.state import called_with
from bnlab.net.wrap import SavedMoments, saved_eps
from bnlab.norms._beside import FlatBatchNorm
from bnlab.norms.base import ChannelNorm, Noise

_OPS: Any = torch.ops.aten

Tensors = dict[str, Tensor]
Step = Callable[[Tensor], Tensor]
"""From the gradient at an output to that at the input."""


@dataclass(slots=True)
class Forward:
    """What one forward pass of K nets computed, at every site."""

    given: list[Tensor] = field(default_factory=list)
    """The affine map's input [K, B, C]."""
    pre: list[Tensor] = field(default_factory=list)
    """Its output [K, B, C]."""
    act_in: list[Tensor] = field(default_factory=list)
    """What the nonlinearity sees, as in `Sites`."""
    saved: list[SavedMoments | None] = field(default_factory=list)
    """What torch's batch norm saved of pre, each [K, C]; None where there is none before the nonlinearity."""
    steps: list[list[Step]] = field(default_factory=list)
    """The backward steps of norm and nonlinearity, in the order of the forward pass."""
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    """[K, B, O]."""
    grads: Tensors = field(default_factory=dict)
    """After the backward pass: of every parameter, [K, ...]."""
    deltas: list[Tensor] = field(default_factory=list)
    """After the backward pass: the gradients at pre, each [K, B, C]."""


def rows(x: Tensor) -> Tensor:
    """x [K, B, C] with every net's rows adjacent, as one net's are."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


class Normalizer(ABC):
    """A norm of every net of the stack: its tensors have the names that start with `prefix`."""

    def __init__(self, norm: nn.Module, prefix: str) -> None:
        self.norm, self.prefix = norm, prefix

    def of(self, norms: Sequence[nn.Module]) -> None:  # noqa: B027
        """Say which net's norm is in which place, for norms that draw each net's own numbers."""

    @abstractmethod
    def forward(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor, done: Forward, back: list[Step]
    ) -> tuple[Tensor, SavedMoments | None]:
        """The output for x [K, B, C], and what it saved of x; adds its backward step, which puts the gradients of its
        parameters into `done.grads`."""


def _says(norm: nn.Module, name: str) -> bool:
    """Whether a norm says it of the forward that it has: a subclass with another one has to say it again."""
    for kind in type(norm).__mro__:
        if name in vars(kind):
            return bool(vars(kind)[name])
        if "forward" in vars(kind):
            return False
    return False


def normalizer(norm: nn.Module, prefix: str) -> Normalizer | None:
    counted = getattr(norm, "num_batches_tracked", None) is not None
    if counted and getattr(norm, "momentum", None) is None:  # the plain average, by a number that is each net's own
        return None
    if type(norm) is nn.BatchNorm1d:
        return _TorchBatch(norm, prefix)
    if isinstance(norm, ChannelNorm | Noise) and _says(norm, "stacks"):
        return _Channels(norm, prefix)
    if type(norm) is nn.LayerNorm:
        return _TorchLayer(norm, prefix)
    in_turn = isinstance(norm, ChannelNorm) and _says(norm, "in_turn")
    return InTurn(norm, prefix) if in_turn or type(norm) in (nn.GroupNorm, nn.RMSNorm) else None


class _Channels(Normalizer):
    """A `ChannelNorm` that `stacks`: its own forward, on statistics over the batch axis of x [K, B, C]."""

    def __init__(self, norm: ChannelNorm | Noise, prefix: str) -> None:
        super().__init__(norm.side_by_side(), prefix)

    def of(self, norms: Sequence[nn.Module]) -> None:
        for name, part in self.norm.named_modules():
            if isinstance(part, Noise):
                part.of_nets = [noise for norm in norms if isinstance(noise := norm.get_submodule(name), Noise)]

    def forward(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor, done: Forward, back: list[Step]
    ) -> tuple[Tensor, SavedMoments | None]:
        start = len(self.prefix)
        own = {name: p.detach().requires_grad_() for name, p in params.items() if name.startswith(self.prefix)}
        kept = {name: b for name, b in buffers.items() if name.startswith(self.prefix)}
        # A number of one net goes with all its channels.
        wide = {name[start:]: b[:, None] if b.ndim == 1 else b for name, b in kept.items()}
        seen = rows(x).detach().requires_grad_()
        with torch.enable_grad():
            out = called_with(self.norm, {name[start:]: p for name, p in own.items()} | wide, seen)

        def step(g: Tensor) -> Tensor:
            grads = torch.autograd.grad(out, [seen, *own.values()], rows(g))
            done.grads.update(zip(own, grads[1:], strict=True))
            return grads[0]

        back.append(step)
        return out.detach(), None


class _TorchBatch(Normalizer):
    """torch's batch norm of K * C channels, on [B, K * C]."""

    norm: nn.BatchNorm1d

    def forward(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor, done: Forward, back: list[Step]
    ) -> tuple[Tensor, SavedMoments | None]:
        named = {name: self.prefix + name for name in ("weight", "bias", "running_mean", "running_var")}
        gamma, beta = params.get(named["weight"]), params.get(named["bias"])
        mean, var = buffers[named["running_mean"]], buffers[named["running_var"]]
        buffers[f"{self.prefix}num_batches_tracked"].add_(1)
        momentum = self.norm.momentum
        assert momentum is not None
        flat = FlatBatchNorm(x, gamma, beta, mean, var, momentum, self.norm.eps)

        def step(g: Tensor) -> Tensor:
            gradient, of_gamma, of_beta = flat.backward(g)
            if gamma is not None:
                done.grads[named["weight"]], done.grads[named["bias"]] = of_gamma, of_beta
            return gradient

        back.append(step)
        exact = saved_eps(self.norm) is not None
        return flat.out, SavedMoments(flat.mean.view_as(mean), flat.inverse_sd.view_as(mean)) if exact else None


class InTurn(Normalizer):
    """A norm that is computed for one net after the other."""

    def __init__(self, norm: nn.Module, prefix: str) -> None:
        super().__init__(norm, prefix)
        self.norms: Sequence[nn.Module] = ()

    def of(self, norms: Sequence[nn.Module]) -> None:
        self.norms = norms

    def forward(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor, done: Forward, back: list[Step]
    ) -> tuple[Tensor, SavedMoments | None]:
        start, norms = len(self.prefix), self.norms or [self.norm] * len(x)
        own = {name: p for name, p in params.items() if name.startswith(self.prefix)}
        kept = {name[start:]: b for name, b in buffers.items() if name.startswith(self.prefix)}
        seen, outs, leaves = [], [], []
        for place, (norm, one) in enumerate(zip(norms, rows(x).detach().unbind(), strict=True)):
            seen.append(one.requires_grad_())
            leaves.append([p[place].detach().requires_grad_() for p in own.values()])
            named = zip((name[start:] for name in own), leaves[-1], strict=True)
            with torch.enable_grad():
                outs.append(called_with(norm, dict(named) | {name: b[place] for name, b in kept.items()}, one))

        def step(g: Tensor) -> Tensor:
            inputs = [*seen, *(leaf for each in leaves for leaf in each)]
            grads = torch.autograd.grad(outs, inputs, list(rows(g).unbind()))
            count = len(seen)
            for index, name in enumerate(own):
                done.grads[name] = torch.stack(grads[count + index :: len(own)])
            return torch.stack(grads[:count])

        back.append(step)
        return torch.stack([out.detach() for out in outs]), None


class _TorchLayer(Normalizer):
    """torch's layer norm, one net after the other."""

    norm: nn.LayerNorm

    def forward(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor, done: Forward, back: list[Step]
    ) -> tuple[Tensor, SavedMoments | None]:
        x, shape, nets = rows(x), list(self.norm.normalized_shape), range(len(x))
        gammas, betas = (params.get(f"{self.prefix}{name}", [None] * len(x)) for name in ("weight", "bias"))
        found = [torch.native_layer_norm(x[k], shape, gammas[k], betas[k], self.norm.eps) for k in nets]

        def step(g: Tensor) -> Tensor:
            g = rows(g)
            wanted = [True, gammas[0] is not None, betas[0] is not None]
            grads = [
                _OPS.native_layer_norm_backward(g[k], x[k], shape, *found[k][1:], gammas[k], betas[k], wanted)
                for k in nets
            ]
            for at, name in enumerate(("weight", "bias"), start=1):
                if wanted[at]:
                    done.grads[f"{self.prefix}{name}"] = torch.stack([grad[at] for grad in grads])
            return torch.stack([grad[0] for grad in grads])

        back.append(step)
        return torch.stack([out for out, _, _ in found]), None
