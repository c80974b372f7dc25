"""Loss and accuracy over a whole split, and the statistics that norms use there.

Legend: N examples, B of a batch, K outputs.

`running`     what training left in the norms' buffers: so no example depends on another
`batch`       each batch's own, as in training (prediction-time batch norm, Nado et al. 2020)
`population`  those of the training set through the net as it is now (PreciseBN, Wu & Johnson 2021)
`adapted`     those of the inputs that are evaluated, without their targets (AdaBN, Li et al. 2016)

The last two are taken as in PreciseBN: batches go through the net, each normalized by its own statistics, and mean and
variance of all that a norm saw replace the running ones during the evaluation. So the batch size matters there too: the
layers above see what noisy batch statistics made. Noise and dropout are off, as in evaluation. Weights and buffers are
restored afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from bnlab.core.seeds import stream
from bnlab.core.spec import EvalBN
from bnlab.core.state import Loss, PreservedBuffers, correct, in_mode
from bnlab.data.base import Dataset, Split
from bnlab.net.build import Net
from bnlab.net.wrap import NormTap
from bnlab.norms.base import Noise, population_of

CHUNK = 4096
"""Examples at a time in running mode, where the result does not depend on it."""
POPULATION = 10_000
"""At most so many training examples make the population: 1,000 to 10,000 are enough (Wu & Johnson 2021)."""


class Inference:
    """A net, and how it is evaluated."""

    def __init__(
        self,
        net: Net,
        bn: EvalBN = "running",
        *,
        batch_size: int | Literal["auto", "full"] = "auto",
        training: Split | None = None,
        training_size: int = CHUNK,
        seed: int = 0,
    ) -> None:
        """`batch_size`: examples in a batch, the last ones more; `auto`: `training_size`, that of the batches of
        training, but in running mode `CHUNK`; `full`: all. `training`: the split that `population` is of. `seed`: the
        run's, for what goes together in a batch."""
        self.net, self.bn, self.batch_size = net, bn, batch_size
        self.training, self.training_size, self.seed = training, training_size, seed
        self._parts = list(net.module.modules())
        self._norms = [
            part for norm in net.every_norm.values() for part in norm.modules() if not isinstance(part, Noise)
        ]
        self._whole, self._forward = PreservedBuffers(net.module), PreservedBuffers(net.module)

    def size(self, count: int) -> int:
        """B, of `count` examples."""
        if self.batch_size == "auto" and self.bn == "running":
            return min(CHUNK, count)
        wanted = self.training_size if self.batch_size == "auto" else self.batch_size
        return count if wanted == "full" else min(wanted, count)

    def batches(self, split: Split) -> Iterator[Split]:
        """All examples, none twice. In running mode in their order. Else in an order of the `probe` stream, and in
        batches that differ by one at most, none smaller than `size`."""
        count = len(split)
        size = self.size(count)
        if self.bn == "running" or size == count:
            for start in range(0, count, size):
                yield split.pick(slice(start, start + size))
            return
        order = torch.randperm(count, generator=stream(self.seed, "probe", "inference"))
        for chosen in order.to(split.device).tensor_split(count // size):
            yield split.pick(chosen)

    @contextmanager
    def outputs(self, split: Split) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Inside the `with`, outputs [B, K] and targets [B] or [B, K] of one batch after another."""
        with torch.no_grad(), in_mode(self._parts, "running"), self._whole:
            if self.bn == "population":
                assert self.training is not None, "the population is of the training split"
                draws = stream(self.seed, "probe", "population")
                self._refit(drawn_batches(self.training, self.training_size, POPULATION, draws))
            elif self.bn == "adapted":
                self._refit(self.batches(split))
            with in_mode(self._norms, "batch" if self.bn == "batch" else "running"):
                yield self._each(split)

    def _each(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches(split):
            with self._forward:
                out = self.net.module(batch.x)
            yield out, batch.y

    def _refit(self, batches: Iterator[Split]) -> None:
        """Give every norm that keeps running statistics those of these batches."""
        found = {index: population_of(norm) for index, norm in self.net.every_norm.items()}
        populations = {index: population for index, population in found.items() if population is not None}
        if not populations:
            return
        with in_mode(self._norms, "batch"):
            for batch in batches:
                with NormTap(self.net, every=True) as tap, self._forward:
                    self.net.module(batch.x)
                for index, population in populations.items():
                    population.add(tap.seen[index])
        for population in populations.values():
            population.put()


def drawn_batches(split: Split, size: int, most: int, generator: torch.Generator) -> Iterator[Split]:
    """Whole batches of `size` examples drawn from a split, none twice: at most `most` examples, at least one batch; of
    a split that is smaller, one batch of all."""
    size = min(size, len(split))
    count = max(1, min(most, len(split)) // size) * size
    order = torch.randperm(len(split), generator=generator)[:count]
    for chosen in order.to(split.device).view(-1, size):
        yield split.pick(chosen)


def evaluate(inference: Inference, split: Split, loss: str, reduction: str) -> dict[str, Tensor]:
    """`loss` with its reduction over all N examples and, for classes, `accuracy`: scalars on the device. The net stays
    as it is."""
    total, hits = torch.zeros((), device=split.device), torch.zeros((), dtype=torch.int64, device=split.device)
    summed = Loss(loss, "sum")
    classes = split.y.dtype == torch.int64
    outputs = 1
    with inference.outputs(split) as batches:
        for out, y in batches:
            total = total + summed(out, y)
            outputs = 1 if loss == "cross_entropy" else out.shape[1]
            if classes:
                hits += correct(out, y)
    found = {"loss": total if reduction == "sum" else total / (len(split) * outputs)}
    return found | ({"accuracy": hits / len(split)} if classes else {})


def at_chance(metrics: dict[str, float], dataset: Dataset, loss: str, reduction: str) -> bool:
    """Whether a net is no better than the best constant output: training accuracy within 5 % of the share of the most
    common class or below; in a regression, training loss within 5 % of that of the mean target, or above."""
    y = dataset.train.y
    if dataset.classes is not None:
        return metrics["train_accuracy"] <= 1.05 * torch.bincount(y).max().item() / len(y)
    constant = Loss(loss, reduction)(y.mean(dim=0).expand_as(y), y).item()
    return not metrics["train_loss"] < 0.95 * constant  # NaN counts as no better
