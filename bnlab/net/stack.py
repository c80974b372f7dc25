"""Nets of one architecture side by side: K states in one forward and one backward pass, each with its own bits.

Legend: K nets, B batch, C channels, O outputs.

A stacked tensor has the nets on its first axis. What is computed is what autograd computes for one net, written out for
K of them, since a graph over a stack costs more than it saves. Three rules keep the bits (docs/decisions/022):

- An operation sees every net's values as it sees one net's: as rows of the same length, from the same alignment. So
  matrices are kept apart from each other in memory, and nothing merges two nets into one row.
- A product of matrices is one batched call where that returns the bits of single calls, else single calls.
- torch's batch norm takes K nets as K * C channels. Its backward pass treats the last channels of a tensor in another
  order of rounding, so those of every net are computed once more in that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.core.state import Loss, Objective
from bnlab.net._stacked_norms import Forward, Normalizer, Step, Tensors, normalizer, rows
from bnlab.net.build import Net

ALIGNED = 16
"""Numbers between two starts of matrices are a multiple of it: 64 bytes in float32, as torch allocates."""

_Activation = Callable[[Tensor, list[Step]], Tensor]
_OPS: Any = torch.ops.aten


def apart(nets: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """An empty stacked tensor [K, *shape]. Matrices are aligned and never adjacent; vectors [K, C] are adjacent, so
    that K * C channels are one vector."""
    if len(shape) < 2:
        return torch.empty((nets, *shape), dtype=dtype, device=device)
    size = math.prod(shape)
    slot = (size // ALIGNED + 1) * ALIGNED
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return torch.empty_strided((nets, *shape), (slot, *strides), dtype=dtype, device=device)


class Stack:
    """The architecture of a net, applied to stacked states. It holds no state itself."""

    def __init__(self, net: Net) -> None:
        """Raises:
        ValueError: `unstackable` gives a reason.
        """
        if reason := unstackable(net):
            raise ValueError(reason)
        names = {module: f"{name}." for name, module in net.module.named_modules()}
        self._layers: list[tuple[str, Normalizer | None, _Activation, bool]] = []
        for site in net.sites:
            norm = None if site.norm is None else normalizer(site.norm, names[site.norm])
            activation = _ACTIVATIONS[type(site.activation)]
            self._layers.append((names[site.affine], norm, activation, site.norm_first))

    def of(self, nets: Sequence[Net]) -> None:
        """Say which net is in which place: norms that draw numbers draw each net's own. Without it, all are the one
        that the stack was made for."""
        for index, (_, norm, *_) in enumerate(self._layers):
            if norm is not None:
                norm.of([own for net in nets if (own := net.sites[index].norm) is not None])

    @torch.no_grad()
    def forward(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor, *, backward: bool = True
    ) -> Forward:
        """Outputs for x [K, B, ...] in batch mode, without a graph; `buffers` move as in training. Without `backward`,
        what only a backward pass needs is not kept."""
        done, h = Forward(), x.flatten(2)
        for affine, norm, activation, norm_first in self._layers:
            pre = _affine(h, params[f"{affine}weight"], params.get(f"{affine}bias"))
            done.pre.append(pre)
            back: list[Step] = []
            if backward:
                done.given.append(h)
                done.steps.append(back)
            h, saved = pre, None
            if norm is not None and norm_first:
                h, saved = norm.forward(params, buffers, h, done, back)
            done.act_in.append(h)
            done.saved.append(saved)
            h = activation(h, back)
            if norm is not None and not norm_first:
                h, _ = norm.forward(params, buffers, h, done, back)
        done.outputs = h
        return done

    @torch.no_grad()
    def backward(self, params: Mapping[str, Tensor], done: Forward, gradient: Tensor, *, keep: bool = False) -> Tensors:
        """`done.grads`, from the gradient at the outputs [K, B, O]; with `keep`, also `done.deltas`."""
        g = gradient
        for index in reversed(range(len(self._layers))):
            affine = self._layers[index][0]
            for step in reversed(done.steps[index]):
                g = step(g)
            if keep:
                done.deltas.insert(0, g)
            done.grads[f"{affine}weight"] = _product(g.transpose(1, 2), done.given[index])
            if f"{affine}bias" in params:
                done.grads[f"{affine}bias"] = rows(g).sum(dim=1)
            if index:
                g = _product(g, params[f"{affine}weight"])
        # The steps refer to `done`: a cycle, which would keep its tensors until they are looked for.
        done.steps.clear()
        done.given.clear()
        return done.grads

    def gradients(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        x: Tensor,
        targets: Sequence[Tensor],
        objective: Objective,
    ) -> tuple[Tensor, Tensors]:
        """The K losses [K] on x [K, B, ...], and their gradients by parameter, each [K, ...]. `buffers` are left as
        they are."""
        done = self.forward(
            params, {name: x.clone(memory_format=torch.contiguous_format) for name, x in buffers.items()}, x
        )
        losses, gradient = losses_of(done.outputs, targets, objective)
        return torch.stack(losses), self.backward(params, done, gradient)


def losses_of(outputs: Tensor, targets: Sequence[Tensor], objective: Objective) -> tuple[list[Tensor], Tensor]:
    """The losses of K nets, scalars without a graph, and their gradients at the outputs [K, B, O]."""
    if isinstance(objective, Loss):
        return objective.of_each(outputs, targets)
    leaves = [out.requires_grad_() for out in outputs.detach().unbind()]
    with torch.enable_grad():
        losses = [objective(out, y) for out, y in zip(leaves, targets, strict=True)]
    return [loss.detach() for loss in losses], torch.stack(torch.autograd.grad(losses, leaves))


def unstackable(net: Net) -> str | None:
    """Why a net cannot be in a stack; None if it can."""
    if net.adopted or not net.sites:
        return "a user's own module"
    known = {part for site in net.sites for part in (site.affine, site.norm, site.activation)}
    for part in net.module.children():
        if part not in known and not isinstance(part, nn.Flatten):
            return f"a {type(part).__name__}"
    for site in net.sites:
        if not isinstance(site.affine, nn.Linear):
            return f"a {type(site.affine).__name__}"
        if type(site.activation) not in _ACTIVATIONS:
            return f"the activation {type(site.activation).__name__}"
        if site.norm is not None and normalizer(site.norm, "") is None:
            return f"the norm {type(site.norm).__name__}"
        if site.norm is not None and site.affine.out_features == 1:  # torch computes one channel by another kernel
            return "a norm of one channel"
    return None


def stack_of(net: Net) -> Stack | None:
    """A stack of such nets, if there can be one."""
    return None if unstackable(net) else Stack(net)


def stacked(states: Iterable[Mapping[str, Tensor]]) -> Tensors:
    """Copies of several nets' tensors as stacked ones."""
    each = list(states)
    made = {name: apart(len(each), x.shape, x.dtype, x.device) for name, x in each[0].items()}
    for index, state in enumerate(each):
        for name, x in state.items():
            made[name][index].copy_(x.detach())
    return made


