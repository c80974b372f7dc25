"""What the README tells a stranger to type works."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bnlab.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
]
COMMANDS = sorted({line for line in LINES if line.startswith("bnlab ")})


def _bnlab(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bnlab", *words], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_readme_has_one_command_for_each_task() -> None:
    assert len(COMMANDS) == 5
    assert {command.split()[1] for command in COMMANDS} == {
        "train",
        "sweep",
        "view",
        "verify",
        "evaluate",
    }


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("bnlab train")])
def test_a_training_command_of_the_readme_trains(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*shlex.split(command)[1:], "steps=2"])
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert ("finished" in capsys.readouterr().out) is ("--show" not in command)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("bnlab sweep")])
def test_a_sweep_of_the_readme_has_runs(command: str, tmp_path: Path) -> None:
    words = [word for word in shlex.split(command)[1:] if word != "--dry-run"]
    done = _bnlab([*words, "--dry-run"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert any(re.match(r"\d+ runs: \d+ not started", line) for line in done.stdout.splitlines())


def test_trained_nets_are_evaluated_as_in_the_readme(tmp_path: Path) -> None:
    assert _bnlab(["train", "--config", "deep_mlp", "steps=2", "name=quickstart"], tmp_path).returncode == 0
    [command] = [command for command in COMMANDS if command.startswith("bnlab evaluate")]
    done = _bnlab(shlex.split(command)[1:], tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("contrast", "running", "adapted"))


def test_the_readme_is_short_and_its_first_commands_are_the_two_that_set_up() -> None:
    assert len(TEXT.splitlines()) <= 90
    assert [line.split()[0] for line in LINES[:3]] == ["python3", "python3", "bnlab"]


def test_the_two_commands_of_the_readme_install_what_is_pinned_and_use_it() -> None:
    setup = [line for line in LINES if line.startswith("python3 -m venv")]
    assert len(setup) == 2
    for line in setup:
        venv, install, use = line.split(" && ")
        assert venv == "python3 -m venv .venv"
        assert install.startswith(".venv/bin/pip install -q -c constraints.txt -e ")
        assert use.startswith(".venv/bin/")
    assert setup[0].endswith("bnlab sweep --config quickstart")
    assert "'.[test]'" in setup[1]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))))
def test_a_link_in_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
