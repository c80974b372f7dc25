"""Schedules against closed forms, updates against hand-written ones in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnlab import config
from bnlab.core.registry import OPTIMIZERS
from bnlab.core.spec import OptimSpec, RunSpec
from bnlab.core.state import State, gradient_at
from bnlab.optim.base import learning_rate
from bnlab.run.setup import assemble

NAMES = list(config.available("optim", [config.packaged_dir()]))
OPTIM = OptimSpec(
    name="sgd", lr=0.4, schedule="constant", warmup_steps=0, drop_at=(0.5, 0.75), drop_factor=0.1, options={}
)


def test_a_constant_rate_is_constant() -> None:
    assert [learning_rate(OPTIM, step, 100) for step in (0, 50, 99)] == [0.4, 0.4, 0.4]


def test_a_warm_up_rises_linearly_to_the_rate_and_stays() -> None:
    rates = [learning_rate(replace(OPTIM, warmup_steps=4), step, 100) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rel=1e-15)


def test_a_step_schedule_drops_at_its_shares_of_training() -> None:
    step = replace(OPTIM, schedule="step")
    rates = {at: learning_rate(step, at, 100) for at in (0, 49, 50, 74, 75, 99)}
    expected = {0: 0.4, 49: 0.4, 50: 0.04, 74: 0.04, 75: 0.004, 99: 0.004}
    assert rates == pytest.approx(expected, rel=1e-14)
    assert learning_rate(replace(step, drop_at=()), 99, 100) == 0.4
    assert learning_rate(replace(step, drop_at=(0.75, 0.5)), 60, 100) == pytest.approx(0.04)


@given(steps=st.integers(1, 3000), warmup=st.integers(0, 50), step=st.integers(0, 2999))
def test_a_cosine_schedule_is_half_a_cosine_after_the_warm_up(steps: int, warmup: int, step: int) -> None:
    if step >= steps or warmup >= steps:
        return
    found = learning_rate(replace(OPTIM, schedule="cosine", warmup_steps=warmup), step, steps)
    if step < warmup:
        expected = 0.4 * (step + 1) / warmup
    else:
        expected = 0.2 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0 < found <= 0.4


def test_a_cosine_schedule_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        found = learning_rate(replace(OPTIM, schedule="cosine"), step, 50)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def _sgd(w: np.ndarray, g: np.ndarray, memory: dict[str, Any], o: dict[str, Any], lr: float) -> np.ndarray:
    g = g + o["weight_decay"] * w
    v = g if "v" not in memory else o["momentum"] * memory["v"] + g
    memory["v"] = v
    return w - lr * (g + o["momentum"] * v if o["nesterov"] else v)


def _adam(w: np.ndarray, g: np.ndarray, memory: dict[str, Any], o: dict[str, Any], lr: float) -> np.ndarray:
    g = g + o["weight_decay"] * w
    t = memory["t"] = memory.get("t", 0) + 1
    m = memory["m"] = o["beta1"] * memory.get("m", 0) + (1 - o["beta1"]) * g
    s = memory["s"] = o["beta2"] * memory.get("s", 0) + (1 - o["beta2"]) * g**2
    return w - lr * (m / (1 - o["beta1"] ** t)) / (np.sqrt(s / (1 - o["beta2"] ** t)) + o["eps"])


def _adamw(w: np.ndarray, g: np.ndarray, memory: dict[str, Any], o: dict[str, Any], lr: float) -> np.ndarray:
    return _adam(w, g, memory, o | {"weight_decay": 0.0}, lr) - lr * o["weight_decay"] * w


@pytest.mark.parametrize(
    ("name", "by_hand", "options"),
    [
        ("sgd", _sgd, {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
        ("sgd", _sgd, {"momentum": 0.0, "nesterov": False, "weight_decay": 0.03}),
        ("sgd", _sgd, {"momentum": 0.9, "nesterov": False, "weight_decay": 0.03}),
        ("sgd", _sgd, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.03}),
        ("adam", _adam, {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.03}),
        ("adamw", _adamw, {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.3}),
    ],
)
def test_an_update_is_the_hand_written_one(
    name: str, by_hand: Callable[..., np.ndarray], options: dict[str, Any]
) -> None:
    """Ten steps on the gradient of a quartic, at a learning rate that changes on the way."""
    start = np.random.default_rng(0).normal(size=(3, 4))
    param = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = OPTIMIZERS.build(name, options, [param], 0.1)
    w, memory = start.copy(), {}
    for step in range(10):
        lr = 0.05 / (1 + step)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        (param**4 / 4 + param).sum().backward()
        optimizer.step()
        w = by_hand(w, w**3 + 1, memory, options, lr)
        np.testing.assert_allclose(param.detach().numpy(), w, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_the_loop_steps_at_the_scheduled_rate(
    name: str, spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    spec = spec_of(f"optim={name}", "optim.schedule=cosine", "optim.warmup_steps=3", "dtype=float64", "steps=9")
    ended = run(spec)
    rates = [record["lr"] for record in ended.records if "lr" in record]
    assert rates == pytest.approx([learning_rate(spec.optim, step, 9) for step in range(9)], rel=1e-12)


class Closed(torch.optim.LBFGS):
    """Its step needs a closure."""


class Sharp(torch.optim.SGD):
    """Two gradients a step: its closure has a default, and is needed."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None, "a closure is required"


