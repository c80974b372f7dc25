"""How much of a sigmoid's or a tanh's output is where its slope is nearly 0. Legend: B batch, C channels, L sites.

Karpathy (2022, "Building makemore part 3: activations & gradients, batch norm") counts |tanh(x)| > 0.97. There the
slope 1 - tanh(x)^2 is below 0.06 of its largest value. A sigmoid is (1 + tanh(x / 2)) / 2; 0.03 and 0.97 are his bound
of 0.97 on the scale from 0 to 1, where its slope is below 0.12 of its largest value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from bnlab.core.registry import PROBES
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot

BOUND = 0.97


@PROBES.register("saturation")
class Saturation:
    """On the fixed probe batch, in the mode in which the net trains."""

    needs: ClassVar[frozenset[Need]] = frozenset({"probe_sites"})
    metrics: ClassVar[Mapping[str, str]] = {
        "saturated_fraction": "share of the site's outputs with |tanh| > 0.97, or with a sigmoid outside 0.03 to 0.97, "
        "on the probe batch; null where there is another nonlinearity, or none"
    }
    groups: ClassVar[Mapping[str, str]] = {"saturated_fraction": "8_saturated"}

    def __init__(self, *, batch: Annotated[int, Ge(4), MultipleOf(2)]) -> None:
        """`batch`: examples in the probe batch; where several probes give a number, it has the largest."""
        self.batch = batch

    def measure(self, snapshot: Snapshot) -> Raw:
        sites = zip(snapshot.net.sites, snapshot.probe.act_in, strict=True)
        return {"share": torch.stack([_saturated(site.activation, act_in) for site, act_in in sites])}  # [L]

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        return {"saturated_fraction": raw["share"]}, carry


def _saturated(activation: nn.Module, act_in: Tensor) -> Tensor:
    """The share of one site's values, a scalar; NaN with another nonlinearity, and where a value is NaN.

    >>> _saturated(nn.Tanh(), torch.tensor([-3.0, 0.0, 2.0, 3.0])).item()
    0.5
    >>> _saturated(nn.Sigmoid(), torch.tensor([-4.0, 0.0, 3.0, 4.0])).item()
    0.5
    """
    if isinstance(activation, nn.Tanh):
        beyond = act_in.tanh().abs() > BOUND
    elif isinstance(activation, nn.Sigmoid):
        beyond = act_in.sigmoid().sub(0.5).abs() > BOUND - 0.5
    else:
        return act_in.new_tensor(torch.nan)
    return torch.where(act_in.isnan().any(), torch.nan, beyond.to(act_in.dtype).mean())
