"""Closed forms against the numbers of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bnlab.core.theory import OF_SPEC, equilibrium_angle, gradient_growth


@pytest.mark.parametrize(
    ("batch", "growth"), [(4, 3.084), (8, 1.788), (16, 1.590), (32, 1.522), (64, 1.493), (128, 1.480), (256, 1.473)]
)
def test_relu_grows_as_theorem_8_says(batch: int, growth: float) -> None:
    assert gradient_growth(batch, "relu") == pytest.approx(growth, abs=6e-4)


def test_large_batches_tend_to_pi_over_pi_minus_1() -> None:
    assert gradient_growth(10**6, "relu") == pytest.approx(math.pi / (math.pi - 1), rel=1e-5)


@pytest.mark.parametrize(("batch", "growth"), [(8, 1.2), (16, 1.0769), (32, 1.0345), (128, 1.008)])
def test_a_linear_net_grows_least(batch: int, growth: float) -> None:
    assert gradient_growth(batch, "linear") == pytest.approx(growth, abs=6e-5)
    assert gradient_growth(batch, "linear") < gradient_growth(batch, "relu")


def test_what_has_no_closed_form_is_refused() -> None:
    with pytest.raises(ValueError, match="below 4 examples, got 3"):
        gradient_growth(3, "relu")
    with pytest.raises(ValueError, match="got 'tanh'"):
        gradient_growth(8, "tanh")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_weight_of_random_gradients_at_right_angles_turns_by_the_equilibrium_angle(momentum: float) -> None:
    lr, decay, draws = 0.1, 0.02, np.random.default_rng(0)
    w, velocity, angles = draws.standard_normal(2000), np.zeros(2000), []
    for step in range(3000):
        g = draws.standard_normal(2000)
        g -= (g @ w) / (w @ w) * w
        velocity = momentum * velocity + g + decay * w
        after = w - lr * velocity
        if step >= 1500:
            angles.append(math.acos(w @ after / np.linalg.norm(w) / np.linalg.norm(after)))
        w = after
    assert np.mean(angles) == pytest.approx(equilibrium_angle(lr, decay, momentum), rel=0.02)
    spec = {"optim.lr": lr, "optim.weight_decay": decay, "optim.momentum": momentum}
    assert OF_SPEC["equilibrium_angle"](spec) == equilibrium_angle(lr, decay, momentum)


def test_without_decay_there_is_no_equilibrium() -> None:
    with pytest.raises(ValueError, match=r"^decay: there is no equilibrium without decay, got 0"):
        equilibrium_angle(0.1, 0.0)
