"""Every probe against a slow, obvious twin in float64, written from the definitions, over several steps of a real run.

The twin knows the weights before every step, the batch and the probe batch, and computes everything anew: its own
forward, its own statistics channel by channel, its own gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bnlab.folder import RunFolder
from bnlab.journal import Record, read
from bnlab.models.base import Site
from bnlab.probes.activations import HISTOGRAM_BINS, HISTOGRAM_LIMIT, histogram, histogram_edges, spread
from bnlab.registry import PROBES
from bnlab.setup import Setup, assemble
from bnlab.spec import RunSpec
from bnlab.train import train

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


# -- the twin --------------------------------------------------------------------------------------


def _batch_norm(x: Tensor, state: Mapping[str, Tensor], name: str, eps: float) -> Tensor:
    """With the batch's own statistics; gamma and beta."""
    over = [0, *range(2, x.ndim)]
    shape = [1, -1, *([1] * (x.ndim - 2))]
    mean = x.mean(dim=over, keepdim=True)
    var = ((x - mean) ** 2).mean(dim=over, keepdim=True)
    x_hat = (x - mean) / (var + eps).sqrt()
    return state[f"{name}_norm.weight"].view(shape) * x_hat + state[f"{name}_norm.bias"].view(shape)


def _affine(site: Site, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    weight, bias = state[f"{site.name}_affine.weight"], state.get(f"{site.name}_affine.bias")
    if weight.ndim == 2:
        return F.linear(x.flatten(1), weight, bias)
    assert isinstance(site.affine, nn.Conv2d)
    return F.conv2d(x, weight, bias, stride=site.affine.stride, padding=weight.shape[2] // 2)


def _forward(setup: Setup, state: Mapping[str, Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """pre and act_in of every site, in batch mode; the last pre is the output."""
    spec = setup.spec
    act = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "linear": lambda x: x}[
        spec.model.activation
    ]
    pres, act_ins = [], []
    for site in setup.net.sites:
        if site.name.endswith("_out") and x.ndim == 4:
            x = x.mean(dim=(2, 3))
        pre = _affine(site, state, x)
        normed = f"{site.name}_norm.weight" in state
        act_in = _batch_norm(pre, state, site.name, spec.norm.options["eps"]) if normed and _before(spec) else pre
        x = pre if site.name.endswith("_out") else act(act_in)
        if normed and not _before(spec):
            x = _batch_norm(x, state, site.name, spec.norm.options["eps"])
        pres.append(pre)
        act_ins.append(act_in)
    return pres, act_ins


def _before(spec: RunSpec) -> bool:
    return spec.norm.position == "before"


def _objective(spec: RunSpec, outputs: Tensor, y: Tensor) -> Tensor:
    if spec.loss == "mse":
        loss = (outputs - y).pow(2)
        return loss.sum() if spec.reduction == "sum" else loss.mean()
    losses = outputs.logsumexp(dim=1) - outputs[torch.arange(len(y)), y]
    return losses.sum() if spec.reduction == "sum" else losses.mean()


def _gradients(
    setup: Setup, state: Mapping[str, Tensor], names: list[str], x: Tensor, y: Tensor
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """dL/dparams by name, and dL/dpre of every site."""
    with torch.enable_grad():
        params = {name: state[name].clone().requires_grad_() for name in names}
        pres, _ = _forward(setup, params, x)
        loss = _objective(setup.spec, pres[-1], y)
        grads = torch.autograd.grad(loss, [*params.values(), *pres])
    return dict(zip(names, grads[: len(names)], strict=True)), list(grads[len(names) :])


def _norm(*tensors: Tensor) -> float:
    return math.sqrt(sum(float(value) ** 2 for tensor in tensors for value in tensor.flatten().tolist()))


Moments = list[tuple[float, float]]


def _moments(x: np.ndarray) -> Moments:
    """Mean and biased variance, channel by channel."""
    found = []
    for c in range(x.shape[1]):
        values = [float(value) for value in x[:, c].ravel()]
        mean = math.fsum(values) / len(values)
        found.append((mean, math.fsum((value - mean) ** 2 for value in values) / len(values)))
    return found


def _drift_mean(now: Moments, then: Moments) -> float:
    return float(np.median([abs(m - m0) / math.sqrt((v + v0) / 2) for (m, v), (m0, v0) in zip(now, then, strict=True)]))


def _drift_logvar(now: Moments, then: Moments) -> float:
    return float(np.median([abs(math.log(v) - math.log(v0)) for (_, v), (_, v0) in zip(now, then, strict=True)]))


def _counts(x: np.ndarray) -> list[float]:
    """By the definition of the bins: uniform in asinh, with tails below and above."""
    counts = [0.0] * (HISTOGRAM_BINS + 2)
    limit = math.asinh(HISTOGRAM_LIMIT)
    for value in x.ravel().tolist():
        place = (math.asinh(value) + limit) / (2 * limit) * HISTOGRAM_BINS
        counts[0 if place < 0 else HISTOGRAM_BINS + 1 if place > HISTOGRAM_BINS else 1 + int(place)] += 1
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run of several steps: its journal, and the state before each of its steps (and after the last)."""

    setup: Setup
    records: list[Record]
    states: list[dict[str, Tensor]]
    params: list[str]

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
            params = [name for name, _ in setup.net.module.named_parameters()]
            done[spec.id] = Measured(setup=setup, records=list(read(folder.journal_file)), states=states, params=params)
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
        pres, _ = _forward(arm.setup, arm.states[record["step"]], arm.setup.batches.at(record["step"]).x)
        moments = [_moments(pre.numpy()) for pre in pres]
        np.testing.assert_allclose(record["batch_mean"], [np.mean([m for m, _ in of]) for of in moments], **CLOSE)
        np.testing.assert_allclose(record["batch_var"], [np.mean([v for _, v in of]) for of in moments], **CLOSE)


def test_activations_are_those_of_the_probe_batch_before_the_update(arm: Measured) -> None:
    probe = arm.setup.observer.probe_batch.x
    records = arm.with_metric("act_mean.pre")
    assert [record["step"] for record in records] == list(range(7))
    assert len(probe) == 22
    last: dict[str, list[Moments]] = {}
    first: dict[str, list[Moments]] = {}
    for record in records:
        pres, act_ins = _forward(arm.setup, arm.states[record["step"]], probe)
        for point, tensors in (("pre", pres), ("act_in", act_ins)):
            arrays = [x.numpy() for x in tensors]
            now = [_moments(x) for x in arrays]
            expected = {
                "act_mean": [np.mean([m for m, _ in of]) for of in now],
                "act_var": [np.mean([v for _, v in of]) for of in now],
                "sampling_floor": [_floor(x, of) for x, of in zip(arrays, now, strict=True)],
            }
            for share in (15, 50, 85):
                expected[f"act_p{share}"] = [np.percentile(_unit(x, 4), share) for x in arrays]
            if point in last:
                for suffix, then in (("", last[point]), ("_total", first[point])):
                    expected[f"drift_mean{suffix}"] = [_drift_mean(a, b) for a, b in zip(now, then, strict=True)]
                    expected[f"drift_logvar{suffix}"] = [_drift_logvar(a, b) for a, b in zip(now, then, strict=True)]
            for name, values in expected.items():
                # Differences of moments lose digits: what is left of 16 at a drift of 1e-6.
                np.testing.assert_allclose(record[f"{name}.{point}"], values, rtol=1e-7, atol=1e-11, err_msg=name)
            if point not in last:
                assert not [key for key in record if key.startswith("drift_") and key.endswith(point)]
            last[point] = now
            first.setdefault(point, now)


def _floor(x: np.ndarray, moments: Moments) -> float:
    """The two halves' means, in units of the whole probe batch's standard deviation."""
    half = len(x) // 2
    ends = [[m for m, _ in _moments(part)] for part in (x[:half], x[half:])]
    return float(np.median([abs(a - b) / math.sqrt(v) for a, b, (_, v) in zip(*ends, moments, strict=True)]))


def _unit(x: np.ndarray, unit: int) -> np.ndarray:
    of_unit = x[:, unit % x.shape[1]]
    return of_unit if x.ndim == 2 else of_unit[:, x.shape[2] // 2, x.shape[3] // 2]


def test_dead_channels_are_rectified_ones_that_are_off_on_the_whole_probe_batch(arm: Measured) -> None:
    if arm.setup.spec.model.activation != "relu":
        assert arm.with_metric("dead_fraction") == []
        return
    probe = arm.setup.observer.probe_batch.x
    for record in arm.with_metric("act_mean.pre"):
        _, act_ins = _forward(arm.setup, arm.states[record["step"]], probe)
        expected: list[float | None] = []
        for x in act_ins[:-1]:
            expected.append(sum(bool((x[:, c] <= 0).all()) for c in range(x.shape[1])) / x.shape[1])
        assert record["dead_fraction"] == pytest.approx([*expected, None])


def test_histograms_count_every_value_of_the_chosen_sites(arm: Measured) -> None:
    spec = arm.setup.spec
    options: Mapping[str, Any] = spec.probes.options["activations"]
    sites = arm.setup.net.sites
    chosen = spread(len(sites), options["histogram_sites"])
    probe = arm.setup.observer.probe_batch.x
    records = arm.with_metric("act_mean.pre")
    for measurement, record in enumerate(records):
        found = {key for key in record if key.startswith("histogram.")}
        if measurement % options["histogram_every"]:
            assert found == set()
            continue
        assert found == {f"histogram.{point}.{sites[i].name}" for point in ("pre", "act_in") for i in chosen}
        pres, act_ins = _forward(arm.setup, arm.states[record["step"]], probe)
        for point, tensors in (("pre", pres), ("act_in", act_ins)):
            for i in chosen:
                assert record[f"histogram.{point}.{sites[i].name}"] == _counts(tensors[i].numpy())


def test_gradients_are_those_of_the_training_loss(arm: Measured) -> None:
    sites = arm.setup.net.sites
    weights = [f"{site.name}_affine.weight" for site in sites]
    records = arm.with_metric("grad_norm")
    assert [record["step"] for record in records] == list(range(7))
    for record in records:
        step = record["step"]
        before, after = arm.states[step], arm.states[step + 1]
        batch = arm.setup.batches.at(step)
        grads, deltas = _gradients(arm.setup, before, arm.params, batch.x, batch.y)
        by_site = [_norm(grads[name]) for name in weights]
        expected: dict[str, Any] = {
            "grad_norm": by_site,
            "grad_norm_total": _norm(*grads.values()),
            "first_over_last": by_site[0] / by_site[-1],
            "update_ratio": [_norm(after[name] - before[name]) / _norm(before[name]) for name in weights],
            "delta_norm": [_norm(delta) for delta in deltas],
        }
        half = len(batch) // 2
        parts = [(batch.x[:half], batch.y[:half]), (batch.x[half:], batch.y[half:])]
        a, b = (_gradients(arm.setup, before, arm.params, x, y)[0] for x, y in parts)
        difference, total = (_norm(*(a[name] + sign * b[name] for name in arm.params)) for sign in (-1, 1))
        expected["grad_noise"] = difference / total
        for name, values in expected.items():
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
    moments = [[_moments(x.numpy()) for x in _forward(arm.setup, arm.states[step], probe)[0]] for step in steps]
    for record, now, then in zip(records[1:], moments[1:], moments[:-1], strict=True):
        for name, other in (("drift_mean.pre", then), ("drift_mean_total.pre", moments[0])):
            expected = [_drift_mean(a, b) for a, b in zip(now, other, strict=True)]
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
    moments = [[_moments(x.numpy()) for x in _forward(arm.setup, arm.states[step], probe)[0]] for step in steps]
    for record, now, then in zip(records[1:], moments[1:], moments[:-1], strict=True):
        expected = [_drift_mean(a, b) for a, b in zip(now, then, strict=True)]
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
    from bnlab import tap
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
    monkeypatch.setattr(tap, "saved_moments", lambda *args: None)
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
        assert counts.tolist() == _counts(np.array(values))


def test_histogram_edges_are_uniform_in_asinh_and_symmetric() -> None:
    edges = histogram_edges()
    assert len(edges) == HISTOGRAM_BINS + 1
    steps = np.diff([math.asinh(edge) for edge in edges])
    np.testing.assert_allclose(steps, 2 * math.asinh(HISTOGRAM_LIMIT) / HISTOGRAM_BINS, rtol=1e-9)
    assert (edges[0], edges[HISTOGRAM_BINS // 2], edges[-1]) == pytest.approx((-HISTOGRAM_LIMIT, 0.0, HISTOGRAM_LIMIT))


@given(count=st.integers(1, 60), wanted=st.integers(1, 60))
def test_indices_are_spread_over_the_whole_range(count: int, wanted: int) -> None:
    found = spread(count, wanted)
    assert found == sorted(set(found))
    assert len(found) == min(count, wanted)
    assert found[0] == 0
    if wanted > 1:
        assert found[-1] == count - 1
    gaps = np.diff(found)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
