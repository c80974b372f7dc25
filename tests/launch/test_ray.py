"""The executor for Ray without Ray: tasks run in this process, on a cluster that is none. The real one is in
tests/cluster."""

from __future__ import annotations

import importlib.util
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bnlab.core.errors import UsageError
from bnlab.core.registry import EXECUTORS
from bnlab.core.spec import RunSpec
from bnlab.grids.task import Group, Task, train_isolated
from bnlab.launch import ray
from bnlab.launch.base import Outcome, executor
from bnlab.launch.ray import Ray, work
from bnlab.record import archive
from bnlab.record.folder import RunFolder
from bnlab.run.setup import assemble
from bnlab.run.train import train

Answer = Callable[[str, bytes], Any]


class RayError(Exception):
    """As Ray's."""


class TaskCancelledError(RayError):
    """As Ray's."""


class RayTaskError(RayError):
    """As Ray's."""


@dataclass
class Cluster:
    """What the executor uses of Ray. `answer` is what a node does with a task."""

    answer: Answer = work
    resources: tuple[dict[str, float], ...] = ({"CPU": 2.0},)
    options: dict[str, Any] = field(default_factory=dict)
    tasks: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    exceptions = SimpleNamespace(RayError=RayError, TaskCancelledError=TaskCancelledError, RayTaskError=RayTaskError)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": one} for one in self.resources] + [
            {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        ]

    def remote(self, function: Any) -> Any:
        def begin(**options: Any) -> Any:
            self.options = options
            return SimpleNamespace(remote=self._begin)

        return SimpleNamespace(options=begin)

    def _begin(self, text: str, packed: bytes) -> int:
        self.tasks[len(self.tasks)] = text, packed
        return len(self.tasks) - 1

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return references[:1], references[1:]

    def get(self, reference: int) -> Any:
        return self.answer(*self.tasks[reference])

    def cancel(self, reference: int, force: bool = False) -> None:
        self.answer = _cancelled


