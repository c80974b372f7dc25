"""A run on a GPU: the measurements of the CPU, unchanged by its probes, resumed exactly. Needs a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bnlab.core.spec import RunSpec
from bnlab.verify.checks import refuse_differences, trace

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

SpecOf = Callable[..., RunSpec]
FULL = ("probes=full", "probes.activations.batch=24", "probes.bn_statistics.examples=80", "probes.points=100")
NETS = [("mlp", "batch"), ("mlp", "none"), ("cnn", "batch"), ("cnn", "layer"), ("resnet", "batch")]


@pytest.mark.parametrize(("model", "norm"), NETS)
def test_the_first_figures_are_those_of_the_processor(
    model: str, norm: str, run: Callable[..., Any], spec_of: SpecOf
) -> None:
    """Same weights, batches and probe batch: only the order of sums differs, in float64 far below 1e-7."""
    shared = (f"norm={norm}", "steps=3", "dtype=float64", *FULL)
    here = run(spec_of(*shared, model=model), where="cpu").records
    there = run(spec_of(*shared, f"device={DEVICE}", model=model), where="device").records
    for one, other in zip(here[:3], there[:3], strict=True):
        assert set(one) == set(other)
        for name in ("train_loss", "grad_norm_total", "grad_norm", "batch_mean", "act_var.pre"):
            np.testing.assert_allclose(
                np.asarray(other[name], dtype=float), np.asarray(one[name], dtype=float), rtol=1e-7, atol=1e-9
            )


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(("model", "norm"), NETS)
def test_probes_leave_a_run_alone(model: str, norm: str, precision: str, tmp_path: Path, spec_of: SpecOf) -> None:
    shared = (f"norm={norm}", "steps=6", f"device={DEVICE}", f"precision={precision}", "probes.eval_points=3")
    measured = trace(spec_of(*shared, *FULL, model=model), tmp_path / "full")
    bare = trace(spec_of(*shared, "probes=none", "probes.points=1", model=model), tmp_path / "none")
    refuse_differences(measured, bare)


@pytest.mark.parametrize(("model", "norm"), NETS)
def test_an_interrupted_run_resumes_where_it_was(
    model: str, norm: str, run: Callable[..., Any], spec_of: SpecOf, state_bits: Callable[[Any], Any]
) -> None:
    spec = spec_of(f"norm={norm}", "steps=10", f"device={DEVICE}", *FULL, model=model)
    whole = run(spec, where="whole")
    steps = iter(range(100))
    run(spec, where="parts", stopped=lambda: "test" if next(steps) == 4 else None)
    parts = run(spec, where="parts")
    assert parts.clockless == whole.clockless
    assert state_bits(parts.setup) == state_bits(whole.setup)


def test_tf32_and_bfloat16_are_other_runs_that_learn_as_well(run: Callable[..., Any], spec_of: SpecOf) -> None:
    ends = [
        run(spec_of("steps=100", f"device={DEVICE}", f"precision={name}", model="cnn"), where=name).status["metrics"]
        for name in ("float32", "tf32", "bfloat16")
    ]
    losses = [end["train_loss"] for end in ends]
    assert losses[2] != losses[0]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=0.1)
