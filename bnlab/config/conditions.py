"""The grammar of conditions under which trained nets are evaluated: `eval_bn=batch eval_batch_size=2,64`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from bnlab.config.compose import hydra_over, rounded
from bnlab.config.overrides import Overrides, refuse_many, texts
from bnlab.config.places import config_dirs
from bnlab.core.conditions import DEFAULTS, Condition, conditions
from bnlab.core.errors import UsageError, nearest
from bnlab.core.spec import EvalBN

KEYS = (*DEFAULTS, "device")


def load_conditions(overrides: Sequence[str], user_dir: Path | None = None) -> list[Condition]:
    """Every combination of the given values, the last key fastest; with every `eval_bn` if none is given.

    Raises:
        UsageError: another key, a key given twice, no value.
    """
    with hydra_over(config_dirs(user_dir)) as reader:
        return conditions([read_grid(overrides, reader)])


def read_grid(overrides: Sequence[str], reader: Overrides, keys: Sequence[str] = KEYS) -> dict[str, list[Any]]:
    """The values of each key, in the order of the keys.

    Raises:
        UsageError: as `load_conditions`.
    """
    axes: dict[str, list[Any]] = {}
    for text in overrides:
        override = reader.read(text)
        key = override.key_or_group
        if key not in keys:
            raise UsageError(key, "not a key of an evaluation", remedy=nearest(key, keys))
        if key in axes:
            raise UsageError(key, "given twice", text, "Give it once, its values between commas.")
        values = [reader.read(f"{key}={value}").value() for value in texts(override, ())]
        axes[key] = [rounded(value) for value in values]
    axes.setdefault("eval_bn", list(get_args(EvalBN)))
    refuse_many("the grid of " + " x ".join(axes), math.prod(map(len, axes.values())))
    return {key: axes[key] for key in keys if key in axes}
