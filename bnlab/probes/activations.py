"""Distributions of pre-activations on a fixed probe batch, and how far they drift while the net trains.

Legend: B batch, C channels, H W space, L sites; U tensors of one shape, R of all, N channels of all.

The probe batch never changes, so drift is due to the weights and not to the data. Measured at `pre` (what the norm
sees) and at `act_in` (what the nonlinearity sees; after a batch norm its moments are beta and gamma^2 by
construction), in the mode in which the net trains: batch statistics of the probe batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from bnlab.core.registry import PROBES
from bnlab.core.study import evenly
from bnlab.net.build import Net
from bnlab.net.wrap import one_example
from bnlab.probes._histograms import histogram
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot, by_site, not_infinite

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
        "drift50.*": "median over units of how far the unit's median over the batch has moved, in its spreads of now: "
        "(max - min of act_p50 over the measurements from the second to now) / (act_p85 - act_p15 now); in a "
        "convolution, of the units at the central position",
        "dead_fraction": "share of ReLU channels that are zero on the whole probe batch; null where there is no ReLU",
        "histogram.*": "counts over all values of the site, in bins uniform in asinh(x), with two tail bins",
    }
    groups: ClassVar[Mapping[str, str]] = {
        "act_mean": "7_act_mean",
        "act_var": "8_act_var",
        "drift_mean": "2_drift_mean",
        "drift_logvar": "3_drift_logvar",
        "drift_mean_total": "2_drift_mean_total",
        "drift_logvar_total": "3_drift_logvar_total",
        "sampling_floor": "2_drift_mean/00_sampling_floor",
        "act_p15": "6_act_percentiles/*_p15",
        "act_p50": "6_act_percentiles/*_p50",
        "act_p85": "6_act_percentiles/*_p85",
        "drift50": "2_drift_median",
        "dead_fraction": "8_dead_units",
    }

    def __init__(
        self,
        *,
        batch: Annotated[int, Ge(4), MultipleOf(2)],
        unit: Annotated[int, Ge(0)],
        histogram_sites: Annotated[int, Ge(0)],
        histogram_every: Annotated[int, Ge(1)],
        drift50: bool,
    ) -> None:
        """`batch`: examples in the probe batch. `unit`: the channel whose percentiles are kept (modulo the number of
        channels; in a convolution, at the central position). `histogram_sites`: how many sites, evenly spread, get a
        histogram, at every `histogram_every`-th of the equally spaced measured steps. `drift50`: also drift50, at the
        price of sorting the values of every unit."""
        self.batch, self.unit, self.drift50 = batch, unit, drift50
        self.histogram_sites, self.histogram_every = histogram_sites, histogram_every

    def layout(self, net: Net, input_shape: tuple[int, ...]) -> Layout:
        seen, sites = one_example(net, input_shape), len(net.sites)
        tensors = [*seen.act_in, *seen.pre]
        number = {id(x): index for index, x in reversed(list(enumerate(tensors)))}
        groups: dict[object, list[int]] = {}
        for index in sorted(number.values()):
            x = tensors[index]
            groups.setdefault(tuple(x.shape) if x.ndim == 2 else index, []).append(index)
        order = [index for group in groups.values() for index in group]
        acting = [index for index in order if index < sites]
        return Layout(
            groups=list(groups.values()),
            channels=[(len(of), sum(i < sites for i in of), tensors[of[0]].shape[1]) for of in groups.values()],
            rows={
                "pre": [order.index(number[id(x)]) for x in seen.pre],
                "act_in": [order.index(index) for index in range(sites)],
            },
            acting_rows=[acting.index(index) for index in range(sites)],
            rectified=[isinstance(site.activation, nn.ReLU) for site in net.sites],
        )

    def measure(self, snapshot: Snapshot, layout: Layout) -> Raw:
        seen, sites = snapshot.probe, snapshot.net.sites
        tensors = [*seen.act_in, *seen.pre]
        halves, variances, units, shares, tops = [], [], [], [], []
        for group, (size, acting, channels) in zip(layout.groups, layout.channels, strict=True):
            # Channels last, a maximum over the positions takes thirty times as long: more than the copy.
            alone = tensors[group[0]].contiguous()[None]
            x = torch.stack([tensors[index] for index in group]) if len(group) > 1 else alone
            batch, space = x.shape[1], x.shape[3:]  # B, and T or H, W of a convolution
            over = tuple(range(1, 1 + len(space)))  # the positions, counted from the channels
            half = x.view(size, 2, batch // 2, channels, *space).mean(
                dim=(2, *(3 + axis for axis in over))
            )  # [U, 2, C]
            mean = half.mean(dim=1).view(size, 1, channels, *(1 for _ in space))
            halves.append(half.transpose(0, 1).reshape(2, -1))
            variances.append(_mean_square(x - mean).flatten())
            central = x
            for length in space:
                central = central.select(3, length // 2)  # in the end [U, B, C]
            units.append(central[:, :, self.unit % channels])
            if self.drift50:
                shares.append(unit_percentiles(central))
            if any(layout.rectified):
                tops.append(x[:acting].amax(dim=(1, *(2 + axis for axis in over))).flatten())
        raw = {"halves": torch.cat(halves, dim=1), "var": torch.cat(variances), "unit": torch.cat(units)}
        if shares:
            raw["shares"] = torch.cat(shares, dim=1)
        if tops:
            raw["top"] = torch.cat(tops)
        if self.histogram_sites and snapshot.point is not None and snapshot.point % self.histogram_every == 0:
            for index in evenly(len(sites), self.histogram_sites):
                name = sites[index].name
                raw[f"histogram.pre.{name}"] = histogram(seen.pre[index])
                raw[f"histogram.act_in.{name}"] = histogram(seen.act_in[index])
        return raw

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry, layout: Layout) -> tuple[Metrics, Carry]:
        with np.errstate(all="ignore"):  # the journal marks what is not finite
            figures, remembered = self._figures(raw, carry, layout)
        metrics = {
            f"{name}.{point}": figure[rows] for point, rows in layout.rows.items() for name, figure in figures.items()
        }
        if "top" in raw:
            dead = np.concatenate([(part <= 0).mean(axis=1) for part in layout.by_row(raw["top"], acting=True)])
            metrics["dead_fraction"] = np.where(layout.rectified, dead[layout.acting_rows], np.nan).astype(
                raw["var"].dtype
            )
        return metrics | {name: x for name, x in raw.items() if name.startswith("histogram.")}, remembered

    def _figures(self, raw: Mapping[str, HostArray], carry: Carry, layout: Layout) -> tuple[Metrics, Carry]:
        """Every figure for all R tensors, each [R], and what to remember, each [N]."""
        (first, second), var = raw["halves"], raw["var"]
        now = {"mean": (first + second) / 2, "var": var, "log_var": np.log(var)}
        distances = {"sampling_floor": standardized(first - second, var, var)}
        for suffix, prefix in (("", "last_"), ("_total", "first_")):
            if f"{prefix}mean" in carry:
                moved = now["mean"] - carry[f"{prefix}mean"]
                distances[f"drift_mean{suffix}"] = standardized(moved, var, carry[f"{prefix}var"])
                change = np.abs(now["log_var"] - carry[f"{prefix}log_var"])
                same = (var == carry[f"{prefix}var"]) & np.isfinite(var)
                distances[f"drift_logvar{suffix}"] = np.where(same, var.dtype.type(0), change)
        extremes = {}
        if "shares" in raw and carry:
            low, middle, high = raw["shares"]
            extremes["p50_max"] = np.maximum(carry.get("p50_max", middle), middle)
            extremes["p50_min"] = np.minimum(carry.get("p50_min", middle), middle)
            moved = extremes["p50_max"] - extremes["p50_min"]
            distances["drift50"] = share(moved, high - low)
        medians = np.concatenate(
            [percentiles(part, [0.5])[0] for part in layout.by_row(np.stack([*distances.values()]))], 1
        )
        averages = np.concatenate([part.mean(axis=-1) for part in layout.by_row(np.stack([now["mean"], var]))], 1)
        figures = {
            "act_mean": averages[0],
            "act_var": averages[1],
            **dict(zip(distances, medians, strict=True)),
            **dict(zip(PERCENTILES, percentiles(raw["unit"], list(PERCENTILES.values())), strict=True)),
        }
        start = {f"first_{name}": carry.get(f"first_{name}", value) for name, value in now.items()}
        return figures, start | {f"last_{name}": value for name, value in now.items()} | extremes


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tensors of a forward are taken together; the same for every forward of a net.

    Tensors are numbered: act_in of sites 0 to L - 1, then pre of sites 0 to L - 1. Where a site has no norm before its
    nonlinearity, both are one tensor, measured once, under the lower number. Dense tensors of one shape form a
    group, so that one operation measures them all; a convolution's outputs stay alone, since stacking them would
    cost more than it saves.
    """

    groups: list[list[int]]
    channels: list[tuple[int, int, int]]
    """Of each group: U, how many of these are act_in, and C."""
    rows: dict[str, list[int]]
    """For each measuring point, the row (of R) of every site."""
    acting_rows: list[int]
    """The row of every site's act_in among the act_in tensors of all groups."""
    rectified: list[bool]
    """Which sites have a ReLU."""

    def by_row(self, values: HostArray, *, acting: bool = False) -> list[HostArray]:
        """[..., N] as one [..., U, C] for each group; with `acting`, of values for the act_in tensors alone."""
        sizes = [(taken if acting else size, channels) for size, taken, channels in self.channels]
        parts = by_site(values, [size * channels for size, channels in sizes])
        return [part.reshape(*part.shape[:-1], *size) for part, size in zip(parts, sizes, strict=True)]


