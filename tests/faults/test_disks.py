"""Disks that are full, folders that may not be written, permissions that are lost: one line, nothing half written, and
the same line resumes to the same bits."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnlab.core.spec import RunSpec
from bnlab.record.files import DiskError
from bnlab.record.folder import RunFolder
from bnlab.record.journal import read, without_clock
from bnlab.run.setup import assemble
from bnlab.run.train import train

NOBODY = 65534
LOST = r"/run: cannot be written: permission denied\. When that is mended, the same line resumes the run\.$"
FULL = "cannot be written: no space left on device. When that is mended, the same line resumes the run."
WORDS = ("--config", "mlp_digits", "steps=60", "model.depth=2", "model.width=64", "probes=none", "data.batch_size=16")
LINES = {
    "train": ("train", *WORDS, "launch.checkpoint_s=0", "--json"),
    "sweep": ("sweep", *WORDS, "launch.checkpoint_s=0", "norm=none,batch", "launch=inline", "--json"),
}


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that everybody may write to."""
    path = Path(tempfile.mkdtemp(prefix="bnlab-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=oct)
def test_a_permission_that_is_lost_costs_the_steps_since_the_last_checkpoint(
    mode: int, spec_of: Callable[..., RunSpec], run: Callable[..., Any], open_to_all: Path
) -> None:
    spec, folder, steps = spec_of("launch.checkpoint_s=0"), RunFolder(open_to_all / "run"), iter(range(100))
    whole, user = run(spec, "whole"), os.geteuid()
    names: list[set[str]] = []

    def lose() -> None:
        if next(steps) == 5:
            names.append({file.name for file in folder.path.iterdir()})
            folder.path.chmod(mode)
            os.seteuid(user or NOBODY)  # permissions do not hold for root

    try:
        with pytest.raises(DiskError, match=LOST):
            train(assemble(spec), folder, stopped=lose)
        with pytest.raises(DiskError, match=LOST):
            train(assemble(spec), folder)
    finally:
        os.seteuid(user)
        folder.path.chmod(0o700)
    assert [{file.name for file in folder.path.iterdir()}] == names
    assert folder.status()["status"] == "running"
    assert train(assemble(spec), folder)["metrics"] == whole.status["metrics"]
    assert [without_clock(record) for record in read(folder.journal_file)] == whole.clockless


def test_one_folder_that_may_not_be_read_costs_its_run_alone(
    bnlab: Callable[..., Any], open_to_all: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, user = LINES["sweep"], os.geteuid()
    assert bnlab(*line).code == 0  # imports what it needs
    monkeypatch.chdir(open_to_all)
    os.seteuid(user or NOBODY)
    try:
        first, _ = (row["run"] for row in bnlab(*line).json["runs"])
        os.chmod(first, 0o000)
        again = bnlab(*line)
        alone = bnlab("train", *WORDS, "launch.checkpoint_s=0", "norm=none")
    finally:
        os.seteuid(user)
        os.chmod(first, 0o700)
    assert (again.code, [row["state"] for row in again.json["runs"]]) == (3, ["not started", "finished"])
    assert "permission denied. When that is mended, the same line resumes" in again.json["runs"][0]["error"]
    assert (alone.code, alone.err.count("\n")) == (2, 1)
    assert ": cannot be written: permission denied. " in alone.err
    assert [row["state"] for row in bnlab(*line).json["runs"]] == ["finished", "finished"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """`disk("size=2m")` makes `disk` a small disk of its own; `disk("remount,ro")` changes it."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = []

    def mount(options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", options, "bnlab", str(where)]
        try:
            subprocess.run(words, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"mounts need root: {getattr(error, 'stderr', None) or error}")
        mounted.append(where)

    yield mount
    if mounted:
        subprocess.run(["umount", str(where)], check=True)


def _files(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("free_kib", [0, 8, 40, 80])
@pytest.mark.parametrize("command", sorted(LINES))
def test_a_small_disk_that_fills_up_costs_one_line(
    command: str, free_kib: int, disk: Callable[[str], None], bnlab: Callable[..., Any], traces_of: Callable[..., Any]
) -> None:
    """A run has some 110 KiB. The same line resumes once there is room, to the bits of a run on a large disk."""
    disk("size=2m")
    fill = Path("disk/fill")
    with contextlib.suppress(OSError):
        fill.write_bytes(bytes(4 << 20))
    os.truncate(fill, fill.stat().st_size - (free_kib << 10))
    line = (*LINES[command], "--runs", "disk/runs")
    said = bnlab(*line)
    assert "no space left on device" in f"{said.err}{said.out}"
    assert "Traceback" not in said.err
    assert not list(Path("disk").rglob(".*.[0-9]*"))
    if command == "train" or not said.out:
        assert (said.code, said.out, said.err.splitlines()[-1].count("no space left on device")) == (2, "", 1)
    else:
        assert said.code == 3
        errors = [row["error"] for row in said.json["runs"] if row["state"] != "finished"]
        assert [error.partition(": ")[2] for error in errors] == [FULL] * len(errors) != []
    fill.unlink()
    again = bnlab(*line)
    assert again.code == 0
    assert "used" not in again.err
    assert bnlab(*LINES[command], "--runs", "whole").code == 0
    assert traces_of(Path("disk/runs")) == traces_of(Path("whole"))
    assert not list(Path("disk").rglob(".*"))


@pytest.mark.parametrize("command", sorted(LINES))
def test_a_folder_that_is_read_only_is_read_and_not_written(
    command: str, disk: Callable[[str], None], bnlab: Callable[..., Any]
) -> None:
    disk("size=20m")
    line = (*LINES[command], "--runs", "disk/runs")
    assert bnlab(*line).code == 0
    before = _files(Path("disk"))
    disk("remount,ro")
    for words in (line, (*line, "--fresh"), (*line, "seed=7")):
        said = bnlab(*words)
        if words == line:
            assert said.code == 0  # there is nothing to do
            continue
        assert (said.code, said.out) == (2, "")
        assert said.err.splitlines()[-1].count(": read-only file system") == 1
    assert bnlab("runs", "disk/runs", "--json").json["runs"][0]["status"] == "finished"
    assert bnlab("evaluate", "disk/runs", "--json").json["evaluations"][0]["status"] == "finished"
    assert _files(Path("disk")) == before
    disk("remount,rw")
    assert bnlab(*line, "seed=7").code == 0


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
def test_an_output_that_is_on_a_full_disk_is_one_line(words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        line = [sys.executable, "-m", "bnlab", "list", "norms", *words]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "the output: no space left on device.\n")
