"""A watched loop is bit for bit the loop without it, and what is measured is what it did."""

from __future__ import annotations

import contextlib
import copy
import io
import random
import re
import shutil
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_nets import NETS, Functional, ResNet, images, plain_mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnlab
from bnlab.loop.watch import Lab, MeasuringWarning
from bnlab.record.folder import RunFolder
from bnlab.record.journal import read
from bnlab.record.runs import Run, read_run

Loop = Callable[..., dict[str, Any]]
STEPS = 12
ONE_BY_ONE = ["economy", "probes.points=12", "probes.activations.every=1"]


class Unwatched(contextlib.nullcontext["Unwatched"]):
    def __enter__(self) -> Unwatched:
        return self

    def step(self, *_: Any) -> None:
        """Nothing."""


def trained(
    net: str | Callable[[], nn.Module],
    lab_of: Callable[[nn.Module, torch.optim.Optimizer, Tensor], Any],
    *,
    autocast: bool = False,
    scaled: bool = False,
    accumulate: int = 1,
    compiled: bool = False,
    zero_after: bool = False,
    seen: Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], None] = lambda *_: None,
) -> dict[str, Any]:
    """A loop as people write it: workers, two parameter groups, clipping, a schedule, an evaluation on the way. All of
    the state that it ends with."""
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)
    make, batch = NETS[net] if isinstance(net, str) else (net, images)
    module, x, y = make(), batch(), torch.randint(0, 10, (96,))
    model = torch.compile(module, backend="aot_eager") if compiled else module
    weights = [param for param in module.parameters() if param.requires_grad]
    groups = [{"params": weights[::2], "weight_decay": 1e-3}, {"params": weights[1::2], "lr": 0.03}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    loss_of, losses = nn.CrossEntropyLoss(), []
    loader = DataLoader(TensorDataset(x, y), 24, shuffle=True)
    model.train()
    with lab_of(model, optimizer, x[:32]) as lab:
        while len(losses) < STEPS:
            for a, b in loader:
                for part, targets in zip(a.chunk(accumulate), b.chunk(accumulate), strict=True):
                    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        loss = loss_of(model(part), targets) / accumulate
                    scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(weights, 1.0)
                before = copy.deepcopy(module.state_dict())
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                losses.append(loss.item())
                seen(module, optimizer, part, targets)
                if zero_after:
                    optimizer.zero_grad(set_to_none=False)
                lab.step(loss, part, targets)
                if not zero_after:
                    optimizer.zero_grad()
                del before
            model.eval()
            with torch.no_grad():
                losses.append(model(x).sum().item())
            model.train()
            if hasattr(module, "p"):
                module.p = 0.3  # a schedule of the loop's own
    return {
        "weights": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "losses": losses,
        "torch": torch.get_rng_state(),
        "python": random.random(),
        "numpy": np.random.random(),
        "modes": [part.training for part in module.modules()],
        "hooks": [
            sum(len(getattr(part, name)) for name in vars(part) if name.endswith("_hooks")) for part in module.modules()
        ],
        "attributes": [sorted(vars(part)) for part in module.modules()],
        "in place": [getattr(part, "inplace", None) for part in module.modules()],
        "seen": getattr(module, "seen", None),
        "lab": lab,
    }


def assert_same(one: Any, other: Any, place: str = "") -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, Mapping):
        assert list(one) == list(other), place
        for key in one:
            if key != "lab":
                assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}.{index}")
    else:
        assert one == other, place


def watching(root: Path, **options: Any) -> Callable[[nn.Module, torch.optim.Optimizer, Tensor], Lab]:
    given = {
        "loss": nn.CrossEntropyLoss(),
        "name": "mine",
        "probes": ONE_BY_ONE,
        "steps": STEPS,
        "runs": root,
        **options,
    }
    return lambda model, optimizer, x: bnlab.watch(model, optimizer, **{"probe_batch": x, **given})


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A measurement that fails is a warning, so that a loop goes on; here it is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeasuringWarning)
        yield


