"""Gradients of the training loss: their norms by layer, the size of the update, growth with depth, noise.

Legend: B batch, C channels, L sites. Norms are Euclidean, over all entries of a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnlab.data.base import Split
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot
from bnlab.registry import PROBES
from bnlab.state import gradient_at


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
    }

    def __init__(self, *, updates: bool, deltas: bool, noise: bool) -> None:
        """Beside the gradient norms: `updates` measures update_ratio, at the price of a copy of the weights; `deltas`
        delta_norm, of a copy of every gradient at pre; `noise` grad_noise, of two forward and backward passes over half
        a batch."""
        self.updates, self.deltas, self.noise = updates, deltas, noise
        wanted: dict[Need, bool] = {"delta_norms": deltas, "weights_before": updates, "before": noise}
        self.needs: frozenset[Need] = frozenset(need for need, is_wanted in wanted.items() if is_wanted)
        self.splits = 2 if noise else 1
        self._sites = 0

    def measure(self, snapshot: Snapshot) -> Raw:
        net, before = snapshot.net, snapshot.before.params
        self._sites = len(net.sites)
        weights = {site.params[0]: net.params[site.params[0]] for site in net.sites}
        grads = {name: param.grad for name, param in net.params.items() if param.grad is not None}
        with torch.no_grad():
            tensors = [grads[name] for name in weights]
            if self.updates:
                old = [before[name] for name in weights]
                tensors += [*torch._foreach_sub(list(weights.values()), old), *old]
            tensors += [grad for name, grad in grads.items() if name not in weights]
            norms = list(torch._foreach_norm(tensors))  # one call for many, as in torch's own gradient clipping
            deltas = [norm for _, norm in sorted(snapshot.training.delta_norms.items())] if self.deltas else []
            raw = {"norms": torch.stack([*deltas, *norms])}
        return raw | ({"grad_noise": self._noise(snapshot)} if self.noise else {})

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        # A row of one norm a site for each figure, in the order of `measure`, then the norms of all other gradients.
        rows = 1 + 2 * self.updates + self.deltas
        by_site = list(raw["norms"][: rows * self._sites].reshape(rows, self._sites))
        others = raw["norms"][rows * self._sites :]
        delta_norm = by_site.pop(0) if self.deltas else None
        grad_norm = by_site.pop(0)
        metrics: Metrics = {"grad_norm": grad_norm}
        with np.errstate(all="ignore"):  # what is not finite is said so in the journal
            metrics["grad_norm_total"] = np.asarray(np.linalg.norm(np.append(grad_norm, others)))
            metrics["first_over_last"] = grad_norm[0] / grad_norm[-1]
            if self.updates:
                metrics["update_ratio"] = by_site.pop(0) / by_site.pop(0)
        if delta_norm is not None:
            metrics["delta_norm"] = delta_norm
        if self.noise:
            metrics["grad_noise"] = raw["grad_noise"]
        return metrics, carry

    def _noise(self, snapshot: Snapshot) -> Tensor:
        half = len(snapshot.batch) // 2
        x, y = snapshot.batch.x, snapshot.batch.y
        a, b = (self._flat_gradient(snapshot, part) for part in (Split(x[:half], y[:half]), Split(x[half:], y[half:])))
        ratio: Tensor = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a + b)
        return ratio

    def _flat_gradient(self, snapshot: Snapshot, part: Split) -> Tensor:
        _, grads = gradient_at(snapshot.net.module, snapshot.before, part.x, part.y, snapshot.objective)
        return torch.cat([grad.flatten() for grad in grads.values()])
