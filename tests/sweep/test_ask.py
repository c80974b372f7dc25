"""`ask` of a study: its trained nets answer what `bnlab evaluate` would say, once each, and stay what they are."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.analysis.load import read_runs
from bnlab.analysis.verdicts import judge
from bnlab.cli import main
from bnlab.record.folder import RunFolder
from bnlab.report.build import build

Sweep = Callable[..., Any]
STUDY = """
base: deep_mlp
overrides: {steps: 12, model: {depth: 2, width: 6}, data.batch_size: 16, probes: none, probes.eval_points: 1}
axes: {norm: "none,batch", optim.lr: "0.05", seed: "range(0,2)"}
ask: ASK
claims:
  - name: lost
    text: Statistics of batches of 4 cost accuracy
    source: this test
    metric: answer_accuracy
    where: {norm: batch}
    contrast: CONTRAST
    at: every_run
    expect: larger
    compare: difference
    smallest_effect: 0.01
figures:
  - {kind: by, by: eval_batch_size, metric: answer_accuracy, log: x, where: {norm: batch}}
"""
ASK = "{eval_bn: 'running,batch', eval_batch_size: '4,64'}"
CONTRAST = "{eval_bn: [running, batch]}"
CONDITIONS = ("eval_bn=running,batch", "eval_batch_size=4,64")


@pytest.fixture
def asking(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """`asking(ask, contrast)` writes a study that asks this, and gives the arguments of its sweep."""

    def write(ask: str = ASK, contrast: str = CONTRAST) -> tuple[str, ...]:
        (tmp_path / "studies").mkdir(exist_ok=True)
        text = STUDY.replace("ASK", ask).replace("CONTRAST", contrast)
        (tmp_path / "studies" / "asks.yaml").write_text(text)
        return ("--config", "asks", "--config-dir", str(tmp_path), "--runs", str(tmp_path / "runs"))

    return write


def _files(root: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in root.rglob("*") if file.is_file() and "studies" not in file.parts}


def _evaluated(root: Path, *words: str) -> list[dict[str, Any]]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(["evaluate", str(root), *words, "--json"])
    found: list[dict[str, Any]] = json.loads(out.getvalue())["evaluations"]
    return found


def _answered(root: Path) -> list[dict[str, Any]]:
    """Every answer in the folders below, in the form of `bnlab evaluate`."""
    found = []
    for file in sorted(root.rglob("answers.jsonl")):
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut off
                answer = {"run": str(file.parent), "status": "finished", **json.loads(line)}
                found.append({key.removeprefix("data."): value for key, value in answer.items()})
    return found


def test_answers_are_the_bits_that_evaluate_prints_and_nothing_else_changes(
    sweep: Sweep, asking: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    assert sweep(*asking("[]"), "norm=none").code == 2  # the claim has no answers
    plain = asking("{eval_bn: running}", "{norm: [batch, none]}")
    assert sweep(*plain).code == 0
    before = _files(tmp_path / "runs")
    said = sweep(*asking(), "--json").json
    assert said["answers"] == [16, 16]
    after = _files(tmp_path / "runs")
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {"answers.jsonl", "study.yaml"}
    found = [answer for answer in _answered(tmp_path / "runs") if answer["eval_batch_size"] != "auto"]
    assert found == _evaluated(tmp_path / "runs", *CONDITIONS)


def test_a_study_that_asks_more_asks_the_new_alone(
    sweep: Sweep, asking: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    assert sweep(*asking()).code == 0
    file = min((tmp_path / "runs").rglob("answers.jsonl"))
    before = file.read_bytes()
    more = f"[{ASK}, {{eval_bn: running, data.shift: blur, data.shift_strength: 1}}]"
    assert sweep(*asking(more), "--dry-run").out.splitlines()[-2] == "20 answers of trained nets: 16 there; 4 to ask"
    assert "20 of 20 answers" in sweep(*asking(more)).out
    assert file.read_bytes().startswith(before)
    (blurred,) = file.read_bytes()[len(before) :].splitlines()
    assert json.loads(blurred)["data.shift"] == "blur"
    now = _files(tmp_path / "runs")
    assert "4 runs, all ended, nothing to do" in sweep(*asking(more)).out
    assert _files(tmp_path / "runs") == now


def test_a_line_that_was_cut_off_is_asked_again(
    sweep: Sweep, asking: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    assert sweep(*asking()).code == 0
    file = min((tmp_path / "runs").rglob("answers.jsonl"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert len(RunFolder(file.parent).answers()) == 3
    assert "16 of 16 answers" in sweep(*asking()).out
    assert file.read_bytes() == whole[:-9] + b"\n" + whole.splitlines(keepends=True)[-1]
    assert len(RunFolder(file.parent).answers()) == 4


def test_a_sweep_killed_while_it_asks_is_completed(
    sweep: Sweep, asking: Callable[..., tuple[str, ...]], wait_for: Callable[..., Any], tmp_path: Path
) -> None:
    sizes = ",".join(map(str, range(2, 12)))
    words = asking(f"{{eval_bn: 'running,batch', eval_batch_size: '{sizes}'}}")
    process = subprocess.Popen(
        [sys.executable, "-m", "bnlab", "sweep", *words, "launch.workers=1"], cwd=tmp_path, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        wait_for(lambda: any((tmp_path / "runs").rglob("answers.jsonl")), "answer")
        os.killpg(process.pid, signal.SIGKILL)
    assert len(_answered(tmp_path / "runs")) < 80
    assert sweep(*words, "launch.workers=1", "--json").json["answers"] == [80, 80]
    found = [json.dumps(answer) for answer in _answered(tmp_path / "runs")]
    evaluated = _evaluated(tmp_path / "runs", "eval_bn=running,batch", f"eval_batch_size={sizes}")
    assert {json.dumps(answer) for answer in evaluated} == set(found)


def test_claims_and_figures_are_about_answers(
    sweep: Sweep, asking: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    assert sweep(*asking(ASK, "{eval_bn: [running, batch], eval_batch_size: [64, 4]}")).code == 0
    root = tmp_path / "runs" / "asks"
    (verdict,) = judge(read_runs(root))
    accuracy = {
        (answer["run"], answer["eval_bn"], answer["eval_batch_size"]): answer["metrics"]["test_accuracy"]
        for answer in _answered(root)
    }
    runs = [str(path) for path in sorted((root / "batch").rglob("seed=*"))]
    assert verdict.treated is not None
    assert verdict.control is not None
    assert verdict.treated.values == tuple(accuracy[run, "running", 64] for run in runs)
    assert verdict.control.values == tuple(accuracy[run, "batch", 4] for run in runs)
    built = build(root)
    assert (built.runs, built.failed, built.notes) == (4, (), ())
    rows = (root / "figures" / "by-answer_accuracy-eval_batch_size.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * 2
    assert {row.split(",")[0] for row in rows[1:]} == {"batch statistics", "running statistics"}


def test_a_missing_checkpoint_is_not_measured_and_said(
    sweep: Sweep, asking: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    assert sweep(*asking("{eval_bn: running}", "{norm: [batch, none]}")).code == 0
    for file in (tmp_path / "runs" / "asks" / "batch").rglob("checkpoint.pt"):
        file.unlink()
    said = sweep(*asking())
    assert (said.code, said.out.splitlines()[-1]) == (0, "8 of 16 answers")
    built = build(tmp_path / "runs" / "asks")
    first = "batch/lr=0.05/seed=0-"
    assert built.notes[0].startswith(f"8 of 16 answers are missing; first {first}")
    assert built.notes[0].endswith(": not measured, it has no checkpoint")
    (verdict,) = built.verdicts
    assert (verdict.decision, verdict.why) == ("not tested", "answer_accuracy was not measured")


@pytest.mark.parametrize(
    ("ask", "contrast", "line"),
    [
        ("{eval_size: 4}", CONTRAST, "ask: eval_size: not a key of an evaluation. Did you mean: eval_batch_size?"),
        ("{device: cpu}", CONTRAST, "ask: device: not a key of an evaluation"),
        ("{eval_bn: own}", CONTRAST, "ask: eval_bn: must be 'running', 'batch', 'population' or 'adapted', got 'own'."),
        ("4", CONTRAST, "ask: must have keys and values, got 4."),
        ("{eval_batch_size: 0}", CONTRAST, "ask: eval_batch_size: must be 'auto' or 'full' or be at least 1, got 0."),
        (
            "{eval_bn: 'running,batch', eval_batch_size: 1}", CONTRAST,
            "ask: eval_batch_size: gives norm=batch one value per channel at L00_fc, got 1.",
        ),
        ("{data.shift: colour, data.shift_strength: 1}", CONTRAST, "ask: data.shift: "),
        ("{data.shift: blur}", CONTRAST, "ask: data.shift_strength: "),
        ("{eval_bn: running}", CONTRAST, "claims.lost.contrast.eval_bn: no run of this study has this value"),
        (
            "[{eval_bn: running, eval_batch_size: 64}, {eval_bn: batch, eval_batch_size: 4}]",
            "{eval_bn: [running, batch], eval_batch_size: [4, 4]}",
            "claims.lost.contrast: no run is asked for this, got {'norm': 'batch', 'eval_bn': 'running', "
            "'eval_batch_size': 4}. Add it to ask.",
        ),
        ("[]", CONTRAST, "claims.lost.metric: the study asks nothing, got 'answer_accuracy'."),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_before_any_run(
    ask: str, contrast: str, line: str, sweep: Sweep, asking: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    said = sweep(*asking(ask, contrast))
    err = said.err.removeprefix(f"{tmp_path / 'studies' / 'asks.yaml'}: ")
    assert (said.code, err[: len(line)], err.count("\n")) == (2, line, 1), said.err
    assert not list((tmp_path / "runs").rglob("journal.jsonl"))
