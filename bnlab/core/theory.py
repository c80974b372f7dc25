"""Closed forms that measurements are held against. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


def gradient_growth(batch: int, activation: str) -> float:
    """By how much the *squared* norm of the loss's gradient at the pre-activations grows from one layer to the one
    below it, in a wide random net with batch norm (gamma 1, beta 0, eps 0), for batches of `batch` >= 4 examples.

    Yang et al. 2019, theorem 8: with c = -1 / (B - 1), J(x) = (sqrt(1 - x^2) + (pi - arccos x) x) / pi and J'(x) =
    (pi - arccos x) / pi, ReLU has (J'(c) + B - 1) / ((B - 3)(1 - J(c))) - 1 / (B - 3), which tends to pi / (pi - 1);
    a linear net has (B - 2) / (B - 3).

    >>> [round(gradient_growth(batch, "relu"), 3) for batch in (8, 64)]
    [1.788, 1.493]
    >>> gradient_growth(8, "linear")
    1.2
    """
    if batch < 4:
        raise ValueError(f"batch: the gradient's norm has no finite mean below 4 examples, got {batch}")
    if activation == "linear":
        return (batch - 2) / (batch - 3)
    if activation != "relu":
        raise ValueError(f"activation: no closed form but for relu and linear, got {activation!r}")
    c = -1 / (batch - 1)
    j = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    j_prime = (math.pi - math.acos(c)) / math.pi
    return (j_prime + batch - 1) / ((batch - 3) * (1 - j)) - 1 / (batch - 3)


def equilibrium_angle(lr: float, decay: float, momentum: float = 0.0) -> float:
    """By which angle, in radians, a weight whose scale a norm cancels turns a step, once its growth by gradients and
    its decay balance: sqrt(2 lr decay / (1 + momentum)), by SGD with decay added to the gradient.

    Wan et al. 2021 call it the angular update, Kosson et al. 2024 the rotational equilibrium (of the papers only the
    abstracts were read; the formula is derived here). Gradients g are at right angles to w and to each other, of length
    s. One moves w by lr / (1 - momentum) g in all, so ||w||^2 grows by (lr s / (1 - momentum))^2 and decays by
    2 lr decay / (1 - momentum) ||w||^2 a step, while a step's length is lr s / sqrt(1 - momentum^2).

    >>> round(equilibrium_angle(0.1, 0.005), 6), round(equilibrium_angle(0.1, 0.005, 0.9), 6)
    (0.031623, 0.022942)
    """
    if decay <= 0:
        raise ValueError(f"decay: there is no equilibrium without decay, got {decay}")
    return math.sqrt(2 * lr * decay / (1 + momentum))


OF_SPEC: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "gradient_growth": lambda spec: gradient_growth(spec["data.batch_size"], spec["model.activation"]),
    "equilibrium_angle": lambda spec: equilibrium_angle(
        spec["optim.lr"], spec["optim.weight_decay"], spec["optim.momentum"]
    ),
}
"""The closed forms that a claim may compare with, as `theory.NAME`, from a run's flat spec."""
