"""From a spec to the parts of a run: which are paired, and which settings are refused before anything is written."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.run.setup import assemble

SpecOf = Callable[..., RunSpec]
MODELS = ["mlp", "cnn", "deep_linear"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("arm", [["norm=batch"], ["norm=batch_reference"], ["norm=batch", "norm.position=after"]])
def test_two_arms_of_one_seed_share_weights_batches_and_probe_batch(
    model: str, arm: list[str], spec_of: SpecOf, bits_of: Callable[[Any], Any]
) -> None:
    small = "probes.activations.batch=24"
    plain, normed = (assemble(spec_of(*of_arm, small, model=model)) for of_arm in (["norm=none"], arm))
    for one, other in zip(plain.net.sites, normed.net.sites, strict=True):
        assert one.name == other.name
        weights = [site.affine.get_parameter("weight") for site in (one, other)]
        assert bits_of(weights[0]) == bits_of(weights[1])
    for step in (0, 1, 200):
        batches = [setup.batches.at(step) for setup in (plain, normed)]
        assert bits_of([batches[0].x, batches[0].y]) == bits_of([batches[1].x, batches[1].y])
    probe = [setup.observer.probe_batch for setup in (plain, normed)]
    assert bits_of([probe[0].x, probe[0].y]) == bits_of([probe[1].x, probe[1].y])


@pytest.mark.parametrize("model", MODELS)
def test_another_seed_has_other_weights_batches_and_probe_batch(model: str, spec_of: SpecOf) -> None:
    one, other = (assemble(spec_of(f"seed={seed}", "probes.activations.batch=8", model=model)) for seed in (0, 1))
    for site, twin in zip(one.net.sites, other.net.sites, strict=True):
        assert not torch.equal(site.affine.get_parameter("weight"), twin.affine.get_parameter("weight"))
    assert not torch.equal(one.batches.at(0).x, other.batches.at(0).x)
    assert not torch.equal(one.observer.probe_batch.x, other.observer.probe_batch.x)


def test_the_probe_batch_is_of_the_training_split_and_has_the_given_size(spec_of: SpecOf) -> None:
    setup = assemble(spec_of("probes.activations.batch=40"))
    batch = setup.observer.probe_batch
    assert len(batch) == 40
    train = {tuple(image) for image in setup.dataset.train.x.flatten(1).tolist()}
    assert all(tuple(image) in train for image in batch.x.flatten(1).tolist())


def test_a_subset_is_all_that_a_run_trains_on_and_the_test_split_stays(
    spec_of: SpecOf, bits_of: Callable[[Any], Any]
) -> None:
    """Inputs are normalized, and batches and the probe batch taken, from the subset alone."""
    whole, part = (assemble(spec_of("data.normalize=none", f"data.subset={n}")) for n in ("null", "200"))
    assert bits_of(part.dataset.test.x) == bits_of(whole.dataset.test.x)
    assert torch.bincount(part.dataset.train.y).tolist() == [20] * 10
    assert part.batches.per_epoch == 200 // 16
    kept = {tuple(image) for image in part.dataset.train.x.flatten(1).tolist()}
    for seen in (part.batches.at(0), part.observer.probe_batch):
        assert {tuple(image) for image in seen.x.flatten(1).tolist()} <= kept
    shifted = assemble(spec_of("data.subset=200")).dataset.train.x.double()
    assert float(shifted.mean()) == pytest.approx(0, abs=1e-6)
    assert float(shifted.var(correction=0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_has_the_dtype_of_the_spec(dtype: str, spec_of: SpecOf) -> None:
    setup = assemble(spec_of(f"dtype={dtype}"))
    wanted = getattr(torch, dtype)
    assert {param.dtype for param in setup.net.module.parameters()} == {wanted}
    assert setup.batches.at(0).x.dtype == wanted
    assert setup.observer.probe_batch.x.dtype == wanted


@pytest.mark.parametrize(("epochs", "expected"), [("1", 89), ("2", 178), ("0.5", 45), ("0.001", 1)])
def test_epochs_are_counted_in_whole_batches_and_rounded_up(epochs: str, expected: int, spec_of: SpecOf) -> None:
    """1,438 training digits give 89 batches of 16."""
    assert math.ceil(float(epochs) * (1438 // 16)) == expected
    assert assemble(spec_of(f"epochs={epochs}", "steps=null")).steps == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.batch_size=1"],
            r"data\.batch_size: gives norm=batch one value per channel at L00_fc, got 1\. Batch stat",
        ),
        (
            ["data.batch_size=1439"],
            r"data\.batch_size: larger than the 1438 training examples, got 1439\. Use a smaller",
        ),
        (
            ["data.subset=1439"],
            r"data\.subset: larger than the 1438 training examples, got 1439\. Use a smaller one\.$",
        ),
        (["data.subset=9"], r"data\.subset: fewer than the 10 classes, got 9\. Use a larger one\.$"),
        (["data.subset=12"], r"data\.batch_size: larger than the 12 training examples, got 16\. Use a smaller"),
        (["norm.layers=[2]"], r"norm\.layers: layer 2 does not exist, got \[2\]\. This net has: 0 to 1\.$"),
        (["norm.every=3"], r"norm\.every: no layer is the 3th of 2, got 3\. Use a smaller one\.$"),
        (["norm.eps=0"], r"norm\.eps: must be a number above 0, got 0\.$"),
        (["norm.momentum=2"], r"norm\.momentum: must be at most 1, got 2\.$"),
        (["optim.momentum=1"], r"optim\.momentum: must be below 1, got 1\.$"),
        (["data=linear_teacher"], r"loss: data=linear_teacher has no classes, got 'cross_entropy'\. Use loss=mse\.$"),
        (["plugins=[nowhere.py]"], r"plugins: no such file, got 'nowhere\.py'\. Give a path to a Python file\.$"),
        (["probes.activations.batch=2"], r"probes\.activations\.batch: must be at least 4, got 2\.$"),
        (["probes.activations.batch=9"], r"probes\.activations\.batch: must be a multiple of 2, got 9\.$"),
        (["probes.activations.every=0"], r"probes\.activations\.every: must be at least 1, got 0\.$"),
        (
            ["probes.activations.batch=1440"],
            r"probes\.activations\.batch: larger than the 1438 training examples, got 1440",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(overrides: list[str], message: str, spec_of: SpecOf) -> None:
    with pytest.raises(UsageError, match=f"^{message}") as caught:
        assemble(spec_of(*overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_missing_device_is_refused(device: str, spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(
        UsageError, match=rf"^device: not available on this machine, got '{device}'\. Use device=cpu\.$"
    ):
        assemble(spec_of(f"device={device}"))


def test_a_single_example_is_welcome_without_batch_statistics(spec_of: SpecOf, run: Callable[..., Any]) -> None:
    assert run(spec_of("norm=none", "data.batch_size=1", "probes=economy")).status["status"] == "finished"


@pytest.mark.parametrize("norm", ["batch", "batch_reference", "none"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_batch_too_small_to_be_halved_is_refused_where_its_halves_are_measured(
    size: int, norm: str, spec_of: SpecOf, run: Callable[..., Any]
) -> None:
    """The gradient noise compares two halves of a batch, each with batch statistics of its own: refused beforehand or
    measured, never an error in the middle of a run, never a NaN, and never a measurement of an empty half."""
    spec = spec_of(f"norm={norm}", f"data.batch_size={size}", "probes=standard")
    try:
        assemble(spec)
    except UsageError as error:
        assert size < 4
        assert "data.batch_size" in str(error)  # noqa: PT017
        return
    ended = run(spec)
    assert ended.status["status"] == "finished"
    noises = [record["grad_noise"] for record in ended.records if "grad_noise" in record]
    assert None not in noises
    assert size > 1 or noises == []


WORST_GRADIENT = """
import copy, sys, torch
from bnlab import config
from bnlab.run.setup import assemble
spec = config.load("cnn_digits", ["model=resnet", "model.depth=8", "model.width=0.25", "model.shortcut=B", sys.argv[1]])
setup = assemble(spec)
batch = setup.batches.at(0)
alone = copy.deepcopy(setup.net.module).double()
loss = torch.nn.functional.cross_entropy
for net, x in ((setup.net.module, batch.x), (alone, batch.x.double())):
    loss(net(x), batch.y).backward()
pairs = zip(setup.net.module.parameters(), alone.parameters(), strict=True)
print(max(float((a.grad - b.grad).abs().max() / (b.grad.abs().max() + 1e-3)) for a, b in pairs))
"""


@pytest.mark.parametrize("norm", ["batch", "whiten"])  # whiten hands on channels last
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_narrow_residual_net_has_its_gradients_without_avx512(threads: str, norm: str) -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    child = subprocess.run(
        [sys.executable, "-c", WORST_GRADIENT, f"norm={norm}"], env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert float(child.stdout) < {"batch": 1e-4, "whiten": 0.1}[norm]  # whitening magnifies rounding
