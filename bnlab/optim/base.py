"""Types of options of optimizers, and learning-rate schedules: functions of the step, which keep no state."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from bnlab.core.spec import OptimSpec

Beta = Annotated[float, Ge(0), Lt(1)]
Eps = Annotated[float, Gt(0), Lt(math.inf)]
WeightDecay = Annotated[float, Ge(0), Lt(math.inf)]


def learning_rate(optim: OptimSpec, step: int, steps: int, rate: float | None = None) -> float:
    """The learning rate of one step: `optim.lr` times a linear warm-up, then the schedule; or `rate` in place of
    `optim.lr`, for a group of parameters with a rate of its own.

    - warm-up: step t of the first `warmup_steps` has (t + 1) / warmup_steps of the rate
    - `step`: times `drop_factor` at each share of training in `drop_at`
    - `cosine`: from the rate down to 0 along half a cosine (Loshchilov & Hutter 2017, eq. 5, one cycle)
    """
    warm = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    match optim.schedule:
        case "constant":
            factor = 1.0
        case "step":
            factor = optim.drop_factor ** sum(step >= share * steps for share in optim.drop_at)
        case "cosine":
            done = max(0, step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
            factor = (1 + math.cos(math.pi * done)) / 2
    return (optim.lr if rate is None else rate) * warm * factor
