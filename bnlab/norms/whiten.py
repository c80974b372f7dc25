"""Decorrelated batch normalization (Huang et al. 2018). Legend: B batch, C channels, H W space, G channels of a group,
m values per channel.

In training, for each group of channels x [m, G], with m = B (dense) or B H W (convolution):

    Sigma = (x - mean)^T (x - mean) / m + eps I        x_hat = (x - mean) Sigma^(-1/2)        y = gamma * x_hat + beta

with the symmetric square root (ZCA whitening), and the gradient through all of it. It is the derivative of a function
that is smooth where eigenvalues are equal, so it has no differences of eigenvalues below a fraction bar, as that of an
eigendecomposition has:

    M = Sigma^(1/2),    dM M + M dM = dSigma    (a Sylvester equation, and its adjoint is one)

In evaluation, running averages of mean and (unbiased) covariance replace both. Huang et al. average Sigma^(-1/2); with
the covariance a group of one channel is batch norm, and a population has its own.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import ChannelNorm, Eps, Momentum, Population


@NORMS.register("whiten", title="decorrelated batch norm", traits={"batch_statistics", "cancels_bias"})
class Whiten(ChannelNorm):
    """ZCA whitening of groups of `group_size` channels, the last of which may be smaller. With fewer values than
    channels of a group the covariance has directions without variance, which eps keeps finite."""

    in_turn = True
    running_mean: Tensor
    running_cov: Tensor

    def __init__(
        self,
        channels: int,
        dims: int,
        *,
        group_size: Annotated[int, Ge(1)],
        eps: Eps,
        momentum: Momentum,
        affine: bool,
    ) -> None:
        super().__init__(channels, dims, gamma=affine, beta=affine, momentum=momentum, running={"mean": 0.0})
        self.group_size, self.eps = group_size, eps
        self.register_buffer("running_cov", torch.eye(channels))  # [C, C]; that of two groups is not used

    def forward(self, x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        values = last.reshape(-1, x.shape[1])  # [m, C]
        mean, cov = self.running_mean, self.running_cov
        if self.training:
            m = len(values)
            mean = values.mean(dim=0)
            centred = values - mean
            cov = centred.T @ centred / m
            self.track(mean=mean, cov=cov * m / (m - 1))
        else:
            centred = values - mean
        x_hat = torch.cat([self._whitened(centred[:, part], cov[part, part]) for part in self._groups()], dim=1)
        out = x_hat.view(last.shape).movedim(-1, 1)
        return self.affine(out.contiguous() if x.is_contiguous() else out)

    def _groups(self) -> list[slice]:
        channels = self.shape[1]
        return [slice(at, min(at + self.group_size, channels)) for at in range(0, channels, self.group_size)]

    def _whitened(self, centred: Tensor, cov: Tensor) -> Tensor:  # [m, G], [G, G] -> [m, G]
        root = SquareRoot.apply(cov + self.eps * torch.eye(len(cov)).to(cov), self.eps)  # type: ignore[no-untyped-call]
        whitened: Tensor = centred @ torch.linalg.inv(root)
        return whitened

    def statistics_in_use(self) -> tuple[Tensor, Tensor]:
        """See `base.statistics_in_use`: the covariances between channels are left out."""
        return self.running_mean, self.running_cov.diagonal()

    def population(self) -> Population:
        """See `population_of`: mean and covariance of all values."""
        return _PopulationOfCovariances(self)


class SquareRoot(torch.autograd.Function):
    """The symmetric square root of a symmetric matrix with eigenvalues from `least` on, but for rounding; its
    derivatives of every order."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, least: float) -> Tensor:
        values, vectors = _eigen(matrix)
        root = (vectors * values.clamp(min=least).sqrt()) @ vectors.T
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (root,) = ctx.saved_tensors
        return Sylvester.apply(root, grads[0]), None  # type: ignore[no-untyped-call]


class Sylvester(torch.autograd.Function):
    """The X of X M + M X = Q, for a symmetric positive definite M; as a function of Q it is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, q: Tensor) -> Tensor:
        values, vectors = _eigen(m)
        x = vectors @ ((vectors.T @ q @ vectors) / (values[:, None] + values)) @ vectors.T
        ctx.save_for_backward(m, x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        m, x = ctx.saved_tensors
        of_q = Sylvester.apply(m, grads[0])  # type: ignore[no-untyped-call]
        return -(x.T @ of_q + of_q @ x.T), of_q  # dX M + M dX = dQ - X dM - dM X


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors; NaN of what is not finite, for which LAPACK raises an error and a run diverges."""
    if not bool(matrix.isfinite().all()):
        return torch.full_like(matrix[0], torch.nan), torch.full_like(matrix, torch.nan)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


class _PopulationOfCovariances:
    """Batches are merged as in `core.state.Moments`."""

    def __init__(self, norm: Whiten) -> None:
        self.norm, self.count = norm, 0
        self.mean = self.scatter = torch.zeros(())

    def add(self, x: Tensor) -> None:
        values = x.detach().movedim(1, -1).reshape(-1, x.shape[1])  # [m, C]
        values = values.to(values.dtype if values.device.type == "mps" else torch.float64)
        mean, total = values.mean(dim=0), self.count + len(values)
        apart, share, centred = mean - self.mean, len(values) / total, values - mean
        self.scatter = self.scatter + centred.T @ centred + torch.outer(apart, apart) * (self.count * share)
        self.mean, self.count = self.mean + apart * share, total

    def put(self) -> None:
        self.norm.running_mean.copy_(self.mean)
        self.norm.running_cov.copy_(self.scatter / (self.count - 1))
