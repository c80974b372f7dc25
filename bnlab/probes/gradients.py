"""Gradients of the training loss: their norms by layer, the size of the update, growth with depth, noise.

Legend: B batch, C channels, L sites. Norms are Euclidean, over all entries of a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.data.base import Split
from bnlab.probes.base import Carry, Metrics, Need, Snapshot
from bnlab.registry import PROBES
from bnlab.state import gradient_at


@PROBES.register("gradients")
class Gradients:
    """On the training batch, in batch mode."""

    needs: ClassVar[frozenset[Need]] = frozenset({"pre_gradients", "before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "grad_norm": "||dL/dW|| of the site's affine weight",
        "grad_norm_total": "norm of the gradient of all parameters",
        "first_over_last": "grad_norm of the first site over that of the last",
        "update_ratio": "||W after - W before|| / ||W before|| of the site's affine weight, in this step",
        "delta_norm": "||dL/dpre||: gradient at the pre-activations (Yang et al. 2019 follow its growth with depth)",
        "grad_noise": "||g_A - g_B|| / ||g_A + g_B|| for the gradients of the two halves of the batch, each with its own "
        "batch statistics: an estimate of the relative standard error of the batch gradient",
    }

    def __init__(self, *, noise: bool) -> None:
        """`noise`: also measure grad_noise, at the price of two forward and backward passes over half a batch."""
        self.noise = noise

    def measure(self, snapshot: Snapshot, carry: Carry) -> tuple[Metrics, Carry]:
        net, before = snapshot.net, snapshot.before.params
        params = dict(net.module.named_parameters())
        weights = [site.params[0] for site in net.sites]
        grads = {name: param.grad for name, param in params.items() if param.grad is not None}
        deltas = [pre.grad for pre in snapshot.training.pre if pre.grad is not None]
        with torch.no_grad():
            old = [before[name] for name in weights]
            moved = [params[name] - before[name] for name in weights]
            norms = dict(zip(grads, norms_of(list(grads.values())), strict=True))
            by_site = torch.stack([norms[name] for name in weights])
            metrics = {
                "grad_norm": by_site,
                "grad_norm_total": torch.linalg.vector_norm(torch.stack(list(norms.values()))),
                "first_over_last": by_site[0] / by_site[-1],
                "update_ratio": torch.stack(norms_of(moved)) / torch.stack(norms_of(old)),
                "delta_norm": torch.stack(norms_of(deltas)),
            }
        if self.noise:
            metrics["grad_noise"] = self._noise(snapshot)
        return metrics, carry

    def _noise(self, snapshot: Snapshot) -> Tensor:
        half = len(snapshot.batch) // 2
        x, y = snapshot.batch.x, snapshot.batch.y
        a, b = (self._flat_gradient(snapshot, part) for part in (Split(x[:half], y[:half]), Split(x[half:], y[half:])))
        return torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a + b)

    def _flat_gradient(self, snapshot: Snapshot, part: Split) -> Tensor:
        _, grads = gradient_at(snapshot.net.module, snapshot.before, part.x, part.y, snapshot.objective)
        return torch.cat([grad.flatten() for grad in grads.values()])


def norms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each tensor, in one call for all (as torch's own gradient clipping does it).

    >>> [norm.item() for norm in norms_of([torch.tensor([3.0, 4.0]), torch.ones(2, 2)])]
    [5.0, 2.0]
    """
    return list(torch._foreach_norm(list(tensors)))
