"""Runs trained in one stack are the runs trained alone: folder by folder, bit by bit."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bnlab.core.spec import LaunchSpec, RunSpec
from bnlab.core.study import Cell
from bnlab.grids import run as sweeping
from bnlab.grids.run import Sweep
from bnlab.grids.task import Group, Task, train_group
from bnlab.launch.base import Outcome
from bnlab.net import stack
from bnlab.norms._beside import FlatBatchNorm, lanes
from bnlab.probes.landscape import Landscape
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal
from bnlab.run import lockstep

SpecOf = Callable[..., RunSpec]
Traces = Callable[[Path], dict[str, Any]]
Stopped = Callable[[], str | None]
NORMS = ("none", "batch", "frozen_batch", "batch_renorm", "ghost_batch", "layer", "noisy_batch", "l1", "affine_only")
OPTIMIZERS = (
    ("optim=sgd",),
    ("optim=sgd", "optim.momentum=0.9"),
    ("optim=sgd", "optim.momentum=0.9", "optim.nesterov=true", "optim.weight_decay=0.01"),
    ("optim=adam", "optim.weight_decay=0.01"),
    ("optim=adamw",),
)
SCHEDULES = ("constant", "step", "cosine")
PROBES = ("none", "economy", "standard", "full")


@pytest.fixture(autouse=True)
def _unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "_PROVED", {})


def cells(spec_of: SpecOf, *overrides: str, rates: Sequence[float] = (0.02, 0.3), seeds: int = 2) -> list[RunSpec]:
    small = ("model=mlp", "model.depth=2", "model.width=20", "data.batch_size=16", "steps=9", "probes.points=5")
    return [spec_of(*small, *overrides, f"optim.lr={rate}", f"seed={seed}") for seed in range(seeds) for rate in rates]


def train(
    specs: Sequence[RunSpec], root: Path, at_once: int | str, stopped: Stopped = lambda: None
) -> dict[str, dict[str, Any]]:
    """As a sweep's worker: a stack of `at_once` nets, or alone with "off"."""
    launch = replace(specs[0].launch, lockstep=at_once)
    assert isinstance(launch, LaunchSpec)
    tasks = [
        Task(
            spec=replace(spec, launch=launch),
            folder=RunFolder(root / spec.folder),
            fresh=False,
            plugins={},
            provenance={},
            profile="light",
        )
        for spec in specs
    ]
    groups = [Group((task,)) for task in tasks] if at_once == "off" else [Group(tuple(tasks))]
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        found |= train_group(group, stopped)
    return found


