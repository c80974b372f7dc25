"""How gradients are distributed: at the affine weights and at the pre-activations. Legend: L sites.

Karpathy (2022, "Building makemore part 3: activations & gradients, batch norm") draws both layer by layer: alike in all
layers where gradients neither vanish nor explode. Counts are in standard deviations, so that one set of bins suits
every scale; `weight_grad_sd` and `delta_sd` are the scales. Standard deviations are over all entries, biased.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.state import loss_at
from bnlab.core.study import evenly
from bnlab.net.wrap import AffineTap
from bnlab.probes._histograms import histogram
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot


@PROBES.register("gradient_histograms")
class GradientHistograms:
    """On the training batch, in batch mode, before the update."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "weight_grad_sd": "standard deviation of the entries of dL/dW of the site's affine weight",
        "grad_data_ratio": "weight_grad_sd over the standard deviation of the entries of W (Karpathy 2022)",
        "delta_sd": "standard deviation of the entries of dL/dpre, at the steps that have histograms",
        "histogram.weight_grad.*": "counts over the entries of dL/dW of the site's affine weight in units of "
        "weight_grad_sd, in bins uniform in asinh, with two tail bins",
        "histogram.delta.*": "counts over the entries of dL/dpre in units of delta_sd, in the same bins",
    }
    groups: ClassVar[Mapping[str, str]] = {
        "weight_grad_sd": "4_grad_norm_sd",
        "grad_data_ratio": "4_grad_norm_over_weight",
        "delta_sd": "4_grad_norm_delta_sd",
    }

    def __init__(self, *, histogram_sites: Annotated[int, Ge(1)], histogram_every: Annotated[int, Ge(1)]) -> None:
        """`histogram_sites`: how many sites, evenly spread, get histograms, at every `histogram_every`-th of the
        equally spaced measured steps, at the price of a forward and a backward pass."""
        self.histogram_sites, self.histogram_every = histogram_sites, histogram_every

    def measure(self, snapshot: Snapshot) -> Raw:
        net, before = snapshot.net, snapshot.before.params
        names = [site.params[0] for site in net.sites]
        # A site that this forward left out has no gradient.
        grads = [torch.zeros_like(x) if (x := net.params[name]).grad is None else x.grad for name in names]
        raw = {"of_grad": _sds(grads), "of_weight": _sds([before[name] for name in names])}  # [L] each
        if snapshot.point is not None and snapshot.point % self.histogram_every == 0:
            deltas = _deltas(snapshot)
            raw["delta_sd"] = _sds(deltas)
            for index in evenly(len(names), self.histogram_sites):
                name = net.sites[index].name
                raw[f"histogram.weight_grad.{name}"] = histogram(grads[index] / raw["of_grad"][index])
                raw[f"histogram.delta.{name}"] = histogram(deltas[index] / raw["delta_sd"][index])
        return raw

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        metrics = {"weight_grad_sd": raw["of_grad"], "grad_data_ratio": raw["of_grad"] / raw["of_weight"]}
        return metrics | {name: x for name, x in raw.items() if not name.startswith("of_")}, carry


def _sds(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.std(correction=0) for x in tensors])


def _deltas(snapshot: Snapshot) -> list[Tensor]:
    """dL/dpre of every site, each of the shape of its affine map's output."""
    net, batch, before = snapshot.net, snapshot.batch, snapshot.before
    params = {name: param.detach().requires_grad_() for name, param in before.params.items()}
    with torch.enable_grad():
        with AffineTap(net) as tap:
            loss = loss_at(net.module, replace(before, params=params), batch.x, batch.y, snapshot.objective)
        return list(torch.autograd.grad(loss, tap.outputs, materialize_grads=True))
