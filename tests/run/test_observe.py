"""Measuring does not change the run: bit by bit, for every norm, model, position and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bnlab import config
from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS, PROBES, Entry
from bnlab.core.spec import ProbesSpec, RunSpec
from bnlab.net.build import Net
from bnlab.probes.base import NO_DATA
from bnlab.record.folder import RunFolder
from bnlab.run.observe import Schedule, first_non_finite_site
from bnlab.run.setup import assemble
from bnlab.run.train import RunFailedError, train
from bnlab.verify.checks import BrokenError, Trace, hooks, refuse_differences, trace, unlike

OPTIMIZERS = {"sgd": ("optim.momentum=0.9", "optim.weight_decay=1e-3"), "adam": ("optim=adam", "optim.lr=0.01")}
FULL = (
    "+".join(["probes=full", *config.available("probes/one", [config.packaged_dir()])]),
    "probes.activations.batch=24",
    "probes.representation.batch=24",
    "probes.channels.batch=24",
    "probes.channels.channels=2",
    "probes.activations.histogram_every=1",
    "probes.bn_statistics.examples=80",
    "probes.shift_drift.examples=80",
    "probes.points=100",
)
EVERYWHERE = ("probes.points=100", "probes.eval_points=100")

MODEL_NAMES = list(config.available("model", [config.packaged_dir()]))
DENSE = ("mlp", "deep_linear")
NORM_NAMES = [name for name in config.available("norm", [config.packaged_dir()]) if name != "own"]


PAIRS = [("before", "sgd"), ("before", "adam"), ("after", "sgd"), ("after", "adam")]
LARGER = ("resnet", "separable_cnn", "vgg")
"""Nets that take longer: fewer steps."""
USUAL = ("batch", "none", "noisy_batch", "group")


def _pairs(norm: str, model: str) -> list[tuple[str, str]]:
    """The usual norms with every pair on the small nets; each norm with either position and optimizer on an MLP, and
    with one of them on each other net."""
    ends = [PAIRS[0], PAIRS[-1]]
    if model not in LARGER and norm in USUAL:
        return PAIRS
    if model == "mlp" or norm == "batch":
        return ends
    return PAIRS[:1] if model in LARGER else [ends[NORM_NAMES.index(norm) % 2]]


def _each_time(norm: str, model: str, pair: tuple[str, str]) -> bool:
    """Whether a case is in `make check`; all are in `make check-all`. Batch norm has every pair on two small nets;
    every norm has one pair on each small net, either position and optimizer in turn; of the larger nets, the residual
    one has the usual norms and the others batch norm."""
    ends = (PAIRS[0], PAIRS[-1])
    if norm == "batch" and model in ("mlp", "cnn"):
        return True
    if model in LARGER:
        return pair == PAIRS[0] and (norm == "batch" or (model == "resnet" and norm in USUAL))
    return pair == ends[NORM_NAMES.index(norm) % 2]


CASES = [
    pytest.param(norm, model, *pair, marks=[] if _each_time(norm, model, pair) else [pytest.mark.slow])
    for norm in NORM_NAMES
    for model in MODEL_NAMES
    for pair in _pairs(norm, model)
]


@pytest.mark.parametrize(("norm", "model", "position", "optimizer"), CASES)
def test_a_run_with_every_probe_is_bit_for_bit_the_run_with_none(
    norm: str,
    model: str,
    position: str,
    optimizer: str,
    tmp_path: Path,
    spec_of: Callable[..., RunSpec],
) -> None:
    steps = (4 if norm in USUAL else 2) if model in LARGER else 6
    spec = spec_of(f"norm={norm}", *OPTIMIZERS[optimizer], model=model)
    spec = replace(spec, steps=steps, norm=replace(spec.norm, position=position), probes=_probes(spec_of, model))
    if norm == "instance" and model in DENSE:
        with pytest.raises(UsageError, match="a dense layer has one value per channel and example"):
            assemble(spec)
        return
    measured = trace(spec, tmp_path / "full")
    bare = trace(replace(spec, probes=_probes(spec_of, model, "probes=none", "probes.points=1")), tmp_path / "none")
    refuse_differences(measured, bare)
    assert unlike(measured.kept, bare.kept) == []
    assert len(bare.kept["loss"]) == steps
    assert measured.hooks == bare.hooks == 0
    if norm != "ghost_batch":  # it counts the parts of a batch
        assert {int(value) for value in _buffers(measured, "num_batches_tracked")} <= {steps}, (
            "counted a measured batch"
        )


@cache
def _probes(spec_of: Callable[..., RunSpec], model: str, *overrides: str) -> ProbesSpec:
    return spec_of(*(overrides or FULL), "probes.eval_points=4", model=model).probes


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_at_rest_every_pass_is_that_of_the_training_step(
    norm: str, spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    """Also of norms whose forward depends on buffers: injected noise, running statistics in the forward."""
    model = "cnn" if norm == "instance" else "mlp"
    spec = spec_of(f"norm={norm}", "optim.lr=1e-8", "steps=6", "dtype=float64", model=model)
    spec = replace(spec, probes=_probes(spec_of, model))
    moves = norm in ("noisy_batch", "noisy_none", "batch_renorm", "frozen_batch")  # by its noise, its statistics
    for record in run(spec).records:
        if "loss_lo" in record:
            assert record["loss_lo"] == pytest.approx(record["train_loss"], rel=1e-4)
            assert record["loss_hi"] == pytest.approx(record["train_loss"], rel=1e-4)
            assert record["ics_cos"] == pytest.approx([1.0] * len(record["ics_cos"]), abs=1e-4)
        if "drift_mean.act_in" in record and not moves:
            drift = [value for value in record["drift_mean.act_in"] if value is not None]
            assert drift == pytest.approx([0.0] * len(drift), abs=1e-4)


def _buffers(traced: Trace, ending: str) -> list[Tensor]:
    return [value for name, value in traced.setup.net.module.named_buffers() if name.endswith(ending)]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("start", r"its start \(L00_fc_affine\.weight\) differs after the run$"),
        ("weight", r"its weight \(L00_fc_affine\.weight\) differs after the run$"),
        ("buffer", r"its buffer \(L00_fc_norm\.running_mean\) differs after the run$"),
        ("optimizer", r"its optimizer \(param_groups\) differs after the run$"),
        ("loss", r"its loss differs from step 2 on$"),
        ("torch's global random state", r"its torch's global random state differs after the run$"),
        ("train mode", r"its train mode \(\) differs after the run$"),
    ],
)
def test_a_difference_between_two_runs_is_seen_and_named(
    what: str, message: str, tmp_path: Path, spec_of: Callable[..., RunSpec]
) -> None:
    traced = trace(spec_of("steps=3", "probes=none"), tmp_path)
    refuse_differences(traced, traced)
    other = dict(traced.kept)
    value = other[what]
    if isinstance(value, dict):
        name = "param_groups" if what == "optimizer" else next(iter(value))
        other[what] = {**value, name: "changed"}
    else:
        other[what] = [*value[:-1], "changed"]
    with pytest.raises(BrokenError, match=f"^measuring changes the run: {message}"):
        refuse_differences(traced, replace(traced, kept=other))
    with pytest.raises(BrokenError, match=r"^2 hooks are left on the net after the run$"):
        refuse_differences(replace(traced, hooks=2), traced)
    untrained = traced.kept | {"start": traced.kept["weight"] | traced.kept["buffer"]}
    with pytest.raises(BrokenError, match=r"^nothing was trained"):
        refuse_differences(replace(traced, kept=untrained), traced)


class _Jitter(nn.Module):
    """A norm that draws from the global random state in training, and optionally in evaluation."""

    def __init__(self, channels: int, dims: int, *, in_use: bool) -> None:
        super().__init__()
        self.in_use = in_use

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training or self.in_use else x


@pytest.mark.parametrize("in_use", [False, True])
def test_a_norm_that_draws_from_the_global_random_state_draws_the_same_when_measured(
    in_use: bool,
    tmp_path: Path,
    spec_of: Callable[..., RunSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = Entry(name="jitter", constructor=_Jitter, traits=frozenset())
    monkeypatch.setitem(NORMS._entries, "jitter", entry)

    def traced(where: str, *overrides: str) -> Trace:
        spec = spec_of("norm=none", *overrides)
        spec = replace(spec, norm=replace(spec.norm, name="jitter", options={"in_use": in_use}))
        return trace(spec, tmp_path / where)

    measured = traced("full", *FULL, *EVERYWHERE)
    bare = traced("none", "probes=none", "probes.points=1", "probes.eval_points=1")
    refuse_differences(measured, bare)


class _Renewing(nn.Module):
    """A norm that replaces its buffer by a new tensor, as many hand-written ones do: `self.mean = ...`."""

    mean: Tensor
    count: Tensor

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
            self.count = self.count + 1
        return x - self.mean


def test_a_norm_that_renews_its_buffers_is_left_alone_too(
    tmp_path: Path,
    spec_of: Callable[..., RunSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = Entry(name="renewing", constructor=_Renewing, traits=frozenset())
    monkeypatch.setitem(NORMS._entries, "renewing", entry)

    def traced(where: str, *overrides: str) -> Trace:
        spec = spec_of("norm=none", *overrides)
        spec = replace(spec, norm=replace(spec.norm, name="renewing", options={}))
        return trace(spec, tmp_path / where)

    measured = traced("full", *FULL, *EVERYWHERE)
    bare = traced("none", "probes=none", "probes.points=1", "probes.eval_points=1")
    refuse_differences(measured, bare)
    assert [int(value) for value in _buffers(measured, "count")] == [12, 12]


def test_a_forward_that_somebody_put_over_a_part_s_own_is_still_there_afterwards(
    spec_of: Callable[..., RunSpec],
) -> None:
    """Some tools wrap the modules of a net in this way."""
    setup = assemble(spec_of("norm=batch"))
    norm = setup.net.sites[0].norm
    assert norm is not None
    calls: list[int] = []
    plain = norm.forward

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        out: Tensor = plain(x)
        return out

    vars(norm)["forward"] = counted
    x = setup.dataset.train.x[:8]
    assert first_non_finite_site(setup.net, x) is None
    assert len(calls) == 1
    assert vars(norm).get("forward") is counted


class _Raises:
    """A probe that fails at one step."""

    needs = frozenset({"training_sites", "delta_norms", "before", "probe_sites"})
    metrics: dict[str, str] = {}  # noqa: RUF012
    batch = 8

    def measure(self, snapshot: Any) -> Any:
        raise ArithmeticError("the probe failed")

    def summarize(self, raw: Any, carry: Any) -> Any:
        return {}, carry


class _Sees:
    """A probe that keeps the training split that it receives."""

    metrics: dict[str, str] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.needs: frozenset[str] = frozenset()
        self.seen: list[Any] = []

    def measure(self, snapshot: Any) -> Any:
        self.seen.append(snapshot.data)
        return {}

    def summarize(self, raw: Any, carry: Any) -> Any:
        return {}, carry


@pytest.mark.parametrize("asks", [False, True])
def test_the_training_split_is_handed_to_probes_that_ask_for_it(
    asks: bool, tmp_path: Path, spec_of: Callable[..., RunSpec]
) -> None:
    setup = assemble(spec_of("probes=none", "steps=2"))
    probe = _Sees()
    probe.needs = frozenset({"training_data"} if asks else ())
    setup = replace(setup, observer=replace(setup.observer, probes={"sees": probe}, every={"sees": 1}))
    train(setup, RunFolder(tmp_path))
    expected = setup.dataset.train if asks else NO_DATA
    assert len(NO_DATA) == 0
    assert len(probe.seen) == 2
    assert all(data is expected for data in probe.seen)


def test_no_hook_is_left_when_a_probe_fails(
    tmp_path: Path, spec_of: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROBES._entries, "raises", Entry(name="raises", constructor=_Raises, traits=frozenset()))
    spec = spec_of(*FULL)
    setup = assemble(replace(spec, probes=replace(spec.probes, options={**spec.probes.options, "raises": {}})))
    with pytest.raises(RunFailedError, match="ArithmeticError: the probe failed"):
        train(setup, RunFolder(tmp_path))
    assert hooks(setup.net.module) == 0


@pytest.mark.parametrize("call", [1, 2, 3])
def test_no_hook_is_left_when_a_forward_fails(
    call: int, tmp_path: Path, spec_of: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a measured step: the training forward, the probe batch's, a half batch's for the gradient noise."""
    setup = assemble(spec_of(*FULL, "probes.eval_points=1"))
    head = setup.net.sites[-1].affine
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        if head.training:
            calls += 1
            if calls == call:
                raise ArithmeticError("the net failed")
        return nn.functional.linear(x, head.weight, head.bias)

    monkeypatch.setattr(head, "forward", counted)
    with pytest.raises(RunFailedError, match="ArithmeticError: the net failed"):
        train(setup, RunFolder(tmp_path))
    assert calls == call
    monkeypatch.undo()
    assert hooks(setup.net.module) == 0


