"""Running statistics against the population's, and the noise of a batch's, against a loop that keeps every value."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import twins
from torch import Tensor, nn

from bnlab.core.registry import NORMS
from bnlab.core.spec import RunSpec
from bnlab.data.base import Split
from bnlab.net.build import Net, Site
from bnlab.norms.base import statistics_in_use
from bnlab.probes.base import Snapshot, figures
from bnlab.probes.bn_statistics import BNStatistics, central_moments, figures_of
from bnlab.run.setup import assemble

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=full", "probes.activations.batch=24", "probes.bn_statistics.every=1", "steps=3")
STATISTICS = ("bn_mean_gap", "bn_var_gap", "bn_mean_noise", "bn_sd_noise", "bn_mean_sd")
AFFINE = ("bn_gamma_mean", "bn_gamma_sd", "bn_beta_mean", "bn_beta_sd")
CLOSE: dict[str, float] = {"rtol": 1e-9, "atol": 1e-12}


def _numbers(values: list[float | None]) -> np.ndarray:
    """NaN for null."""
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize("norm", ["batch", "batch_reference", "ghost_batch", "stopgrad_batch", "noisy_batch"])
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_are_those_of_a_loop_over_batches_that_keeps_every_value(
    model: str, position: str, norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    options = ("probes.bn_statistics.examples=70", f"norm={norm}", f"norm.position={position}", "optim.lr=0.3")
    options += ("model.activation=tanh", "norm.layers=[1]") if position == "after" else ()
    run = trained(spec_of(*PROBED, *options, "dtype=float64", model=model))
    for step, record in enumerate(run.records):
        for name, values in twins.bn_statistics(run.moment(step)).items():
            assert [value is not None for value in values] == [site.norm is not None for site in run.setup.net.sites]
            np.testing.assert_allclose(_numbers(record[name]), _numbers(values), **CLOSE, err_msg=name)


def test_the_population_is_the_training_set_less_an_incomplete_batch(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """With 10,000 examples allowed: all of it, once."""
    run = trained(spec_of(*PROBED, "norm=batch", "dtype=float64", "steps=1", "data.batch_size=500"))
    assert len(run.setup.dataset.train) % 500 > 0
    for name, values in twins.bn_statistics(run.moment(0)).items():
        np.testing.assert_allclose(_numbers(run.records[0][name]), _numbers(values), **CLOSE, err_msg=name)


def _net(norm: nn.Module, *, affine: nn.Module | None = None) -> Net:
    """A net of one site whose norm sees the data itself."""
    parts = {"L00_fc_affine": affine or nn.Identity(), "L00_fc_norm": norm, "L00_fc_act": nn.Tanh()}
    site = Site(
        name="L00_fc",
        affine=parts["L00_fc_affine"],
        norm=norm,
        activation=parts["L00_fc_act"],
        norm_first=True,
        params=(),
    )
    module = nn.Sequential()
    for name, part in parts.items():
        module.add_module(name, part)
    return Net(module=module.to(torch.float64), sites=(site,))


def _measured(net: Net, x: Tensor, size: int, *, examples: int = 10**6) -> dict[str, Any]:
    """The figures of a net with x as its training set."""
    data = Split(x, torch.zeros(len(x)))
    snapshot = Snapshot(
        step=0,
        point=0,
        lr=0.1,
        seed=0,
        net=net,
        objective=lambda outputs, targets: outputs.sum(),
        batch=Split(x[:size], data.y[:size]),
        data=data,
    )
    found, _ = figures(BNStatistics(examples=examples), snapshot, {})
    return {name: [float(value) for value in values] for name, values in found.items()}


def test_gaps_are_known_where_the_population_is() -> None:
    """Population 0, 2, 4, 6: mean 3 and unbiased variance 20 / 3, whatever the batches."""
    norm = nn.BatchNorm1d(1)
    norm.running_mean = torch.tensor([3.0 - math.sqrt(20 / 3)])
    norm.running_var = torch.tensor([20 / 3 * math.e])
    norm.double()
    x = torch.tensor([[0.0], [2.0], [4.0], [6.0]], dtype=torch.float64)
    found = _measured(_net(norm), x, 2)
    assert found["bn_mean_gap"] == [pytest.approx(1, rel=1e-6)]
    assert found["bn_var_gap"] == [pytest.approx(1, rel=1e-6)]


def test_the_precise_variance_is_that_of_all_values_together(spec_of: SpecOf) -> None:
    """E[mu_B^2 + sigma_B^2] - E[mu_B]^2 (Wu & Johnson 2021), times n / (n - 1)."""
    x = torch.randn(40, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    batches = [central_moments(part) for part in x.split(8)]
    mu, var = torch.stack([b[0] for b in batches]), torch.stack([b[2] for b in batches])
    precise = ((mu**2 + var).mean(dim=0) - mu.mean(dim=0) ** 2) * 800 / 799
    everything = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(precise, everything.var(dim=1), rtol=1e-12, atol=0)
    found = figures_of(torch.stack(batches), 160, everything.mean(dim=1), precise)
    assert float(found[1:3].abs().max()) < 1e-12


def test_in_full_batch_training_both_sides_are_one_batch_and_there_is_no_noise(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """With momentum 1, the running variance is the unbiased one of the whole training set: the very population. At a
    learning rate that moves nothing, since the population is measured after the update."""
    options = ("norm=batch", "norm.momentum=1.0", "data.batch_size=full", "optim.lr=1e-40", "dtype=float64", "steps=1")
    for model in ("mlp", "cnn"):
        record = trained(spec_of(*PROBED, *options, model=model)).records[0]
        for name in ("bn_mean_gap", "bn_var_gap"):
            assert record[name][:-1] == pytest.approx([0.0, 0.0], abs=1e-11)
        assert record["bn_mean_noise"] == record["bn_sd_noise"] == [None] * 3


def test_a_cumulative_average_over_the_same_batches_has_no_gap_of_means_at_all() -> None:
    """A net that no longer moves, momentum null: running mean = E[mu_B] = mu_pop at once, if every example is seen."""
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2
    net = _net(nn.BatchNorm1d(4, momentum=None))
    before = _measured(net, x, 10)["bn_mean_gap"][0]
    for part in x.split(10):
        net.module(part)
    assert before > 1
    assert _measured(net, x, 10)["bn_mean_gap"][0] < 1e-12


def test_cumulative_averages_of_a_net_that_no_longer_moves_come_to_the_population() -> None:
    """The unbiased variance within batches, averaged over many permutations, is on average exactly sigma_pop^2. Of T
    permutations with K = 12 batches of m = 10, what is left is about sqrt(2 / (m K T)) = 0.4 % at T = 1000 (less,
    since all of them divide one sum of squares); the mean of |.| over 4 channels below 3 times that."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(120, 4, generator=generator, dtype=torch.float64) ** 3  # heavy tails
    net = _net(nn.BatchNorm1d(4, momentum=None))
    gaps = []
    for epochs in (1, 999):
        for _ in range(epochs):
            for part in x[torch.randperm(120, generator=generator)].split(10):
                net.module(part)
        gaps.append(_measured(net, x, 10)["bn_var_gap"][0])
    assert gaps[1] < 0.012 < gaps[0]