@pytest.mark.parametrize("number", range(len(NORMS) * len(OPTIMIZERS)))
def test_a_run_in_a_stack_is_the_run_alone(spec_of: SpecOf, traces_of: Traces, tmp_path: Path, number: int) -> None:
    """Every norm with every optimizer; activations, schedules and probes in turn."""
    norm, optimizer = NORMS[number % len(NORMS)], OPTIMIZERS[number // len(NORMS)]
    activation = ("relu", "sigmoid", "tanh")[number % 3]
    own = ("norm.ghost_size=5",) if norm == "ghost_batch" else ()
    schedule = SCHEDULES[(number // 2) % 3]
    probes = PROBES[(number + number // len(NORMS)) % 4]
    batch = ("probes.activations.batch=24",) if probes in ("standard", "full") else ()
    specs = cells(
        spec_of,
        *(f"norm={norm}", *own, *optimizer, f"model.activation={activation}", f"optim.schedule={schedule}"),
        *(f"probes={probes}", *batch),
    )
    assert len(train(specs, tmp_path / "alone", "off")) == len(specs)
    found = train(specs, tmp_path / "stack", len(specs))
    assert {status["status"] for status in found.values()} <= {"finished", "diverged"}
    assert list(lockstep._PROVED.values()) == [True]
    assert traces_of(tmp_path / "stack") == traces_of(tmp_path / "alone")


@pytest.mark.parametrize(
    "settings",
    [
        ("data.shuffle=once", "data.subset=48", "probes=none"),  # over three epochs
        # Above LARGEST_SAVED_EPS the moments are those of pre, not what batch norm saves.
        ("norm.eps=0.1", "probes=economy", "probes.activations.batch=24"),
    ],
)
def test_shuffled_once_or_with_a_large_eps_a_stack_has_the_bits_of_its_runs(
    settings: tuple[str, ...], spec_of: SpecOf, traces_of: Traces, tmp_path: Path
) -> None:
    specs = cells(spec_of, "norm=batch", *settings)
    train(specs, tmp_path / "alone", "off")
    train(specs, tmp_path / "stack", len(specs))
    assert list(lockstep._PROVED.values()) == [True]
    assert traces_of(tmp_path / "stack") == traces_of(tmp_path / "alone")


def test_it_would_be_seen(spec_of: SpecOf, traces_of: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a part of batch norm's backward pass left out and no proof, runs differ; with the proof they train alone,
    and their logs say so."""
    if lanes(torch.float32) == 1:
        pytest.skip("this machine's batch norm rounds all channels alike")
    specs = cells(spec_of, "norm=batch")
    train(specs, tmp_path / "alone", "off")
    monkeypatch.setattr(FlatBatchNorm, "_again", lambda self, gradient, g, last: None)
    train(specs, tmp_path / "proved", len(specs))
    assert list(lockstep._PROVED.values()) == [False]
    assert traces_of(tmp_path / "proved") == traces_of(tmp_path / "alone")
    logs = [file.read_text() for file in (tmp_path / "proved").rglob("log.txt")]
    assert len(logs) == len(specs)
    assert all("trained alone: on this machine a stack of such nets has other bits" in log for log in logs)
    monkeypatch.setattr(lockstep.Lockstep, "proved", lambda self: True)
    monkeypatch.setattr(lockstep, "_PROVED", {})
    train(specs, tmp_path / "wrong", len(specs))
    assert traces_of(tmp_path / "wrong") != traces_of(tmp_path / "alone")


def test_places_are_taken_by_the_next_run(spec_of: SpecOf, traces_of: Traces, tmp_path: Path) -> None:
    """Runs of other lengths, some that diverge, in fewer places than runs."""
    specs = [
        *cells(spec_of, "norm=batch", rates=(0.02, 0.3, 1e6), seeds=2),
        *cells(spec_of, "norm=batch", "steps=4", seeds=1),
        *cells(spec_of, "norm=batch", "model.init_scale=0.5", "optim.schedule=cosine", seeds=1),
    ]
    alone = train(specs, tmp_path / "alone", "off")
    assert {status["status"] for status in alone.values()} == {"finished", "diverged"}
    found = train(specs, tmp_path / "stack", 3)
    assert found.keys() == alone.keys()
    assert traces_of(tmp_path / "stack") == traces_of(tmp_path / "alone")


def test_runs_of_another_kind_train_too(spec_of: SpecOf, traces_of: Traces, tmp_path: Path) -> None:
    specs = [*cells(spec_of, "norm=batch"), *cells(spec_of, "norm=none", seeds=1)]
    train(specs, tmp_path / "alone", "off")
    assert len(train(specs, tmp_path / "stack", 4)) == len(specs)
    assert traces_of(tmp_path / "stack") == traces_of(tmp_path / "alone")


def test_of_runs_that_cannot_be_in_a_stack_the_first_is_trained(spec_of: SpecOf, tmp_path: Path) -> None:
    specs = [spec_of(f"seed={seed}", model="cnn") for seed in range(2)]
    assert list(train(specs, tmp_path, 4)) == [specs[0].id]


@pytest.mark.parametrize(
    "optimizer", [("optim=sgd", "optim.momentum=0.9"), ("optim=adam",)], ids=lambda words: words[0]
)
@pytest.mark.parametrize(("first", "then"), [(4, "off"), ("off", 4), (4, 4)])
def test_a_run_begun_one_way_is_ended_the_other(
    spec_of: SpecOf, traces_of: Traces, tmp_path: Path, first: int | str, then: int | str, optimizer: tuple[str, ...]
) -> None:
    specs = cells(spec_of, "norm=batch", *optimizer, "probes=economy", "probes.activations.batch=24")
    train(specs, tmp_path / "whole", "off")
    asked = 0

    def stopped() -> str | None:
        nonlocal asked
        asked += 1
        return "a test" if asked > (20 if first == 4 else 6) else None

    half = train(specs, tmp_path / "halved", first, stopped)
    assert "interrupted" in {status["status"] for status in half.values()}
    train(specs, tmp_path / "halved", then)
    assert traces_of(tmp_path / "halved") == traces_of(tmp_path / "whole")


def test_a_checkpoint_of_a_run_in_a_stack_is_no_larger(spec_of: SpecOf, tmp_path: Path) -> None:
    specs = cells(spec_of, "norm=batch", "optim=adam")
    for root, at_once in ((tmp_path / "alone", "off"), (tmp_path / "stack", 4)):
        train(specs, root, at_once)
    sizes = [[file.stat().st_size for file in sorted(root.rglob("checkpoint.pt"))] for root in tmp_path.iterdir()]
    assert len(sizes[0]) == len(specs)
    assert all(abs(one - other) < 2000 for one, other in zip(*sizes, strict=True))


def test_a_run_s_fault_is_its_own(
    spec_of: SpecOf, traces_of: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that raises for one net, and a disk that is full for another's folder."""
    specs = cells(spec_of, "norm=none", "probes=standard", "probes.activations.batch=24")
    train(specs, tmp_path / "alone", "off")
    measure, append = Landscape.measure, Journal.append
    broken, full = specs[1], specs[2]

    def raising(self: Landscape, snapshot: Any, *layout: Any) -> Any:
        if snapshot.seed == broken.seed and abs(snapshot.lr - broken.optim.lr) < 1e-9 and snapshot.step > 2:
            raise RuntimeError("a broken probe")
        return measure(self, snapshot, *layout)

    def filled(self: Journal, record: Any) -> None:
        if f"lr={full.optim.lr:g}/seed={full.seed}-" in self._file.name and record["step"] > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, record)

    monkeypatch.setattr(Landscape, "measure", raising)
    monkeypatch.setattr(Journal, "append", filled)
    found = train(specs, tmp_path / "stack", len(specs))
    assert found[broken.id] == {"status": "failed", "error": "RuntimeError: a broken probe"}
    assert "no space left on device" in found[full.id]["error"]
    left = [spec for spec in specs if spec not in (broken, full)]
    assert [found[spec.id]["status"] for spec in left] == ["finished"] * len(left)
    stacked, alone = traces_of(tmp_path / "stack"), traces_of(tmp_path / "alone")
    assert all(stacked[spec.folder] == alone[spec.folder] for spec in left)
    assert "a broken probe" in (tmp_path / "stack" / broken.folder / "log.txt").read_text()


def test_the_seconds_of_a_run_are_its_share(spec_of: SpecOf, tmp_path: Path) -> None:
    import time

    specs = cells(spec_of, "norm=none", "steps=60", seeds=4)
    started = time.monotonic()
    train(specs, tmp_path, len(specs))
    whole = time.monotonic() - started
    timings = [json.loads(file.read_text())["timing"] for file in tmp_path.rglob("status.json")]
    assert [timing["nets"] for timing in timings] == [len(specs)] * len(specs)
    assert 0 < sum(timing["run_s"] for timing in timings) <= whole


def test_a_run_knows_the_largest_stack_that_it_was_in(spec_of: SpecOf, tmp_path: Path) -> None:
    """Also where it is stopped and goes on alone."""
    specs = cells(spec_of, "steps=40", "norm=batch", seeds=2)
    asked = iter(range(200))
    train(specs, tmp_path, len(specs), lambda: "a test" if next(asked) > 60 else None)
    first = [json.loads(file.read_text()) for file in tmp_path.rglob("status.json")]
    assert {status["status"] for status in first} == {"interrupted"}
    train(specs, tmp_path, "off")
    ended = [json.loads(file.read_text()) for file in tmp_path.rglob("status.json")]
    assert [(status["status"], status["timing"]["nets"]) for status in ended] == [("finished", len(specs))] * len(specs)
    train(specs, tmp_path / "alone", "off")
    alone = [json.loads(file.read_text())["timing"]["nets"] for file in (tmp_path / "alone").rglob("status.json")]
    assert alone == [1] * len(specs)


def grid(spec_of: SpecOf, root: Path, *overrides: str) -> Sweep:
    """Two norms, three rates, 14 seeds."""
    specs = []
    for norm in ("none", "batch"):
        spec = spec_of("model=mlp", f"norm={norm}", *overrides)
        specs += [
            replace(spec, seed=seed, optim=replace(spec.optim, lr=rate))
            for seed in range(14)
            for rate in (0.1, 0.2, 0.3)
        ]
    specs.sort(key=lambda spec: spec.seed)
    return Sweep([planned(spec) for spec in specs], root)


def planned(spec: RunSpec) -> Cell:
    return Cell(spec=spec, config="deep_mlp", overrides=(), values={})


def names(groups: Sequence[Group]) -> list[tuple[str, int, set[int], set[float]]]:
    """Of each group: norm, how many, seeds, rates."""
    specs = [[task.spec for task in group.tasks] for group in groups]
    return [
        (each[0].norm.name, len(each), {spec.seed for spec in each}, {spec.optim.lr for spec in each}) for each in specs
    ]


def test_groups_are_equal_shares_of_one_kind_and_kinds_take_turns(
    spec_of: SpecOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "SHARE", 12)
    found = names(list(grid(spec_of, tmp_path)._groups(2)))
    first, rest = set(range(8)), set(range(8, 14))
    assert [(norm, count) for norm, count, _, _ in found] == [
        *(("none", 12), ("none", 12), ("batch", 12), ("batch", 12)),
        *(("none", 9), ("none", 9), ("batch", 9), ("batch", 9)),
    ]
    assert all(seeds <= first and rates == {0.1, 0.2, 0.3} for _, _, seeds, rates in found[:4])
    assert all(seeds <= rest for _, _, seeds, _ in found[4:])


@pytest.mark.parametrize("off", [("launch.lockstep=off",), ("device=cuda",)], ids=" ".join)
def test_off_and_on_a_gpu_each_run_is_a_group(spec_of: SpecOf, tmp_path: Path, off: tuple[str, ...]) -> None:
    sweep = grid(spec_of, tmp_path, *off)
    assert {len(group.tasks) for group in sweep._groups(2)} == {1}
    assert len(list(sweep._groups(2))) == 84


def test_what_is_no_data_to_a_step_is_not_in_one_group(spec_of: SpecOf, tmp_path: Path) -> None:
    """Seed, rate, schedule, momentum and the like are; another width, batch size or nonlinearity is not."""
    together = (
        "seed=1",
        "optim.lr=0.2",
        "optim.schedule=cosine",
        "model.init_scale=2",
        "steps=5",
        "data.label_noise=0.1",
    )
    apart = (
        "model.width=9",
        "data.batch_size=8",
        "model.activation=tanh",
        "norm=none",
        "dtype=float64",
        "optim.momentum=0.9",
    )
    cells = [planned(spec_of("model=mlp", change)) for change in (*together, *apart)]
    groups = names(list(Sweep(cells, tmp_path)._groups(1)))
    assert sorted(count for _, count, _, _ in groups) == [1] * len(apart) + [len(together)]


def ended(spec: RunSpec, root: Path, status: dict[str, Any]) -> None:
    folder = RunFolder(root / spec.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_status(status)


def test_with_fresh_what_a_dead_worker_did_not_begin_is_still_left(spec_of: SpecOf, tmp_path: Path) -> None:
    """Its folder has the status of an earlier run, which does not count."""
    specs = cells(spec_of, "norm=none")
    for spec in specs:
        ended(spec, tmp_path, {"status": "finished", "step": 9, "steps": 9, "metrics": {}})
    sweep = Sweep([planned(spec) for spec in specs], tmp_path, fresh=True)
    sweep._on_change = lambda standing: None
    sweep._start_s += 60
    [group] = sweep._groups(1)
    sweep._started(group)
    sweep._take(Outcome(item=group, error="its process was killed by SIGKILL"))
    assert [standing.cell.spec for standing in sweep.left] == specs[1:]
    assert [standing.error for standing in sweep.failures] == ["its process was killed by SIGKILL"]


def test_a_run_that_fails_in_a_group_is_seen_before_the_group_ends(spec_of: SpecOf, tmp_path: Path) -> None:
    """So that --fail-fast stops the sweep then."""
    specs = cells(spec_of, "norm=none")
    sweep = Sweep([planned(spec) for spec in specs], tmp_path)
    sweep._on_change = lambda standing: None
    [group] = sweep._groups(1)
    sweep._started(group)
    ended(specs[2], tmp_path, {"status": "failed", "error": "RuntimeError: a broken probe"})
    sweep._look()
    assert sweep._has_failed
    assert [(one.cell.spec, one.error) for one in sweep.failures] == [(specs[2], "RuntimeError: a broken probe")]


def test_products_that_would_lose_bits_are_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 4, 5, generator=generator), torch.randn(3, 5, 6, generator=generator)
    bias = torch.randn(3, 6, generator=generator)
    monkeypatch.setattr(stack, "_one_call_keeps_bits", lambda *kind: False)
    assert torch.equal(stack._product(a, b), torch.stack([x @ y for x, y in zip(a, b, strict=True)]))
    alone = torch.stack([torch.addmm(*each) for each in zip(bias, a, b, strict=True)])
    assert torch.equal(stack._product(a, b, bias), alone)
