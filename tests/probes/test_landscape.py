"""The walk along the gradient, against a net that really walks there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from twins import norm_of, walk

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.core.state import State
from bnlab.data.base import Split
from bnlab.net.build import Net
from bnlab.probes.base import Snapshot, figures
from bnlab.probes.landscape import Landscape, random_direction, reach
from bnlab.run.setup import assemble

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=full", "probes.activations.batch=24", "probes.landscape.random=true", "dtype=float64", "steps=5")


@pytest.mark.parametrize("norm", ["none", "batch", "batch_reference"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_are_those_of_a_net_that_walks_along_its_gradient(
    model: str, norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, f"norm={norm}", "optim.lr=0.2", "optim.momentum=0.5", model=model))
    for step, record in enumerate(run.records):
        moment = run.moment(step)
        gradient = moment.gradient(moment.net())
        factors = [0.5 * 8 ** (k / 7) for k in range(8)]  # 0.5, ..., 4
        for name, value in walk(moment, gradient, factors).items():
            assert record[name] == pytest.approx(value, rel=1e-8), (step, name)
        length = torch.tensor(norm_of(*gradient.values()), dtype=torch.float64)
        direction = random_direction(gradient, length, run.setup.spec.seed, step)
        for name, value in walk(moment, direction, factors).items():
            assert record[f"random_{name}"] == pytest.approx(value, rel=1e-8), (step, name)


def test_the_range_and_the_number_of_points_are_options(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    options = ("probes.landscape.low=0.01", "probes.landscape.high=30.0", "probes.landscape.points=3")
    run = trained(spec_of(*PROBED, *options, "norm=batch"))
    for step, record in enumerate(run.records):
        moment = run.moment(step)
        walked = walk(moment, moment.gradient(moment.net()), [0.01, math.sqrt(0.3), 30.0])
        for name, value in walked.items():
            assert record[name] == pytest.approx(value, rel=1e-8), (step, name)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_reach_of_a_gradient_ends_where_the_loss_is_a_thousand_times_the_present_one(
    model: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    options = ("probes.landscape.low=0.01", "probes.landscape.high=1e6", "probes.landscape.points=12", "norm=none")
    run = trained(spec_of(*PROBED, *options, model=model))
    for step, record in enumerate(run.records):
        moment = run.moment(step)
        walked = walk(moment, moment.gradient(moment.net()), [0.01 * 1e8 ** (k / 11) for k in range(12)])
        assert 0.01 * record["lr"] < record["reach"] < 1e6 * record["lr"]
        assert record["reach"] == pytest.approx(walked["reach"], rel=1e-8)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 2.0, 3.0], 100.0),  # never: at least the last step
        ([1.0, 1000.0, 1e9], 10.0),
        ([1e4, 1.0, 1.0], 1.0),  # at most the first step
        ([10.0, 1e5, 1.0], 10**0.5),
        ([1e-3, 1e9, 1e9], 10**0.5),
        ([0.0, math.nan, 1.0], 10 ** (715.3 / 1418.2)),
    ],
)
def test_the_reach_of_known_losses(losses: list[float], expected: float) -> None:
    assert reach(np.array([1.0, 10.0, 100.0]), np.array(losses)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_at_the_start_of_the_line_the_loss_is_the_loss_and_the_slope_the_curvature(
    norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """Points so near that the surface is its tangent: L(theta - a g) = L - a ||g||^2."""
    near = ("probes.landscape.low=1e-9", "probes.landscape.high=1e-6", "optim.lr=0.1")
    run = trained(spec_of(*PROBED, *near, f"norm={norm}"))
    for record in run.records:
        loss, squared = record["train_loss"], record["grad_norm_total"] ** 2
        assert record["loss_lo"] == pytest.approx(loss, rel=1e-5)
        assert record["loss_hi"] == pytest.approx(loss, rel=1e-8)
        assert loss - record["loss_lo"] == pytest.approx(1e-7 * squared, rel=1e-3)
        assert loss - record["loss_hi"] == pytest.approx(1e-10 * squared, rel=1e-3)
        assert record["grad_change_rel"] < 1e-4


def test_on_a_quadratic_the_effective_smoothness_is_its_curvature_along_the_gradient() -> None:
    """L(W) = ||x W' - y||^2: the gradient changes by a 2 g x'x exactly, wherever one is on the line."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, size, generator=generator, dtype=torch.float64) for size in (3, 2))
    module = torch.nn.Linear(3, 2, bias=False).double()
    snapshot = Snapshot(
        step=0,
        point=0,
        lr=0.01,
        seed=0,
        net=Net(module=module, sites=()),
        objective=lambda outputs, targets: ((outputs - targets) ** 2).sum(),
        batch=Split(x, y),
        before=State.of(module),
    )
    found, _ = figures(Landscape(low=0.5, high=2.0, points=3, random=False), snapshot, {})
    residual = x @ module.weight.detach().T - y
    g = 2 * residual.T @ x
    bent = 2 * g @ x.T @ x
    losses = [float(((x @ (module.weight.detach() - a * g).T - y) ** 2).sum()) for a in (0.005, 0.01, 0.02)]
    assert found["eta_beta_half"] == pytest.approx(0.01 / 2 * float(bent.norm() / g.norm()), rel=1e-12)
    assert found["grad_change"] == pytest.approx(0.02 * float(bent.norm()), rel=1e-12)
    assert found["grad_change_rel"] == pytest.approx(0.02 * float(bent.norm() / g.norm()), rel=1e-12)
    assert found["loss_range"] == pytest.approx((max(losses) - min(losses)) / float((residual**2).sum()), rel=1e-12)


