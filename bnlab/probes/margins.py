"""The margins of the examples of the training batch: with `data.batch_size=full`, of all training examples.

Legend: B batch, K classes.

With f [B, K] the outputs for the batch, in batch mode, before the update, the margin of an example i of class y is

    m_i = f_iy - max over k != y of f_ik

which is positive where the net is right. With two classes it is that of the one output f_i1 - f_i0 and labels of -1 and
1: y_i f(x_i), as Cao et al. 2023 have it (from the abstract). They show that a linear model with batch norm tends to
equal margins, min m_i / max m_i = 1, where one without tends to the largest min m_i / ||w|| instead. The ratio does not
depend on the outputs' scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.state import outputs_at
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot


@PROBES.register("margins")
class Margins:
    """One forward pass of the training batch."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "margin_min": "smallest over the training batch of the right class's output less the largest other one; null "
        "where targets are no classes",
        "margin_max": "the largest of these",
        "margin_ratio": "margin_min / margin_max: 1 where all margins are equal, below 0 where one example is "
        "classified wrongly (Cao et al. 2023); null where none is classified correctly",
    }

    def measure(self, snapshot: Snapshot) -> Raw:
        with torch.no_grad():
            outputs = outputs_at(snapshot.net.module, snapshot.before, snapshot.batch.x, "batch")
        return {"ends": torch.stack(torch.aminmax(margins(outputs, snapshot.batch.y)))}

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        low, high = raw["ends"]
        ratio = low / high if high > 0 else low.dtype.type(np.nan)
        return dict(zip(self.metrics, (low, high, ratio), strict=True)), carry


def margins(outputs: Tensor, y: Tensor) -> Tensor:
    """The margin of every example, [B], of outputs [B, K] and classes [B]; NaN of targets that are no classes.

    >>> margins(torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), torch.tensor([0, 1])).tolist()
    [2.0, -2.0]
    """
    if y.is_floating_point():
        return torch.full_like(outputs[:, 0], torch.nan)
    right = torch.nn.functional.one_hot(y, outputs.shape[1]).bool()
    return outputs[right] - outputs.masked_fill(right, -torch.inf).amax(dim=1)
