"""What goes to SLURM and what comes back, without a SLURM: its commands are scripts that print what a file has."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.grids.task import Group, Task, train_isolated
from bnlab.launch._arrays import Array, held_below, left_below, parsed
from bnlab.launch.base import Detaching, executor, from_text, to_text
from bnlab.launch.slurm import Slurm, packed
from bnlab.record.folder import RunFolder

SpecOf = Callable[..., RunSpec]


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the commands; each prints the file of its name and `.out`, and keeps its words in `.in`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        script = folder / name
        script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.in\ncat {folder}/{name}.out 2>/dev/null || true\n')
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
    (folder / "sbatch.out").write_text("Submitted batch job 7\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    pytest.importorskip("submitit")
    return folder


@pytest.fixture
def made(scripts: Path, spec_of: SpecOf) -> Slurm:
    found = executor(spec_of("launch=slurm", "launch.slices=2", "launch.cpus=3"))
    assert isinstance(found, Slurm)
    return found


def groups(spec_of: SpecOf, root: Path, seeds: range) -> list[Group]:
    """A group of each seed."""
    found = []
    for seed in seeds:
        spec = spec_of(f"seed={seed}")
        folder = RunFolder(root / spec.folder)
        task = Task(spec=spec, folder=folder, fresh=False, plugins={}, provenance={}, profile="light")
        found.append(Group((task,)))
    return found


def test_the_workers_of_all_slices_count(made: Slurm) -> None:
    assert isinstance(made, Detaching)
    assert (made.workers, made.spec.launch.name, made.spec.launch.workers) == (6, "local", 3)


def test_a_slice_has_every_nth_item() -> None:
    assert packed(range(7), 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert packed([], 3) == []


def test_an_array_is_submitted_with_its_settings_and_its_work_as_text(
    scripts: Path, spec_of: SpecOf, tmp_path: Path
) -> None:
    settings = ["launch.partition=long", "launch.time=30", 'launch.extra=["account=lab","--exclusive"]']
    made = executor(spec_of("launch=slurm", "launch.slices=2", "launch.workers=1", *settings))
    assert isinstance(made, Slurm)
    said: list[str] = []
    made.say = said.append
    work = groups(spec_of, tmp_path / "runs", range(3))
    [array] = made.submit(train_isolated, work)
    assert said == [f"job 7 ({array.folder.name}): 3 runs in 2 slices; see: squeue -j 7"]
    script = next(array.folder.glob("*_submission.sh")).read_text()
    for line in ("array=0-1%1", "partition=long", "time=30", "account=lab", "exclusive", "requeue", "signal=USR2@90"):
        assert f"#SBATCH --{line}\n" in script, line
    assert f"#SBATCH --job-name={array.folder.name}\n" in script
    assert "--cpus-per-task=1" in script.partition("# command")[2]
    texts = [text for file in sorted(array.folder.glob("?.json")) for text in json.loads(file.read_text())["items"]]
    assert [from_text(text)[1].folders for text in texts] == [work[0].folders, work[2].folders, work[1].folders]


def test_what_an_earlier_command_submitted_is_not_submitted_again(
    made: Slurm, scripts: Path, spec_of: SpecOf, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    [first] = made.submit(train_isolated, groups(spec_of, root, range(2)))
    (scripts / "squeue.out").write_text("0|RUNNING\n1|PENDING\n")
    [again] = made.submit(train_isolated, groups(spec_of, root, range(2)))
    assert again.folder == first.folder
    assert len(held_below(root)) == 2
    (scripts / "squeue.out").write_text("0|RUNNING\n1|CANCELLED\n")
    assert [Path(place).name.partition("-")[0] for place in held_below(root)] == ["seed=0"]
    said: list[str] = []
    made.say = said.append
    earlier, more = made.submit(train_isolated, groups(spec_of, root, range(3)))
    assert earlier.folder == first.folder
    assert [Path(place).name.partition("-")[0] for place in more.folders()] == ["seed=2"]
    name = first.folder.name
    assert said[0] == f"in SLURM from an earlier command: 2 runs, in {name}; see: squeue -n {name}"


def test_what_has_no_jobs_left_is_removed_and_submitted_again(
    made: Slurm, scripts: Path, spec_of: SpecOf, tmp_path: Path
) -> None:
    [first] = made.submit(train_isolated, groups(spec_of, tmp_path / "runs", range(2)))
    (scripts / "squeue.out").write_text("0|COMPLETED\n1|NODE_FAIL\n")
    assert held_below(tmp_path / "runs") == set()
    [second] = made.submit(train_isolated, groups(spec_of, tmp_path / "runs", range(2)))
    assert not first.folder.exists()
    assert len(second.folders()) == 2


def test_what_is_left_of_ended_jobs_is_removed_where_nothing_is_to_run(
    made: Slurm, scripts: Path, spec_of: SpecOf, tmp_path: Path
) -> None:
    [array] = made.submit(train_isolated, groups(spec_of, tmp_path / "runs", range(2)))
    root = array.folder.parents[1]
    (scripts / "squeue.out").write_text("0|COMPLETED\n1|RUNNING\n")
    made.tidy(root)
    assert array.folder.exists()
    (scripts / "squeue.out").write_text("0|COMPLETED\n1|COMPLETED\n")
    made.tidy(root)
    assert not (root / ".slurm").exists()
    made.tidy(root)


def test_slurm_that_does_not_answer_submits_nothing(
    made: Slurm, scripts: Path, spec_of: SpecOf, tmp_path: Path
) -> None:
    [first] = made.submit(train_isolated, groups(spec_of, tmp_path / "runs", range(2)))
    (scripts / "squeue").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UsageError, match="launch: SLURM does not answer, and jobs of an earlier command may run"):
        made.submit(train_isolated, groups(spec_of, tmp_path / "runs", range(2)))
    assert left_below(tmp_path) == []  # no folder of arrays
    assert first.folder.exists()


@pytest.fixture
def array(made: Slurm, spec_of: SpecOf, tmp_path: Path) -> Array:
    """Two slices: of the seeds 0 and 2, and of 1."""
    return made.submit(train_isolated, groups(spec_of, tmp_path / "runs", range(3)))[0]


def seeds(outcomes: Any) -> list[int]:
    return [outcome.item.tasks[0].spec.seed for outcome in outcomes]


def test_outcomes_are_read_once_and_torn_lines_are_passed_over(array: Array) -> None:
    begun: list[Any] = []
    file = array.folder / "0.jsonl"
    file.write_text('\n{"item": 1}\n\n{"item": 1, "value": {"x": 1}, "error": null}\n\n{"item": 0')
    [outcome] = array.look(begun.append)
    assert (outcome.value, outcome.error, begun) == ({"x": 1}, None, [outcome.item])
    assert seeds([outcome]) == [2]
    assert list(array.look(begun.append)) == []
    with file.open("a") as more:
        more.write('\n{"item": 0}\n\n{"item": 0, "value": null, "error": "broken"}\n')
    [outcome] = array.look(begun.append)
    assert (outcome.error, seeds([outcome]), len(begun), array.open) == ("broken", [0], 2, [1])


def test_a_job_is_lost_when_slurm_has_said_so_twice(array: Array) -> None:
    (array.folder / "7_0_0_log.err").write_text("Traceback\nMemoryError: no room\n\nsrun: error: n1: task 0: Killed\n")
    (array.folder / "0.jsonl").write_text('\n{"item": 1, "value": {}, "error": null}\n')
    assert seeds(array.look(lambda item: None)) == [2]
    assert list(array.gone({0: "FAILED", 1: "RUNNING"})) == []
    assert list(array.gone({0: "PENDING", 1: "RUNNING"})) == []  # it was queued again
    assert list(array.gone({0: "FAILED", 1: "RUNNING"})) == []
    [lost] = array.gone({0: "FAILED", 1: "RUNNING"})
    log = array.folder / "7_0_0_log.err"
    assert (seeds([lost]), lost.whole) == ([0], True)
    assert lost.error == f"its job ended as FAILED: MemoryError: no room ({log})"
    assert list(array.gone({})) == []
    [lost] = array.gone({})
    assert (seeds([lost]), lost.error, array.open) == ([1], "its job is gone", [])


def test_states_are_read_by_the_index_in_the_array() -> None:
    assert parsed("0|RUNNING\n12|OUT_OF_MEMORY\n\n") == {0: "RUNNING", 12: "OUT_OF_MEMORY"}
    assert parsed("N/A|PENDING\n") == {0: "PENDING"}
    assert parsed("") == {}


def test_what_is_left_of_a_group_without_runs(spec_of: SpecOf, tmp_path: Path) -> None:
    first, second = groups(spec_of, tmp_path, range(2))
    both = Group(first.tasks + second.tasks)
    assert both.without({first.folders[0]}) == second
    assert both.without({*first.folders, *second.folders}) is None
    assert from_text(to_text(train_isolated, both))[1] == both


def test_no_slurm_and_no_submitit_are_one_line(spec_of: SpecOf, scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"launch\.gpus: device=cuda needs at least 1, got 0"):
        executor(spec_of("launch=slurm", "device=cuda"))
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"submitit is not installed, got 'slurm'. pip install 'bnlab\[slurm\]'"):
            executor(spec_of("launch=slurm"))
    (scripts / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: Invalid qos' >&2; exit 1\n")
    with pytest.raises(UsageError, match="launch: sbatch: Invalid qos, got '--time=60 --cpus-per-task=1'"):
        executor(spec_of("launch=slurm"))
    (scripts / "sbatch").write_text(
        "#!/bin/sh\nprintf 'sbatch: unrecognized option --x\\nTry \"sbatch --help\" for more\\n' >&2; exit 1\n"
    )
    with pytest.raises(UsageError, match="launch: sbatch: unrecognized option --x, got '--time=60 --cpus-per-task=1'"):
        executor(spec_of("launch=slurm"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="no SLURM on this machine: sbatch not found"):
        executor(spec_of("launch=slurm"))


@pytest.mark.parametrize("option", ["--time=5", "array=0-9", "requeue"])
def test_an_option_that_bnlab_sets_itself_is_refused(option: str, scripts: Path, spec_of: SpecOf) -> None:
    """A shorter time, say, would queue a job again before it has done anything."""
    name = option.removeprefix("--").partition("=")[0]
    said = f"launch.extra: bnlab sets this option of sbatch, got '{name}'. Keys for some are launch.time, "
    with pytest.raises(UsageError, match=re.escape(said)):
        executor(spec_of("launch=slurm", f'launch.extra=["{option}"]'))
