"""Sweeps on a real SLURM of two nodes. Runs, jobs, a node and the sweep itself are killed, and jobs are queued again;
the runs are those of `launch=local`, bit by bit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.xdist_group("slurm")]

CONFIGS = Path(__file__).parent.parent / "configs"
TINY = ("--config", "tiny", "--config-dir", str(CONFIGS), "seed=range(0,6)", "--plain")
LONGER = ("steps=3000", "launch.checkpoint_s=0.3")
"""Long enough to be disturbed in the middle, on a fast machine too."""
ON_SLURM = ("launch=slurm", "launch.slices=2")
WITHOUT_REPORT = "from bnlab.cli import main, sweep; sweep._reported = lambda *given: None; main()"
Traces = Callable[[Path], dict[str, Any]]


class Line:
    """`bnlab sweep` with these words, in a process of its own."""

    def __init__(self, cluster: Any, folder: Path, *words: str) -> None:
        self.cluster, self.folder = cluster, folder
        self.command = [sys.executable, "-c", WITHOUT_REPORT, "sweep", *words]

    def start(self, *more: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        environment = self.cluster.environment
        return subprocess.Popen(
            [*self.command, *more], cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*more)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(found: Callable[[], Any], what: str, seconds: float = 200) -> Any:
    limit = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < limit, f"no {what} in {seconds:g} s"
        time.sleep(0.05)
    return answer


def training(root: Path) -> int | None:
    """A process that trains a run which has a checkpoint, and has not ended."""
    for file in root.rglob("checkpoint.pt"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(file.with_name("status.json").read_text())["status"] != "running":
                continue
            pid = int(json.loads(file.with_name("owner.json").read_text())["pid"])
            os.kill(pid, 0)
            return pid
    return None


def known(pid: int, name: str) -> str:
    """A variable of a process."""
    pairs = (part.partition(b"=") for part in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return next(value.decode() for key, _, value in pairs if key.decode() == name)


def resumed(root: Path) -> int:
    """How often runs resumed behind step 0."""
    return sum(len(re.findall("from step [1-9]", file.read_text())) for file in root.rglob("log.txt"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of `launch=local`."""
    folder = tmp_path_factory.mktemp("local")
    command = [sys.executable, "-c", WITHOUT_REPORT, "sweep", *TINY, *LONGER]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


