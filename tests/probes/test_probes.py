"""Every probe against a slow, obvious twin in float64, written from the definitions, over several steps of a real run.

The twin (twins.py) knows the weights before every step, the batch and the probe batch, and computes everything anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from twins import Moment, counts_of, drift_mean, moments_of

from bnlab.core.registry import PROBES
from bnlab.core.spec import RunSpec
from bnlab.core.state import outputs_now
from bnlab.core.study import evenly
from bnlab.probes._histograms import HISTOGRAM_BINS, HISTOGRAM_LIMIT, histogram, histogram_edges
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Record, read
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import train

SpecOf = Callable[..., RunSpec]

ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mlp-none": ("mlp", ("norm=none",)),
    "mlp-batch": ("mlp", ("norm=batch",)),
    "mlp-batch-some": ("mlp", ("norm=batch", "model.depth=3", "norm.layers=[1]")),
    "mlp-batch-widths": ("mlp", ("norm=batch", "model.depth=null", "model.width=[5,6,6]")),
    "mlp-batch-after": ("mlp", ("norm=batch", "norm.position=after")),
    "mlp-reference": ("mlp", ("norm=batch_reference", "model.activation=tanh")),
    "mlp-sigmoid": ("mlp", ("norm=batch", "norm.eps=0.1", "model.activation=sigmoid", "optim=adam")),
    "cnn-none": ("cnn", ("norm=none",)),
    "cnn-batch": ("cnn", ("norm=batch", "optim.momentum=0.9")),
    "cnn-batch-after": ("cnn", ("norm=batch", "norm.position=after", "norm.layers=[1]")),
    "linear-batch": ("deep_linear", ("norm=batch", "data.batch_size=15")),
}
PROBED = (
    "probes=full",
    "probes.activations.batch=22",
    "probes.activations.unit=4",
    "dtype=float64",
    "probes.points=100",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run of several steps: its journal, and the state before each of its steps (and after the last)."""

    setup: Setup
    records: list[Record]
    states: list[dict[str, Tensor]]

    def moment(self, step: int) -> Moment:
        return Moment(setup=self.setup, step=step, before=self.states[step], after=self.states[step + 1])

    def with_metric(self, name: str) -> list[Record]:
        return [record for record in self.records if name in record]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Measured]:
    """`measured(spec)` trains it, keeping the state before every step; each spec is trained once."""
    done: dict[str, Measured] = {}

    def run(spec: RunSpec) -> Measured:
        if spec.id not in done:
            setup = assemble(spec)
            states: list[dict[str, Tensor]] = []

            def keep() -> None:
                states.append({name: value.clone() for name, value in setup.net.module.state_dict().items()})

            folder = RunFolder(tmp_path_factory.mktemp("run"))
            assert train(setup, folder, stopped=keep)["status"] == "finished"
            keep()
            done[spec.id] = Measured(setup=setup, records=list(read(folder.journal_file)), states=states)
        return done[spec.id]

    return run


@pytest.fixture(params=sorted(ARMS))
def arm(request: pytest.FixtureRequest, spec_of: SpecOf, measured: Callable[..., Measured]) -> Measured:
    model, overrides = ARMS[request.param]
    return measured(spec_of(*overrides, *PROBED, "steps=7", model=model))


CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def test_batch_moments_are_those_of_the_training_batch(arm: Measured) -> None:
    records = arm.with_metric("batch_mean")
    assert [record["step"] for record in records] == list(range(7))
    for record in records:
        for name, values in twins.batch_moments(arm.moment(record["step"])).items():
            np.testing.assert_allclose(record[name], values, err_msg=name, **CLOSE)


def test_activations_are_those_of_the_probe_batch_before_the_update(arm: Measured) -> None:
    assert len(arm.setup.observer.probe_batch) == 22
    records = arm.with_metric("act_mean.pre")
    assert [record["step"] for record in records] == list(range(7))
    last = first = None
    for record in records:
        moment = arm.moment(record["step"])
        expected = twins.activations(moment, last, first)
        assert len(expected) == 2 * (6 if last is None else 10)
        for name, values in expected.items():
            # Differences of moments lose digits: what is left of 16 at a drift of 1e-6.
            np.testing.assert_allclose(record[name], values, rtol=1e-7, atol=1e-11, err_msg=name)
        if last is None:
            assert not [key for key in record if key.startswith("drift_")]
        last, first = moment, first or moment


def test_dead_channels_are_rectified_ones_that_are_off_on_the_whole_probe_batch(arm: Measured) -> None:
    if arm.setup.spec.model.activation != "relu":
        assert arm.with_metric("dead_fraction") == []
        return
    for record in arm.with_metric("act_mean.pre"):
        assert record["dead_fraction"] == pytest.approx(twins.dead_fraction(arm.moment(record["step"])))


