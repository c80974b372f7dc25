"""`bnlab init`: a file with comments that runs as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from bnlab import config
from bnlab.analysis.claims import check

Command = Callable[..., Any]
FOR_EDITORS = "# yaml-language-server: $schema="


def test_the_study_that_is_written_is_one(in_process: Command) -> None:
    said = in_process("init", "study", "mine")
    assert (said.code, said.out.splitlines()) == (
        0,
        [
            "written  configs/studies/mine.yaml",
            "written  configs/schema/study.json, for editors",
            "then     bnlab sweep --dry-run --config mine",
        ],
    )
    study, cells = config.load_study("mine", (), None)
    assert (study.name, study.base, len(cells), len(study.claims)) == ("mine", "deep_mlp", 48, 1)
    check(study)
    listed = in_process("sweep", "--config", "mine", "--dry-run").out.splitlines()
    assert listed[-3:] == [
        "48 runs: 48 not started; 48 to run",
        "time and disk are not known before a run of this grid has ended",
        "with 6 seeds and 1 claim, p is 0.016 at best",
    ]


def test_the_experiment_that_is_written_trains(in_process: Command) -> None:
    assert in_process("init", "experiment", "mine").code == 0
    said = in_process("train", "--config", "mine", "steps=2", "--json")
    assert (said.code, said.json["status"]) == (0, "finished")
    assert said.json["run"].startswith("runs/mine/batch/lr=0.1/seed=0-")


@pytest.mark.parametrize("kind", ["study", "experiment"])
def test_every_key_has_a_comment_and_a_file_that_is_there_stays(kind: str, in_process: Command) -> None:
    assert in_process("init", kind, "mine", "--config-dir", "own").code == 0
    [file] = Path("own").rglob("mine.yaml")
    text = file.read_text()
    assert isinstance(yaml.safe_load(text), dict)
    schema = json.loads((file.parent / text.splitlines()[0].removeprefix(FOR_EDITORS)).read_text())
    assert list(Draft202012Validator(schema).iter_errors(yaml.safe_load(text))) == []
    assert sum("#" in line for line in text.splitlines()) > len(text.splitlines()) / 2
    file.write_text("steps: 3\n")
    said = in_process("init", kind, "mine", "--config-dir", "own")
    assert (said.code, said.err) == (2, f"NAME: is there already, got '{file}'. Give another name, or edit it.\n")
    assert file.read_text() == "steps: 3\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nothing", "x"), "KIND: nothing of this kind, got 'nothing'. There are: experiment, study.\n"),
        (("study", "../x"), "NAME: cannot be the name of a folder, got '../x'. Write letters, digits, _ or -, such as"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words: tuple[str, ...], line: str, in_process: Command) -> None:
    said = in_process("init", *words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(line)
    assert not Path("configs").exists()
