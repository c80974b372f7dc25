"""What a batch norm normalizes with: its running statistics, the noise of batch statistics, its gamma and beta.

Legend: B batch, C channels, H W space, L sites, K batches; m = B (dense) or B H W (convolution) values of a channel
in a batch; F statistics.

The *population* is the norm's inputs over K batches of the training set: disjoint, of the training batch's size, each
normalized by its own statistics as in training, through one fixed net (PreciseBN, Wu & Johnson 2021). With the mean
mu_B and the biased variance sigma_B^2 of each batch, and n = K m,

    mu_pop = E[mu_B]        sigma_pop^2 = n / (n - 1) (E[mu_B^2 + sigma_B^2] - E[mu_B]^2)

so sigma_pop^2 is the unbiased variance of all n values, as torch's running variance is that of a batch's m values. For
independent values both estimate the same number. A running variance averages what varies *within* a batch, and is below
sigma_pop^2 where the values of a batch resemble each other, as neighbouring positions in an image do.

By the law of Luo et al. 2019, over batches of m independent values,

    sd(mu_B) = sigma_pop / sqrt(m)        sd(sigma_B) = sigma_pop sqrt((rho + 2) / (4 m))

with rho the excess kurtosis of the population. For disjoint batches of one permutation the first holds on average
exactly (squared), as in an analysis of variance: no correction for a finite population. Values need not be independent:

- Positions of one image are correlated. In a convolution the first ratio is, with S = H W, about
  sqrt(S var(image mean) / sigma_pop^2): up to sqrt(S) where images are bright or dark as a whole, far below 1 where all
  show one pattern.
- Above a batch norm the batch has lost part of its own noise: the ratio is below 1, and 0 in a linear net, where the
  mean is W beta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.seeds import stream
from bnlab.core.state import PreservedBuffers, outputs_now
from bnlab.net.build import Net
from bnlab.net.evaluate import drawn_batches
from bnlab.net.wrap import NormTap
from bnlab.norms.base import statistics_in_use, tensors_of
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot, by_site

Layout = dict[str, list[int]]
"""For each tensor of `Raw`, the channels of every site; 0 at a site that is not in it."""
InUse = dict[int, tuple[Tensor, Tensor | None]]
"""Mean and variance for evaluation, of every site whose norm keeps a mean."""


@PROBES.register("bn_statistics")
class BNStatistics:
    """At the state *after* the update, with its weights and running statistics. At sites whose norm keeps a mean for
    evaluation, at the norm's input, by K forward passes in batch mode; null at others."""

    needs: ClassVar[frozenset[Need]] = frozenset({"training_data"})
    metrics: ClassVar[Mapping[str, str]] = {
        "bn_mean_gap": "mean over channels of |running mean - mu_pop| / sigma_pop (Wu & Johnson 2021); constant "
        "channels are left out, here and below",
        "bn_var_gap": "mean over channels of |log(running variance / sigma_pop^2)|; null where the norm keeps none",
        "bn_mean_noise": "median over channels of sd(mu_B) / (sigma_pop / sqrt(m)), over batches: 1 for independent "
        "values (Luo et al. 2019); null where the training set is one batch",
        "bn_sd_noise": "median over channels of sd(sigma_B) / (sigma_pop sqrt((rho + 2) / (4 m))), rho the excess "
        "kurtosis: 1 for independent values; null where the training set is one batch",
        "bn_mean_sd": "median over channels of sd(mu_B) / sigma_pop, over batches: 1 / sqrt(m) for independent values "
        "(Luo et al. 2019); null where the training set is one batch",
        "bn_gamma_mean": "mean over channels of the norm's gamma; of any norm that has one",
        "bn_gamma_sd": "standard deviation over channels of gamma",
        "bn_beta_mean": "mean over channels of the norm's beta; of any norm that has one",
        "bn_beta_sd": "standard deviation over channels of beta",
    }
    groups: ClassVar[Mapping[str, str]] = {
        "bn_mean_noise": "5_bn_noise_of_mean",
        "bn_sd_noise": "5_bn_noise_of_sd",
    }

    def __init__(self, *, examples: Annotated[int, Ge(1)]) -> None:
        """`examples`: at most so many of the training set make the population, in whole batches, at least one: the same
        ones at every measurement, from the `probe` stream of the run's seed."""
        self.examples = examples

    def layout(self, net: Net, input_shape: tuple[int, ...]) -> Layout:
        means = {"statistics": {index: mean[None] for index, (mean, _) in _in_use(net).items()}}
        return {
            name: [part[index].shape[1] if index in part else 0 for index in range(len(net.sites))]
            for name, part in (means | _learned(net)).items()
        }

    def measure(self, snapshot: Snapshot, layout: Layout) -> Raw:
        in_use = _in_use(snapshot.net)
        parts = {"statistics": self._statistics(snapshot, in_use) if in_use else {}} | _learned(snapshot.net)
        return {name: torch.cat(list(part.values()), dim=1) for name, part in parts.items() if part}  # [F, C of all]

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry, layout: Layout) -> tuple[Metrics, Carry]:
        metrics: Metrics = {}
        for name, values in raw.items():
            names = list(self.metrics)[:5] if name == "statistics" else [f"bn_{name}_mean", f"bn_{name}_sd"]
            over_channels = _of_statistics if name == "statistics" else _mean_and_sd
            found = np.full((len(names), len(layout[name])), np.nan, dtype=values.dtype)
            for index, part in enumerate(by_site(values, layout[name])):
                if part.shape[1] > 0:
                    found[:, index] = over_channels(part)
            metrics |= dict(zip(names, found, strict=True))
        return metrics, carry

    def _statistics(self, snapshot: Snapshot, in_use: InUse) -> dict[int, Tensor]:
        """For each of these sites `figures_of` its population [6, C]."""
        net, preserved = snapshot.net, PreservedBuffers(snapshot.net.module)
        found: dict[int, list[Tensor]] = {index: [] for index in in_use}
        values: dict[int, int] = {}
        draws = stream(snapshot.seed, "probe", "bn_statistics")
        for batch in drawn_batches(snapshot.data, len(snapshot.batch), self.examples, draws):
            with NormTap(net) as tap:
                outputs_now(net.module, batch.x, "batch", preserved)
            for index in in_use:
                x = tap.seen[index]
                found[index].append(central_moments(x))
                values[index] = x.numel() // x.shape[1]
        return {
            index: figures_of(torch.stack(found[index]), values[index], mean, var)
            for index, (mean, var) in in_use.items()
        }


