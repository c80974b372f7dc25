"""What trainers call what bnlab calls by another name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

HELD_OUT = ("val_", "valid_", "validation_", "eval_", "test_")
SHORT = {"acc": "accuracy"}


def logged(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a trainer's metrics of its validation, as bnlab names those of held-out data.

    >>> logged({"val_loss": 0.5, "eval_acc": 0.9, "epoch": 2.0, "lr": 0.1})
    {'test_loss': 0.5, 'test_accuracy': 0.9}
    """
    found = {}
    for name, value in metrics.items():
        prefix = next((one for one in HELD_OUT if name.startswith(one)), None)
        single = hasattr(value, "__float__") and not getattr(value, "ndim", 0)  # and no array
        if prefix is not None and single and math.isfinite(float(value)):
            rest = name.removeprefix(prefix)
            found[f"test_{SHORT.get(rest, rest)}"] = float(value)
    return found
