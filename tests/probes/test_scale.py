"""The scale of weights, number by number, and the law of its growth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import twins
from torch import nn

from bnlab.core.spec import RunSpec
from bnlab.core.theory import equilibrium_angle
from bnlab.probes.scale import _of_weight

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=none+scale", "dtype=float64", "steps=4")


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_are_those_of_sums_over_numbers(
    model: str, norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, f"norm={norm}", "optim.lr=0.3", model=model))
    for step, record in enumerate(run.records):
        for name, values in twins.scale(run.moment(step)).items():
            assert record[name] == pytest.approx(values, rel=1e-9, abs=1e-12), name


def test_below_a_batch_norm_the_norm_of_a_weight_grows_by_its_law(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    """Arora, Li & Lyu 2018, lemma 2.4."""
    for record in trained(spec_of(*PROBED, "norm=batch", "norm.eps=1e-12", "optim.lr=0.3")).records:
        assert record["weight_grad_cos"][:-1] == pytest.approx([0.0, 0.0], abs=1e-9)
        assert record["norm_law_error"][:-1] == pytest.approx([0.0, 0.0], abs=1e-12)
        assert abs(record["weight_grad_cos"][-1]) > 1e-3
        assert record["norm_law_error"][-1] > 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_weight_of_equal_length_turns_by_the_angle_of_the_law(dtype: str) -> None:
    """w' = (1 - lr decay) w - lr g with g at a right angle to w, so long that ||w'|| = ||w||."""
    lr, decay = 0.1, 1e-4
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=getattr(torch, dtype)))
    before = w.detach().clone()
    g = torch.tensor([-4.0, 3.0], dtype=w.dtype) * math.sqrt(1 - (1 - lr * decay) ** 2) / lr
    w.grad = g + decay * before
    with torch.no_grad():
        w.sub_(lr * w.grad)
    angle = float(_of_weight(before, w, lr)[4])
    assert angle == pytest.approx(math.acos(1 - lr * decay), rel=1e-4 if dtype == "float32" else 1e-9)
    assert angle == pytest.approx(equilibrium_angle(lr, decay), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "null"),
    [((), [False] * 4), (("optim.momentum=0.9",), [False, True, True, True]), (("optim=adam",), [True] * 4),
     (("optim.weight_decay=1e-3",), [True] * 4)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_law_is_that_of_a_plain_step(
    dtype: str, options: tuple[str, ...], null: list[bool], spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    records = trained(spec_of("probes=none+scale", f"dtype={dtype}", "steps=4", *options)).records
    assert [record["norm_law_error"][0] is None for record in records] == null