def test_an_average_that_lags_behind_a_moving_net_has_a_gap_that_closes_when_it_stops(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """From mean 0 and variance 1 at the start, 1 - momentum a step."""
    options = ("norm=batch", "norm.momentum=0.2", "optim.lr=1e-40", "steps=30", "dtype=float64")
    records = trained(spec_of(*PROBED, *options)).records
    for name in ("bn_mean_gap", "bn_var_gap"):
        assert records[0][name][0] > 5 * records[-1][name][0]


DRAWN: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float64),  # rho = 0
    "uniform": lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float64),  # rho = -1.2
    "exponential": lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float64).log(),  # rho = 6
}


@pytest.mark.parametrize("space", [(), (2, 3)])
@pytest.mark.parametrize("kind", sorted(DRAWN))
def test_the_noise_of_independent_values_follows_the_law_of_luo_et_al(kind: str, space: tuple[int, ...]) -> None:
    """K = 200 batches, 60 channels. A standard deviation over 200 batches is known to 1 / sqrt(2 * 199) = 5 %, a median
    over 60 channels to 1.25 / sqrt(60) = 0.16 of that: 0.8 %; four times that is 3.2 %. The law of sd(sigma_B) is the
    first term in 1 / m: the next, of relative size about rho^2 / m for a tail, is small at m = 600, and counts for the
    exponential (m = 100: a few percent), which therefore has larger batches."""
    size = 600 if kind == "exponential" else 100
    x = 5 + 3 * DRAWN[kind]((200 * size // math.prod(space), 60, *space), torch.Generator().manual_seed(3))
    norm = nn.BatchNorm2d(60) if space else nn.BatchNorm1d(60)
    found = _measured(_net(norm), x, size // math.prod(space))
    assert found["bn_mean_noise"][0] == pytest.approx(1, abs=0.032)
    assert found["bn_sd_noise"][0] == pytest.approx(1, abs=0.032)


def test_over_all_permutations_the_squared_noise_of_means_is_exactly_1() -> None:
    """As in an analysis of variance: no correction for a finite population."""
    values = torch.tensor([0.0, 1.0, 4.0, 9.0, 30.0, -3.0], dtype=torch.float64)
    squares = []
    for order in itertools.permutations(range(6)):
        parts = values[list(order)].view(3, 2, 1)
        found = figures_of(torch.stack([central_moments(part) for part in parts]), 2, torch.zeros(1), None)
        squares.append(float(found[3, 0]) ** 2)
    assert np.mean(squares) == pytest.approx(1, rel=1e-12)


def test_values_of_one_image_that_resemble_each_other_make_noise_and_fixed_patterns_take_it_away() -> None:
    """A channel of S positions: sd(mu_B)^2 m / sigma^2 = S var(image mean) / var. All positions equal: S. Images that
    are one pattern, with noise of 1 / 100 of its variance: S / S * 1 / 101."""
    generator = torch.Generator().manual_seed(4)
    equal = torch.randn(4000, 40, 1, 1, generator=generator, dtype=torch.float64).expand(-1, -1, 3, 3)
    found = _measured(_net(nn.BatchNorm2d(40)), equal, 20)
    assert found["bn_mean_noise"][0] == pytest.approx(3, rel=0.05)
    pattern = 10 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    pattern = (pattern - pattern.mean()) / pattern.std(correction=0) * 10
    fixed = pattern + torch.randn(4000, 40, 3, 3, generator=generator, dtype=torch.float64)
    found = _measured(_net(nn.BatchNorm2d(40)), fixed, 20)
    assert found["bn_mean_noise"][0] == pytest.approx(1 / math.sqrt(101), rel=0.05)


def test_above_a_batch_norm_of_a_linear_net_the_mean_of_a_batch_has_no_noise(
    spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """It is W beta, whatever the batch."""
    run = trained(spec_of(*PROBED, "norm=batch", "model.activation=linear", "dtype=float64"))
    for record in run.records:
        assert record["bn_mean_noise"][0] > 0.5
        assert record["bn_mean_noise"][1] < 1e-10


# -- which norms, and what is left out -----------------------------------------------------------------------------


IN_USE = {
    "batch": ("running_mean", "running_var"),
    "batch_reference": ("running_mean", "running_var"),
    "ghost_batch": ("running_mean", "running_var"),
    "stopgrad_batch": ("running_mean", "running_var"),
    "noisy_batch": ("running_mean", "running_var"),
    "frozen_batch": ("frozen_mean", "frozen_var"),
    "batch_renorm": ("running_mean", "running_sd"),
    "mean_only_batch": ("running_mean", None),
    "l1": ("running_mean", None),
    "l2": ("running_mean", None),
    "linf": ("running_mean", None),
}
"""The norms whose mean for evaluation is in a buffer: its name, and the name of the one with their variance."""


@pytest.mark.parametrize("norm", sorted({*NORMS.names()} - {"own"}))
def test_a_norm_in_evaluation_uses_the_statistics_it_declares(norm: str, spec_of: SpecOf) -> None:
    """In eval mode y = gamma (x - mean) / sqrt(var + eps) + beta, for any x."""
    model = "cnn" if norm == "instance" else "mlp"
    layer = assemble(spec_of(f"norm={norm}", "dtype=float64", model=model)).net.sites[0].norm
    kept = None if layer is None else statistics_in_use(layer)
    if "batch_statistics" not in NORMS.entry(norm).traits:
        assert kept is None
        return
    if norm not in IN_USE:
        pytest.skip("enter its buffers in IN_USE, if it keeps a mean and is y = gamma (x - mean) / sd + beta")
    assert layer is not None
    assert kept is not None
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        layer(1 + 2 * torch.randn(16, 6, generator=generator, dtype=torch.float64))
    kept = statistics_in_use(layer)
    assert kept is not None
    mean, var = kept
    mean_name, var_name = IN_USE[norm]
    assert torch.equal(mean, layer.get_buffer(mean_name))
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    out = layer.eval()(x)
    if var_name is None:
        assert var is None
        torch.testing.assert_close(layer(mean[None]), torch.zeros(1, 6, dtype=torch.float64))
    else:
        assert var is not None
        torch.testing.assert_close(out, (x - mean) / torch.sqrt(var + 1e-5), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["frozen_batch", "batch_renorm", "l1", "mean_only_batch"])
def test_norms_with_statistics_of_their_own_kind_are_held_against_the_same_population(
    norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, f"norm={norm}", "dtype=float64", "probes.bn_statistics.examples=64", "steps=2"))
    for step, record in enumerate(run.records):
        moment = run.moment(step)
        order = torch.randperm(
            len(moment.setup.dataset.train), generator=twins.stream(moment.spec.seed, "probe", "bn_statistics")
        )
        net = moment.net(moment.after)
        seen = []
        for chosen in order[:64].split(16):
            net.load_state_dict(moment.after)
            seen.append(twins.outputs_by_part(net, moment.setup.dataset.train.x[chosen])["L01_fc_affine"].detach())
        x = torch.cat(seen)
        mean_name, var_name = IN_USE[norm]
        mean = moment.after[f"L01_fc_norm.{mean_name}"]
        assert record["bn_mean_gap"][1] == pytest.approx(float(((mean - x.mean(0)).abs() / x.std(0)).mean()), rel=1e-9)
        if var_name is None:
            assert record["bn_var_gap"] == [None] * 3
            continue
        var = moment.after[f"L01_fc_norm.{var_name}"]
        var = var**2 - 1e-5 if var_name == "running_sd" else var
        assert record["bn_var_gap"][1] == pytest.approx(float((var / x.var(0)).log().abs().mean()), rel=1e-9)


@pytest.mark.parametrize(
    ("norm", "expected"), [("none", ()), ("layer", AFFINE), ("affine_only", AFFINE), ("batch", STATISTICS + AFFINE)]
)
def test_what_a_norm_does_not_have_is_absent(
    norm: str, expected: tuple[str, ...], spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    for record in trained(spec_of(*PROBED, f"norm={norm}")).records:
        assert [name for name in record if name.startswith("bn_")] == list(expected)
        for name in expected:
            assert [value is None for value in record[name]] == [False, False, True]


def test_without_gamma_and_beta_there_are_the_statistics_alone(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    for record in trained(spec_of(*PROBED, "norm=batch", "norm.affine=false")).records:
        assert [name for name in record if name.startswith("bn_")] == list(STATISTICS)


def test_constant_channels_are_left_out_and_a_layer_of_them_is_null() -> None:
    generator = torch.Generator().manual_seed(6)
    x = 1 + torch.randn(100, 3, generator=generator, dtype=torch.float64)
    norm = nn.BatchNorm1d(3)
    alone = _measured(_net(nn.BatchNorm1d(1)), x[:, :1], 10)
    for value in (0.0, 0.1):  # 0.1: whose mean is not exactly itself
        x[:, 1:] = value
        found = _measured(_net(norm), x, 10)
        for name in STATISTICS:
            assert found[name] == pytest.approx(alone[name], rel=1e-12), name
        x_constant = x.clone()
        x_constant[:, 0] = value
        found = _measured(_net(norm), x_constant, 10)
        assert all(math.isnan(found[name][0]) for name in STATISTICS)


@pytest.mark.parametrize("relative", [5e-6, 1e-6, 5e-7])
@pytest.mark.parametrize("mean", [1.3, -17.0, 1000.0])
def test_a_channel_that_varies_little_against_its_mean_is_measured(mean: float, relative: float) -> None:
    """Of float32 values, against the same figures in float64. Down to some units in the last place of the mean, which
    is 1.2e-7 of it at most: there the figures keep two digits, since the statistics in use have a rounding too."""
    generator = torch.Generator().manual_seed(11)
    x = (mean * (1 + relative * torch.randn(40, 64, 1, generator=generator, dtype=torch.float64))).float()
    in_use = torch.tensor([mean * (1 + relative)]), torch.tensor([(2 * mean * relative) ** 2])
    narrow, wide = (
        figures_of(torch.stack([central_moments(part) for part in of]), 64, *in_use) for of in (x, x.double())
    )
    assert narrow[0] == wide[0] == 0
    torch.testing.assert_close(narrow[1:].double(), wide[1:], rtol=0.01, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e4, 1 / 3])
@pytest.mark.parametrize("shape", [(64, 3), (32, 3, 16, 16)])
def test_a_constant_channel_is_constant_whatever_its_rounded_mean(shape: tuple[int, ...], value: float) -> None:
    x = torch.full(shape, value)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    moments = torch.stack([central_moments(x)] * 4)
    assert figures_of(moments, x.numel() // 3, torch.ones(3), torch.ones(3))[0].tolist() == [1.0] * 3


@pytest.mark.parametrize(("scale", "known"), [(1e-12, 3), (1e-8, 4), (1e8, 4), (1e12, 3), (1e20, 0)])
def test_moments_beyond_their_dtype_are_null_and_not_0(scale: float, known: int) -> None:
    """The fourth power of 1e12 is infinite in float32 and that of 1e-12 is 0; of 1e20 the square is infinite too."""
    x = scale * torch.randn(20, 50, 1, generator=torch.Generator().manual_seed(12))
    moments = torch.stack([central_moments(part) for part in x])
    found = figures_of(moments, 50, torch.tensor([scale]), torch.tensor([scale]) ** 2)[1:, 0]
    assert torch.isfinite(found).tolist() == [*(index < known for index in range(4)), known > 0]
    assert bool((found[:known] > 0).all())


def test_a_nan_in_one_channel_is_seen(spec_of: SpecOf) -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    x[3, 1] = math.nan
    found = _measured(_net(nn.BatchNorm1d(3)), x, 10)
    assert all(math.isnan(found[name][0]) for name in STATISTICS)


def test_the_same_examples_are_taken_at_every_step_and_others_for_another_seed(spec_of: SpecOf) -> None:
    x = torch.arange(200, dtype=torch.float64)[:, None]
    net = _net(nn.BatchNorm1d(1))
    data = Split(x, torch.zeros(200))
    base = Snapshot(
        step=0,
        point=0,
        lr=0.1,
        seed=0,
        net=net,
        objective=lambda outputs, targets: outputs.sum(),
        batch=Split(x[:10], data.y[:10]),
        data=data,
    )
    gaps = [
        figures(BNStatistics(examples=50), snapshot, {})[0]["bn_mean_gap"].item()
        for snapshot in (base, replace(base, step=5), replace(base, seed=1))
    ]
    assert gaps[0] == gaps[1] != gaps[2]


def test_a_batch_larger_than_the_number_of_examples_is_one_batch() -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    found = _measured(_net(nn.BatchNorm1d(3)), x, 40, examples=10)
    assert found["bn_mean_gap"][0] > 0
    assert math.isnan(found["bn_mean_noise"][0])


def test_what_is_measured_does_not_move_with_the_weights_afterwards() -> None:
    norm = nn.BatchNorm1d(3)
    net = _net(norm)
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    snapshot = Snapshot(
        step=0,
        point=0,
        lr=0.1,
        seed=0,
        net=net,
        objective=lambda outputs, targets: outputs.sum(),
        batch=Split(x[:10], x[:10, 0]),
        data=Split(x, x[:, 0]),
    )
    probe = BNStatistics(examples=20)
    raw = probe.measure(snapshot, probe.layout(net, (3,)))
    kept = {name: value.clone() for name, value in raw.items()}
    buffers = {name: value.clone() for name, value in norm.named_buffers()}
    with torch.no_grad():
        for param in norm.parameters():
            param.add_(1)
    assert {name: torch.equal(raw[name], value) for name, value in kept.items()} == dict.fromkeys(kept, True)
    norm(x)
    assert any(not torch.equal(value, buffers[name]) for name, value in norm.named_buffers())
    assert torch.equal(raw["statistics"], kept["statistics"])
