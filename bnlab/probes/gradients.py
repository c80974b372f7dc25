"""Gradients of the training loss: their norms by layer, the size of the update, growth with depth, noise, cancellation.

Legend: B batch, C channels, L sites. Norms are Euclidean, over all entries of a tensor.

An entry of an affine weight's gradient is a sum of terms, delta times x, x what the map is given and delta = dL/dpre:
over the examples, in a convolution over the positions too. Bjorck et al. 2018, table 1, compare a, the sum of the
terms' absolute values, with b, the absolute value of their sum: a / b is 1 where all terms have one sign, and large
where they cancel. How they combine the entries of a kernel is not clear to us; here it is the median.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.state import State, gradient_at, loss_at, norm_each, subtract_each
from bnlab.data.base import Split
from bnlab.net.build import Net
from bnlab.net.wrap import AffineTap
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot, not_infinite

ROUNDING = 64
"""A sum below so many units in the last place of the sum of absolute values is rounding: a true 0, such as that of
delta over the batch below a batch norm, where an input is the same for all examples."""


@PROBES.register("gradients")
class Gradients:
    """On the training batch, in batch mode."""

    metrics: ClassVar[Mapping[str, str]] = {
        "grad_norm": "||dL/dW|| of the site's affine weight",
        "grad_norm_total": "norm of the gradient of all parameters",
        "first_over_last": "grad_norm of the first site over that of the last",
        "update_ratio": "||W after - W before|| / ||W before|| of the site's affine weight, in this step",
        "delta_norm": "||dL/dpre||: gradient at the pre-activations (Yang et al. 2019 follow its growth with depth)",
        "grad_noise": "||g_A - g_B|| / ||g_A + g_B|| for the gradients of the two halves of the batch, each half with "
        "its own batch statistics: an estimate of the relative standard error of the batch gradient",
        "abs_over_sum": "median over the entries of dL/dW of the sum of |terms| over |sum of terms|: a / b of Bjorck "
        "et al. 2018, table 1; entries whose sum is 0, but for rounding, are left out",
        "grad_kurtosis": "excess kurtosis of the entries of dL/dW of the site's affine weight: 0 of a normal "
        "distribution, above 0 with heavier tails",
    }
    groups: ClassVar[Mapping[str, str]] = {
        "grad_norm_total": "4_grad_norm/00_total",
        "first_over_last": "4_grad_norm/00_first_over_last",
        "grad_noise": "4_grad_norm/00_noise",
        "grad_norm": "4_grad_norm",
        "delta_norm": "4_grad_norm_delta",
        "update_ratio": "4_grad_norm_update_ratio",
        "abs_over_sum": "4_gradient_abs_over_sum",
        "grad_kurtosis": "4_gradient_kurtosis",
    }

    def __init__(self, *, updates: bool, deltas: bool, noise: bool, cancellation: bool) -> None:
        """Beside the gradient norms: `updates` measures update_ratio, at the price of a copy of the weights; `deltas`
        delta_norm, of a copy of every gradient at pre; `noise` grad_noise, of two forward and backward passes over half
        a batch; `cancellation` abs_over_sum and grad_kurtosis, of some three training steps, and needs affine maps that
        are linear in their input and their weight."""
        self.updates, self.deltas, self.noise, self.cancellation = updates, deltas, noise, cancellation
        self.only_reads = not (noise or cancellation)
        wanted: dict[Need, bool] = {
            "delta_norms": deltas,
            "weights_before": updates,
            "before": noise or cancellation,
            "halves": noise,
        }
        self.needs: frozenset[Need] = frozenset(need for need, is_wanted in wanted.items() if is_wanted)
        self.splits = 2 if noise else 1

    def without_losses(self) -> Gradients:
        return Gradients(updates=self.updates, deltas=self.deltas, noise=False, cancellation=False)

    def layout(self, net: Net, input_shape: tuple[int, ...]) -> list[str]:
        """The name of every site's affine weight."""
        return [site.params[0] for site in net.sites]

    def measure(self, snapshot: Snapshot, names: list[str]) -> Raw:
        net, before = snapshot.net, snapshot.before.params
        weights = {name: net.params[name] for name in names}
        grads = {name: param.grad for name, param in net.params.items() if param.grad is not None}
        with torch.no_grad():
            zero = next(iter(weights.values())).new_zeros(1)  # of a site that this forward left out
            tensors = [grads.get(name, zero) for name in weights]
            if self.updates:
                old = [before[name] for name in weights]
                tensors += [*subtract_each(list(weights.values()), old), *old]
            tensors += [grad for name, grad in grads.items() if name not in weights]
            norms = norm_each(tensors)
            deltas = [norm for _, norm in sorted(snapshot.training.delta_norms.items())] if self.deltas else []
            raw = {"norms": torch.stack([*deltas, *norms])}
        if self.noise:
            raw["grad_noise"] = self._noise(snapshot)
        if self.cancellation:
            raw["cancellation"] = self._cancellation(snapshot, names)
        return raw

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry, names: list[str]) -> tuple[Metrics, Carry]:
        # A row of one norm a site for each figure, in the order of `measure`, then the norms of all other gradients.
        rows, sites = 1 + 2 * self.updates + self.deltas, len(names)
        norms = not_infinite(raw["norms"])
        by_site, others = list(norms[: rows * sites].reshape(rows, sites)), norms[rows * sites :]
        delta_norm = by_site.pop(0) if self.deltas else None
        grad_norm = by_site.pop(0)
        metrics: Metrics = {"grad_norm": grad_norm}
        with np.errstate(all="ignore"):  # the journal marks what is not finite
            metrics["grad_norm_total"] = np.asarray(np.linalg.norm(np.append(grad_norm, others)))
            metrics["first_over_last"] = grad_norm[0] / grad_norm[-1]
            if self.updates:
                metrics["update_ratio"] = by_site.pop(0) / by_site.pop(0)
        if delta_norm is not None:
            metrics["delta_norm"] = delta_norm
        if self.noise:
            metrics["grad_noise"] = raw["grad_noise"]
        if self.cancellation:
            metrics["abs_over_sum"], metrics["grad_kurtosis"] = raw["cancellation"]
        return metrics, carry

    def _noise(self, snapshot: Snapshot) -> Tensor:
        a, b = snapshot.halves or self._halves(snapshot)
        ratio: Tensor = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a + b)
        return ratio

    def _halves(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        half = len(snapshot.batch) // 2
        x, y, before = snapshot.batch.x, snapshot.batch.y, snapshot.before
        a = self._flat_gradient(snapshot, Split(x[:half], y[:half]), before)
        # The other half draws its own numbers, as in the batch: with equal masks the halves would be too alike.
        return a, self._flat_gradient(snapshot, Split(x[half:], y[half:]), replace(before, random=None))

    def _flat_gradient(self, snapshot: Snapshot, part: Split, at: State) -> Tensor:
        _, grads = gradient_at(snapshot.net.module, at, part.x, part.y, snapshot.objective)
        return torch.cat([grad.flatten() for grad in grads.values()])

    def _cancellation(self, snapshot: Snapshot, names: list[str]) -> Tensor:
        """abs_over_sum and grad_kurtosis of every site, [2, L], at the state before the update."""
        net, batch, before = snapshot.net, snapshot.batch, snapshot.before
        params = before.params | {name: before.params[name].detach().requires_grad_() for name in names}
        tap, rows = AffineTap(net), []
        with torch.enable_grad():
            with tap:
                at = replace(before, params=params)
                loss = loss_at(net.module, at, batch.x, batch.y, snapshot.objective)
            found = torch.autograd.grad(loss, [*(params[name] for name in names), *tap.outputs])
            grads, deltas = found[: len(names)], found[len(names) :]
            for site, x, delta, grad in zip(net.sites, tap.inputs, deltas, grads, strict=True):
                # |delta x| = |delta| |x|, so the sum of all |terms| is the weight's gradient for these two. It does
                # not depend on the weight, which is the updated one here.
                weight = net.params[site.params[0]]
                out = site.affine(x.detach().abs().to(weight.dtype))  # under autocast it came in 16 bits
                (absolute,) = torch.autograd.grad(out, weight, delta.abs().to(out.dtype))
                rows.append(torch.stack([median_ratio(absolute, grad.abs()), excess_kurtosis(grad)]))
        return torch.stack(rows, dim=1)


def median_ratio(above: Tensor, below: Tensor) -> Tensor:
    """The median of above / below, a scalar, both of one shape and not below 0; entries with below = 0, but for
    rounding, are left out, and with no other it is NaN.

    >>> median_ratio(torch.tensor([2.0, 9.0, 4.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])).item()
    4.0
    """
    left_out = below <= ROUNDING * torch.finfo(below.dtype).eps * above
    ratio = above / below
    kept = torch.where(left_out, torch.nan, ratio)
    # Of an even number torch's median is the lower of the two in the middle. A sort takes several times as long.
    median = (kept.nanmedian() - (-kept).nanmedian()) / 2
    return torch.where((ratio.isnan() & ~left_out).any(), torch.nan, median)


def excess_kurtosis(x: Tensor) -> Tensor:
    """Fourth central moment over the squared second of all entries, less 3, a scalar; NaN where all are equal.

    >>> excess_kurtosis(torch.tensor([-1.0, 1.0, -1.0, 1.0])).item()
    -2.0
    """
    centred = x - x.mean()
    square = (centred / centred.abs().max()).square()  # powers of tiny numbers would be 0
    return square.square().mean() / square.mean().square() - 3
