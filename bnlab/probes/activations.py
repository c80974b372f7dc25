"""Distributions of pre-activations on a fixed probe batch, and how far they drift while the net trains.

Legend: B batch, C channels, H W space, L sites, U tensors of one shape, taken together.

The probe batch never changes, so whatever drifts is due to the weights and not to the data. Measured at `pre` (what the
norm sees) and at `act_in` (what the nonlinearity sees; after a batch norm its moments are beta and gamma^2 by
construction), in the mode in which the net trains: batch statistics of the probe batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from bnlab.probes.base import Carry, Metrics, Need, Snapshot
from bnlab.registry import PROBES

HISTOGRAM_LIMIT = 1000.0
HISTOGRAM_BINS = 80
PERCENTILES = {"act_p15": 0.15, "act_p50": 0.50, "act_p85": 0.85}


@PROBES.register("activations")
class Activations:
    """Moments, drift, percentiles of one unit, dead units, histograms."""

    needs: ClassVar[frozenset[Need]] = frozenset({"probe_sites"})
    metrics: ClassVar[Mapping[str, str]] = {
        "act_mean.*": "mean over channels of the channel mean",
        "act_var.*": "mean over channels of the channel variance (biased)",
        "drift_mean.*": "median over channels of |difference of means| / sd since the last measurement; "
        "sd^2 is the mean of the two variances",
        "drift_logvar.*": "median over channels of |difference of log variances| since the last measurement",
        "drift_mean_total.*": "the same as drift_mean, since step 0",
        "drift_logvar_total.*": "the same as drift_logvar, since step 0",
        "sampling_floor.*": "drift_mean between the two halves of the probe batch at equal weights",
        "act_p15.*": "15th percentile over the batch of one unit of the site (Ioffe & Szegedy 2015, fig. 1)",
        "act_p50.*": "its median",
        "act_p85.*": "its 85th percentile",
        "dead_fraction": "share of ReLU channels that are zero on the whole probe batch",
        "histogram.*": "counts over all values of the site, in bins uniform in asinh(x), with two tail bins",
    }

    def __init__(
        self,
        *,
        batch: Annotated[int, Ge(4)],
        unit: Annotated[int, Ge(0)],
        histogram_sites: Annotated[int, Ge(0)],
        histogram_every: Annotated[int, Ge(1)],
    ) -> None:
        """`batch`: examples in the probe batch. `unit`: the channel whose percentiles are kept (modulo the number of
        channels; in a convolution, at the central position). `histogram_sites`: how many sites, evenly spread, get a
        histogram, at every `histogram_every`-th measurement."""
        self.batch, self.unit = batch, unit
        self.histogram_sites, self.histogram_every = histogram_sites, histogram_every

    def measure(self, snapshot: Snapshot, carry: Carry) -> tuple[Metrics, Carry]:
        sites, seen = snapshot.net.sites, snapshot.probe
        points = {"pre": seen.pre, "act_in": seen.act_in}
        # Without a norm, act_in is the tensor pre itself: each tensor is measured once, those of one shape together.
        tensors = list({id(x): x for tensors in points.values() for x in tensors}.values())
        columns: dict[str, list[Tensor]] = {}
        place: dict[int, int] = {}
        kept: Carry = {"count": carry.get("count", torch.tensor(0)) + 1}
        for number, group in enumerate(_by_shape(tensors)):
            place |= {id(x): len(place) + offset for offset, x in enumerate(group)}
            measured, moments = self._group(group, {name: carry.get(f"{name}.{number}") for name in MOMENTS})
            kept |= {f"{name}.{number}": value for name, value in moments.items()}
            for name, column in measured.items():
                columns.setdefault(name, []).append(column)
        metrics: Metrics = {}
        for point, of_sites in points.items():
            rows = [place[id(x)] for x in of_sites]
            metrics |= {f"{name}.{point}": torch.cat(parts)[rows] for name, parts in columns.items() if name != "dead"}
        if any(isinstance(site.activation, nn.ReLU) for site in sites):
            dead = torch.cat(columns["dead"])[[place[id(x)] for x in seen.act_in]]
            rectified = torch.tensor([isinstance(site.activation, nn.ReLU) for site in sites], device=dead.device)
            metrics["dead_fraction"] = torch.where(rectified, dead, math.nan)
        if self.histogram_sites and int(kept["count"] - 1) % self.histogram_every == 0:
            for index in spread(len(sites), self.histogram_sites):
                for point, of_sites in points.items():
                    metrics[f"histogram.{point}.{sites[index].name}"] = histogram(of_sites[index])
        return metrics, kept

    def _group(self, group: list[Tensor], before: Mapping[str, Tensor | None]) -> tuple[Metrics, Carry]:
        """Every figure of U tensors of one shape, each figure [U], and the moments to remember, each [U, C]."""
        x = torch.stack(group) if len(group) > 1 else group[0][None]  # [U, B, C] or [U, B, C, H, W]
        space = tuple(range(3, x.ndim))
        half = x.shape[1] // 2
        halves = [x[:, :half].mean(dim=(1, *space)), x[:, half:].mean(dim=(1, *space))]  # [U, C] each
        mean = torch.lerp(halves[0], halves[1], 1 - half / x.shape[1])
        shape = (mean.shape[0], 1, mean.shape[1], *(1 for _ in space))
        var = (x - mean.view(shape)).square_().mean(dim=(1, *space))
        moments = {"mean": mean, "var": var, "log_var": var.log()}

        distances = {"sampling_floor": _standardized(halves[0] - halves[1], var, var)}
        for suffix, then in (("", _stripped(before, "last_")), ("_total", _stripped(before, "first_"))):
            if then:
                distances[f"drift_mean{suffix}"] = _standardized(mean - then["mean"], var, then["var"])
                distances[f"drift_logvar{suffix}"] = (moments["log_var"] - then["log_var"]).abs()
        medians = median(torch.stack(list(distances.values())))  # [distances, U]

        unit = x[:, :, self.unit % x.shape[2]]  # [U, B] or [U, B, H, W]
        unit = unit[(..., *(size // 2 for size in unit.shape[2:]))] if space else unit
        shares = torch.tensor(list(PERCENTILES.values()), dtype=x.dtype, device=x.device)
        percentiles = torch.quantile(unit, shares, dim=1)  # [3, U]
        figures = {
            "act_mean": mean.mean(dim=1),
            "act_var": var.mean(dim=1),
            **dict(zip(distances, medians, strict=True)),
            **dict(zip(PERCENTILES, percentiles, strict=True)),
            "dead": (x.amax(dim=(1, *space)) <= 0).to(x.dtype).mean(dim=1),
        }
        first = _stripped(before, "first_") or moments
        return figures, _prefixed(moments, "last_") | _prefixed(first, "first_")


MOMENTS = [f"{when}_{name}" for when in ("last", "first") for name in ("mean", "var", "log_var")]


def _stripped(before: Mapping[str, Tensor | None], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in before.items() if name.startswith(prefix) and x is not None}


def _prefixed(moments: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in moments.items()}


def _by_shape(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Dense tensors of one shape together, so that one operation measures them all; a convolution's outputs alone,
    since stacking them would cost more than it saves."""
    groups: dict[object, list[Tensor]] = {}
    for index, x in enumerate(tensors):
        groups.setdefault(tuple(x.shape) if x.ndim == 2 else index, []).append(x)
    return list(groups.values())