# Affine maps


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _product(x, weight.transpose(1, 2), bias)


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [K, M, N] times b [K, N, P], and the bias [K, P] of every row."""
    if _one_call_keeps_bits(a.shape, a.stride(), b.shape, b.stride(), bias is not None, a.dtype):
        return torch.bmm(a, b) if bias is None else torch.baddbmm(bias[:, None], a, b)
    return torch.stack(_products(a, b, bias))


def _products(a: Tensor, b: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The same, net by net, of tensors as they are in a single net."""
    pairs = [(_alone(one), _alone(other)) for one, other in zip(a, b, strict=True)]
    if bias is None:
        return [torch.mm(*pair) for pair in pairs]
    return [torch.addmm(row.clone(), *pair) for row, pair in zip(bias, pairs, strict=True)]


def _alone(x: Tensor) -> Tensor:
    turned = x.stride(1) != 1
    own = (x.t() if turned else x).clone(memory_format=torch.contiguous_format)
    return own.t() if turned else own


@cache
def _one_call_keeps_bits(
    a_shape: torch.Size,
    a_stride: tuple[int, ...],
    b_shape: torch.Size,
    b_stride: tuple[int, ...],
    biased: bool,
    dtype: torch.dtype,
) -> bool:
    """Whether a batched product of such tensors has the bits of single ones, tried on random numbers: libraries choose
    their kernels by shape, and for a few small or odd shapes not the same ones."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
        size = 1 + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
        return torch.randn(size, generator=generator, dtype=dtype).as_strided(shape, stride)

    a, b = draw(a_shape, a_stride), draw(b_shape, b_stride)
    bias = torch.randn(a_shape[0], b_shape[2], generator=generator, dtype=dtype) if biased else None
    together = torch.bmm(a, b) if bias is None else torch.baddbmm(bias[:, None], a, b)
    return torch.equal(together, torch.stack(_products(a, b, bias)))


# Nonlinearities


def _relu(x: Tensor, back: list[Step]) -> Tensor:
    out = torch.relu(x)
    # Written in the layout of x, which is that of the batch norm below.
    back.append(lambda g: _OPS.threshold_backward.grad_input(g, out, 0, grad_input=torch.empty_like(x)))
    return out


def _sigmoid(x: Tensor, back: list[Step]) -> Tensor:
    # Its last values are rounded in another way than the others: those of every net must be the last of something.
    out = torch.sigmoid(rows(x), out=apart(x.shape[0], x.shape[1:], x.dtype, x.device))
    back.append(lambda g: _OPS.sigmoid_backward(rows(g), out))
    return out


def _tanh(x: Tensor, back: list[Step]) -> Tensor:
    out = torch.tanh(rows(x), out=apart(x.shape[0], x.shape[1:], x.dtype, x.device))
    back.append(lambda g: _OPS.tanh_backward(rows(g), out))
    return out


def _linear(x: Tensor, back: list[Step]) -> Tensor:
    return x


_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.ReLU: _relu,
    nn.Sigmoid: _sigmoid,
    nn.Tanh: _tanh,
    nn.Identity: _linear,
}