def run_of(lab: Lab) -> Run:
    assert lab.path is not None
    return read_run(RunFolder(lab.path))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "autocast": {"autocast": True},
    "scaled": {"autocast": True, "scaled": True},
    "accumulated": {"accumulate": 2},
    "zeroed": {"zero_after": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("net", NETS)
def test_the_training_is_bit_for_bit_the_same(net: str, case: str, tmp_path: Path) -> None:
    if net == "double" and "autocast" in CASES[case]:
        pytest.skip("autocast is of float32")
    bare = trained(net, lambda *_: Unwatched(), **CASES[case])
    every = ["full", "probes.points=6"]
    probes = ONE_BY_ONE if case != "plain" or net == "transformer" else every
    watched = trained(net, watching(tmp_path, probes=probes), **CASES[case])
    assert_same(bare, watched)
    run = run_of(watched["lab"])
    assert (run.state, run.step) == ("finished", STEPS), watched["lab"].notes
    assert len(run.series("grad_norm")) >= 6
    assert np.isfinite(run.series("update_ratio").values).all()


@pytest.mark.parametrize("net", ["plain_mlp", "resnet", "functional"])
def test_a_compiled_model_is_measured_like_the_same_one_that_is_not(net: str, tmp_path: Path) -> None:
    bare = trained(net if net != "resnet" else _without_dropout, lambda *_: Unwatched(), compiled=True)
    arguments = net if net != "resnet" else _without_dropout
    compiled = trained(arguments, watching(tmp_path / "a"), compiled=True)
    assert_same(bare, compiled)
    plain = trained(arguments, watching(tmp_path / "b"))
    one, other = run_of(compiled["lab"]), run_of(plain["lab"])
    assert one.measured() == other.measured()
    for name in ("grad_norm", "delta_norm", "batch_mean", "act_var.act_in", "drift_mean.pre"):
        np.testing.assert_allclose(
            one.series(name).values, other.series(name).values, rtol=2e-2, atol=1e-5, err_msg=name
        )


def _without_dropout() -> nn.Module:
    net = ResNet()
    net.drop = nn.Dropout(0.0)
    return net


def test_what_is_measured_is_what_the_loop_did(tmp_path: Path) -> None:
    """Against figures that the loop itself takes, step by step, of the plainest code."""
    figures: list[dict[str, float]] = []
    passed: dict[str, Tensor] = {}

    def note(module: nn.Module, args: object, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda gradient: passed.update(delta=gradient.clone()))

    def made() -> nn.Module:
        net = plain_mlp()
        net[1].register_forward_hook(note)
        return net

    old: dict[str, Tensor] = {}

    def seen(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        weight = net[1].weight
        figures.append(
            {
                "grad_norm": weight.grad.norm().item(),
                "delta_norm": passed["delta"].norm().item(),
                "update_ratio": ((weight - old["w"]).norm() / old["w"].norm()).item() if old else np.nan,
            }
        )
        old["w"] = weight.detach().clone()

    lab = trained(made, watching(tmp_path), seen=seen)["lab"]
    run = run_of(lab)
    for name in ("grad_norm", "delta_norm", "update_ratio"):
        values = run.series(name).values[:, 0]
        expected = np.array([figure[name] for figure in figures])
        known = np.isfinite(expected)
        np.testing.assert_allclose(values[known], expected[known], rtol=1e-4, err_msg=name)


def test_gradients_are_those_that_the_optimizer_uses_with_a_scaler_too(tmp_path: Path) -> None:
    plain = run_of(trained("functional", watching(tmp_path / "a"))["lab"])
    scaled = run_of(trained("functional", watching(tmp_path / "b"), scaled=True)["lab"])
    for name in ("grad_norm", "delta_norm", "update_ratio", "drift_mean.pre"):
        np.testing.assert_allclose(
            scaled.series(name).values, plain.series(name).values, rtol=1e-3, atol=1e-7, err_msg=name
        )


def test_a_fine_tuned_net_keeps_its_modes_and_frozen_parts_are_no_sites(tmp_path: Path) -> None:
    run = run_of(trained("fine_tuned", watching(tmp_path))["lab"])
    assert [name.partition("_")[2] for name in run.provenance["sites"]] == ["head_0", "head_3"]


def test_a_loop_says_what_it_lacks(tmp_path: Path) -> None:
    """lab.step(loss) alone, one optimizer step too few, and steps beyond the last."""
    net, x = plain_mlp(), images()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    of_loss = ["standard", "probes.points=8"]
    with bnlab.watch(
        net, optimizer, loss=nn.CrossEntropyLoss(), name="mine", steps=4, probes=of_loss, runs=tmp_path
    ) as lab:
        for index in range(6):
            loss = net(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if index != 2:
                optimizer.step()
            lab.step(loss)
    said = "\n".join(lab.notes)
    for words in (
        "no targets y",
        "gradients, landscape and lipschitz",
        "step 2: the optimizer made no step, and it is not measured",
        "more than steps=4",
    ):
        assert words in said
    run = run_of(lab)
    for name in ("train_loss", "update_ratio"):
        assert list(run.series(name).steps) == [0, 1, 3]
    assert "landscape" not in "".join(run.measured())
    assert "loop makes more" in lab.summary()


def _loop(net: nn.Module, optimizer: torch.optim.Optimizer, lab: Lab, fails: Callable[[], None]) -> None:
    with lab:
        for _ in range(2):
            net(images()).sum().backward()
            optimizer.step()
            lab.step(1.0)
        fails()


def test_an_exception_leaves_nothing_on_the_module_and_a_failed_run(tmp_path: Path) -> None:
    net = ResNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [_attached(part) for part in net.modules()]

    def in_a_forward() -> None:
        handle = net.layer1.register_forward_pre_hook(lambda *_: 1 / 0)
        try:
            net(images())
        finally:
            handle.remove()

    def between() -> None:
        raise ZeroDivisionError

    def interrupted() -> None:
        raise KeyboardInterrupt

    for fails, kind, state in (
        (in_a_forward, ZeroDivisionError, "failed"),
        (between, ZeroDivisionError, "failed"),
        (interrupted, KeyboardInterrupt, "interrupted"),
    ):
        lab = bnlab.watch(net, optimizer, name=fails.__name__, steps=4, runs=tmp_path)
        with pytest.raises(kind):
            _loop(net, optimizer, lab, fails)
        assert run_of(lab).state == state
        assert [_attached(part) for part in net.modules()] == before
        assert not optimizer._optimizer_step_pre_hooks


def _attached(part: nn.Module) -> dict[str, Any]:
    """What a module has beside its tensors and parts."""
    return {key: len(value) if key.endswith("_hooks") else key for key, value in vars(part).items()} | {
        "inplace": getattr(part, "inplace", None)
    }


def test_a_failing_measurement_ends_the_watching_and_not_the_training(tmp_path: Path) -> None:
    def broken(outputs: Tensor, y: Tensor) -> Tensor:
        raise ZeroDivisionError("of the loss")

    net, x, y = plain_mlp(), images(), torch.randint(0, 10, (96,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with bnlab.watch(net, optimizer, loss=broken, name="a", steps=4, probes="standard", runs=tmp_path) as lab:
            for _ in range(4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
                lab.step(0.5, x, y)
    assert len(said) == 1
    assert "the training goes on: ZeroDivisionError" in str(said[0].message)
    assert run_of(lab).state == "failed"
    assert not lab.active


def test_a_net_that_draws_elsewhere_is_measured_by_nobody(tmp_path: Path) -> None:
    class Hidden(nn.Module):
        """Two passes from one state differ, and only their outputs show it."""

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out, self.calls = nn.Linear(64, 8), nn.Linear(8, 10), [0]

        def forward(self, x: Tensor) -> Tensor:
            self.calls[0] += 1
            return self.out(torch.relu(self.fc(x.flatten(1)))) * self.calls[0]

    net = Hidden()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    lab = bnlab.watch(net, optimizer, name="a", steps=4, runs=tmp_path)
    with pytest.warns(MeasuringWarning, match="gives other outputs"):
        _loop(net, optimizer, lab, lambda: None)
    assert lab.path is not None
    assert not list(read(RunFolder(lab.path).journal_file))


def _refused() -> dict[str, tuple[Callable[[], dict[str, Any]], str]]:
    def net(**more: Any) -> Callable[[], dict[str, Any]]:
        return lambda: {
            "model": plain_mlp(),
            **{key: value() if callable(value) else value for key, value in more.items()},
        }

    return {
        "a name": (net(name="../x"), "name: "),
        "no steps": (net(steps=0), "steps: must be a whole number, at least 1, got 0"),
        "a probe": (net(probes="economi"), "economy"),
        "a probe's key": (net(probes=["economy", "probes.pints=3"]), "probes.pints"),
        "few examples": (net(probe_batch=lambda: images()[:2]), "probe_batch: must be a tensor of at least 4 examples"),
        "a wrong shape": (net(probe_batch=lambda: torch.randn(8, 3)), "model: RuntimeError in a forward"),
        "frozen": (net(model=lambda: plain_mlp().requires_grad_(False)), "model: has no parameter that is trained"),
        "another's optimizer": (
            net(optimizer=lambda: torch.optim.SGD(plain_mlp().parameters(), lr=1.0)),
            "optimizer: has none of the model's parameters",
        ),
        "lazy": (
            net(model=lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3))),
            "model: has weights that no forward",
        ),
        "nothing to measure": (
            net(model=lambda: nn.Sequential(nn.Flatten(), nn.PReLU(64)), probe_batch=images),
            "has no nn.Linear, nn.Conv1d or nn.Conv2d",
        ),
        "parallel": (net(model=lambda: nn.DataParallel(plain_mlp())), "model: it is an nn.DataParallel"),
        "a dict": (net(model=Returning, probe_batch=images), "must return one tensor, and returns a dict"),
        "no claims": (net(claims="no_such.yaml"), "claims: no such file"),
        "sites": (net(sites={"a": ("x", "", "")}, probe_batch=images), "no part of a that a forward passes through"),
        "scripted": (net(model=lambda: torch.jit.script(plain_mlp())), "model: it is compiled by torch.jit"),
        "a function of itself": (net(model=Remembers, probe_batch=images), "its copy calls parts of the model"),
        "a part that is not copied": (
            net(model=lambda: nn.Sequential(OneOnly()), probe_batch=images),
            "its copy shares parts with it",
        ),
    }


class Remembers(nn.Module):
    """It keeps a function that is not copied with it."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.out = plain_mlp(), nn.Linear(10, 10)
        self.features = lambda x: torch.relu(self.net(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class OneOnly(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 10)

    def __deepcopy__(self, memo: object) -> OneOnly:
        return self


class Returning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = plain_mlp()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


REFUSED = _refused()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_before_the_first_step(case: str, tmp_path: Path) -> None:
    given, words = REFUSED[case]
    arguments = {"name": "mine", "steps": 4, "runs": tmp_path, **given()}
    model = arguments.pop("model")
    lazy = any(isinstance(param, nn.UninitializedParameter) for param in model.parameters())
    optimizer = arguments.pop("optimizer", None) or torch.optim.SGD(
        [nn.Parameter(torch.ones(1))] if lazy else model.parameters(), lr=0.1
    )
    with pytest.raises(bnlab.UsageError) as found:
        bnlab.watch(model, optimizer, **arguments)
    assert words in str(found.value)
    assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


class Drifts(nn.Module):
    """Every pass changes an attribute in place, by less than is seen when it is examined."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.mean = plain_mlp(), torch.ones(10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        self.mean.lerp_(out.detach().mean(0), 1e-6)
        return out + self.mean


def test_copies_and_files_of_a_watched_model_have_nothing_of_it(tmp_path: Path) -> None:
    losses: list[float] = []

    def seen(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        assert b"bnlab" not in file.getvalue()
        for other in (
            copy.deepcopy(net),
            torch.optim.swa_utils.AveragedModel(net),
            torch.load(file, weights_only=False),
        ):
            losses.append(other.eval()(x).sum().item())

    bare = trained("plain_mlp", lambda *_: Unwatched(), seen=seen)
    half = len(losses)
    watched = trained("plain_mlp", watching(tmp_path), seen=seen)
    assert_same(bare, watched)
    assert losses[:half] == losses[half:]
    assert len(run_of(watched["lab"]).series("grad_norm")) == STEPS


def test_attributes_of_the_model_are_not_those_of_the_copy(tmp_path: Path) -> None:
    means: list[Tensor] = []
    for lab_of in (lambda *_: Unwatched(), watching(tmp_path)):
        trained(Drifts, lab_of, seen=lambda net, *_: means.append(net.mean.clone()))
    assert_same(means[:STEPS], means[STEPS:])


def test_two_labs_of_one_model_measure_the_same(tmp_path: Path) -> None:
    class Both(contextlib.ExitStack):
        def __init__(self, *given: Any) -> None:
            super().__init__()
            self.labs = [watching(tmp_path, name=name, probe_batch=batch)(*given) for name, batch in batches]

        def __enter__(self) -> Both:
            for lab in self.labs:
                self.enter_context(lab)
            return self

        def step(self, *given: Any) -> None:
            for lab in self.labs:
                lab.step(*given)

    torch.manual_seed(0)
    batches = (("a", None), ("b", images()))
    bare = trained("resnet", lambda *_: Unwatched())
    watched = trained("resnet", Both)
    assert_same(bare, watched)
    one, other = map(run_of, watched["lab"].labs)
    for name in ("grad_norm", "delta_norm", "update_ratio"):
        np.testing.assert_array_equal(one.series(name).values, other.series(name).values)


def test_a_folder_that_is_removed_stops_no_training(tmp_path: Path) -> None:
    def removed(net: nn.Module, *_: Any) -> None:
        if net[2].num_batches_tracked == 6:
            shutil.rmtree(tmp_path / "mine")

    bare = trained("plain_mlp", lambda *_: Unwatched())
    with pytest.warns(MeasuringWarning, match="was removed"):
        watched = trained("plain_mlp", watching(tmp_path, steps=STEPS - 2), seen=removed)
    assert_same(bare, watched)


def test_mistakes_in_the_loop_end_the_watching_in_a_line(tmp_path: Path) -> None:
    """Each is a step of a loop, and what is said of it."""

    def of(net: nn.Module) -> Tensor:
        return net(images()).square().mean()

    def too_early(net: nn.Module, optimizer: torch.optim.Optimizer, lab: Lab) -> None:
        of(net).backward()
        lab.step(1.0)
        optimizer.step()

    def never(net: nn.Module, optimizer: torch.optim.Optimizer, lab: Lab) -> None:
        of(net).backward()
        optimizer.step()

    def by_hand(net: nn.Module, optimizer: torch.optim.Optimizer, lab: Lab) -> None:
        of(net).backward()
        with torch.no_grad():
            net[1].weight.sub_(0.1)
        lab.step(1.0)

    def sharpness_aware(net: nn.Module, optimizer: torch.optim.Optimizer, lab: Lab) -> None:
        loss = of(net)
        loss.backward()
        optimizer.step(lambda: of(net).backward())
        lab.step(loss)

    def without_a_tensor(net: nn.Module, optimizer: torch.optim.Optimizer, lab: Lab) -> None:
        never(net, optimizer, lab)
        lab.step(1.0)
        with contextlib.suppress(AttributeError):
            net({})

    class Sharpness(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(0.01)
                if closure is not None:
                    with torch.enable_grad():
                        closure()
            super().step()

    for step, words in (
        (too_early, r"lab.step: is called before optimizer.step\(\)"),
        (never, "no step ended with lab.step"),
        (by_hand, "optimizer: the weights changed without its step"),
        (sharpness_aware, "changes weights and then calls its closure, and is not measured, got 'Sharpness'"),
        (without_a_tensor, "model: is called without a tensor"),
    ):
        net = plain_mlp()
        optimizer = (Sharpness if step is sharpness_aware else torch.optim.SGD)(net.parameters(), lr=0.1)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with bnlab.watch(net, optimizer, name=step.__name__, steps=4, runs=tmp_path) as lab:
                for _ in range(4):
                    step(net, optimizer, lab)
        (warning,) = said
        assert re.search(words, str(warning.message))
        assert run_of(lab).state == "failed"
        assert ("update_ratio" in run_of(lab).measured()) == (step is without_a_tensor)


def test_a_forward_that_fails_is_not_that_of_its_step(tmp_path: Path) -> None:
    """A loop that leaves out bad batches; after each, nothing is attached to the parts."""
    net = plain_mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with bnlab.watch(net, optimizer, name="a", steps=6, probe_batch=images(), probes=ONE_BY_ONE, runs=tmp_path) as lab:
        for index in range(6):
            with contextlib.suppress(RuntimeError):
                net(torch.ones(5, 3) if index in (0, 3) else images()).square().mean().backward()
            assert not [part for part in net.modules() if "forward" in vars(part)]
            optimizer.step()
            lab.step(None)
    run = run_of(lab)
    assert list(run.series("update_ratio").steps) == [1, 2, 4, 5]
    assert "train_loss" not in run.measured()
    assert run.state == "finished"


def test_a_model_that_is_never_called_is_said(tmp_path: Path) -> None:
    net = plain_mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    lab = bnlab.watch(net, optimizer, name="a", steps=4, runs=tmp_path)
    with pytest.warns(MeasuringWarning, match="nothing was measured: the model was not called in training mode"):
        _loop(nn.Sequential(*net), optimizer, lab, lambda: None)


def test_settings_that_are_tensors_and_outputs_that_are_no_mapping(tmp_path: Path) -> None:
    class Object(Returning):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            logits = self.net(x)
            return types.SimpleNamespace(logits=logits, sum=logits.sum)

    net = Object()
    betas = torch.tensor(0.5), torch.tensor(0.75)
    optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(0.25), betas=betas, foreach=False)
    lab = bnlab.watch(net, optimizer, name="a", steps=4, call=lambda net, x: net(x).logits, runs=tmp_path)
    with pytest.warns(MeasuringWarning, match=r"no output of a forward has the shape .* \[96, 10\]"):
        _loop(net, optimizer, lab, lambda: None)
    spec = run_of(lab).spec
    assert (spec["optim.lr"], spec["optim.betas"]) == (0.25, [0.5, 0.75])


@pytest.mark.parametrize("runs", ["a file", "no place"])
def test_a_folder_that_cannot_be_written_is_one_line(
    runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("", encoding="utf-8")
    if runs == "no place":
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    net = plain_mlp()
    lab = bnlab.watch(net, torch.optim.SGD(net.parameters(), lr=0.1), name="a", steps=4, runs=tmp_path / runs)
    with pytest.raises(bnlab.UsageError, match=r"^runs: (not a directory|denied), got "), lab:
        net(images())


def test_a_refusal_that_a_loop_survives_is_said_once(tmp_path: Path) -> None:
    net = Returning()
    optimizer, refused, steps = torch.optim.SGD(net.parameters(), lr=0.1), 0, 0
    with bnlab.watch(net, optimizer, name="a", steps=6, runs=tmp_path) as lab:
        for _ in range(4):
            try:
                net(images())["logits"].sum().backward()
                optimizer.step()
                steps += 1
            except bnlab.UsageError:
                refused += 1
            lab.step(1.0)
    assert (refused, steps) == (1, 3)


@pytest.mark.parametrize(
    ("line", "words"),
    [("metric: final_los", "claims.a.metric: no such metric"), ("metrik: x", "claims.0.metrik: no such key")],
)
def test_a_claim_that_could_never_be_judged_is_refused_before_the_first_step(
    line: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "claims.yaml"
    file.write_text(
        "claims:\n- {name: a, text: b, source: c, contrast: {norm: [batch, none]}, at: matched_lr, expect: smaller, "
        f"compare: ratio, smallest_effect: 1, {line}}}\n",
        encoding="utf-8",
    )
    with pytest.raises(bnlab.UsageError) as found:
        trained("plain_mlp", watching(tmp_path / "runs", claims=file))
    assert words in str(found.value)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_has_ended_is_replaced_only_if_asked(tmp_path: Path) -> None:
    first = trained("plain_mlp", watching(tmp_path))["lab"]
    with pytest.raises(bnlab.UsageError, match="fresh=True"):
        trained("plain_mlp", watching(tmp_path))
    assert run_of(first).state == "finished"
    again = trained("plain_mlp", watching(tmp_path, fresh=True))["lab"]
    assert (again.path, run_of(again).state) == (first.path, "finished")


def test_a_model_with_another_call_and_logged_values(tmp_path: Path) -> None:
    net, x, y = Returning(), images(), torch.randint(0, 10, (96,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with bnlab.watch(
        net, optimizer, loss=nn.functional.cross_entropy, name="a", steps=6, probes="standard",
        call=lambda net, x: net(x)["logits"], runs=tmp_path, arm="mine/first",
    ) as lab:  # fmt: skip
        for step in range(6):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x, labels=y)["logits"], y)
            loss.backward()
            optimizer.step()
            lab.step(loss, x, y)
            lab.log(test_accuracy=step / 10, train_loss=0.25)
    run = run_of(lab)
    assert run.spec["norm"] == "mine/first"
    assert (run.final("test_accuracy"), run.final("train_loss")) == (0.5, 0.25)
    assert run.series("test_accuracy").values.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert run.series("train_loss").values[0] != 0.25
    assert [name.partition("_")[2] for name in run.provenance["sites"]] == ["net_net_1", "net_net_4"]
    assert any(name.startswith(("landscape", "loss_")) for name in run.measured())
    with pytest.raises(bnlab.UsageError):
        lab.log(step=3)


@pytest.mark.parametrize("net", [ResNet, Functional])
def test_a_model_without_its_norms_is_measured_at_the_same_places(net: type[nn.Module], tmp_path: Path) -> None:
    """Also where a copy stands in the place of a norm, since the forward changes what it is given."""
    torch.manual_seed(0)
    model, x = net(), images()
    runs = []
    for norm in ("own", "none"):
        other = bnlab.with_norm(model, norm, x)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
        lab = bnlab.watch(other, optimizer, name="a", steps=2, probes=ONE_BY_ONE, probe_batch=x, runs=tmp_path)
        _loop(other, optimizer, lab, lambda: None)
        runs.append(run_of(lab))
    assert [run.spec["norm"] for run in runs] == ["batch", "none"]
    assert runs[0].provenance["sites"] == runs[1].provenance["sites"]
    dead = [run.series("dead_fraction").values[0] for run in runs]
    assert np.isfinite(dead[0]).tolist() == np.isfinite(dead[1]).tolist()
    assert np.isfinite(dead[1]).any()


def test_what_a_report_a_table_and_a_dashboard_make_of_it(tmp_path: Path, in_process: Callable[..., Any]) -> None:
    claims = tmp_path / "claims.yaml"
    claims.write_text(
        "claims:\n  - {name: lower, text: The loss ends lower with batch norm., source: this loop, "
        "metric: final_train_loss, contrast: {norm: [batch, none]}, at: matched_lr, expect: smaller, "
        "compare: ratio, smallest_effect: 1.02}\n",
        encoding="utf-8",
    )
    x, y = images(), torch.randint(0, 10, (96,))
    for seed in range(6):
        for norm in ("own", "none"):
            torch.manual_seed(seed)
            net = bnlab.with_norm(ResNet(), norm, x)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            with bnlab.watch(
                net, optimizer, name="mine", steps=15, seed=seed, claims=claims, runs=tmp_path / "runs"
            ) as lab:
                for _ in range(15):
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(net(x), y)
                    loss.backward()
                    optimizer.step()
                    lab.step(loss, x, y)
                lab.log(train_loss=loss)
    root = tmp_path / "runs" / "mine"
    verdict = bnlab.judge(root)[0]
    assert (verdict.decision, verdict.n) == ("supported", 6)
    assert {run["norm"] for run in in_process("runs", str(root), "--json").json["runs"]} == {"batch", "none"}
    built = in_process("report", str(root))
    assert built.code == 0, built.stderr
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "The loss ends lower with batch norm." in page
    assert "bnlab sweep --config mine" not in page  # the script makes these runs
    frame = bnlab.load(root)
    assert frame.height == 12


def test_the_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "loop.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "loop.md", "exec"), {})
    assert "finished" in capsys.readouterr().out
    (found,) = (tmp_path / "runs" / "mine" / "batch" / "lr=0.1").iterdir()
    assert read_run(RunFolder(found)).step == 200


def _of_a_process(rank: int, root: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = plain_mlp()
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    x, y = images(), torch.randint(0, 10, (96,))
    for name in ("bare", "watched"):
        net.load_state_dict(torch.load(f"{root}/start.pt"))
        lab = bnlab.watch(
            model, optimizer, loss=nn.CrossEntropyLoss(), name="ddp", steps=6, probe_batch=x[:32], runs=root
        )
        with lab if name == "watched" else Unwatched() as lab:
            for _ in range(6):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                lab.step(loss, x, y)
        torch.save(net.state_dict(), f"{root}/{name}{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_without_it_and_one_writes(tmp_path: Path) -> None:
    torch.save(plain_mlp().state_dict(), tmp_path / "start.pt")
    torch.multiprocessing.spawn(_of_a_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        one, other = (torch.load(tmp_path / f"{name}{rank}.pt") for name in ("bare", "watched"))
        assert_same(one, other)
    (found,) = (tmp_path / "ddp" / "batch" / "lr=0.1").iterdir()
    run = read_run(RunFolder(found))
    assert (run.state, run.step) == ("finished", 6)
    assert len(run.series("grad_norm")) == 6
