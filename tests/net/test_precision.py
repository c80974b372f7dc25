"""Less than full precision: only in training steps, only in affine maps, and only where it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab import config
from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.net.evaluate import evaluate
from bnlab.net.wrap import AffineTap, NormTap, of_training
from bnlab.run.setup import Setup, assemble
from bnlab.verify.checks import refuse_differences, trace

SpecOf = Callable[..., RunSpec]


@pytest.fixture
def low(spec_of: SpecOf) -> Setup:
    return assemble(spec_of("precision=bfloat16", model="cnn"))


def through_sites(setup: Setup, x: Tensor) -> tuple[AffineTap, NormTap]:
    affine, norm = AffineTap(setup.net), NormTap(setup.net)
    with setup.precision, affine, norm:
        setup.net.module(x)
    return affine, norm


def test_affine_maps_are_those_of_rounded_factors_and_give_float32(low: Setup) -> None:
    """The twin rounds inputs, weights and outputs to bfloat16 by hand."""
    affine, norm = through_sites(low, low.batches.at(0).x)
    for site, given, out in zip(low.net.sites, affine.inputs, affine.outputs, strict=True):
        weight = site.affine.get_parameter("weight").bfloat16()
        bias = None if site.affine.bias is None else site.affine.get_parameter("bias").bfloat16()
        rounded = given.bfloat16()
        if isinstance(site.affine, torch.nn.Linear):
            twin = F.linear(rounded, weight, bias)
        else:
            assert isinstance(site.affine, torch.nn.Conv2d)
            twin = F.conv2d(rounded, weight, bias, site.affine.stride, site.affine.padding)
        assert out.dtype == torch.float32
        assert torch.equal(out, twin.float())
        assert not torch.equal(out, site.affine(given))
    assert all(seen.dtype == torch.float32 for seen in norm.seen.values())


def test_outside_of_training_steps_all_is_in_full(low: Setup, spec_of: SpecOf) -> None:
    """Before and after a step; weights and their gradients are in float32."""
    full = assemble(spec_of(model="cnn"))
    batch = low.batches.at(0)
    with low.precision:
        low.objective(low.net.module(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]
    assert {param.dtype for param in low.net.params.values()} == {torch.float32}
    assert {param.grad.dtype for param in low.net.params.values() if param.grad is not None} == {torch.float32}
    full.net.module.load_state_dict(low.net.module.state_dict())
    found, twin = (evaluate(of.inference, of.dataset.test, "cross_entropy", "mean") for of in (low, full))
    assert found == twin
    assert not any("forward" in vars(part) for part in low.net.module.modules())


def test_a_forward_that_a_module_had_of_its_own_is_used_and_kept(low: Setup) -> None:
    module = low.net.sites[0].affine
    own = module.forward
    called: list[torch.dtype] = []

    def noted(x: Tensor) -> Tensor:
        out: Tensor = own(x)
        called.append(out.dtype)
        return out

    module.__dict__["forward"] = noted
    for _ in range(2):
        with low.precision:
            low.net.module(low.batches.at(0).x)
    assert called == [torch.bfloat16] * 2
    assert vars(module)["forward"] is noted


def test_probes_change_nothing_in_less_than_full_precision_either(tmp_path: Path, spec_of: SpecOf) -> None:
    shared = ("precision=bfloat16", "norm=batch", "steps=6", "probes.eval_points=3")
    probes = ("probes=full", "probes.activations.batch=24", "probes.bn_statistics.examples=80", "probes.points=100")
    measured = trace(spec_of(*shared, *probes, model="cnn"), tmp_path / "full")
    bare = trace(spec_of(*shared, "probes=none", "probes.points=1", model="cnn"), tmp_path / "none")
    refuse_differences(measured, bare)


def test_a_run_in_bfloat16_learns_and_is_another_run(run: Callable[..., Any], spec_of: SpecOf) -> None:
    full, low = (spec_of("steps=60", f"precision={name}", model="cnn") for name in ("float32", "bfloat16"))
    assert full.id != low.id
    ends = [run(spec, where=spec.precision).status["metrics"]["train_loss"] for spec in (full, low)]
    assert ends[0] != ends[1]
    assert ends[1] == pytest.approx(ends[0], rel=0.1)


def test_tf32_is_on_in_training_steps_alone(low: Setup) -> None:
    """The switches, which a machine without a GPU has too."""

    def switches() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    tf32 = of_training("tf32", low.net, "cuda", "float32")
    for _ in range(2):
        with tf32:
            assert switches() == (True, True)
        assert switches() == (False, False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("precision=tf32",), r"^precision: not known to device=cpu, got 'tf32'\. Use device=cuda, or bfloat16\.$"),
        (("precision=bfloat16", "dtype=float64"), r"^precision: cannot go with dtype=float64, got 'bfloat16'"),
    ],
)
def test_an_unknown_precision_is_refused(overrides: tuple[str, ...], message: str, spec_of: SpecOf) -> None:
    with pytest.raises(UsageError, match=message):
        assemble(spec_of(*overrides))


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, False, "cuda"), (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_device_auto_is_the_best_available_and_is_part_of_the_id(
    cuda: bool, mps: bool, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnlab.run.host import best_device

    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    best_device.cache_clear()
    try:
        spec = config.load("deep_mlp", ("device=auto",))
    finally:
        best_device.cache_clear()
    assert spec.device == best
    assert spec.id == config.load("deep_mlp", (f"device={best}",)).id