@pytest.fixture
def quiet(slurm: Any) -> Iterator[Any]:
    """The cluster, without jobs and with both nodes before and after a test."""
    yield slurm
    slurm.ask("scancel", "--user=root")
    for node in ("n1", "n2"):
        if not (slurm.folder / f"slurmd.{node}.pid").exists():
            slurm.start_node(node)
    wait_for(lambda: slurm.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", "two idle nodes")


def killed_run(cluster: Any, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def killed_job(cluster: Any, pid: int) -> None:
    """The process that has the slice."""
    for one in cluster.processes(known(pid, "SLURMD_NODENAME")):
        words = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
        if b"submitit.core._submit" in words and b"python" in words[0]:
            os.kill(one, signal.SIGKILL)


def killed_node(cluster: Any, pid: int) -> None:
    cluster.kill_node(known(pid, "SLURMD_NODENAME"))


def queued_again(cluster: Any, pid: int) -> None:
    subprocess.run(["scontrol", "requeue", known(pid, "SLURM_JOB_ID")], env=cluster.environment, check=True)


def out_of_time(cluster: Any, pid: int) -> None:
    """What SLURM sends before the time of a job is over."""
    job = known(pid, "SLURM_JOB_ID")
    subprocess.run(["scancel", "--signal=USR2", job], env=cluster.environment, check=True)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (killed_job, 3),
        (queued_again, 0),
        *(
            pytest.param(*rare, marks=pytest.mark.slow)
            for rare in ((killed_run, 0), (killed_node, 0), (out_of_time, 0))
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_disturbed_sweep_equals_a_local_one(
    fault: Callable[..., None], code: int, quiet: Any, whole: Path, traces_of: Traces, tmp_path: Path
) -> None:
    """The line is typed again at most once, and only where a process was killed: SLURM starts the other jobs again."""
    line, root = Line(quiet, tmp_path, *TINY, *LONGER, *ON_SLURM), tmp_path / "runs" / "tiny"
    process = line.start()
    fault(quiet, wait_for(lambda: training(root), "run that trains"))
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, out + err
    if code == 3:
        assert " failed" in out
        again = line.run()
        assert (again.returncode, again.stderr) == (0, ""), again.stdout
    found = traces_of(tmp_path / "runs")
    assert len(found) == 24
    assert found == traces_of(whole)
    assert resumed(root) > 0
    assert not (root / ".slurm").exists()


def test_a_sweep_that_is_killed_is_picked_up_by_the_same_line(
    quiet: Any, whole: Path, traces_of: Traces, tmp_path: Path
) -> None:
    line, root = Line(quiet, tmp_path, *TINY, *LONGER, *ON_SLURM), tmp_path / "runs" / "tiny"
    process = line.start()
    wait_for(lambda: training(root), "run that trains")
    process.kill()
    process.communicate()
    again = line.run()
    assert (again.returncode, again.stderr) == (0, ""), again.stdout
    assert "see: squeue -j" not in again.stdout  # nothing was submitted again
    assert traces_of(tmp_path / "runs") == traces_of(whole)


@pytest.mark.slow
def test_ctrl_c_stops_the_jobs_with_checkpoints_and_the_line_resumes(
    quiet: Any, whole: Path, traces_of: Traces, tmp_path: Path
) -> None:
    line, root = Line(quiet, tmp_path, *TINY, *LONGER, *ON_SLURM), tmp_path / "runs" / "tiny"
    process = line.start()
    wait_for(lambda: training(root), "run that trains")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 130, out
    assert "interrupted" in out
    assert "resume  bnlab sweep" in out
    assert quiet.ask("squeue", "-h") == ""
    assert line.run().returncode == 0
    assert traces_of(tmp_path / "runs") == traces_of(whole)
    assert resumed(root) > 0


def test_a_detached_sweep_is_followed_and_collected(quiet: Any, whole: Path, traces_of: Traces, tmp_path: Path) -> None:
    line, root = Line(quiet, tmp_path, *TINY, *LONGER, *ON_SLURM), tmp_path / "runs" / "tiny"
    detached = line.run("--detach")
    assert detached.returncode == 0, detached.stderr
    assert "24 runs in 2 slices; see: squeue -j" in detached.stdout
    assert "follow   bnlab runs runs/tiny --watch\ncollect  bnlab sweep" in detached.stdout
    assert "in SLURM from an earlier command: " in line.run("--detach").stdout
    assert len(list((root / ".slurm").iterdir())) == 1
    watch = [sys.executable, "-m", "bnlab", "runs", "runs/tiny", "--watch", "--plain"]
    watched = subprocess.run(watch, cwd=tmp_path, env=quiet.environment, capture_output=True, text=True, check=True)
    assert watched.stdout.splitlines()[-1].endswith("  24 finished")
    collected = line.run()
    assert (collected.returncode, collected.stderr) == (0, "")
    assert "all ended, nothing to do" in collected.stdout
    assert not (root / ".slurm").exists()
    assert traces_of(tmp_path / "runs") == traces_of(whole)


@pytest.mark.slow
def test_without_accounting_the_files_say_what_is_done(
    plain_slurm: Any, whole: Path, traces_of: Traces, tmp_path: Path
) -> None:
    """A job that is killed is noticed too."""
    line, root = Line(plain_slurm, tmp_path, *TINY, *LONGER, *ON_SLURM), tmp_path / "runs" / "tiny"
    process = line.start()
    killed_job(plain_slurm, wait_for(lambda: training(root), "run that trains"))
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 3, out
    assert "its job ended as" in out
    assert line.run().returncode == 0
    assert traces_of(tmp_path / "runs") == traces_of(whole)


def test_what_sbatch_refuses_is_one_line_and_nothing_is_written(slurm: Any, tmp_path: Path) -> None:
    for word, said in (
        ("launch.partition=nope", "launch: sbatch: Invalid partition name specified, got '--partition=nope"),
        ("launch.cpus=64", "launch: sbatch: Requested node configuration is not available, got '--time=60 "),
        ("launch.slices=102", "launch.slices: this cluster's arrays have at most 101 jobs, got 102"),
    ):
        done = Line(slurm, tmp_path, *TINY, *ON_SLURM[:1], word).run()
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quickstart_as_a_user_types_it(quiet: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bnlab", "sweep", "--config", "quickstart", "launch=slurm", "launch.slices=2"]
    done = subprocess.run(command, cwd=tmp_path, env=quiet.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "120 runs: " in done.stdout
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()
