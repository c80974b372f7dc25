"""The noise of `noisy_batch` on a net without normalization."""

from __future__ import annotations

from torch import nn

from bnlab.core.registry import NORMS
from bnlab.norms.base import Factor, Noise, Width


@NORMS.register("noisy_none", title="noise, no norm")
def noisy_none(channels: int, dims: int, *, n_mu: Width, n_sigma: Factor, r_mu: Width, r_sigma: Width) -> nn.Module:
    """The same draws as `noisy_batch` has at the same seed, layer and step (Santurkar et al. 2018, section 2.1)."""
    return Noise(n_mu=n_mu, n_sigma=n_sigma, r_mu=r_mu, r_sigma=r_sigma)
