"""Completion: what can stand at the end of a line, and that real shells put it there."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from bnlab import config
from bnlab.cli import app, main
from bnlab.cli.complete import SHELLS, completed, script
from bnlab.config.conditions import KEYS
from bnlab.core.spec import EvalBN

TREE = typer.main.get_command(app)
NORMS = list(config.available("norm", [config.packaged_dir()]))


def words(line: str) -> list[str]:
    """What can stand at the end of a line."""
    return [word for word, _ in completed(TREE, line)[1]]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("bnlab tr", ["train"]),
        ("bnlab data ", ["fetch"]),
        ("X=1 bnlab re", ["report"]),
        ("bnlab train --config deep_m", ["deep_mlp"]),
        ("bnlab train --config=deep_m", ["--config=deep_mlp"]),
        ("bnlab train --config lr_", []),  # a study, and train takes experiments
        ("bnlab sweep --config lr_", ["lr_range", "lr_smoothing"]),
        ("bnlab sweep --config lessons/cs", ["lessons/cs231n_batch_size", "lessons/cs231n_init_scale"]),
        ("bnlab sweep --fr", ["--fresh"]),
        ("bnlab sweep --fresh --fr", []),
        ("bnlab runs --where norm=none --whe", ["--where"]),
        ("bnlab train norm=ba", ["norm=batch", "norm=batch_reference", "norm=batch_renorm"]),
        ("bnlab train norm=none,ba", []),  # train takes one value
        ("bnlab sweep norm=none,lay", ["norm=none,layer"]),
        ("bnlab sweep norm=none,no", ["norm=none,noisy_batch", "norm=none,noisy_none"]),
        ("bnlab train --config deep_mlp opt", ["optim=", "optim."]),
        ("bnlab train optim=sgd opt", ["optim."]),
        ("bnlab train optim.l", ["optim.lr="]),
        ("bnlab train optim.lr=1 optim.l", []),
        ("bnlab train --config mlp_digits optim.lr=", ["optim.lr=0.5"]),
        ("bnlab sweep --config lr_smoothing model.dep", ["model.depth="]),
        ("bnlab train optim.mom", ["optim.momentum="]),
        ("bnlab train optim=adam optim.mom", []),  # adam has none
        ("bnlab train data.flip=", ["data.flip=false", "data.flip=true"]),
        ("bnlab train data.subset=n", ["data.subset=null"]),
        ("bnlab train model.init=g", ["model.init=glorot", "model.init=gaussian"]),
        ("bnlab train probes.gradients.n", ["probes.gradients.noise="]),
        ("bnlab train --config nowhere see", ["seed="]),
        ("bnlab evaluate runs eval_bn=running,", [f"eval_bn=running,{way}" for way in get_args(EvalBN)[1:]]),
        ("bnlab evaluate runs ", [f"{key}=" for key in KEYS]),
        ("bnlab list no", ["norms"]),
        ("bnlab list me", ["measurements", "metrics"]),
        ("bnlab data fetch ci", ["cifar10"]),
        ("bnlab completion ", ["bash", "zsh"]),
        ("bnlab runs --where test_", ["test_accuracy="]),
        ("bnlab runs --sort -train", ["-train_loss"]),
        ("bnlab runs --sort model.dep", ["model.depth"]),
    ],
)
def test_what_can_stand_there(line: str, found: list[str]) -> None:
    assert words(line) == found


def test_every_norm_is_offered_with_its_description() -> None:
    offered = dict(completed(TREE, "bnlab train norm=")[1])
    assert list(offered) == [f"norm={name}" for name in NORMS]
    assert offered["norm=none"] == "No normalization."


def test_the_keys_of_a_users_own_configs_are_offered(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiments").mkdir(parents=True)
    file = tmp_path / "mine" / "experiments" / "own.yaml"
    file.write_text("# @package _global_\n# Mine.\ndefaults: [/run, _self_]\nname: own\noptim: {lr: 0.125}\n")
    assert completed(TREE, "bnlab train --config-dir mine --config o")[1] == [("own", "Mine")]
    assert words("bnlab train --config-dir mine --config own optim.lr=") == ["optim.lr=0.125"]


def test_folders_of_runs_come_before_others(tmp_path: Path) -> None:
    (tmp_path / "results" / "a" / "lr=0.1").mkdir(parents=True)
    (tmp_path / "results" / "a" / "lr=0.1" / "spec.yaml").touch()
    (tmp_path / "rest").mkdir()
    (tmp_path / "rest.txt").touch()
    assert words("bnlab runs re") == ["results/"]
    assert words("bnlab view results/a/lr=") == ["results/a/lr=0.1"]
    assert words("bnlab runs rest") == ["rest/"]
    assert words("bnlab train --runs re") == ["rest/", "results/"]


@pytest.mark.parametrize(
    "line",
    ["", "bnlab train norm=x", "bnlab train 'seed=", "bnlab runs nowhere/x", "bnlab train --config-dir x "],
)
def test_where_nothing_can_be_said_nothing_is(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["complete-line", line])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("line", "breaks", "lines"),
    [
        ("bnlab sweep norm=none,lay", "", ["norm=none,layer\tLayer normalization"]),
        ("bnlab sweep norm=none,lay", " \t=:", ["none,layer"]),
        ("bnlab sweep norm=none,lay", " \t:", ["norm=none,layer"]),
        ("bnlab runs my\\ r", " \t=:", ["my\\ runs/"]),
    ],
)
def test_bash_gets_what_is_behind_its_break(
    line: str, breaks: str, lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my runs").mkdir()
    with pytest.raises(SystemExit, match="0"):
        main(["complete-line", line, *([breaks] if breaks else [])])
    assert [found.partition(" (")[0] for found in capsys.readouterr().out.splitlines()] == lines


def test_completing_does_not_import_torch() -> None:
    script = (
        "import sys\nfrom bnlab.cli import main\ntry: main(['complete-line', 'bnlab train model=vgg optim.l'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["optim.lr=\t0.3 if it is not set", "False"]


def test_an_unknown_shell_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "bsh"])
    assert capsys.readouterr().err == "SHELL: no completion for it, got 'bsh'. Did you mean: bash?\n"


# -- in a shell --------------------------------------------------------------------------------------------------------

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "PS1='> '"),
    "zsh": (["zsh", "-f", "-i"], "PS1='> '; autoload -Uz compinit; compinit -D -u"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_what_is_typed(shell: str, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals are a thing of Unix")
    pyte: Any = pytest.importorskip("pyte", reason="needs pyte, an emulated terminal")
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "my runs" / "lr=1").mkdir(parents=True)
    (tmp_path / "my runs" / "lr=1" / "spec.yaml").touch()
    command = tmp_path / "bin" / "bnlab"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bnlab "$@"\n')
    command.chmod(0o755)
    (tmp_path / "script").write_text(script(shell))
    words, setting = START[shell]
    terminal, inside = pty.openpty()
    environment = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "TERM": "xterm", "LC_ALL": "C"}
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    )
    os.close(inside)
    screen = pyte.Screen(80, 24)
    stream = pyte.ByteStream(screen)

    def typed(keys: str, until: str) -> None:
        os.write(terminal, keys.encode())
        limit = time.monotonic() + 200
        while until not in (text := "".join(screen.display)):
            assert time.monotonic() < limit, text
            if select.select([terminal], [], [], 0.1)[0]:
                stream.feed(os.read(terminal, 65536))

    try:
        typed(f"{setting}; . ./script; clear; echo rea''dy\n", "ready")
        typed("bnlab swe\t", "> bnlab sweep ")
        typed("--config qui\t", "sweep --config quickstart ")
        typed("norm=none,inst\t", "quickstart norm=none,instance ")
        typed("optim.l\t1 ", "instance optim.lr=1 ")  # no blank behind what goes on
        typed("\x15", "> ")
        typed("bnlab runs my\t", "> bnlab runs my\\ runs/")
        typed("\t", "runs/lr=1 ")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