def test_the_first_non_finite_site_is_named_and_the_net_left_alone(
    spec_of: Callable[..., RunSpec], bits_of: Callable[..., Any]
) -> None:
    setup = assemble(spec_of("norm=none", "model.depth=4"))
    net: Net = setup.net
    x = setup.dataset.train.x[:8]
    assert first_non_finite_site(net, x) is None
    with torch.no_grad():
        net.sites[2].affine.get_parameter("weight").mul_(1e38)
        net.sites[2].affine.get_parameter("weight")[0, :] = torch.inf
    before = bits_of(net.module.state_dict())
    net.module.eval()
    assert first_non_finite_site(net, x) == "L02_fc"
    assert bits_of(net.module.state_dict()) == before
    assert hooks(net.module) == 0
    assert not any(part.training for part in net.module.modules())


def test_a_batch_norm_hides_no_non_finite_site_before_it(spec_of: Callable[..., RunSpec]) -> None:
    setup = assemble(spec_of("norm=batch", "model.depth=3"))
    with torch.no_grad():
        setup.net.sites[1].affine.get_parameter("weight")[0, 0] = torch.nan
    assert first_non_finite_site(setup.net, setup.dataset.train.x[:8]) == "L01_fc"


@given(steps=st.integers(1, 5000), points=st.integers(1, 400), eval_points=st.integers(1, 400))
def test_a_schedule_has_the_first_and_last_step_and_at_most_the_given_points(
    steps: int, points: int, eval_points: int
) -> None:
    schedule = Schedule(steps=steps, points=points, eval_points=eval_points)
    due = [step for step in range(steps) if schedule.due(step)]
    assert due[0] == 0
    assert due[-1] == steps - 1
    regular = [step for step in due if step % schedule.every == 0]
    assert len(regular) <= points
    # Early ones grow by a factor of about 1.4 up to `every`: 2 log2(every) of them and a few; and the last step.
    assert len(due) - len(regular) <= 2 * max(1, schedule.every).bit_length() + 1
    evaluated = [step for step in due if schedule.evaluates(step)]
    assert evaluated[0] == 0
    assert len(evaluated) <= eval_points + 1


@pytest.mark.parametrize(("steps", "points", "every"), [(2000, 200, 10), (1000, 200, 5), (399, 200, 2), (200, 200, 1)])
def test_points_are_the_number_of_regular_measurements(steps: int, points: int, every: int) -> None:
    schedule = Schedule(steps=steps, points=points, eval_points=points)
    due = {step for step in range(steps) if schedule.due(step)}
    assert set(range(0, steps, every)) <= due
    early_and_last = {step for step in due if step % every}
    assert max(early_and_last - {steps - 1}, default=0) < every