def _in_use(net: Net) -> InUse:
    found = {index: statistics_in_use(norm) for index, norm in net.norms.items()}
    return {index: kept for index, kept in found.items() if kept is not None}


def _learned(net: Net) -> dict[str, dict[int, Tensor]]:
    """gamma and beta, each [1, C], of every site whose norm has them."""
    found = {index: tensors_of(norm) for index, norm in net.norms.items()}
    return {
        name: {index: tensors[attribute].detach()[None] for index, tensors in found.items() if attribute in tensors}
        for name, attribute in (("gamma", "weight"), ("beta", "bias"))
    }


def central_moments(x: Tensor) -> Tensor:
    """The mean as it is rounded, and the mean of (x - that)^p for p = 1, 2, 3, 4 per channel, [5, C], of x [B, C] or
    [B, C, H, W]. p = 1 is what rounding took from the mean.

    >>> central_moments(torch.tensor([[0.0], [0.0], [0.0], [4.0]])).flatten().tolist()
    [1.0, 0.0, 3.0, 6.0, 21.0]
    """
    over = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(dim=over, keepdim=True)
    centred = x - mean
    square = centred.square()
    powers = [part.mean(dim=over) for part in (centred, square, square * centred, square.square())]
    return torch.stack([mean.flatten(), *powers])


def figures_of(moments: Tensor, m: int, mean_in_use: Tensor, var_in_use: Tensor | None) -> Tensor:
    """Per channel [6, C], from the `central_moments` [K, 5, C] of K batches of m values, and running mean and variance
    [C]: whether the channel is constant (1 or 0), then the two gaps, the two noises and sd(mu_B) / sigma_pop, NaN
    where there are none.

    A channel is constant if its standard deviation is at most one unit in the last place of its mean, which is the
    rounding of the values themselves. A moment too large or too small for its dtype is NaN: in float32, the fourth of
    a channel with a standard deviation above some 1e9 or below 1e-9.

    >>> moments = torch.stack([central_moments(x) for x in torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]])])
    >>> [round(x, 4) for x in figures_of(moments, 2, torch.tensor([5.0]), torch.tensor([20 / 3])).flatten().tolist()]
    [0.0, 0.3873, 0.0, 1.5492, 0.0, 1.0954]
    """
    wide, limits = moments.dtype if moments.device.type == "mps" else torch.float64, torch.finfo(moments.dtype)
    rounded, rest, second, third, fourth = moments.to(wide).unbind(dim=1)  # [K, C] each
    fourth = torch.where((fourth < limits.tiny) & (second > 0), torch.nan, fourth)
    second, fourth = (torch.where(of.isinf(), torch.nan, of) for of in (second, fourth))
    rest = torch.where(rest**2 > limits.eps * second, rest, 0.0)  # else below the rounding of the second
    batch_mean, batch_var = rounded + rest, second - rest**2
    fourth = fourth - rest * (4 * third - 6 * rest * second + 3 * rest**3)
    third = third - rest * (3 * second - 2 * rest**2)
    mean = batch_mean.mean(dim=0)  # [C], like all below
    d = batch_mean - mean
    biased = (batch_var + d**2).mean(dim=0)  # E[mu_B^2 + sigma_B^2] - E[mu_B]^2, without its cancellation
    kurtosis = (fourth + 4 * d * third + 6 * d**2 * batch_var + d**4).mean(dim=0) / biased**2  # rho + 3
    n = len(moments) * m
    var = biased * n / (n - 1)
    sd = var.sqrt()
    constant = biased.sqrt() <= limits.eps * mean.abs()  # False for NaN, which must show
    none = torch.full_like(mean, torch.nan)
    figures = [
        (mean_in_use.to(wide) - mean).abs() / sd,
        none if var_in_use is None else (var_in_use.to(wide) / var).log().abs(),
        none if len(moments) < 2 else batch_mean.std(dim=0) / sd * m**0.5,
        none if len(moments) < 2 else batch_var.sqrt().std(dim=0) / sd / ((kurtosis - 1) / (4 * m)).sqrt(),
        none if len(moments) < 2 else batch_mean.std(dim=0) / sd,
    ]
    return torch.stack([constant.to(wide), *figures]).to(moments.dtype)


def _of_statistics(values: HostArray) -> HostArray:
    """The two gaps, the two noises and sd(mu_B) / sigma_pop of a site, [5], from those of its channels [6, C]."""
    kept = values[1:, values[0] == 0]  # [5, C that vary]
    if kept.shape[1] == 0:
        return np.full(5, np.nan)
    return np.concatenate([kept[:2].mean(axis=1), np.median(kept[2:], axis=1)])


def _mean_and_sd(values: HostArray) -> HostArray:
    """Over channels: [1, C] -> [2]."""
    return np.array([values.mean(), values.std()])
