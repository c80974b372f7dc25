"""No file that is only looked at runs code, and no link in a folder of runs leads a write to another file."""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bnlab
from bnlab.board import events
from bnlab.board.serve import server
from bnlab.core.errors import UsageError
from bnlab.core.safe import safe_json, safe_yaml
from bnlab.data import _stored
from bnlab.files import sources
from bnlab.record.folder import BrokenError, RunFolder, write_atomically
from bnlab.record.journal import Journal
from bnlab.run.checkpoint import restore_weights

ROOT = Path(bnlab.__file__).parent
SOURCES = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in sorted(ROOT.rglob("*.py"))}


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return (Path.touch, (self.ran,))


@pytest.mark.parametrize(
    "call",
    [r"pickle\.load", r"weights_only=False", r"allow_pickle=True", r"yaml\.(unsafe_|full_)load", r"shell=True",
     r"(?<!\.)\b(eval|exec)\(", r"os\.system", r"marshal|shelve|dill|cloudpickle", r"tempfile\.mktemp",
     r"extractall|\.extract\("],
)  # fmt: skip
def test_nothing_reads_files_in_a_way_that_can_run_code(call: str) -> None:
    assert [file for file, text in SOURCES.items() if re.search(call, text)] == []


def test_torch_and_numpy_read_no_objects() -> None:
    loads = [line for text in SOURCES.values() for line in text.splitlines() if "torch.load(" in line]
    assert loads
    assert all("weights_only=True" in line for line in loads)


def test_a_checkpoint_an_array_and_a_yaml_run_no_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({"module": Evil(ran), "progress": {"step": 1}}, tmp_path / "checkpoint.pt")
    with pytest.raises(BrokenError):
        restore_weights(RunFolder(tmp_path), torch.nn.Linear(1, 1), 1)
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Evil(ran)))
    with pytest.raises(BrokenError):
        restore_weights(RunFolder(tmp_path), torch.nn.Linear(1, 1), 1)
    for name in ("train_x", "train_y", "test_x", "test_y", "sums"):
        np.save(tmp_path / f"{name}.npy", np.array([Evil(ran)], object), allow_pickle=True)
    assert _stored._kept(tmp_path) is None
    for text in (f"!!python/object/apply:os.mkdir ['{ran}']", "!!python/name:os.system", "a: !!binary aGk="):
        with pytest.raises(ValueError, match="has no place here"):
            safe_yaml(text)
    with pytest.raises(ValueError, match=r".+"):
        safe_json(pickle.dumps(Evil(ran)))
    assert not ran.exists()
    pickle.loads(pickle.dumps(Evil(ran)))  # it would have
    assert ran.exists()


def _append(path: Path) -> None:
    journal = Journal(path)
    journal.append({"step": 0})
    journal.close()


WRITES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "status": (f".status.json.{__import__('os').getpid()}", lambda run: RunFolder(run).write_status({"step": 1})),
    "log": ("log.txt", lambda run: RunFolder(run).log("a line")),
    "answers": ("answers.jsonl", lambda run: RunFolder(run).add_answer({"eval_bn": "batch"})),
    "journal": ("journal.jsonl", lambda run: _append(run / "journal.jsonl")),
    "lock": ("lock", lambda run: RunFolder(run).owned().__enter__()),
    "events": (events.PART, events.EventFile),
    "data": (".mnist.part", lambda run: sources._write(run / "mnist", b"x")),
}


REPLACED = ("status", "journal")
"""A new file takes the place of the link."""


@pytest.mark.parametrize("what", WRITES)
def test_a_link_in_the_place_of_a_file_is_not_followed(what: str, tmp_path: Path) -> None:
    name, write = WRITES[what]
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    (run / name).symlink_to(victim)
    with contextlib.nullcontext() if what in REPLACED else pytest.raises(OSError, match="symbolic links"):
        write(run)
    assert victim.read_text() == "precious"


def test_a_link_that_is_replaced_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "status.json").symlink_to(tmp_path / "victim")
    write_atomically(tmp_path / "status.json", b"{}")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "status.json").is_symlink()


def test_tensorboard_answers_this_machine_alone_unless_it_is_told() -> None:
    words = server.command(Path("runs"), port=0, bind_all=False, runs=1)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--bind_all" not in words


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../b", "..", "a//b", "x\x1b[31m", "a\nb", "$HOME", "a\\b", "é" * 150, "a/" * 9 + "a"]
)
def test_a_name_that_leads_elsewhere_is_none(name: str) -> None:
    from bnlab import config

    with pytest.raises(UsageError, match=r"^name: (cannot be|is too long for) the name of a folder, got '"):
        config.load("deep_mlp", ["name='" + name.replace("\\", "\\\\") + "'"])