def _standardized(difference: Tensor, var: Tensor, other_var: Tensor) -> Tensor:
    """|difference| in units of the root mean square of the two standard deviations; 0 where nothing moved."""
    distance = difference.abs()
    return torch.where(distance == 0, distance, distance / ((var + other_var) / 2).sqrt())


def median(x: Tensor) -> Tensor:
    """Median over the last axis, the mean of the middle two where their number is even; NaN where any value is NaN.

    >>> median(torch.tensor([[4.0, 1.0, 2.0, 9.0]])).tolist()
    [3.0]
    """
    return (x.median(dim=-1).values - (-x).median(dim=-1).values) / 2


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of `count` indices, evenly spread, the first and the last among them.

    >>> spread(11, 5), spread(3, 5), spread(4, 1)
    ([0, 2, 5, 8, 10], [0, 1, 2], [0])
    """
    if wanted >= count:
        return list(range(count))
    return sorted({round(index * (count - 1) / max(1, wanted - 1)) for index in range(wanted)})


def histogram(x: Tensor) -> Tensor:
    """Counts [HISTOGRAM_BINS + 2] of all values of x: below -HISTOGRAM_LIMIT, the bins between `histogram_edges`, and
    above HISTOGRAM_LIMIT. NaN is counted nowhere.

    >>> histogram(torch.tensor([-2000.0, 0.01, 0.01, 5000.0]))[[0, 41, 81]].tolist()
    [1.0, 2.0, 1.0]
    """
    limit = math.asinh(HISTOGRAM_LIMIT)
    stretched = torch.asinh(x.detach())
    inside = torch.histc(stretched, bins=HISTOGRAM_BINS, min=-limit, max=limit)
    tails = [(stretched < -limit).sum(), (stretched > limit).sum()]
    return torch.cat([tails[0][None].to(inside), inside, tails[1][None].to(inside)])


def histogram_edges() -> list[float]:
    """The HISTOGRAM_BINS + 1 edges between the tail bins, from -HISTOGRAM_LIMIT to HISTOGRAM_LIMIT."""
    limit = math.asinh(HISTOGRAM_LIMIT)
    return [math.sinh(limit * (2 * index / HISTOGRAM_BINS - 1)) for index in range(HISTOGRAM_BINS + 1)]