def _cancelled(text: str, packed: bytes) -> Any:
    raise TaskCancelledError


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts as installed: nothing here imports it."""
    found = importlib.util.find_spec
    there = importlib.util.spec_from_loader("ray", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: there if name == "ray" else found(name, *more))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    made = Cluster()
    monkeypatch.setattr(ray, "connected", lambda address, cpus: made)
    yield made
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def group(spec_of: Callable[..., RunSpec], tmp_path: Path) -> Group:
    specs = [spec_of(f"seed={seed}") for seed in (0, 1)]
    facts: dict[str, Any] = {"fresh": False, "plugins": {}, "provenance": {}, "profile": "light"}
    return Group(tuple(Task(spec=spec, folder=RunFolder(tmp_path / "runs" / spec.folder), **facts) for spec in specs))


def on(group: Group) -> Outcome[Group]:
    (outcome,) = Ray(None, 2, {"CPU": 1.0}, 3).run(train_isolated, [group])
    return outcome


def test_runs_come_back_as_those_of_this_machine(
    cluster: Cluster, group: Group, traces_of: Callable[[Path], Any], tmp_path: Path
) -> None:
    """And nothing of them remains on the node."""
    outcome = on(group)
    assert (outcome.error, {key: one["status"] for key, one in outcome.value.items()}) == (
        None,
        {task.spec.id: "finished" for task in group.tasks},
    )
    for task in group.tasks:
        train(assemble(task.spec), RunFolder(tmp_path / "here" / task.spec.folder))
    assert traces_of(tmp_path / "runs") == traces_of(tmp_path / "here")
    assert not list((tmp_path / "node").glob(f"{ray.PREFIX}*"))
    assert not group.tasks[0].folder.alive()
    assert cluster.options == {"num_cpus": 1.0, "num_gpus": 0, "max_retries": 3}


def test_a_run_starts_afresh_where_it_should(cluster: Cluster, group: Group) -> None:
    """Whatever it had: its answers are gone too."""
    folder = group.tasks[0].folder
    train(assemble(group.tasks[0].spec), folder)
    folder.add_answer({"accuracy": 1})
    folder.log("before")
    on(Group((replace(group.tasks[0], fresh=True, since=1.0),)))
    text = (folder.path / "log.txt").read_text()
    assert ("before" in text, text.count("from step 0 of 12")) == (False, 1)
    assert not folder.answers_file.exists()


def test_meanwhile_the_runs_are_this_process_s(cluster: Cluster, group: Group) -> None:
    def answer(text: str, packed: bytes) -> Any:
        assert [task.folder.alive() for task in group.tasks] == [True, True]
        with pytest.raises(UsageError, match="is training this run"), group.tasks[1].folder.owned():
            pass
        return work(text, packed)

    cluster.answer = answer
    assert on(group).error is None


def test_a_heartbeat_leaves_the_runs_this_process_s(
    cluster: Cluster, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = 0

    def wait(references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        nonlocal waited
        waited += 1
        return ([], references) if waited < 4 else (references, [])

    monkeypatch.setattr(ray, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(cluster, "wait", wait)
    assert on(group).value is not None
    assert all(task.folder.status()["status"] == "finished" for task in group.tasks)


def test_a_run_that_another_process_trains_is_left_to_it(cluster: Cluster, group: Group) -> None:
    with group.tasks[1].folder.owned():
        outcome = on(group)
    assert (outcome.value, outcome.error, cluster.tasks) == (None, None, {})
    assert not group.tasks[0].folder.alive()


def test_a_run_that_had_another_owner_meanwhile_is_left_as_it_is(cluster: Cluster, group: Group) -> None:
    taken, own = (task.folder for task in group.tasks)

    def answer(text: str, packed: bytes) -> Any:
        (taken.path / "owner.json").write_text('{"host": "other", "token": "its own"}')
        taken.write_status({"status": "finished", "step": 12})
        return work(text, packed)

    cluster.answer = answer
    outcome = on(group)
    assert (outcome.value, outcome.error) == (None, None)
    assert taken.status() == {"status": "finished", "step": 12}
    assert not taken.checkpoint_file.exists()
    assert "its own" in (taken.path / "owner.json").read_text()
    assert own.status()["status"] == "finished"


def refused(name: str, data: bytes = b"evil") -> Answer:
    return lambda text, packed: (json.dumps({"value": 1, "error": None, "gone": []}), archive.pack({name: data}))


@pytest.mark.parametrize(
    "answer",
    [
        refused("/etc/passwd"),
        refused("0/../1/log.txt"),
        refused("7/log.txt"),
        refused("0/evil.py"),
        lambda text, packed: (json.dumps({"value": 1, "error": None, "gone": ["0/../../x"]}), archive.pack({})),
        lambda text, packed: (json.dumps({"value": 1, "error": None, "gone": ["0/lock"]}), archive.pack({})),
        lambda text, packed: ("no json", b""),
    ],
)
def test_what_a_node_may_not_send_changes_no_file(answer: Answer, cluster: Cluster, group: Group) -> None:
    cluster.answer = answer
    outcome = on(group)
    assert outcome.value is None
    assert str(outcome.error).startswith("what came back was refused: ")
    files = {file.name for task in group.tasks for file in task.folder.path.iterdir()}
    assert files == {"lock"}


def raising(error: Exception) -> Answer:
    def answer(text: str, packed: bytes) -> Any:
        raise error

    return answer


def test_a_node_without_a_package_or_of_another_version_ends_the_sweep_in_one_line(
    cluster: Cluster, group: Group
) -> None:
    cluster.answer = raising(RayTaskError("ray::work()\n  File\nModuleNotFoundError: No module named 'torch'\n"))
    with pytest.raises(
        UsageError, match=r"^launch: a node of the cluster lacks a package: ModuleNotFoundError: No mod"
    ):
        on(group)
    cluster.answer = lambda text, packed: work(json.dumps(json.loads(text) | {"bnlab": "0.0.7"}), packed)
    with pytest.raises(
        UsageError, match=r"^launch: a node of the cluster refused a run: launch: the sweep has bnlab 0"
    ):
        on(group)
    assert not any(task.folder.alive() for task in group.tasks)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (type("WorkerCrashedError", (RayError,), {})("long"), "its worker was killed each time that it was tried"),
        (type("NodeDiedError", (RayError,), {})("long\nlines"), "its node was lost each time that it was tried"),
        (RayTaskError("ray::work()\n\nOSError: [Errno 28] No space left on device\n"), "OSError: [Errno 28] No space "),
        (RayError("odd\nlines"), "RayError: odd"),
    ],
)
def test_a_lost_task_has_its_reason_in_one_line(error: Exception, said: str, cluster: Cluster, group: Group) -> None:
    cluster.answer = raising(error)
    found = on(group).error
    assert found is not None
    assert found.startswith(said)
    assert "\n" not in found


def test_a_task_that_was_cancelled_before_it_began_leaves_the_run_as_it_was(cluster: Cluster, group: Group) -> None:
    cluster.answer = _cancelled
    outcome = on(group)
    assert (outcome.value, outcome.error) == (None, None)
    assert not group.tasks[0].folder.status()


# -- settings ----------------------------------------------------------------------------------------------------------


def made(spec_of: Callable[..., RunSpec], *overrides: str) -> Any:
    return executor(spec_of("launch=ray", *overrides))


@pytest.mark.parametrize(
    ("overrides", "resources", "expected"),
    [
        ((), ({"CPU": 2.0}, {"CPU": 3.0}), 5),
        (("threads=2",), ({"CPU": 3.0}, {"CPU": 3.0}), 2),
        (("launch.workers=7",), ({"CPU": 2.0},), 7),
        (("device=cuda", "launch.per_device=3"), ({"CPU": 2.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}), 8),
        (("device=cuda",), ({"CPU": 64.0}, {"CPU": 64.0, "GPU": 8.0}), 8),
    ],
)
def test_as_many_at_once_as_the_nodes_have_room_for(
    overrides: tuple[str, ...],
    resources: tuple[dict[str, float], ...],
    expected: int,
    cluster: Cluster,
    spec_of: Callable[..., RunSpec],
) -> None:
    cluster.resources = resources
    assert made(spec_of, *overrides).workers == expected


def test_a_run_that_fits_on_no_node_is_refused(cluster: Cluster, spec_of: Callable[..., RunSpec]) -> None:
    cluster.resources = ({"CPU": 2.0}, {"CPU": 2.0})
    with pytest.raises(UsageError, match=r"^launch: a run needs 3 CPU, and no node of the cluster has that"):
        _ = made(spec_of, "threads=3").workers
    with pytest.raises(UsageError, match=r"^launch: a run needs 1 CPU, 0\.5 GPU, and no node"):
        _ = made(spec_of, "device=cuda", "launch.per_device=2").workers


@pytest.mark.parametrize("address", ["ray://head:10001", "head", ":6379", "head:port", "a b:1"])
def test_an_address_is_a_host_and_a_port(address: str, spec_of: Callable[..., RunSpec]) -> None:
    tree = spec_of("launch=ray").tree()
    tree["launch"]["address"] = address
    with pytest.raises(UsageError, match=r"^launch\.address: must be HOST:PORT, or auto, got '"):
        executor(RunSpec.from_tree(tree))


def test_without_ray_one_line_says_how_to_install_it(
    spec_of: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^launch: needs Ray, .* Run: pip install 'bnlab\[ray\]'$"):
        made(spec_of)


def test_it_is_found_by_its_name() -> None:
    assert "ray" in EXECUTORS.names()
