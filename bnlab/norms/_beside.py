"""torch's batch norm of K nets in one call, as K * C channels, with the bits of K calls. Legend: K nets, B batch,
C channels.

Its backward pass treats several channels at a time, and those that remain at the end of a tensor in another order of
rounding. So the last channels of every net are computed once more in that order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

_OPS: Any = torch.ops.aten


class FlatBatchNorm:
    """torch's batch norm applied to K nets at once."""

    def __init__(
        self,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> None:
        """x [K, B, C]; per channel [K, C]."""
        self.shape = nets, batch, channels = x.shape
        self.x = _beside(x)  # [B, K C]
        self.gamma = None if gamma is None else gamma.reshape(-1)
        beta = None if beta is None else beta.reshape(-1)
        self.running, self.eps = (running_mean.view(-1), running_var.view(-1)), eps
        out, self.mean, self.inverse_sd = torch.native_batch_norm(
            self.x, self.gamma, beta, *self.running, True, momentum, eps
        )
        self.out = out.view(batch, nets, channels).transpose(0, 1)

    def backward(self, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x [K, B, C], of gamma and of beta [K, C]."""
        nets, batch, channels = self.shape
        g = _beside(g)
        gradient, of_gamma, of_beta = self._native(g, self.x, self.mean, self.inverse_sd, self.gamma, self.running)
        width = lanes(g.dtype)
        last = channels % width
        if nets * channels % width > last:  # more of the last net are at the end here than where it is alone
            end = slice((nets - 1) * channels, None)
            moments = (self.mean[end], self.inverse_sd[end])
            gamma, running = None if self.gamma is None else self.gamma[end], [x[end] for x in self.running]
            alone = self._native(g[:, end].contiguous(), self.x[:, end].contiguous(), *moments, gamma, running)
            gradient[:, end] = alone[0]
        if last:
            self._again(gradient, g, last)
        return (
            gradient.view(batch, nets, channels).transpose(0, 1),
            of_gamma.view(nets, channels),
            of_beta.view(nets, channels),
        )

    def _native(self, g: Tensor, x: Tensor, mean: Tensor, inverse_sd: Tensor, gamma: Any, running: Any) -> Any:
        wanted = [True, True, True]
        return _OPS.native_batch_norm_backward(g, x, gamma, *running, mean, inverse_sd, True, self.eps, wanted)

    def _again(self, gradient: Tensor, g: Tensor, last: int) -> None:
        """Correct the gradient [B, K C] at the last channels of every net, with every product rounded."""
        nets, batch, channels = self.shape

        def end(x: Tensor) -> Tensor:  # [..., K C] -> [..., K last], the last channels alone
            parts = x.view(*x.shape[:-1], nets, channels)[..., channels - last :]
            return parts.reshape(*x.shape[:-1], nets * last).contiguous()

        g, x, mean, inverse_sd = (end(one) for one in (g, self.x, self.mean, self.inverse_sd))
        running = (torch.zeros_like(mean), torch.ones_like(mean))
        # With an inverse sd of 1 the gradient of gamma is the sum of g (x - mean) itself.
        _, dot, total = self._native(g, x, mean, torch.ones_like(mean), None, running)
        slope = dot * inverse_sd * inverse_sd / batch
        found = ((g - total / batch) - (x - mean) * slope) * inverse_sd
        if self.gamma is not None:
            found = found * end(self.gamma)
        gradient.view(batch, nets, channels)[..., channels - last :] = found.view(batch, nets, last)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, *fixed: Any) -> Tensor:
        ctx.flat, ctx.fixed = FlatBatchNorm(x, gamma, beta, *fixed), len(fixed)
        return ctx.flat.out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        found = ctx.flat.backward(*gradients)
        wanted = (one if need else None for one, need in zip(found, ctx.needs_input_grad, strict=False))
        return (*wanted, *(None for _ in range(ctx.fixed)))


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """`F.batch_norm` in training for x [K, B, C], the others [K, C]."""
    fixed = (running_mean, running_var, momentum, eps)
    return _Function.apply(x, gamma, beta, *fixed)  # type: ignore[no-any-return, no-untyped-call]


def _beside(x: Tensor) -> Tensor:
    """x [K, B, C] as [B, K C]."""
    nets, batch, channels = x.shape
    return x.transpose(0, 1).reshape(batch, nets * channels)


@cache
def lanes(dtype: torch.dtype) -> int:
    """How many channels torch's batch norm treats at once in its backward pass; those that remain it treats in another
    order of rounding. 1: there is no difference. Found by comparing a tensor of channels with itself beside another.

    >>> lanes(torch.float32) in (1, 2, 4, 8, 16, 32)
    True
    """
    generator, count = torch.Generator().manual_seed(0), 31
    x, g = (torch.randn(512, 2 * count, generator=generator, dtype=dtype) for _ in range(2))
    ones, zeros = torch.ones(2 * count, dtype=dtype), torch.zeros(2 * count, dtype=dtype)

    def gradient(x: Tensor, g: Tensor) -> Tensor:
        size = x.shape[1]
        one, zero = ones[:size], zeros[:size]
        _, mean, inverse_sd = torch.native_batch_norm(x, one, zero, zero.clone(), one.clone(), True, 0.1, 1e-5)
        mask = [True, False, False]
        found: Tensor = _OPS.native_batch_norm_backward(g, x, one, zero, one, mean, inverse_sd, True, 1e-5, mask)[0]
        return found

    together, alone = gradient(x, g)[:, :count], gradient(x[:, :count].contiguous(), g[:, :count].contiguous())
    differing = (together != alone).any(dim=0)
    return int(differing.flip(0).long().cumprod(0).sum()) + 1