def test_histograms_count_every_value_of_the_chosen_sites(arm: Measured) -> None:
    records = arm.with_metric("act_mean.pre")
    for measurement, record in enumerate(records):
        found = {key: value for key, value in record.items() if key.startswith("histogram.")}
        if measurement % arm.setup.spec.probes.options["activations"]["histogram_every"]:
            assert found == {}
            continue
        assert found == twins.histograms(arm.moment(record["step"]))
        assert len(found) == 2 * min(5, len(arm.setup.net.sites))


def test_gradients_are_those_of_the_training_loss(arm: Measured) -> None:
    records = arm.with_metric("grad_norm")
    assert [record["step"] for record in records] == list(range(7))
    for record in records:
        for name, values in twins.gradients(arm.moment(record["step"])).items():
            np.testing.assert_allclose(record[name], values, rtol=1e-8, atol=1e-12, err_msg=name)


def test_every_figure_of_a_record_is_one_that_its_probe_describes(arm: Measured) -> None:
    described = {name for probe in arm.setup.spec.probes.options for name in PROBES.entry(probe).constructor.metrics}
    shared = {"step", "lr", "wall_s", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    unknown = {
        key
        for record in arm.records
        for key in record
        if key not in shared | described and f"{key.partition('.')[0]}.*" not in described
    }
    assert unknown == set()


def test_between_distant_measurements_drift_is_since_the_last_measurement(
    spec_of: SpecOf, measured: Callable[..., Measured]
) -> None:
    arm = measured(spec_of(*PROBED[:-1], "steps=40", "probes.points=4", "norm=batch"))
    records = arm.with_metric("act_mean.pre")
    steps = [record["step"] for record in records]
    assert steps[-4:] == [10, 20, 30, 39]
    probe = arm.setup.observer.probe_batch.x
    moments = [[moments_of(x) for x in twins.forward(arm.setup, arm.states[step], probe)[0]] for step in steps]
    for record, now, then in zip(records[1:], moments[1:], moments[:-1], strict=True):
        for name, other in (("drift_mean.pre", then), ("drift_mean_total.pre", moments[0])):
            expected = [drift_mean(a, b) for a, b in zip(now, other, strict=True)]
            np.testing.assert_allclose(record[name], expected, rtol=1e-7, err_msg=name)


def test_a_probe_with_a_cadence_of_its_own_leaves_the_others_theirs(
    spec_of: SpecOf, measured: Callable[..., Measured]
) -> None:
    """Every third of the steps 0, 4, 8, ..., and like all others the early steps and the last."""
    arm = measured(spec_of(*PROBED[:-1], "steps=40", "probes.points=10", "probes.activations.every=3"))
    every_step = [0, 1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 36, 39]
    assert [record["step"] for record in arm.with_metric("grad_norm")] == every_step
    assert [record["step"] for record in arm.with_metric("batch_mean")] == every_step
    records = arm.with_metric("act_mean.pre")
    steps = [record["step"] for record in records]
    assert steps == [0, 1, 2, 3, 12, 24, 36, 39]
    probe = arm.setup.observer.probe_batch.x
    moments = [[moments_of(x) for x in twins.forward(arm.setup, arm.states[step], probe)[0]] for step in steps]
    for record, now, then in zip(records[1:], moments[1:], moments[:-1], strict=True):
        expected = [drift_mean(a, b) for a, b in zip(now, then, strict=True)]
        np.testing.assert_allclose(record["drift_mean.pre"], expected, rtol=1e-7)


def test_histograms_come_at_every_nth_of_the_equally_spaced_steps(
    spec_of: SpecOf, measured: Callable[..., Measured]
) -> None:
    arm = measured(spec_of(*PROBED[:-1], "steps=40", "probes.points=10", "probes.activations.histogram_every=4"))
    with_histogram = [record["step"] for record in arm.records if any("histogram" in key for key in record)]
    assert with_histogram == [0, 16, 32]


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_float32_figures_are_float64_figures_to_single_precision(
    model: str, spec_of: SpecOf, measured: Callable[..., Measured]
) -> None:
    """At step 0, where both runs have the same weights but for rounding."""
    single, double = (
        measured(spec_of(*PROBED[:-2], f"dtype={dtype}", "probes.points=100", "norm=batch", "steps=7", model=model))
        for dtype in ("float32", "float64")
    )
    one, other = single.records[0], double.records[0]
    assert list(one) == list(other)
    for key in one:
        if key == "step" or key.endswith("_s") or key.startswith("histogram"):
            continue
        left, right = (np.array(record[key], dtype=np.float64) for record in (one, other))
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_moments_read_off_torch_s_batch_norm_equal_computed_ones(
    model: str, dtype: str, spec_of: SpecOf, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path through torch's saved statistics and the one without: both taken, both the same figures."""
    from bnlab.net import wrap
    from bnlab.probes import batch_moments

    computed: list[int] = []
    moments = batch_moments.channel_moments

    def counted(x: Tensor) -> Any:
        computed.append(1)
        return moments(x)

    monkeypatch.setattr(batch_moments, "channel_moments", counted)
    spec = spec_of("norm=batch", f"dtype={dtype}", model=model)
    saved = run(spec, "saved")
    steps, sites = 12, len(saved.setup.net.sites)
    assert len(computed) == steps, "only the head, which has no norm, is to be computed"
    computed.clear()
    monkeypatch.setattr(wrap, "saved_moments", lambda *args: None)
    fallback = run(spec, "fallback")
    assert len(computed) == steps * sites
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == "float64" else {"rtol": 2e-5, "atol": 1e-6}
    for one, other in zip(saved.records[:-1], fallback.records[:-1], strict=True):
        for name in ("batch_mean", "batch_var"):
            np.testing.assert_allclose(one[name], other[name], **tolerance)


# -- what must not be hidden ----------------------------------------------------------------------------------


def _two_steps(setup: Setup, folder: Path, change: Callable[[Setup], None], *, at: int) -> list[Record]:
    """The first two records of a run whose weights are changed before step `at`. Its loss takes NaN for 0, so that the
    run goes on."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.nan_to_num(0.0).pow(2).mean()

    step = -1

    def before_each_step() -> None:
        nonlocal step
        step += 1
        if step == at:
            with torch.no_grad():
                change(setup)

    train(replace(setup, objective=loss), RunFolder(folder), stopped=before_each_step)
    return list(read(folder / "journal.jsonl"))[:2]


@pytest.mark.parametrize("norm", ["batch", "batch_reference", "none"])
def test_the_variance_of_a_constant_channel_is_0_and_not_below(norm: str, spec_of: SpecOf, tmp_path: Path) -> None:
    """Off a batch norm's 1 / sqrt(var + eps) it comes with a rounding error of about 1e-7 eps, perhaps below 0."""
    for eps in ("1e-5", "1e-3", "0.3"):
        overrides = [] if norm == "none" else [f"norm.eps={eps}"]
        setup = assemble(spec_of(f"norm={norm}", *overrides, "model.bias=false"))

        def zero(setup: Setup) -> None:
            setup.net.sites[1].affine.get_parameter("weight").zero_()

        record = _two_steps(setup, tmp_path / eps, zero, at=0)[0]
        assert record["batch_var"][1] == pytest.approx(0.0, abs=1e-6 * float(eps))
        assert record["batch_var"][1] >= 0


@pytest.mark.parametrize("eps", ["1e-5", "1e-3", "2e-3", "1"])
@pytest.mark.parametrize("sd", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("norm", ["batch", "batch_reference"])
def test_a_small_variance_is_measured_whatever_the_eps(
    norm: str, sd: float, eps: str, spec_of: SpecOf, tmp_path: Path
) -> None:
    """Off 1 / sqrt(var + eps) it is read up to eps = 1e-3, to the rounding that the docstring says."""
    setup = assemble(spec_of(f"norm={norm}", f"norm.eps={eps}", "dtype=float32", "model.bias=false"))
    affine, batch = setup.net.sites[1].affine, setup.batches.at(0)
    seen: list[Tensor] = []
    handle = affine.register_forward_hook(lambda *of: seen.append(of[2].double()))
    outputs_now(setup.net.module, batch.x, "batch")
    handle.remove()
    with torch.no_grad():
        affine.get_parameter("weight").mul_(sd / seen[0].var(dim=0, correction=0).mean().sqrt())
    record = _two_steps(setup, tmp_path, lambda setup: None, at=0)[0]
    expected = sd**2
    rounding = 3e-7 * (expected + float(eps)) if norm == "batch" and float(eps) <= 1e-3 else 1e-6 * expected
    assert record["batch_var"][1] == pytest.approx(expected, abs=rounding, rel=0)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("norm", ["none", "batch", "batch_reference"])
def test_a_nan_in_one_channel_shows_in_every_figure_of_its_site(
    norm: str, model: str, spec_of: SpecOf, tmp_path: Path
) -> None:
    def break_one(setup: Setup) -> None:
        setup.net.sites[1].affine.get_parameter("weight")[1] = math.nan

    setup = assemble(spec_of(f"norm={norm}", *PROBED, model=model))
    before, record = _two_steps(setup, tmp_path, break_one, at=1)
    shown = ("act_mean", "act_var", "drift_mean", "drift_logvar", "sampling_floor", "batch_mean", "batch_var")
    names = [name for name in record if name.partition(".")[0].removesuffix("_total") in shown]
    assert len(names) == 2 * 7 + 2
    for name in names:
        assert record[name][0] is not None, name
        assert record[name][1] is None, name
        assert name not in before or None not in before[name], name
    assert record["grad_norm_total"] is None


def test_a_figure_of_something_that_did_not_move_is_0(spec_of: SpecOf, tmp_path: Path) -> None:
    """A step so small that no weight moves by a bit."""
    setup = assemble(spec_of(*PROBED, "optim.lr=1e-40", "norm.affine=false"))
    _, record = _two_steps(setup, tmp_path, lambda setup: None, at=0)
    for point in ("pre", "act_in"):
        for name in ("drift_mean", "drift_logvar", "drift_mean_total", "drift_logvar_total"):
            assert record[f"{name}.{point}"] == [0.0] * 3, name
    assert record["update_ratio"] == [0.0] * 3


def test_a_layer_that_is_constant_and_stays_so_has_not_drifted(spec_of: SpecOf, tmp_path: Path) -> None:
    """All its variances are 0: there is no drift, and 0 / 0 or -inf + inf is not how to say so."""
    setup = assemble(spec_of(*PROBED, "norm=none", "model.bias=false"))

    def zero(setup: Setup) -> None:
        setup.net.sites[1].affine.get_parameter("weight").zero_()

    _, record = _two_steps(setup, tmp_path, zero, at=0)
    assert record["dead_fraction"][1] == 1.0
    for name in ("act_var", "drift_mean", "drift_mean_total", "sampling_floor", "drift_logvar", "drift_logvar_total"):
        assert record[f"{name}.pre"][1] == 0.0, name


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_where_squares_are_infinite_a_figure_is_null_and_not_0(norm: str, spec_of: SpecOf, tmp_path: Path) -> None:
    """Activations of 1e20 have finite float32 values and no finite variance: how far they drift is not known."""

    def blow_up(setup: Setup) -> None:
        setup.net.sites[1].affine.get_parameter("weight").mul_(1e20)

    setup = assemble(spec_of(*PROBED, f"norm={norm}", "model.activation=tanh", "dtype=float32"))
    _, record = _two_steps(setup, tmp_path, blow_up, at=1)
    moved = ("drift_mean", "drift_logvar", "drift_mean_total", "drift_logvar_total", "sampling_floor")
    for name in (*(f"{name}.pre" for name in (*moved, "act_var")), "update_ratio"):
        assert record[name][0] is not None, name
        assert record[name][1] is None, name


# -- small parts -----------------------------------------------------------------------------------


@given(
    values=st.lists(
        st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 1000.0, -1000.0, 1001.0, -1001.0])), max_size=40
    )
)
def test_a_histogram_counts_every_number_once_and_nan_nowhere(values: list[float]) -> None:
    counts = histogram(torch.tensor(values, dtype=torch.float64))
    assert counts.shape == (HISTOGRAM_BINS + 2,)
    assert counts.sum().item() == sum(not math.isnan(value) for value in values)
    edges = histogram_edges()
    assert counts[0].item() == sum(value < edges[0] * (1 + 1e-12) for value in values)
    assert counts[-1].item() == sum(value > edges[-1] * (1 + 1e-12) for value in values)
    clear = [v for v in values if not math.isnan(v) and min(abs(v - edge) for edge in edges) > 1e-6 * max(1, abs(v))]
    if len(clear) == len(values):
        assert counts.tolist() == counts_of(np.array(values))


def test_histogram_edges_are_uniform_in_asinh_and_symmetric() -> None:
    edges = histogram_edges()
    assert len(edges) == HISTOGRAM_BINS + 1
    steps = np.diff([math.asinh(edge) for edge in edges])
    np.testing.assert_allclose(steps, 2 * math.asinh(HISTOGRAM_LIMIT) / HISTOGRAM_BINS, rtol=1e-9)
    assert (edges[0], edges[HISTOGRAM_BINS // 2], edges[-1]) == pytest.approx((-HISTOGRAM_LIMIT, 0.0, HISTOGRAM_LIMIT))


@given(count=st.integers(1, 60), wanted=st.integers(1, 60))
def test_indices_are_spread_over_the_whole_range(count: int, wanted: int) -> None:
    found = evenly(count, wanted)
    assert found == sorted(set(found))
    assert len(found) == min(count, wanted)
    assert found[0] == 0
    if wanted > 1:
        assert found[-1] == count - 1
    gaps = np.diff(found)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
