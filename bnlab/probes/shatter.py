"""Whether gradients with respect to the input resemble white noise or a smooth curve. Legend: T points of the line.

Balduzzi et al. 2017, section 2, look at the gradient of a net's output as a function of its input, along a line: in
a deep plain net it resembles white noise (the gradients are shattered), in a shallow or residual one Brownian motion.
Here the line is

    x(t) = x0 + t u,    T = 256 values of t, equally spaced over [-2, 2],    x0, u ~ N(0, I)

All points are one batch, in batch mode, at the weights before the update. With f the first output, the series is

    g(t) = < d(sum over s of f(x(s))) / dx(t), u >

that is df/dt where examples do not depend on each other; below a batch norm it has what x(t) changes at the others too.
Its autocorrelation at lag 1, of the series less its mean, is near 1 for a smooth curve, and near 0 for white noise. x0
and u are drawn from the `probe` stream of the run's seed, and stay the same from step to step. A line through 0 would
be straight on either side in a ReLU net without biases; therefore x0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.seeds import stream
from bnlab.core.state import outputs_at
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot

POINTS, REACH = 256, 2.0
ROUNDING = 64
"""A series that varies by less than so many units in the last place is constant, as that of a linear net."""


@PROBES.register("shatter")
class Shatter:
    """One forward and one backward pass of 256 examples."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "input_grad_lag_1": "autocorrelation at lag 1 of the gradient of the first output along a line of 256 inputs: "
        "near 1 of a smooth curve, near 0 of white noise, shattered gradients (Balduzzi et al. 2017); null where it is "
        "constant, but for rounding"
    }

    def measure(self, snapshot: Snapshot) -> Raw:
        x, u = line_of_inputs(snapshot.batch.x, snapshot.seed)
        x.requires_grad_()
        outputs = outputs_at(snapshot.net.module, snapshot.before, x, "batch")
        (gradient,) = torch.autograd.grad(outputs.flatten(1)[:, 0].sum(), x)
        return {"g": (gradient * u).flatten(1).sum(dim=1)}  # [T]

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        g = raw["g"].astype(np.float64)
        apart = g - g.mean()
        if not np.ptp(g) > ROUNDING * np.finfo(raw["g"].dtype).eps * np.abs(g).max():
            return {"input_grad_lag_1": np.asarray(np.nan)}, carry
        return {"input_grad_lag_1": np.asarray((apart[1:] * apart[:-1]).sum() / (apart**2).sum())}, carry


def line_of_inputs(like: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """x [T, ...] along the line, and its direction u [...]; `like` [B, ...]: examples of that shape and dtype."""
    draws = stream(seed, "probe", "shatter")
    x0, u = (torch.randn(like.shape[1:], generator=draws).to(like) for _ in range(2))
    t = torch.linspace(-REACH, REACH, POINTS, dtype=like.dtype, device=like.device)
    return x0 + t.view(-1, *(1 for _ in u.shape)) * u, u
