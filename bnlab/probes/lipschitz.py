"""How a batch norm changes the gradient below it: theorem 4.1 of Santurkar et al. 2018, as the equality of its proof.

Legend: B batch, C channels, H W space, L sites; m = B (dense) or B H W (convolution) values of a channel.

Of one channel, y [m] is the affine output, mu and var its mean and biased variance, sigma^2 = var + eps,

    y_hat = (y - mu) / sigma        z = gamma y_hat + beta        g = dL/dz

so <1, y_hat> = 0 and <y_hat, y_hat> / m = q = var / (var + eps). With dmu/dy = 1 / m and dsigma/dy = y_hat / m,

    dL/dy = gamma / sigma (g - <1, g> / m - y_hat <g, y_hat> / m)

    ||dL/dy||^2 = gamma^2 / sigma^2 (||g||^2 - <1, g>^2 / m - (2 - q) <g, y_hat>^2 / m)

exactly, for any eps: the square of the last term is q <g, y_hat>^2 / m, twice its product with g is 2 <g, y_hat>^2 / m.
The theorem has eps = 0, so q = 1. A batch norm thus scales the gradient by gamma / sigma, and removes its mean and its
component along the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bnlab.core.registry import PROBES
from bnlab.core.state import State, loss_at, outputs_at
from bnlab.net.build import Net
from bnlab.net.wrap import Tap
from bnlab.norms.batch_reference import BatchReference
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | BatchReference
Norms = list[BatchNorm | None]
"""The batch norm of every site between its affine map and its nonlinearity, if there is one."""
CANCELLED = 1e-6
"""A right side below this share of its first term is a true 0, but for rounding: six of float64's sixteen digits are
lost to its subtractions, so that the errors of all others are of 1e-9 at most."""


@PROBES.register("lipschitz")
class Lipschitz:
    """On the training batch, at the weights before the update, by a forward and a backward pass. At sites with a batch
    norm between the affine map and the nonlinearity; null at others, and absent from nets without any.

    y and g are those of the net; from these on, the norm's own backward pass and both sides are computed in float64."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "thm41_error": "max over channels of |left - right| / right of the equality in the proof of Santurkar et al. "
        "2018, theorem 4.1, for the batch norm in float64; channels where right is 0 are left out",
        "thm41_raw": "sum over channels of gamma^2 / sigma^2 ||g||^2, g = dL/dz above the batch norm: the squared "
        "gradient below it, were its statistics constants",
        "thm41_mean": "sum over channels of what the mean removes from that: gamma^2 / sigma^2 <1, g>^2 / m",
        "thm41_corr": "sum over channels of what the variance removes: gamma^2 / sigma^2 (2 - q) <g, y_hat>^2 / m, "
        "q = var / (var + eps)",
    }
    groups: ClassVar[Mapping[str, str]] = {
        "thm41_error": "5_lipschitz_error",
        "thm41_raw": "5_lipschitz_raw",
        "thm41_mean": "5_lipschitz_mean",
        "thm41_corr": "5_lipschitz_corr",
    }

    def layout(self, net: Net, input_shape: tuple[int, ...]) -> Norms:
        found: Norms = []
        for site in net.sites:
            norm = site.norm if site.norm_first else None
            # A subclass of one of these may compute anything; one that training keeps in eval mode has constants.
            kept = norm is not None and net.module.training and not norm.training
            is_one = isinstance(norm, BatchNorm) and type(norm) in get_args(BatchNorm) and not kept
            found.append(norm if is_one else None)  # type: ignore[arg-type]
        return found

    def measure(self, snapshot: Snapshot, norms: Norms) -> Raw:
        net, batch = snapshot.net, snapshot.batch
        measured = {index: norm for index, norm in enumerate(norms) if norm is not None}
        if not measured:
            return {}
        before = snapshot.before
        params = {name: value.detach().requires_grad_() for name, value in before.params.items()}
        with torch.enable_grad():
            with Tap(net) as tap:
                at = replace(before, params=params)
                loss = loss_at(net.module, at, batch.x, batch.y, snapshot.objective)
            gradients = torch.autograd.grad(loss, [tap.sites.act_in[index] for index in measured])
        names = {param: name for name, param in net.params.items()}
        wide = torch.float32 if batch.x.device.type == "mps" else torch.float64
        rows = []
        for (index, norm), gradient in zip(measured.items(), gradients, strict=True):
            own = {name: before.params[names[param]].to(wide) for name, param in norm.named_parameters()}
            state = State(own, {name: buffer.to(wide) for name, buffer in norm.named_buffers()})
            y, above = tap.sites.pre[index].detach().to(wide).requires_grad_(), gradient.to(wide)
            with torch.enable_grad():
                (below,) = torch.autograd.grad(outputs_at(norm, state, y, "batch"), y, above)
            of = terms(y.detach(), below, above, own.get("weight"), norm.eps)
            rows.append(summary(of).to(loss.dtype))
        return {"rows": torch.stack(rows)}

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry, norms: Norms) -> tuple[Metrics, Carry]:
        if "rows" not in raw:
            return {}, carry
        found = np.full((len(self.metrics), len(norms)), np.nan, dtype=raw["rows"].dtype)
        found[:, [norm is not None for norm in norms]] = raw["rows"].T
        found[0, found[0] < 0] = np.nan  # no channel at all had a gradient
        return dict(zip(self.metrics, found, strict=True)), carry


class Terms(NamedTuple):
    """The equality left = raw - mean - corr, channel by channel: [C] each."""

    left: Tensor
    raw: Tensor
    mean: Tensor
    corr: Tensor


def terms(y: Tensor, below: Tensor, above: Tensor, gamma: Tensor | None, eps: float) -> Terms:
    """Both sides, from y, below = dL/dy and above = dL/dz, each [B, C] or [B, C, H, W], and gamma [C] (None: 1). The
    right side is a difference: of float32 tensors little is left of it in small batches.

    >>> y, g = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    >>> [round(term.item(), 4) for term in terms(y, torch.zeros(3, 1), g, None, 0.0)]  # sigma^2 = 2 / 3
    [0.0, 1.5, 0.5, 0.75]
    """
    y, below, above = (x.transpose(0, 1).flatten(1) for x in (y, below, above))  # [C, m]
    m = y.shape[1]
    centred = y - y.mean(dim=1, keepdim=True)
    var = centred.square().mean(dim=1)  # [C]
    sigma2 = var + eps
    scale = (1.0 if gamma is None else gamma.square()) / sigma2
    along = (above * centred).sum(dim=1).square() / sigma2  # <g, y_hat>^2
    return Terms(
        left=below.square().sum(dim=1),
        raw=scale * above.square().sum(dim=1),
        mean=scale * above.sum(dim=1).square() / m,
        corr=scale * (2 - var / sigma2) * along / m,
    )


def summary(of: Terms) -> Tensor:
    """A site's figures [4]: the largest relative error of its channels, -1 where none has a right side that is not 0;
    then the sums of raw, mean and corr."""
    right = of.raw - of.mean - of.corr
    zero = right <= CANCELLED * of.raw  # False for NaN, which must show
    error = torch.where(zero, -1.0, (of.left - right).abs() / right).max()
    return torch.stack([error, of.raw.sum(), of.mean.sum(), of.corr.sum()])
