"""The distance between what each layer sees on the test inputs and on the training inputs.

Legend: B batch, C channels, H W space, L sites.

At `pre` of every site, with the mean and variance per channel over all values of either split,

    shift_mean = median over channels of |mu_test - mu_train| / sd_train
    shift_logvar = median over channels of |log(var_test / var_train)|

once with running statistics (`running`), where a shift of the inputs passes through the layers, and once with each
batch's own (`batch`), where a norm removes the part of the shift that changes the means and variances of its channels;
what remains above the first norm is what no such statistics can undo. Without a shift (`data.shift: none`), the
distance is that of two samples of one distribution, and what the net has memorized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, get_args

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.seeds import stream
from bnlab.core.state import Mode, Moments, PreservedBuffers, outputs_now
from bnlab.data.base import Split
from bnlab.net.build import Net
from bnlab.net.evaluate import drawn_batches
from bnlab.net.wrap import Tap, site_shapes
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot, by_site


@PROBES.register("shift_drift")
class ShiftDrift:
    """At the state *after* the update, by forward passes over both splits in both modes."""

    needs: ClassVar[frozenset[Need]] = frozenset({"training_data", "test_data"})
    metrics: ClassVar[Mapping[str, str]] = {
        "shift_mean.*": "median over channels of |mu_test - mu_train| / sd_train at pre, over training and (shifted) "
        "test inputs; in running and in batch mode",
        "shift_logvar.*": "median over channels of |log(var_test / var_train)| at pre; in running and in batch mode",
    }

    def __init__(self, *, examples: Annotated[int, Ge(1)]) -> None:
        """`examples`: at most so many of either split, in whole batches of the training size, at least one: the same
        ones at every measurement, from the `probe` stream of the run's seed."""
        self.examples = examples

    def layout(self, net: Net, input_shape: tuple[int, ...]) -> list[int]:
        """The channels of every site."""
        return [shape[0] for shape in site_shapes(net, input_shape)]

    def measure(self, snapshot: Snapshot, channels: list[int]) -> Raw:
        raw: Raw = {}
        for mode in get_args(Mode):
            train, test = (self._seen(snapshot, split, mode) for split in (snapshot.data, snapshot.test))
            apart = [distances(one, other) for one, other in zip(train, test, strict=True)]
            raw[mode] = torch.cat(apart, dim=1).to(
                next(iter(snapshot.net.params.values())).dtype
            )  # [2, C of all sites]
        return raw

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry, channels: list[int]) -> tuple[Metrics, Carry]:
        metrics: Metrics = {}
        for mode, values in raw.items():
            medians = np.stack([np.median(part, axis=1) for part in by_site(values, channels)], axis=1)  # [2, L]
            metrics |= {f"shift_mean.{mode}": medians[0], f"shift_logvar.{mode}": medians[1]}
        return metrics, carry

    def _seen(self, snapshot: Snapshot, split: Split, mode: Mode) -> list[Moments]:
        """The moments at pre of each site, over the chosen examples of a split."""
        net = snapshot.net
        preserved, found = PreservedBuffers(net.module), [Moments() for _ in net.sites]
        draws = stream(snapshot.seed, "probe", "shift_drift")
        for batch in drawn_batches(split, len(snapshot.batch), self.examples, draws):
            with Tap(net) as tap:
                outputs_now(net.module, batch.x, mode, preserved)
            for moments, pre in zip(found, tap.sites.pre, strict=True):
                moments.add(pre)
        return found


def distances(train: Moments, test: Moments) -> Tensor:
    """|mu_test - mu_train| / sd_train and |log(var_test / var_train)| per channel, [2, C]; 0 where nothing differs.

    >>> one, other = Moments(), Moments()
    >>> one.add(torch.tensor([[0.0, 5.0], [2.0, 5.0]])), other.add(torch.tensor([[3.0, 5.0], [5.0, 5.0]]))
    (None, None)
    >>> distances(one, other).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    moved, same = (test.mean - train.mean).abs(), test.biased == train.biased
    sd = torch.where(moved == 0, torch.ones_like(moved), train.biased.sqrt())
    log_ratio = (test.biased / train.biased).log().abs()
    return torch.stack([moved / sd, torch.where(same, torch.zeros_like(log_ratio), log_ratio)])
