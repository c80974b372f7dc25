"""A run whose files were cut off: what cannot be resumed is refused in one line that names --fresh."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli import main
from bnlab.core.spec import RunSpec
from bnlab.record.folder import BrokenError, RunFolder
from bnlab.run.setup import assemble
from bnlab.run.train import train

SpecOf = Callable[..., RunSpec]


@pytest.fixture
def begun(spec_of: SpecOf, tmp_path: Path) -> tuple[RunSpec, RunFolder]:
    """A run that was interrupted before its seventh step."""
    spec = spec_of("optim.momentum=0.9")
    folder = RunFolder(tmp_path / "run")
    steps = iter(range(100))
    train(assemble(spec), folder, stopped=lambda: "a test" if next(steps) == 6 else None)
    assert folder.status()["status"] == "interrupted"
    return spec, folder


def cut(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("file", "share", "problem"),
    [
        ("checkpoint.pt", 0.5, "cannot be read into this net: "),
        ("checkpoint.pt", 0.0, "cannot be read into this net: "),
        ("journal.jsonl", 0.5, r"cut off before the [\d,]+ bytes that its checkpoint counts"),
    ],
)
def test_a_cut_file_is_refused_and_fresh_starts_again(
    file: str, share: float, problem: str, begun: tuple[RunSpec, RunFolder], run: Callable[..., Any]
) -> None:
    spec, folder = begun
    cut(folder.path / file, share)
    files = {one.name: one.read_bytes() for one in folder.path.iterdir() if one.name not in ("lock", "spec.yaml")}
    with pytest.raises(BrokenError, match=rf"/run/{file}: {problem}.*\. Train the run again with --fresh\.$") as caught:
        train(assemble(spec), folder)
    assert "\n" not in str(caught.value)
    left = {one.name: one.read_bytes() for one in folder.path.iterdir() if one.name not in ("lock", "spec.yaml")}
    assert {name: left[name] for name in files if name != "owner.json"} == {
        name: data for name, data in files.items() if name != "owner.json"
    }
    assert train(assemble(spec), folder, fresh=True)["metrics"] == run(spec, "whole").status["metrics"]


def test_a_checkpoint_of_another_net_is_refused(begun: tuple[RunSpec, RunFolder], spec_of: SpecOf) -> None:
    with pytest.raises(BrokenError, match=r"checkpoint\.pt: cannot be read into this net: .*size mismatch"):
        train(assemble(spec_of("optim.momentum=0.9", "model.width=7")), begun[1])


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_command_line_says_so_in_one_line(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--config", "mlp_digits", "steps=12", "model.depth=2", "model.width=6", "probes=none", "--json"]

    def said(*more: str) -> tuple[Any, str, str]:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as ended,
        ):
            main([command, *words, *(["launch=inline"] if command == "sweep" else []), *more])
        return ended.value.code, out.getvalue(), err.getvalue()

    assert said()[0] == 0
    folder = next(tmp_path.rglob("checkpoint.pt")).parent
    cut(folder / "checkpoint.pt", 0.9)
    (folder / "status.json").write_text('{"status": "interrupted", "step": 12}')
    code, out, err = said()
    problem = f"{(folder / 'checkpoint.pt').relative_to(tmp_path)}: cannot be read into this net: "
    if command == "train":
        assert (code, out, err.count(problem), "Traceback" in err) == (2, "", 1, False)
        assert err.endswith("Train the run again with --fresh.\n")
    else:
        (row,) = json.loads(out)["runs"]
        assert code == 3
        assert row["error"].startswith(problem)
        assert row["error"].endswith("Train the run again with --fresh.")
    assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
    assert said("--fresh")[0] == 0
