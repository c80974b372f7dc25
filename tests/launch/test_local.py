"""The outcome of each item, in separate processes and in this one."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bnlab import config
from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.launch import local
from bnlab.launch.base import Executor, cores, executor
from bnlab.launch.inline import Inline
from bnlab.launch.local import Local, places

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.mark.parametrize("made", [Inline(), Local([{}, {}])], ids=["inline", "local"])
def test_every_item_has_an_outcome_independent_of_the_others(made: Executor) -> None:
    started: list[float] = []
    outcomes = list(made.run(math.sqrt, [4.0, -1.0, 9.0], on_start=started.append))
    assert started == [4.0, -1.0, 9.0]
    assert {outcome.item: (outcome.value, outcome.error) for outcome in outcomes} == {
        4.0: (2.0, None),
        -1.0: (None, "ValueError: math domain error"),
        9.0: (3.0, None),
    }


@linux
def test_a_process_that_dies_costs_its_item_alone() -> None:
    numbers = [signal.SIGKILL, signal.SIGSEGV, signal.SIGURG]  # the last one is ignored
    outcomes = list(Local([{}]).run(signal.raise_signal, numbers))
    assert [outcome.error for outcome in outcomes] == [
        "its process was killed by SIGKILL",
        "its process was killed by SIGSEGV",
        None,
    ]
    assert [outcome.error for outcome in Local([{}]).run(os._exit, [3])] == ["its process ended with code 3"]


def test_outcomes_come_as_they_are_completed() -> None:
    outcomes = list(Local([{}, {}]).run(time.sleep, [1.5, 0.0, 0.1]))
    assert [outcome.item for outcome in outcomes] == [0.0, 0.1, 1.5]


def test_each_place_has_its_environment_and_one_item_at_a_time() -> None:
    given = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    outcomes = list(Local(given).run(os.getenv, ["CUDA_VISIBLE_DEVICES"] * 4))
    assert {outcome.value for outcome in outcomes} == {"0", "7"}
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_items_start_as_workers_become_free() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(6):
            taken.append(item)
            yield item

    for index, _ in enumerate(Local([{}, {}]).run(abs, items())):
        assert len(taken) <= index + 3


@pytest.mark.parametrize("made", [Inline(), Local([{}])], ids=["inline", "local"])
def test_once_stopped_nothing_more_is_begun(made: Executor) -> None:
    done: list[Any] = []
    for outcome in made.run(abs, [1, 2, 3, 4], stopped=lambda: len(done) == 2):
        done.append(outcome.item)
    assert done == [1, 2]


@linux
def test_a_process_that_does_not_stop_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.3)
    started: list[float] = []
    outcomes = list(Local([{}]).run(time.sleep, [60.0, 60.0], on_start=started.append, stopped=lambda: bool(started)))
    assert [outcome.error for outcome in outcomes] == ["its process was killed by SIGKILL"]


@linux
def test_a_closed_iterator_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.1)
    outcomes = Local([{}, {}]).run(time.sleep, [0.0, 61.0])
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    import multiprocessing

    assert [process for process in multiprocessing.active_children() if process.is_alive()] == []


# -- which one ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "threads", "cores", "devices", "per_device", "expected"),
    [
        ("auto", 1, 8, [], 1, [None] * 8),
        ("auto", 3, 8, [], 1, [None] * 2),
        ("auto", 16, 8, [], 1, [None]),
        (5, 1, 2, [], 4, [None] * 5),
        ("auto", 1, 8, ["0", "1"], 1, ["0", "1"]),
        ("auto", 1, 8, ["0", "1"], 3, ["0", "1"] * 3),
        (3, 1, 8, ["0", "1"], 2, ["0", "1", "0"]),
        (9, 1, 8, ["0", "1"], 2, ["0", "1"] * 2),
        ("auto", 1, 8, ["GPU-8932f937", "2"], 1, ["GPU-8932f937", "2"]),
    ],
)
def test_places_for_runs_at_once(
    workers: int | str, threads: int, cores: int, devices: list[str], per_device: int, expected: list[str | None]
) -> None:
    found = places(workers, threads, cores, devices, per_device)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in found] == expected


def test_an_executor_is_chosen_by_name() -> None:
    here = executor(config.load("deep_mlp", ["launch=inline"]))
    apart = executor(config.load("deep_mlp", ["launch.workers=3"]))
    every = executor(config.load("deep_mlp", []))
    assert [(one.isolated, one.workers) for one in (here, apart, every)] == [(False, 1), (True, 3), (True, cores())]
    with pytest.raises(UsageError, match=r"^launch\.workers: launch=inline runs one after the other, got 2\."):
        executor(config.load("deep_mlp", ["launch=inline", "launch.workers=2"]))


def test_gpus_are_those_that_this_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    made = executor(config.load("deep_mlp", ["device=cuda", "launch.per_device=2"]))
    assert isinstance(made, Local)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in made.places] == ["2", "5", "2", "5"]


def test_an_executor_refuses_settings_that_it_does_not_have(spec_of: Callable[..., RunSpec]) -> None:
    tree = spec_of().tree()
    tree["launch"]["worker"] = 2
    with pytest.raises(UsageError, match=r"^launch\.worker: "):
        executor(RunSpec.from_tree(tree))
    tree["launch"] = tree["launch"] | {"name": "remote"}
    with pytest.raises(UsageError, match=r"^launch: no such option, got 'remote'\. There are: inline, local"):
        executor(RunSpec.from_tree(tree))
