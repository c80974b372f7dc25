"""The loop: repeatable to the bit; runs that diverge or learn nothing are recognized."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bnlab.core.spec import RunSpec
from bnlab.core.state import Loss
from bnlab.optim.base import learning_rate
from bnlab.record.folder import RunFolder
from bnlab.record.journal import read
from bnlab.record.runs import DIVERGED_ABOVE
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import Guard, RunFailedError, train

SpecOf = Callable[..., RunSpec]
Run = Callable[..., Any]


# -- what a run does -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "cnn", "deep_linear"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_run_is_the_bare_hand_written_loop(norm: str, model: str, spec_of: SpecOf, run: Run) -> None:
    spec = spec_of(f"norm={norm}", "probes=none", "optim.momentum=0.9", "optim.schedule=cosine", model=model)
    ended = run(spec)
    bare = assemble(spec)
    module = bare.net.module
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9)
    losses = []
    for step in range(12):
        optimizer.param_groups[0]["lr"] = learning_rate(spec.optim, step, 12)
        batch = bare.batches.at(step)
        loss = bare.objective(module(batch.x), batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for (name, one), (_, other) in zip(
        ended.setup.net.module.state_dict().items(), module.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    journal = [record["train_loss"] for record in ended.records if "train_loss" in record]
    assert journal == pytest.approx(losses, rel=1e-7)
    assert ended.status["status"] == "finished"

    module.eval()
    for split, data in (("train", bare.dataset.train), ("test", bare.dataset.test)):
        out = module(data.x).detach()
        loss = Loss(spec.loss, spec.reduction)(out.double(), data.y.double() if model == "deep_linear" else data.y)
        assert ended.status["metrics"][f"{split}_loss"] == pytest.approx(loss.item(), rel=1e-5)
        if model != "deep_linear":
            accuracy = (out.argmax(dim=1) == data.y).double().mean().item()
            assert ended.status["metrics"][f"{split}_accuracy"] == pytest.approx(accuracy, rel=1e-6)


@pytest.mark.parametrize("model", ["mlp", "cnn", "deep_linear"])
@pytest.mark.parametrize("norm", ["none", "batch", "batch_reference"])
def test_two_runs_of_one_spec_agree_in_every_bit(
    norm: str, model: str, spec_of: SpecOf, run: Run, state_bits: Callable[..., Any]
) -> None:
    spec = spec_of(f"norm={norm}", "optim.momentum=0.9", "probes=full", "probes.activations.batch=24", model=model)
    one, other = run(spec, "one"), run(spec, "other")
    assert state_bits(one.setup) == state_bits(other.setup)
    assert one.clockless == other.clockless
    assert len(one.records) == 13
    assert one.status["metrics"] == other.status["metrics"]


def test_another_seed_is_another_run(spec_of: SpecOf, run: Run) -> None:
    one, other = run(spec_of("seed=0"), "one"), run(spec_of("seed=1"), "other")
    assert one.records[0]["train_loss"] != other.records[0]["train_loss"]


def test_a_record_s_first_loss_is_that_of_the_initial_weights(spec_of: SpecOf, run: Run) -> None:
    spec = spec_of("norm=none", "dtype=float64")
    fresh = assemble(spec)
    batch = fresh.batches.at(0)
    expected = fresh.objective(fresh.net.module(batch.x), batch.y).item()
    accuracy = (fresh.net.module(batch.x).argmax(dim=1) == batch.y).double().mean().item()
    record = run(spec).records[0]
    assert record["train_loss"] == pytest.approx(expected, rel=1e-13)
    assert record["train_accuracy"] == pytest.approx(accuracy)


def test_records_stand_at_the_scheduled_steps_and_the_test_set_at_its_own(spec_of: SpecOf, run: Run) -> None:
    spec = spec_of("steps=40", "probes.points=4", "probes.eval_points=2", "probes=none")
    records = run(spec).records
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4, 6, 8, 10, 20, 30, 39, 40]
    assert [record["step"] for record in records if "test_loss" in record] == [0, 20, 40]
    assert all("train_loss" in record for record in records[:-1])
    assert "train_loss" not in records[-1]


def test_the_last_record_and_the_status_agree(spec_of: SpecOf, run: Run) -> None:
    ended = run(spec_of())
    last = ended.records[-1]
    assert last["step"] == ended.status["step"] == ended.status["steps"] == 12
    for name in ("test_loss", "test_accuracy"):
        assert last[name] == pytest.approx(ended.status["metrics"][name], rel=1e-7)
    assert json.loads(ended.folder.status_file.read_text()) == ended.status
    assert ended.status["timing"]["run_s"] > ended.status["timing"]["measure_s"] > 0
    assert ended.status["timing"]["nets"] == 1
    assert ended.status["parameters"] == sum(x.numel() for x in ended.setup.net.module.parameters())


def test_a_listener_receives_every_record(spec_of: SpecOf, run: Run) -> None:
    heard: list[Any] = []
    ended = run(spec_of(), listen=heard.append)
    assert [record["step"] for record in heard] == [record["step"] for record in ended.records]


def test_a_folder_holds_the_spec_it_ran_with_and_where(spec_of: SpecOf, run: Run) -> None:
    spec = spec_of("norm=none")
    written = run(spec).folder.spec()
    provenance = written.pop("provenance")
    assert RunSpec.from_tree(written) == spec
    assert RunSpec.from_tree(written).id == spec.id
    assert provenance["torch"] == torch.__version__
    assert provenance["threads"] == 1


def test_a_run_that_has_ended_is_not_touched_unless_fresh(spec_of: SpecOf, run: Run) -> None:
    spec = spec_of()
    first = run(spec)
    files = {file.name: file.read_bytes() for file in first.folder.path.iterdir() if file.name != "lock"}
    again = run(spec)
    assert again.status == first.status
    assert {file.name: file.read_bytes() for file in first.folder.path.iterdir() if file.name != "lock"} == files
    fresh = run(spec, fresh=True)
    assert fresh.clockless == first.clockless
    assert fresh.records[0]["wall_s"] > first.records[-1]["wall_s"]


def test_an_error_inside_a_run_is_recorded_and_the_run_can_be_taken_up_again(
    spec_of: SpecOf, run: Run, tmp_path: Path, state_bits: Callable[..., Any]
) -> None:
    spec = spec_of("launch.checkpoint_s=0")
    whole = run(spec, "whole")
    setup = assemble(spec)
    calls = 0

    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise ArithmeticError("out of luck")
        return Loss("cross_entropy", "mean")(outputs, targets)

    folder = RunFolder(tmp_path / "failed")
    with pytest.raises(RunFailedError, match=r"^ArithmeticError: out of luck\. The traceback is in .*log\.txt\.$"):
        train(replace(setup, objective=fails), folder)
    assert folder.status() == {"status": "failed", "error": "ArithmeticError: out of luck"}
    assert "Traceback" in (folder.path / "log.txt").read_text()
    resumed = run(spec, "failed")
    assert resumed.clockless == whole.clockless
    assert state_bits(resumed.setup) == state_bits(whole.setup)


# -- divergence ------------------------------------------------------------------------------------


def _explode(setup: Setup, site: str, step: int = 0) -> None:
    """Makes that step's first example overflow at that site, and nowhere before it.

    Every product of that example has one sign (inputs of later sites are outputs of a ReLU), so that its sums are
    infinite in whatever order and width a processor adds them.
    """
    first = setup.batches.at(step).x[0].flatten().sign() if site == "L00_fc" else torch.tensor(1.0)
    with torch.no_grad():
        weight = setup.net.module.get_parameter(f"{site}_affine.weight")
        weight.copy_((3e38 * first).expand_as(weight))
        setup.net.module.get_parameter(f"{site}_affine.bias").fill_(3e38)


@pytest.mark.parametrize("site", ["L00_fc", "L02_fc", "L04_out"])
@pytest.mark.parametrize("step", [0, 3])
def test_a_run_that_overflows_names_the_step_and_the_site(
    step: int, site: str, spec_of: SpecOf, tmp_path: Path
) -> None:
    spec = spec_of("norm=none", "model.depth=4", "optim.lr=1e-6", "probes.points=2")
    setup = assemble(spec)
    asked = -1

    def at_that_step() -> None:
        nonlocal asked
        asked += 1
        if asked == step:
            _explode(setup, site, step)

    folder = RunFolder(tmp_path)
    status = train(setup, folder, stopped=at_that_step)
    assert (status["status"], status["step"]) == ("diverged", step)
    assert status["diverged"] == {"step": step, "loss": None, "site": site}
    assert set(status["metrics"].values()) == {None}
    assert set(status["metrics"]) == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    records = list(read(folder.journal_file))
    assert (records[-1]["step"], records[-1]["train_loss"]) == (step, None)
    assert f"diverged at step {step}" in (folder.path / "log.txt").read_text()


def test_the_status_of_a_diverged_run_is_json_that_any_reader_takes(spec_of: SpecOf, tmp_path: Path) -> None:
    """NaN and Infinity are not valid JSON; `bnlab train --json` and other languages read this file."""
    setup = assemble(spec_of("norm=none"))
    _explode(setup, "L01_fc")
    train(setup, RunFolder(tmp_path))

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    status = json.loads((tmp_path / "status.json").read_text(), parse_constant=refuse)
    assert status["status"] == "diverged"


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_loss_above_1000_times_the_first_is_a_divergence_and_one_below_is_not(
    factor: float, spec_of: SpecOf, tmp_path: Path
) -> None:
    """The loss is multiplied at step 5: finite activations everywhere."""
    setup = assemble(spec_of("norm=none", "optim.lr=1e-6", "probes.points=2"))
    calls = 0
    first = 0.0

    def jump(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls, first
        loss = setup.objective(outputs, targets)
        first = first or loss.item()
        calls += 1
        return loss * (factor * DIVERGED_ABOVE * first / loss.item()) if calls == 6 else loss

    status = train(replace(setup, objective=jump), RunFolder(tmp_path))
    assert DIVERGED_ABOVE == 1e3
    if factor < 1:
        assert status["status"] == "finished"
    else:
        assert (status["status"], status["step"]) == ("diverged", 5)
        assert status["diverged"]["site"] is None
        assert status["diverged"]["loss"] == pytest.approx(1.1e3 * first, rel=1e-5)


def test_weights_that_overflow_in_the_very_last_update_are_a_divergence(spec_of: SpecOf, run: Run) -> None:
    ended = run(spec_of("norm=none", "steps=1", "optim.lr=1e38", "optim.weight_decay=1e38"))
    assert (ended.status["status"], ended.status["step"]) == ("diverged", 1)


def test_a_diverged_run_is_not_taken_up_again(spec_of: SpecOf, run: Run) -> None:
    spec = spec_of("norm=none", "optim.lr=1e6", "model.depth=4")
    first = run(spec)
    assert first.status["status"] == "diverged"
    again = run(spec)
    assert again.status == first.status
    assert again.records == first.records


# -- dead ------------------------------------------------------------------------------------------


def test_a_net_that_ends_at_chance_is_dead_and_one_that_learns_is_not(spec_of: SpecOf, tmp_path: Path) -> None:
    spec = spec_of("norm=none", "steps=60", "data.batch_size=60", "optim.lr=0.2", "model.width=20")
    alive = train(assemble(spec), RunFolder(tmp_path / "alive"))
    assert alive["dead"] is False
    assert alive["metrics"]["train_accuracy"] > 0.5
    setup = assemble(spec)
    with torch.no_grad():  # every ReLU off on every input: the output no longer depends on x
        setup.net.module.get_parameter("L00_fc_affine.bias").fill_(-100.0)
    dead = train(setup, RunFolder(tmp_path / "dead"))
    assert (dead["status"], dead["dead"]) == ("finished", True)
    assert dead["metrics"]["train_accuracy"] < 0.11
    assert dead["metrics"]["train_loss"] == pytest.approx(math.log(10), rel=0.02)


def test_a_regression_that_answers_the_mean_is_dead(spec_of: SpecOf, tmp_path: Path) -> None:
    spec = spec_of("norm=none", "optim.lr=1e-12", model="deep_linear")
    setup = assemble(spec)
    with torch.no_grad():
        setup.net.sites[-1].affine.get_parameter("weight").zero_()
    assert train(setup, RunFolder(tmp_path / "dead"))["dead"] is True
    better = assemble(spec_of("norm=none", "steps=300", "optim.lr=1e-3", "model.depth=2", model="deep_linear"))
    assert train(better, RunFolder(tmp_path / "alive"))["dead"] is False


# -- the guard -------------------------------------------------------------------------------------


def _guard(values: list[float], *, at_once: bool, settle_every: int) -> tuple[int | None, Guard]:
    """The step at which the guard reports a divergence, and the guard."""
    guard = Guard(at_once=at_once, initial_loss=None)
    for step, value in enumerate(values):
        if guard.diverged(step, torch.tensor(value), settle=step % settle_every == 0):
            return step, guard
    return (len(values), guard) if guard.settle() else (None, guard)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 2001.0])
@pytest.mark.parametrize("at", [0, 1, 7, 10])
def test_a_guard_that_looks_later_finds_the_same_step(bad: float, at: int) -> None:
    values = [2.0] * 12
    values[at] = bad
    values[at + 1 :] = [math.nan] * (11 - at)
    if at == 0 and math.isfinite(bad):
        return  # the first loss is the reference
    spoke, eager = _guard(values, at_once=True, settle_every=1)
    assert spoke == at
    spoke, later = _guard(values, at_once=False, settle_every=5)
    assert spoke == min(step for step in (0, 5, 10, 12) if step >= at)
    for guard in (eager, later):
        assert guard.step == at
        assert guard.value == bad or math.isnan(bad)
        assert guard.initial_loss == values[0] or at == 0


def test_a_guard_is_silent_while_the_loss_is_bounded() -> None:
    spoke, guard = _guard([2.0, 1999.0, 0.0, 2000.0], at_once=False, settle_every=2)
    assert spoke is None
    assert guard.initial_loss == 2.0
    assert guard.settle() is False


def test_a_resumed_guard_keeps_the_measure_it_began_with() -> None:
    guard = Guard(at_once=True, initial_loss=0.5)
    assert guard.diverged(7, torch.tensor(499.0), settle=False) is False
    assert guard.diverged(8, torch.tensor(501.0), settle=False) is True
    assert (guard.step, guard.value) == (8, 501.0)
