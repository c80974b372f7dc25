"""Damaged checkpoints and journals: the checkpoint before is used, and said; the run has the bits of a whole one. What
cannot be resumed is refused in one line that names the file, what is lost, and the line to type."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bnlab.core.spec import RunSpec
from bnlab.record.folder import BrokenError, RunFolder
from bnlab.record.journal import read, without_clock
from bnlab.run.checkpoint import SEAL_BYTES, restore
from bnlab.run.setup import assemble
from bnlab.run.train import RunFailedError, train

Stopped = Callable[..., tuple[RunSpec, RunFolder]]
Run = Callable[..., Any]
Change = Callable[[Path], object]


def cut(share: float) -> Change:
    def change(file: Path) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])

    return change


def flipped(file: Path) -> None:
    """One bit in the middle of the weights."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))


def edited(edit: Callable[[dict[str, Any]], object]) -> Change:
    """As somebody would who loads it with torch and saves it again."""

    def change(file: Path) -> None:
        content = torch.load(file, weights_only=True)
        edit(content)
        torch.save(content, file)

    return change


def _poison(content: dict[str, Any]) -> None:
    next(iter(content["module"].values())).view(-1)[0] = float("nan")


def _widen(content: dict[str, Any]) -> None:
    name = next(iter(content["module"]))
    content["module"][name] = torch.zeros(7, 7)


def progress(**values: Any) -> Change:
    return edited(lambda content: content["progress"].update(values))


DAMAGES: dict[str, tuple[Change, str]] = {
    "cut": (cut(0.5), "it is damaged: "),
    "cut by 40 bytes": (lambda file: file.write_bytes(file.read_bytes()[:-40]), "it is damaged: "),
    "empty": (cut(0), "it is empty"),
    "garbage": (lambda file: file.write_bytes(random.Random(0).randbytes(5000)), "it is damaged: "),
    "text": (lambda file: file.write_text("not a checkpoint"), "it is damaged: "),
    "a flipped bit": (flipped, "it is damaged, its checksum is another one"),
    "of another net": (edited(_widen), "it is of another net: "),
    "without a part": (edited(lambda content: content.pop("optimizer")), "lacks 'optimizer'"),
    "without progress": (edited(lambda content: content.pop("progress")), "lacks 'progress'"),
    "another object": (lambda file: torch.save([1, 2], file), "list indices"),
    "weights that are NaN": (edited(_poison), "it has weights that are not finite"),
    "a step of 10^9": (progress(step=10**9), "it is of step 1000000000, in a run of 12"),
    "a step below 0": (progress(step=-1), "it is of step -1, in a run of 12"),
    "a step that is no number": (progress(step="7"), "it is of step 7, in a run of 12"),
    "a journal of no bytes": (progress(journal_bytes=0), "the first 0 bytes of journal.jsonl are not those"),
    "a longer journal": (progress(journal_bytes=10**6), "journal.jsonl is cut off before the 1,000,000 bytes"),
    "another journal": (edited(lambda content: content.update(journal_crc=1)), "bytes of journal.jsonl are not those"),
    "a first loss of infinity": (progress(initial_loss=float("inf")), "its progress has values that no run has"),
    "an unknown key": (progress(bogus=1), "bogus"),
}


@pytest.fixture
def whole(run: Run) -> Callable[[RunSpec], Any]:
    """The run, undisturbed."""
    return lambda spec: run(spec, "whole")


def _equal(folder: RunFolder, whole: Any, setup: Any, state_bits: Callable[..., Any]) -> None:
    assert [without_clock(record) for record in read(folder.journal_file)] == whole.clockless
    assert state_bits(setup) == state_bits(whole.setup)
    assert {**folder.status(), "timing": 0} == {**whole.folder.status(), "timing": 0}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_where_the_newest_is_damaged_the_one_before_is_used_and_said(
    damage: str, stopped: Stopped, whole: Callable[[RunSpec], Any], state_bits: Callable[..., Any]
) -> None:
    spec, folder = stopped(7)
    change, problem = DAMAGES[damage]
    change(folder.checkpoint_file)
    setup = assemble(spec)
    [line] = train(setup, folder)["recovered"]
    assert line.startswith("checkpoint.pt cannot be used: ")
    assert problem in line
    assert line.endswith("; checkpoint.previous.pt, of step 6, is used")
    assert line in (folder.path / "log.txt").read_text()
    _equal(folder, whole(spec), setup, state_bits)
    assert not folder.previous_file.exists()


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_where_both_are_damaged_one_line_says_what_to_type(damage: str, stopped: Stopped, run: Run) -> None:
    spec, folder = stopped(7)
    change, problem = DAMAGES[damage]
    change(folder.checkpoint_file)
    change(folder.previous_file)
    before = {file.name: file.read_bytes() for file in folder.path.iterdir() if file.name[:5] in ("check", "journ")}
    if damage == "weights that are NaN":  # there is no other, and a run about to diverge has such weights
        assert train(assemble(spec), folder)["status"] == "diverged"
        return
    with pytest.raises(BrokenError, match=r"^[^\n]*/checkpoint\.pt: cannot be used: ") as caught:
        train(assemble(spec), folder)
    assert problem in str(caught.value)
    assert "; checkpoint.previous.pt: " in str(caught.value)
    assert str(caught.value).endswith(". What the run had computed is lost. Train the run again with --fresh.")
    assert all((folder.path / name).read_bytes() == data for name, data in before.items())
    again = train(assemble(spec), folder, fresh=True)
    assert again["metrics"] == run(spec, "whole").status["metrics"]


