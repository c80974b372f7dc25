"""How far a change of the first layer's parameters moves what every later layer computes. Legend: L sites.

With h_l(theta) the value at `pre` of site l on the training batch of the step, in batch mode,

    ||h_l(theta') - h_l(theta)||_F / ||h_l(theta)||_F

for three theta', theta being the parameters before the update:

    own      the first site's parameters are those after the update
    random   W_1 + 0.001 ||W_1|| u in place of the first site's affine weight, u uniform on the sphere
    all      all parameters are those after the update

A change that propagates and grows has a profile over the sites that rises with l. Ioffe & Szegedy 2015, section 1, say
that small changes to a layer's parameters amplify as the network becomes deeper; the quotient is bnlab's own measure of
it. Where `own` and `all` are near the rounding of the dtype, as at learning rates of 1e-7 in float32, use float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.seeds import stream
from bnlab.core.state import State, norm_each, outputs_at, subtract_each
from bnlab.net.wrap import Tap
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot, not_infinite

SIZE = 1e-3
"""Of the random change, relative to the weight: large against the rounding of float32, small against the weight."""


@PROBES.register("propagation")
class Propagation:
    """Four forward passes."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "propagation.*": "||h' - h||_F / ||h||_F at pre on the training batch, h' after the first site's parameters "
        "are updated (own), after its weight is moved by 0.001 of its norm in a random direction (random), after all "
        "parameters are updated (all)"
    }

    def measure(self, snapshot: Snapshot) -> Raw:
        net, before = snapshot.net, snapshot.before
        updated = {name: param.detach() for name, param in net.params.items()}
        first = net.sites[0].params
        weight = before.params[first[0]]
        draws = stream(snapshot.seed, "probe", "propagation", snapshot.step)
        u = torch.randn(weight.shape, generator=draws).to(weight)
        size = SIZE * torch.linalg.vector_norm(weight) / torch.linalg.vector_norm(u)
        moved = {
            "own": {name: updated[name] for name in first},
            "random": {first[0]: weight + size * u},
            "all": updated,
        }

        def pre(params: Mapping[str, Tensor]) -> list[Tensor]:
            at: State = replace(before, params={**before.params, **params})
            with Tap(net) as tap, torch.no_grad():
                outputs_at(net.module, at, snapshot.batch.x, "batch")
            return tap.sites.pre

        old = pre({})
        changes = {name: torch.stack(norm_each(subtract_each(pre(params), old))) for name, params in moved.items()}
        return {"norm": torch.stack(norm_each(old)), **changes}  # [L] each

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        norm, metrics = not_infinite(raw["norm"]), {}
        with np.errstate(all="ignore"):  # the journal marks what is not finite
            for name in ("own", "random", "all"):
                change = raw[name]
                metrics[f"propagation.{name}"] = np.where(change == 0, change, change / norm)
        return metrics, carry