def _mean_square(x: Tensor) -> Tensor:
    """Mean of x^2 [U, B, C] or [U, B, C, ...] over all but U and C: whichever way is faster for the shape on a CPU."""
    if x.ndim == 3:
        return x.square_().mean(dim=1)
    space = tuple(range(3, x.ndim))
    by_example: Tensor = torch.linalg.vector_norm(x, dim=space).square_()
    return by_example.mean(dim=1) / math.prod(x.shape[3:])


def standardized(difference: HostArray, var: HostArray, other_var: HostArray) -> HostArray:
    """|difference| in units of the root mean square of the two standard deviations; 0 where nothing moved.

    >>> standardized(np.array([3.0, 0.0]), np.array([1.0, 0.0]), np.array([17.0, 0.0])).tolist()
    [1.0, 0.0]
    """
    return share(np.abs(difference), np.sqrt((var + other_var) / 2))


def share(above: HostArray, below: HostArray) -> HostArray:
    """above / below; 0 where `above` is 0, and NaN where `below` is infinite.

    >>> share(np.array([1.0, 0.0, 1.0]), np.array([2.0, 0.0, np.inf])).tolist()
    [0.5, 0.0, nan]
    """
    return above / np.where(above == 0, 1, not_infinite(below))


def percentiles(x: HostArray, shares: Sequence[float]) -> list[HostArray]:
    """Percentiles over the last axis, linear between neighbours; NaN where any value is NaN. As `np.quantile`, in a
    tenth of its time on short rows.

    >>> [x.tolist() for x in percentiles(np.array([[40.0, 10.0, 30.0, 20.0]]), [0.5, 0.9])]
    [[25.0], [37.0]]
    """
    ordered = np.sort(x, axis=-1)  # NaN comes last
    found = []
    for share in shares:
        below, above, between = neighbours(x.shape[-1], share)
        low, high = ordered[..., below], ordered[..., above]
        value = low if between == 0 else low + x.dtype.type(between) * (high - low)
        found.append(np.where(np.isnan(ordered[..., -1]), ordered[..., -1], value))
    return found


def neighbours(count: int, share: float) -> tuple[int, int, float]:
    """Between which two of `count` ordered values a percentile lies, and how far from the first to the second.

    >>> neighbours(4, 0.5)
    (1, 2, 0.5)
    """
    below, between = divmod(share * (count - 1), 1.0)
    return int(below), math.ceil(below + between), between


def unit_percentiles(x: Tensor) -> Tensor:
    """The PERCENTILES over the batch of every unit, [3, U * C], of x [U, B, C]; as `percentiles`, on the device."""
    by_unit = x.transpose(1, 2).flatten(0, 1)
    if x.device.type == "cpu":  # in a fraction of the time that torch takes
        ordered = torch.from_numpy(np.sort(by_unit.numpy(), axis=1))
    else:
        ordered = by_unit.sort(dim=1).values  # NaN comes last here too
    places = [neighbours(x.shape[1], share) for share in PERCENTILES.values()]
    found = torch.stack([ordered[:, low].lerp(ordered[:, high], between) for low, high, between in places])
    return torch.where(ordered[:, -1].isnan(), math.nan, found)
