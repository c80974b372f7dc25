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

    def __init__(self, *, noise: bool) -> None:
        """`noise`: also measure grad_noise, at the price of two forward and backward passes over half a batch."""
        self.noise = noise
        self.needs: frozenset[Need] = frozenset({"training_sites", "before" if noise else "weights_before"})

    def measure(self, snapshot: Snapshot) -> Raw:
        net, before = snapshot.net, snapshot.before.params
        weights = {site.params[0]: net.params[site.params[0]] for site in net.sites}
        grads = {name: param.grad for name, param in net.params.items() if param.grad is not None}
        deltas = [pre.grad for pre in snapshot.training.pre if pre.grad is not None]
        old = [before[name] for name in weights]
        others = [grad.flatten() for name, grad in grads.items() if name not in weights]
        with torch.no_grad():
            moved = torch._foreach_sub(list(weights.values()), old)
            groups = [
                *(grads[name] for name in weights),
                *moved,
                *old,
                *deltas,
                *([torch.cat(others)] if others else []),
            ]
            # One call for many norms, as in torch's own gradient clipping.
            raw = {"norms": torch.stack(list(torch._foreach_norm(groups)))}
        return raw | ({"grad_noise": self._noise(snapshot)} if self.noise else {})

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        sites = len(raw["norms"]) // 4
        by_site, moved, old, by_delta = raw["norms"][: 4 * sites].reshape(4, sites)
        metrics = {
            "grad_norm": by_site,
            "grad_norm_total": np.linalg.norm(np.append(by_site, raw["norms"][4 * sites :])),
            "first_over_last": by_site[0] / by_site[-1],
            "update_ratio": moved / old,
            "delta_norm": by_delta,
        }
        return metrics | ({"grad_noise": raw["grad_noise"]} if self.noise else {}), carry

    def _noise(self, snapshot: Snapshot) -> Tensor:
        half = len(snapshot.batch) // 2
        x, y = snapshot.batch.x, snapshot.batch.y
        a, b = (self._flat_gradient(snapshot, part) for part in (Split(x[:half], y[:half]), Split(x[half:], y[half:])))
        ratio: Tensor = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a + b)
        return ratio

    def _flat_gradient(self, snapshot: Snapshot, part: Split) -> Tensor:
        _, grads = gradient_at(snapshot.net.module, snapshot.before, part.x, part.y, snapshot.objective)
        return torch.cat([grad.flatten() for grad in grads.values()])
