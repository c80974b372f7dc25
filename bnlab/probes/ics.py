"""Internal covariate shift as Santurkar et al. 2018, definition 2.1, measure it. Legend: L sites.

For the affine weight W_i of site i, on the training batch x, y of step t, in batch mode,

    G_i  = dL/dW_i at W_1(t),   ..., W_i-1(t),   W_i(t), ..., W_L(t)
    G'_i = dL/dW_i at W_1(t+1), ..., W_i-1(t+1), W_i(t), ..., W_L(t)

so G' is the gradient after the layers before i were updated. Covariate shift would make the two differ. With each W_j
go the other parameters of site j: its bias, its norm's gamma and beta. Nothing precedes the first site: there G' is G.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.state import State, gradient_at, norm_each, staircase, subtract_each
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot, not_infinite


@PROBES.register("ics")
class ICS:
    """A forward pass, and a backward pass down to site i, for each site i."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "ics": "||G - G'||, G the gradient of the site's affine weight, G' the same after the sites before it were "
        "updated (Santurkar et al. 2018, definition 2.1)",
        "ics_rel": "||G - G'|| / ||G||",
        "ics_cos": "cosine of G and G'",
    }

    def measure(self, snapshot: Snapshot) -> Raw:
        net, batch, before = snapshot.net, snapshot.batch, snapshot.before
        after = replace(before, params={name: param.detach() for name, param in net.params.items()})
        weights = [site.params[0] for site in net.sites]
        states = staircase(before, after, [site.params for site in net.sites])

        def gradient(state: State, names: list[str]) -> dict[str, Tensor]:
            return gradient_at(net.module, state, batch.x, batch.y, snapshot.objective, wrt=names)[1]

        grads = gradient(next(states), weights)  # at `before`: every G, and the first G'
        updated = {weights[0]: grads[weights[0]]}
        for name, state in zip(weights[1:], states, strict=True):
            updated |= gradient(state, [name])
        old, new = [grads[name] for name in weights], [updated[name] for name in weights]
        return {
            "change": torch.stack(norm_each(subtract_each(old, new))),
            "norm": torch.stack(norm_each(old)),
            "norm_updated": torch.stack(norm_each(new)),
            "dot": torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in zip(old, new, strict=True)]),
        }

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        change, same = raw["change"], raw["change"] == 0  # equal gradients: also where both are 0
        with np.errstate(all="ignore"):  # the journal marks what is not finite
            norm, norm_updated = not_infinite(raw["norm"]), not_infinite(raw["norm_updated"])
            relative = np.where(same, change, change / norm)
            cos = np.clip(raw["dot"] / norm / norm_updated, -1, 1)
        return {"ics": change, "ics_rel": relative, "ics_cos": np.where(same, change.dtype.type(1), cos)}, carry