def test_every_byte_of_a_checkpoint_counts(stopped: Stopped) -> None:
    """A flipped bit is seen, wherever it is; in the checksum's own text it may be harmless."""
    spec, folder = stopped(3)
    newest, previous = folder.checkpoint_file.read_bytes(), folder.previous_file.read_bytes()
    draw, setup = random.Random(0), assemble(spec)
    ends = range(len(newest) - SEAL_BYTES, len(newest))
    for place in (*ends, *(draw.randrange(len(newest) - SEAL_BYTES) for _ in range(60))):
        changed = bytearray(newest)
        changed[place] ^= 1 << draw.randrange(8)
        folder.checkpoint_file.write_bytes(bytes(changed))
        folder.previous_file.write_bytes(previous)
        progress, problem = restore(folder, setup.net.module, setup.optimizer, setup.observer, setup.steps)
        assert (progress.step, problem is None) in ([(2, False)] if place not in ends else [(2, False), (3, True)])


def test_a_damaged_checkpoint_is_removed_before_it_could_push_out_the_good_one(stopped: Stopped) -> None:
    spec, folder = stopped(7)
    good, setup = folder.previous_file.read_bytes(), assemble(spec)
    flipped(folder.checkpoint_file)
    restore(folder, setup.net.module, setup.optimizer, setup.observer, setup.steps)
    assert folder.checkpoint_file.read_bytes() == good
    assert not folder.previous_file.exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        torch.cuda.OutOfMemoryError("no room"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_checkpoint_that_there_is_no_memory_for_is_not_damaged(
    error: Exception, stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, folder = stopped(7)
    before = [file.read_bytes() for file in (folder.checkpoint_file, folder.previous_file)]

    def load(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", load)
        with pytest.raises(RunFailedError, match=f"^{type(error).__name__}: "):
            train(assemble(spec), folder)
    assert [file.read_bytes() for file in (folder.checkpoint_file, folder.previous_file)] == before
    assert "recovered" not in train(assemble(spec), folder)


@pytest.mark.parametrize("lose", ["the seal", "all but what torch reads"])
def test_a_checkpoint_of_an_earlier_version_is_read_and_checked_part_by_part(lose: str, stopped: Stopped) -> None:
    spec, folder = stopped(3)
    file, setup = folder.checkpoint_file, assemble(spec)
    if lose == "the seal":
        file.write_bytes(file.read_bytes()[:-SEAL_BYTES])
    else:
        content = torch.load(file, weights_only=True)
        del content["journal_crc"]
        torch.save(content, file)
    folder.previous_file.unlink()
    data = file.read_bytes()
    parts = (folder, setup.net.module, setup.optimizer, setup.observer, setup.steps)
    assert restore(*parts)[0].step == 3
    torch.load(io.BytesIO(data + b"\nbnlab crc32c 00000000\n"), weights_only=True)  # an earlier version reads a seal
    flipped(file)
    with pytest.raises(BrokenError, match=r"it is damaged, in (archive|checkpoint)/data/\d+"):
        restore(*parts)


@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_at_either_rename_leaves_a_checkpoint(
    at: int, stopped: Stopped, run: Run, state_bits: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class _PowerCut(BaseException):
        pass

    spec, folder = stopped(5)
    calls = iter(range(100))
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name.startswith("checkpoint") and next(calls) == at - 1:
            raise _PowerCut
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(_PowerCut, match=r"^$"):
            train(assemble(spec), folder)
    assert [file.name for file in sorted(folder.path.glob("checkpoint*"))] == (
        ["checkpoint.previous.pt", "checkpoint.pt"] if at == 1 else ["checkpoint.previous.pt"]
    )
    setup = assemble(spec)
    assert "recovered" not in train(setup, folder)
    assert (folder.path / "log.txt").read_text().count("  from step 5 of 12\n") == 2  # nothing was computed twice
    _equal(folder, run(spec, "whole"), setup, state_bits)


# -- journals --------------------------------------------------------------------------------------------------------


def line(number: int, change: Callable[[bytes], bytes]) -> Change:
    """That line of a file, counted from 1, changed."""

    def edit(file: Path) -> None:
        lines = file.read_bytes().splitlines(keepends=True)
        lines[number - 1] = change(lines[number - 1])
        file.write_bytes(b"".join(lines))

    return edit


JOURNALS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "garbage": (lambda text: b"\x00" * (len(text) - 1) + b"\n", "journal.jsonl: line {line} is damaged"),
    "empty": (lambda text: b"\n" + text[1:], "journal.jsonl: line {line} is damaged"),
    "gone": (lambda text: b"", "journal.jsonl is cut off before the "),
    "half": (lambda text: text[: len(text) // 2] + b"\n", "journal.jsonl: line {line} is damaged"),
    "a list": (lambda text: b"[" + b" " * (len(text) - 3) + b"]\n", "journal.jsonl: line {line} is damaged"),
    "another digit": (lambda text: text.replace(b'"lr":0.05', b'"lr":0.06'), "of journal.jsonl are not those"),
}


@pytest.mark.parametrize("damage", sorted(JOURNALS))
def test_a_journal_damaged_behind_the_checkpoint_before_costs_one_step(
    damage: str, stopped: Stopped, run: Run, state_bits: Callable[..., Any]
) -> None:
    spec, folder = stopped(7)
    change, problem = JOURNALS[damage]
    line(7, change)(folder.journal_file)
    setup = assemble(spec)
    [said] = train(setup, folder)["recovered"]
    assert problem.format(line=7) in said
    assert said.endswith("; checkpoint.previous.pt, of step 6, is used")
    _equal(folder, run(spec, "whole"), setup, state_bits)


@pytest.mark.parametrize("damage", sorted(JOURNALS))
def test_a_journal_damaged_before_both_checkpoints_is_refused_by_its_line(
    damage: str, stopped: Stopped, run: Run
) -> None:
    spec, folder = stopped(7)
    change, problem = JOURNALS[damage]
    line(3, change)(folder.journal_file)
    with pytest.raises(BrokenError, match=r"^[^\n]+ is lost\. Train the run again with --fresh\.$") as caught:
        train(assemble(spec), folder)
    assert problem.format(line=3) in str(caught.value)
    assert train(assemble(spec), folder, fresh=True)["metrics"] == run(spec, "whole").status["metrics"]


def test_a_torn_last_line_is_nothing(stopped: Stopped, run: Run, state_bits: Callable[..., Any]) -> None:
    spec, folder = stopped(7)
    with open(folder.journal_file, "ab") as file:
        file.write(b'{"step":7,"train_lo')
    assert [record["step"] for record in read(folder.journal_file)] == list(range(7))
    setup = assemble(spec)
    assert "recovered" not in train(setup, folder)
    _equal(folder, run(spec, "whole"), setup, state_bits)


# -- commands --------------------------------------------------------------------------------------------------------

WORDS = ("--config", "mlp_digits", "steps=12", "model.depth=2", "model.width=6", "probes=none", "data.batch_size=16")


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_command_line_names_the_line_to_type(command: str, bnlab: Callable[..., Any]) -> None:
    words = [command, *WORDS, "--json", *(["launch=inline"] if command == "sweep" else [])]
    assert bnlab(*words).code == 0
    [file] = Path().rglob("checkpoint.pt")
    cut(0.9)(file)
    (file.parent / "status.json").write_text('{"status": "interrupted", "step": 12}')
    said = bnlab(*words)
    if command == "train":
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
        assert said.err.startswith(f"{file}: cannot be used: it is damaged: ")
        assert said.err.endswith(f"The line: bnlab {' '.join(words)} --fresh\n")
    else:
        [row] = said.json["runs"]
        assert said.code == 3
        assert row["error"].startswith(f"{file}: cannot be used: it is damaged: ")
        assert "\nalone   bnlab train --config mlp_digits" in said.err
        assert " --fresh\n" in said.err
    assert json.loads((file.parent / "status.json").read_text())["status"] == "interrupted"
    assert bnlab(*words, "--fresh").code == 0


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_command_line_says_what_was_used(command: str, bnlab: Callable[..., Any], stopped: Stopped) -> None:
    words = [command, *WORDS, "launch.checkpoint_s=0", "--json", *(["launch=inline"] if command == "sweep" else [])]
    assert bnlab(*words).code == 0
    [file] = Path().rglob("checkpoint.pt")
    file.with_name("checkpoint.previous.pt").write_bytes(file.read_bytes())
    flipped(file)
    (file.parent / "status.json").write_text('{"status": "interrupted", "step": 12}')
    said = bnlab(*words)
    assert said.code == 0
    wanted = "it is damaged, its checksum is another one; checkpoint.previous.pt, of step 12, is used"
    assert said.err.splitlines()[-1].endswith(f"checkpoint.pt cannot be used: {wanted}")


def test_evaluate_reads_the_checkpoint_before(bnlab: Callable[..., Any], stopped: Stopped) -> None:
    _, folder = stopped(7)
    flipped(folder.checkpoint_file)
    assert {one["step"] for one in bnlab("evaluate", folder.path, "--json").json["evaluations"]} == {6}
    assert folder.checkpoint_file.is_file()  # a reader changes nothing
    flipped(folder.previous_file)
    said = bnlab("evaluate", folder.path)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(
        f"{folder.checkpoint_file}: cannot be used: it is damaged, its checksum is another one; "
    )
