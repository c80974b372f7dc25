"""What batch statistics put in place of an example, and what a norm keeps of it. Legend: B batch, C channels,
H W space, L sites, K outputs, m examples in a small batch. All of it is bnlab's own measure.

m^2 examples of the probe batch stand in a square of m rows and m columns. f [m, m, K] are their outputs where each row
is a batch, f' where each column is one: an example is with the same number of others, and with none of the same, and
at the same place of either batch, where dropout and noise draw the same numbers for it. In batch mode, before the
update, with the mean over all examples,

    neighbour change     sqrt( mean |f' - f|^2 / mean |f - mean(f)|^2 )

It is 0 where outputs are of their examples alone, and sqrt(2) where they have nothing to do with them.

At a site, with z [B, C] the norm's input and y its output (gamma and beta included) on the probe batch, each example
has a mean and a standard deviation over its C (H W) values. Kept of each is the squared correlation over examples,

    mean kept     r(mean z, mean y)^2        scale kept     r(sd z, sd y)^2

the share of its variance that a linear function of the output's has. It counts as 0 where the output's spreads over
examples by less than a thousandth of the root mean square of y, as behind layer norm, and is 1 where there is no norm.
There is none where z's does not spread: one channel has no standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, MultipleOf
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.seeds import stream
from bnlab.core.state import outputs_at, random_state
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot

LEAST = 1e-3
"""The spread over examples, in root mean squares of the output, below which nothing is kept."""


@PROBES.register("neighbours")
class Neighbours:
    """2 m forward passes of m examples, and sums over the probe batch."""

    needs: ClassVar[frozenset[Need]] = frozenset({"probe_sites", "before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "neighbour_change": "root mean square of the change of an example's outputs where all other examples of its "
        "batch of m are exchanged, over the root mean square of the outputs about their mean; batch mode",
        "example_mean_kept": "squared correlation over examples of an example's mean over channels at pre and at the "
        "norm's output, probe batch; 1 without a norm; null at residual sums and where the norm is after the "
        "nonlinearity",
        "example_scale_kept": "the same of an example's standard deviation over channels",
    }

    def __init__(self, *, size: Annotated[int, Ge(2), MultipleOf(2)]) -> None:
        """`size`: m, an even number; the probe batch has m^2 examples, or more where another probe wants more."""
        self.size, self.batch = size, size**2

    def measure(self, snapshot: Snapshot) -> Raw:
        device = snapshot.probe_batch.x.device
        torch.manual_seed(stream(snapshot.seed, "probe", "neighbours").initial_seed())
        at = replace(snapshot.before, random=random_state(device))  # every pass draws the same numbers
        x = snapshot.probe_batch.x[: self.batch]
        square = x.view(self.size, self.size, *x.shape[1:])  # [m, m, ...]
        first = torch.arange(self.size).view(-1, 1)
        other, place = (first.T - first) % self.size, (first.T + first) % self.size  # [m, m]

        def outputs(batches: Tensor) -> Tensor:  # [m, m, ...] -> [m, m, K]
            with torch.no_grad():
                return torch.stack([outputs_at(snapshot.net.module, at, each, "batch") for each in batches])

        by_row, by_column = outputs(square[first, other])[first, place], outputs(square[other, first])[first.T, place]
        spread = (by_row - by_row.mean(dim=(0, 1))).square().mean()
        none = torch.full((2,), torch.nan).to(by_row)
        sites = zip(snapshot.net.sites, snapshot.probe.pre, snapshot.probe.act_in, strict=True)
        of_sites = [
            none if site.residual_sum or (site.norm is not None and not site.norm_first) else kept(pre, act_in)
            for site, pre, act_in in sites
        ]
        return {"change": ((by_column - by_row).square().mean() / spread).sqrt(), "kept": torch.stack(of_sites, dim=1)}

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        mean, scale = raw["kept"]
        return {"neighbour_change": raw["change"], "example_mean_kept": mean, "example_scale_kept": scale}, carry


def kept(z: Tensor, y: Tensor) -> Tensor:
    """What is kept of the examples' means and standard deviations, [2], z and y [B, C] or [B, C, H, W].

    >>> z = torch.tensor([[1.0, 3.0], [2.0, 8.0], [4.0, 4.0]])
    >>> [[round(x, 4) for x in kept(z, y).tolist()] for y in (2 * z + 1, z - z.mean(dim=1, keepdim=True))]
    [[1.0, 1.0], [0.0, 1.0]]
    """
    z, y = (x.flatten(1) / x.abs().max() for x in (z, y))  # squares neither overflow nor vanish
    found = []
    for moment in (torch.mean, partial(torch.std, correction=0)):
        a, b = (moment(x, dim=1) for x in (z, y))
        a, b = a - a.mean(), b - b.mean()
        share = (a / a.norm() @ (b / b.norm())).square()
        lost = (b.norm() < LEAST * len(b) ** 0.5 * y.square().mean().sqrt()) & (a != 0).any()
        found.append(torch.where(lost, 0.0, share))
    return torch.stack(found)
