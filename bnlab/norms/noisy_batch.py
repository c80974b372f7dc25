"""Batch norm followed by noise that shifts every layer's distribution (Santurkar et al. 2018, algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import BatchMomentsNorm, Eps, Factor, Momentum, Noise, Width


@NORMS.register("noisy_batch", title="noisy batch norm", traits={"batch_statistics", "cancels_bias"})
class NoisyBatch(BatchMomentsNorm):
    """Batch norm and then, in training alone, the noise of `Noise`: new at every step, for every channel and element.
    With `norm.position: before` it is before the nonlinearity, as in the paper."""

    stacks = True

    def __init__(
        self,
        channels: int,
        dims: int,
        *,
        n_mu: Width,
        n_sigma: Factor,
        r_mu: Width,
        r_sigma: Width,
        eps: Eps,
        momentum: Momentum,
        affine: bool,
    ) -> None:
        super().__init__(channels, dims, eps=eps, momentum=momentum, affine=affine)
        self.noise = Noise(n_mu=n_mu, n_sigma=n_sigma, r_mu=r_mu, r_sigma=r_sigma)

    def bind(self, seed: int, name: str) -> None:
        self.noise.bind(seed, name)

    def forward(self, x: Tensor) -> Tensor:
        noisy: Tensor = self.noise(self.batch_norm(x))
        return noisy