class Lookahead(torch.optim.SGD):
    """Zhang et al. 2019: every third step goes half the way from the last such step. In `state`, or else only in
    attributes, are the slow weights and the count."""

    in_state = True

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self.slow: dict[torch.nn.Parameter, Any] = {}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            weights = [weight for group in self.param_groups for weight in group["params"]]
            for weight in weights:
                kept = self.state[weight] if self.in_state else self.slow.setdefault(weight, {})
                kept.setdefault("slow", weight.clone())
                kept["count"] = kept.get("count", 0) + 1
            super().step()
            for weight in weights:
                kept = self.state[weight] if self.in_state else self.slow[weight]
                if kept["count"] % 3 == 0:
                    weight.copy_(kept["slow"].lerp_(weight, 0.5))


class Forgetful(Lookahead):
    in_state = False


@pytest.fixture
def mine() -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Registers a function as `optim=mine`."""
    yield OPTIMIZERS.register("mine")
    OPTIMIZERS.forget("mine")


def _with(spec: RunSpec, name: str) -> RunSpec:
    return replace(spec, optim=replace(spec.optim, name=name, options={}))


def test_each_group_of_parameters_keeps_its_share_of_the_rate(
    mine: Any, spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    def grouped(params: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        listed = list(params)
        vectors, matrices = ([p for p in listed if p.ndim in dims] for dims in ((1,), (2, 4)))
        groups = [{"params": vectors, "lr": 0.0}, {"params": matrices[:1], "lr": lr / 2}, {"params": matrices[1:]}]
        return torch.optim.SGD(groups, lr=lr)

    mine(grouped)
    spec = spec_of("optim.schedule=cosine", "optim.warmup_steps=3", "dtype=float64", "steps=4", "probes=none")
    fresh = assemble(_with(spec, "mine"))
    ended = run(_with(spec, "mine"))
    before, after = (dict(setup.net.module.named_parameters()) for setup in (fresh, ended.setup))
    for name, param in after.items():
        assert torch.equal(param, before[name]) == (param.ndim == 1), name
    last = learning_rate(spec.optim, 3, 4)
    rates = [group["lr"] for group in ended.setup.optimizer.param_groups]
    assert rates == pytest.approx([0.0, last / 2, last], rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda params, lr: Closed(params, lr=lr), r"optim=mine: its step needs a closure, .*, got 'Closed'\."),
        (lambda params, lr: list(params), r"optim=mine: is not a torch\.optim\.Optimizer, got 'list'\."),
        (
            lambda params, lr: Sharp(params, lr=lr),
            r"optim=mine: a step without a closure fails: AssertionError in test_optim\.py, line \d+: a clos",
        ),
        (
            Forgetful,
            r"optim=mine: its state_dict leaves out what its steps depend on, and a resumed run would differ\.",
        ),
    ],
)
def test_what_a_run_cannot_step_with_is_refused(
    make: Callable[..., Any], message: str, mine: Any, spec_of: Callable[..., RunSpec]
) -> None:
    mine(make)
    with pytest.raises(ValueError, match=f"^{message}"):
        assemble(_with(spec_of(), "mine"))


def test_an_optimizer_of_ones_own_steps_as_in_a_loop_of_plain_torch(
    mine: Any, spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    mine(Lookahead)
    spec = _with(spec_of("dtype=float64", "steps=7", "probes=none", "norm=none"), "mine")
    fresh = assemble(spec)
    module = fresh.net.module
    optimizer = Lookahead(module.parameters(), spec.optim.lr)
    for step in range(7):
        batch = fresh.batches.at(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    trained = dict(run(spec).setup.net.module.named_parameters())
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, trained[name], rtol=1e-12, atol=1e-14)


def test_weight_decay_of_sgd_in_a_run_is_a_pull_towards_zero(
    spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    spec = spec_of("optim.weight_decay=0.5", "optim.lr=0.1", "dtype=float64", "steps=1", "norm=none")
    fresh = assemble(spec)
    before = {name: param.detach().clone() for name, param in fresh.net.module.named_parameters()}
    batch = fresh.batches.at(0)
    _, grads = gradient_at(fresh.net.module, State.of(fresh.net.module), batch.x, batch.y, fresh.objective)
    ended = run(spec)
    for name, param in ended.setup.net.module.named_parameters():
        expected = before[name] - 0.1 * (grads[name] + 0.5 * before[name])
        torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgd", {"momentum": 1.0}, r"optim\.momentum: must be below 1, got 1\.0\."),
        ("sgd", {"momentum": -0.1}, r"optim\.momentum: must be at least 0, got -0\.1\."),
        ("sgd", {"weight_decay": -1}, r"optim\.weight_decay: must be at least 0, got -1\."),
        ("sgd", {"weight_decay": math.inf}, r"optim\.weight_decay: must be finite, got inf\."),
        ("sgd", {"nesterov": True}, r"optim\.nesterov: needs a momentum, got true\. Set optim\.momentum=0\.9, say\."),
        ("adam", {"beta1": 1.0}, r"optim\.beta1: must be below 1, got 1\.0\."),
        ("adam", {"eps": 0.0}, r"optim\.eps: must be a number above 0, got 0\.0\."),
        ("adamw", {"eps": math.inf}, r"optim\.eps: must be finite, got inf\."),
        (
            "adamw",
            {"momentum": 0.9},
            r"optim\.momentum: no such option, got 0\.9\. There are: beta1, beta2, eps, weight_decay\.",
        ),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    plain = {
        "sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        "adam": {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0},
        "adamw": {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0},
    }[name]
    with pytest.raises(ValueError, match=f"^{message}$"):
        OPTIMIZERS.build(name, plain | options, [torch.nn.Parameter(torch.zeros(1))], 0.1)
