"""The facts that are recorded of the machine, and the settings of the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bnlab
from bnlab.run import host


def test_provenance_says_what_a_run_came_from() -> None:
    found = host.provenance("cpu", 1)
    assert found["bnlab"] == bnlab.__version__
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["python"] == platform.python_version()
    assert (found["cores"], found["threads"]) == (os.cpu_count(), 1)
    assert found["argv"] == sys.argv


def _git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_a_changed_file_is_noticed(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    (tmp_path / "host.py").write_text("a = 1\n")
    _git(tmp_path, "add", "host.py")
    _git(tmp_path, "commit", "-q", "-m", "first")
    sha = _git(tmp_path, "rev-parse", "HEAD")
    assert host._git(tmp_path) == {"git_sha": sha, "git_dirty": False}
    (tmp_path / "host.py").write_text("a = 2\n")
    host._git.cache_clear()
    assert host._git(tmp_path) == {"git_sha": sha, "git_dirty": True}


def test_an_installed_bnlab_does_not_claim_the_commit_of_a_repository_around_it(tmp_path: Path) -> None:
    """A virtual environment inside another checkout."""
    _git(tmp_path, "init", "-q")
    (tmp_path / "theirs.py").write_text("a = 1\n")
    _git(tmp_path, "add", "theirs.py")
    _git(tmp_path, "commit", "-q", "-m", "first")
    inside = tmp_path / "venv" / "bnlab"
    inside.mkdir(parents=True)
    (inside / "host.py").write_text("a = 1\n")
    assert host._git(inside) == {"git_sha": None, "git_dirty": None}


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host._git(tmp_path) == {"git_sha": None, "git_dirty": None}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_is_given_its_number_of_threads(threads: int) -> None:
    script = f"import torch; from bnlab.run import host; host.prepare({threads}); print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(threads)


def test_a_c_library_without_mallopt_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: object) -> object:
        raise OSError("no such library")

    monkeypatch.setattr("ctypes.CDLL", missing)
    host.prepare(1)
    assert torch.get_num_threads() == 1
