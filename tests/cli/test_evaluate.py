"""`bnlab evaluate`: a trained net gives the answers it would have given in a run of its own, and stays what it was."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.cli import main
from bnlab.config.conditions import KEYS, load_conditions
from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.run import answer
from bnlab.run.setup import assemble
from bnlab.run.train import train

SpecOf = Callable[..., RunSpec]


def _said(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; a command that ends well may end without an exit."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main([str(word) for word in words])
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
    return code or 0, out.getvalue(), err.getvalue()


def _answers(*words: object) -> list[dict[str, Any]]:
    code, out, err = _said("evaluate", *words, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    found: list[dict[str, Any]] = json.loads(out)["evaluations"]
    return found


@pytest.fixture
def trained(tmp_path: Path, spec_of: SpecOf) -> Callable[..., Path]:
    """`trained("seed=1")` is the folder of such a run."""

    def run(*overrides: str) -> Path:
        spec = spec_of("steps=30", "probes=none", "probes.eval_points=1", *overrides)
        folder = RunFolder(tmp_path / "runs" / spec.id)
        train(assemble(spec), folder)
        return folder.path

    return run


def _metrics(run: Path) -> dict[str, float]:
    metrics: dict[str, float] = RunFolder(run).status()["metrics"]
    return {name: value for name, value in metrics.items() if name.startswith("test_")}


@pytest.mark.parametrize(
    "asked",
    [
        ("eval_bn=running",),
        ("eval_bn=population",),
        ("eval_bn=adapted", "eval_batch_size=7"),
        ("eval_bn=batch", "eval_batch_size=full", "data.shift=brightness", "data.shift_strength=0.3"),
        ("eval_bn=running", "data.shift=prior", "data.shift_strength=1"),
    ],
)
def test_the_result_is_that_of_a_run_trained_with_the_same_settings(
    asked: tuple[str, ...], trained: Callable[..., Path]
) -> None:
    plain, asked_itself = trained(), trained(*asked)  # under priors of one decade: 36 + 28 + 21 + ... + 4 examples
    for run in (plain, asked_itself):
        (answer,) = _answers(run, *asked)
        assert answer["metrics"] == _metrics(asked_itself)
        assert (answer["run"], answer["status"], answer["step"]) == (str(run), "finished", 30)
    assert answer["examples"] == (148 if "data.shift=prior" in asked else 359)


def test_all_modes_are_evaluated_by_default_and_combinations_follow_the_order_of_the_keys(
    trained: Callable[..., Path],
) -> None:
    run = trained()
    answers = _answers(run)
    assert [answer["eval_bn"] for answer in answers] == ["running", "batch", "population", "adapted"]
    assert answers[0]["metrics"] == _metrics(run)
    grid = _answers(run, "eval_bn=running,batch", "data.shift=noise", "data.shift_strength=0,0.5")
    assert [(answer["shift_strength"], answer["eval_bn"]) for answer in grid] == [
        (0, "running"), (0, "batch"), (0.5, "running"), (0.5, "batch"),
    ]  # fmt: skip
    assert [answer["metrics"] for answer in grid[:2]] == [answer["metrics"] for answer in answers[:2]]


def test_answers_are_kept_once_and_nothing_else_is_written(trained: Callable[..., Path]) -> None:
    run = trained()
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.iterdir()}
    found = _answers(run, "eval_bn=running", "eval_batch_size=2,64")
    _answers(run, "eval_bn=running", "eval_batch_size=2")
    kept = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    assert [(one["eval_batch_size"], one["metrics"]) for one in kept] == [
        (one["eval_batch_size"], one["metrics"]) for one in found
    ]
    _answers(run, "eval_bn=batch", "device=cpu")  # another device may round otherwise
    assert len((run / "answers.jsonl").read_text().splitlines()) == 2
    (run / "answers.jsonl").unlink()
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.iterdir()} == before


def test_answers_that_are_kept_are_not_computed_again(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()
    first = _answers(run, "eval_bn=running,batch")
    asked: list[str] = []
    original = answer.answers

    def counting(folder: RunFolder, specs: Sequence[RunSpec]) -> Iterator[dict[str, Any]]:
        asked.extend(spec.eval_bn for spec in specs)
        return original(folder, specs)

    monkeypatch.setattr(answer, "answers", counting)
    assert _answers(run, "eval_bn=running,batch") == first
    assert asked == []
    assert [one["eval_bn"] for one in _answers(run, "eval_bn=batch,population,running")] == [
        "batch", "population", "running",
    ]  # fmt: skip
    assert asked == ["population"]


def test_runs_that_diverged_are_counted_in_every_group(trained: Callable[..., Path]) -> None:
    runs = [trained(), trained("seed=1")]
    status = json.loads((runs[1] / "status.json").read_text())
    (runs[1] / "status.json").write_text(json.dumps({**status, "status": "diverged"}))
    for file in runs[1].glob("checkpoint*"):
        file.unlink()
    _, out, _ = _said("evaluate", runs[0].parent, "eval_bn=running,batch", "--by", "eval_bn", "--json")
    assert [(one["runs"], one["diverged"], one["test_loss.n"]) for one in json.loads(out)["groups"]] == [(2, 1, 1)] * 2


def test_answers_that_cannot_be_kept_are_still_given(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()

    def refuse(self: RunFolder, answer: object) -> None:
        raise PermissionError(13, "Permission denied", str(self.answers_file))

    monkeypatch.setattr(RunFolder, "add_answer", refuse)
    code, out, err = _said("evaluate", run, "eval_bn=running", "--json")
    assert (code, err) == (0, f"{run}: answers are not kept, permission denied\n")
    assert json.loads(out)["evaluations"][0]["metrics"] == _metrics(run)


def test_a_net_that_is_not_trained_to_its_end_keeps_no_answer(trained: Callable[..., Path]) -> None:
    run = trained()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "status": "interrupted"}))
    assert len(_answers(run, "eval_bn=running")) == 1
    assert not (run / "answers.jsonl").exists()


def test_answers_are_averaged_by_keys_and_drawn(trained: Callable[..., Path]) -> None:
    runs = [trained(f"seed={seed}") for seed in (0, 1, 2)]
    root = runs[0].parent
    code, out, _ = _said(
        "evaluate", root, "eval_bn=running,batch", "eval_batch_size=4,64", "--by", "eval_bn,eval_batch_size", "--json"
    )
    groups = json.loads(out)["groups"]
    assert (code, [(one["eval_bn"], one["eval_batch_size"]) for one in groups]) == (
        0, [("batch", 4), ("batch", 64), ("running", 4), ("running", 64)],
    )  # fmt: skip
    # Answers of one net are one value, however many there are; what they are over is said.
    _, out, _ = _said("evaluate", root, "eval_bn=running", "eval_batch_size=4,64", "--by", "norm", "--json")
    found = json.loads(out)
    assert [(one["runs"], one["test_accuracy.n"]) for one in found["groups"]] == [(3, 3)]
    assert found["pooled"] == ["eval_batch_size"]
    finals = [_metrics(run)["test_accuracy"] for run in runs]
    assert (groups[2]["runs"], groups[2]["test_accuracy.n"]) == (3, 3)
    assert groups[2]["test_accuracy"] == pytest.approx(sum(finals) / 3)
    code, out, err = _said(
        "plot", root, "--y", "answer_accuracy", "--x", "eval_batch_size", "--by", "eval_bn", "--out", root / "x.csv"
    )
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO((root / "x.csv").read_text())))
    drawn = {row["seed"]: float(row["answer_accuracy"]) for row in rows if row["eval_batch_size"] == "64"}
    assert {row["arm"] for row in rows} == {"running statistics", "batch statistics"}
    assert set(drawn) == {"0", "1", "2"}


def test_a_run_is_evaluated_under_its_own_shift_unless_another_is_given(trained: Callable[..., Path]) -> None:
    run = trained("data.shift=blur", "data.shift_strength=1")
    (own,), (none,) = _answers(run, "eval_bn=running"), _answers(run, "eval_bn=running", "data.shift=none")
    assert (own["shift"], own["shift_strength"]) == ("blur", 1)
    assert (none["shift"], none["shift_strength"]) == ("none", None)
    assert own["metrics"] == _metrics(run)
    assert none["metrics"] == _metrics(trained())


def test_a_run_trained_in_lower_precision_is_evaluated_in_full_precision_on_any_device(
    trained: Callable[..., Path],
) -> None:
    """TF32 is a thing of CUDA alone: a run trained there can be asked on a processor."""
    run = trained()
    before = _metrics(run)
    tree = yaml.safe_load((run / "spec.yaml").read_text())
    (run / "spec.yaml").write_text(yaml.safe_dump({**tree, "device": "cuda", "precision": "tf32"}))
    (answer,) = _answers(run, "device=cpu", "eval_bn=running")
    assert answer["metrics"] == before


def test_a_run_older_than_these_keys_can_be_evaluated(trained: Callable[..., Path]) -> None:
    run = trained()
    spec = yaml.safe_load((run / "spec.yaml").read_text())
    for key in ("eval_bn", "eval_batch_size"):
        del spec[key]
    for key in ("shift", "shift_strength"):
        del spec["data"][key]
    (run / "spec.yaml").write_text(yaml.safe_dump(spec))
    assert _answers(run)[0]["metrics"] == _metrics(run)


def test_a_table_has_a_line_an_answer_and_runs_without_a_checkpoint_are_named(trained: Callable[..., Path]) -> None:
    first, second, lost = trained(), trained("seed=1"), trained("seed=2")
    (lost / "checkpoint.pt").unlink()
    code, out, err = _said("evaluate", first.parent, "eval_bn=running,adapted")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["shift", "strength", "eval_bn", "batch", "test", "loss", "test", "acc", "step", "run"]
    rows = [line.split() for line in lines if line.startswith("none")]
    assert sorted((row[2], row[-1]) for row in rows) == sorted(
        (bn, str(run)) for run in (first, second) for bn in ("running", "adapted")
    )
    assert float(next(row for row in rows if row[2] == "running" and row[-1] == str(first))[5]) == pytest.approx(
        _metrics(first)["test_accuracy"], rel=1e-3
    )
    assert lines[-1] == f"left out   {lost}: no checkpoint, finished"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("optim.lr=1",), "optim.lr: not a key of an evaluation. There are: "),
        (("eval_bn=pop",), "eval_bn: must be 'running', 'batch', 'population' or 'adapted', got 'pop'."),
        (("eval_bn=batch", "eval_bn=running"), "eval_bn: given twice, got 'eval_bn=running'."),
        (("data.shift=blur",), "data.shift_strength: missing, and data.shift=blur needs one."),
        (("eval_bn=batch", "eval_batch_size=1"), "eval_batch_size: gives norm=batch one value per channel at L00_fc"),
    ],
)
def test_an_impossible_evaluation_gives_one_line(
    words: tuple[str, ...], line: str, trained: Callable[..., Path]
) -> None:
    code, out, err = _said("evaluate", trained(), *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)


def test_a_checkpoint_that_cannot_be_read_and_a_folder_without_one_are_reported(trained: Callable[..., Path]) -> None:
    run = trained()
    (run / "checkpoint.pt").write_bytes(b"not a checkpoint")
    code, out, err = _said("evaluate", run)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{run / 'checkpoint.pt'}: cannot be used: it is damaged: ")
    (run / "checkpoint.pt").unlink()
    code, out, err = _said("evaluate", run)
    assert (code, out, err.startswith("RUNS: no run here has a checkpoint")) == (2, "", True)


def test_with_json_progress_is_on_stderr(trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.terminal.progress.LINES_AFTER_S", 0)
    code, out, err = _said("evaluate", trained(), "eval_bn=running,batch", "--json")
    assert code == 0
    assert [answer["eval_bn"] for answer in json.loads(out)["evaluations"]] == ["running", "batch"]
    assert [line.split("  ")[0] for line in err.splitlines()] == ["answer 1/2", "answer 2/2"]


def test_every_key_of_evaluate_is_a_key_of_the_spec(spec_of: SpecOf) -> None:
    tree: Any = spec_of().tree()
    for key in KEYS:
        group, _, last = key.rpartition(".")
        assert last in (tree[group] if group else tree)
    with pytest.raises(UsageError, match=r"^data\.size: not a key of an evaluation"):
        load_conditions(["data.size=3"])
