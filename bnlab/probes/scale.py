"""The scale of weights that a norm makes without effect: its growth, and the learning rate that it leaves.

Legend: L sites.

Where a norm cancels the scale of a site's affine weight w, L(c w) = L(w) for every c > 0, so with g = dL/dw

    <w, g> = 0        ||w'||^2 = ||w||^2 + lr^2 ||g||^2    after w' = w - lr g        (Arora, Li & Lyu 2018, lemma 2.4)

and the direction of w moves as if the learning rate were lr / ||w||^2 (the same, section 3). The norm's eps, and a bias
that is not cancelled, make both hold only nearly.

With weight decay, w' = (1 - lr decay) w - lr g, the growth and the decay of ||w|| balance after some 1 / (2 lr decay)
steps. From then on ||w'|| = ||w|| on average, so the cosine of w and w' is 1 - lr decay: w turns by about
sqrt(2 lr decay) a step (`bnlab.core.theory.equilibrium_angle`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot

ROUNDINGS = 4
"""A step w' is w - lr g if no entry is farther from it than so many units in the last place of the largest one."""


@PROBES.register("scale")
class Scale:
    """Of each site's affine weight, from the gradient of the step itself; sums in float64."""

    needs: ClassVar[frozenset[Need]] = frozenset({"weights_before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "weight_grad_cos": "cosine of w and dL/dw of the site's affine weight: 0 where a norm cancels the scale of w "
        "(Arora, Li & Lyu 2018, lemma 2.4)",
        "affine_norm": "||w|| before the update",
        "norm_law_error": "| ||w'||^2 - ||w||^2 - lr^2 ||g||^2 | / ||w||^2 (the same); null where the step is not "
        "-lr g, as with momentum, decay or another optimizer",
        "effective_lr": "lr / ||w||^2: the learning rate of the direction of w where a norm cancels its scale",
        "weight_angle": "angle of w before and after the update, in radians (Wan et al. 2021; Kosson et al. 2024, "
        "there of each neuron, here of the site's whole weight)",
    }

    def measure(self, snapshot: Snapshot) -> Raw:
        net, lr = snapshot.net, snapshot.lr
        rows = [
            _of_weight(snapshot.before.params[site.params[0]], net.params[site.params[0]], lr) for site in net.sites
        ]
        return {"rows": torch.stack(rows, dim=1)}  # [6, L]

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        cos, norm, error, rate, angle, plain = raw["rows"]
        error = np.where(plain > 0, error, np.nan).astype(error.dtype)
        return dict(zip(self.metrics, (cos, norm, error, rate, angle), strict=True)), carry


def _of_weight(before: Tensor, param: Tensor, lr: float) -> Tensor:
    """Cosine, norm, error of the law, effective rate, angle, and whether the step is -lr g, [6]."""
    wide = torch.float32 if before.device.type == "mps" else torch.float64
    g = torch.zeros_like(before) if param.grad is None else param.grad
    w, after, g = (x.detach().to(wide) for x in (before, param, g))
    square, moved, length = w.square().sum(), after.square().sum(), g.square().sum()
    limit = ROUNDINGS * torch.finfo(before.dtype).eps * w.abs().max()
    turned = after / moved.sqrt()
    figures = [
        (w * g).sum() / (square * length).sqrt(),
        square.sqrt(),
        (moved - square - lr**2 * length).abs() / square,
        lr / square,
        2 * torch.atan2((w / square.sqrt() - turned).norm(), (w / square.sqrt() + turned).norm()),
        ((after - (w - lr * g)).abs().max() <= limit).to(wide),
    ]
    return torch.stack(figures).to(before.dtype)