def test_random_directions_have_the_given_length_and_differ_by_seed_and_step() -> None:
    like = {"a": torch.zeros(3, 2), "b": torch.zeros(4)}
    norm = torch.tensor(2.5)
    one = random_direction(like, norm, 0, 1)
    assert {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in like.items()}
    assert norm_of(*one.values()) == pytest.approx(2.5, rel=1e-6)
    assert torch.equal(one["a"], random_direction(like, norm, 0, 1)["a"])
    for seed, step in ((0, 2), (1, 1)):
        assert not torch.allclose(one["a"], random_direction(like, norm, seed, step)["a"])


def test_figures_of_a_net_on_a_device_are_made_there() -> None:
    """They come to the host in one transfer; a tensor made without a device would be on the default one."""
    module = torch.nn.Linear(3, 2)
    snapshot = Snapshot(
        step=0, point=0, lr=0.01, seed=0, net=Net(module=module, sites=()),
        objective=lambda outputs, targets: ((outputs - targets) ** 2).sum(),
        batch=Split(torch.ones(4, 3), torch.ones(4, 2)), before=State.of(module),
    )  # fmt: skip
    with torch.device("meta"):
        raw = Landscape(low=0.5, high=2.0, points=3, random=False).measure(snapshot, None)
    assert {name for name, value in raw.items() if value.device.type != "cpu"} == set()


def test_a_loss_of_0_that_stays_0_has_no_end_of_its_reach() -> None:
    raw = {name: np.array(value) for name, value in {"loss": 0.0, "norm": 0.0, "lr": 0.1}.items()}
    raw |= {"losses": np.zeros(3), "changes": np.zeros(3)}
    metrics, _ = Landscape(low=0.5, high=2.0, points=3, random=False).summarize(raw, {}, None)
    assert metrics["reach"] == pytest.approx(0.1 * 2.0)


def test_without_random_there_are_no_random_figures(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    run = trained(spec_of("probes=full", "probes.activations.batch=24", "steps=5"))
    assert {"loss_lo", "eta_beta_half"} <= set(run.records[0])
    assert [key for key in run.records[0] if key.startswith("random_")] == []


def test_a_standard_run_of_200_points_has_50_of_the_landscape(spec_of: SpecOf) -> None:
    setup = assemble(spec_of("probes=standard", "steps=2000", "probes.points=200"))
    schedule, every = setup.schedule, setup.observer.every["landscape"]
    due = [step for step in range(2000) if step % schedule.every == 0 and schedule.due(step, every)]
    assert len(due) == 50


def test_a_loss_that_overflows_during_training_is_reported(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    run = trained(spec_of(*PROBED, "norm=none", "dtype=float32", "probes.landscape.high=1e38"))
    for record in run.records:
        assert record["loss_hi"] is None or record["loss_hi"] > 1e30
        assert np.isfinite(record["train_loss"])


def test_a_range_must_rise(spec_of: SpecOf) -> None:
    with pytest.raises(
        UsageError, match=r"^probes\.landscape\.high: not above probes\.landscape\.low = 4, got 0\.5\.$"
    ):
        assemble(spec_of("probes=standard", "probes.landscape.low=4.0", "probes.landscape.high=0.5"))
