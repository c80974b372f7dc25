"""Bad input costs one clear line and exit code 2: what has gone wrong once (corpus/), and what is drawn at random."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzer import KEYS, ODD, Input, run, typed
from hypothesis import given, settings
from hypothesis import strategies as st

CORPUS = sorted(Path(__file__).with_name("corpus").glob("*.yaml"))


def unfolded(text: str) -> str:
    """`<9 x 5000>` is 5,000 nines, `<\\xff x 1>` the character of that escape."""
    return re.sub(r"<([^<>]+) x (\d+)>", lambda found: found[1].encode().decode("unicode_escape") * int(found[2]), text)


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_what_went_wrong_once_is_one_line(file: Path, tmp_path: Path) -> None:
    known: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    files = {place: unfolded(text).encode("utf-8", "surrogateescape") for place, text in known.get("files", {}).items()}
    ended = run(Input([unfolded(word) for word in known["command"]], files, known.get("environment", {})), tmp_path)
    assert ended.problem is None
    assert (ended.code, ended.complained.count("\n")) == (known.get("code", 2), 1)
    assert re.fullmatch(known["says"], ended.complained.rstrip("\n")), ended.complained


@given(key=st.sampled_from(KEYS), value=st.one_of(st.text(max_size=30), st.sampled_from(ODD)))
@settings(max_examples=8)
def test_any_override_is_taken_or_costs_one_line(
    key: str, value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = typed(["train", "--config", "deep_mlp", "--show", "--", f"{key}={value}"])
    assert run(Input(words), tmp_path_factory.mktemp("fuzz")).problem is None


TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.sampled_from(KEYS), st.integers()), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(tree=TREES, folder=st.sampled_from(["experiments", "studies"]), based=st.booleans())
@settings(max_examples=8)
def test_any_tree_as_a_config_is_taken_or_costs_one_line(
    tree: Any, folder: str, based: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = yaml.safe_dump(tree)
    if based and isinstance(tree, dict):
        head = {"experiments": "defaults: [/run, _self_]\n", "studies": "base: deep_mlp\n"}[folder]
        text = head + yaml.safe_dump({key: value for key, value in tree.items() if key not in ("defaults", "base")})
    command = ["train", "--show"] if folder == "experiments" else ["sweep", "--dry-run"]
    files = {f"configs/{folder}/fuzz.yaml": text.encode("utf-8", "surrogatepass")}
    assert run(Input([*command, "--config", "fuzz"], files), tmp_path_factory.mktemp("fuzz")).problem is None


@pytest.mark.slow
def test_random_inputs_cost_one_line_each() -> None:
    """In a process without threads, which can fork."""
    words = [sys.executable, str(Path(__file__).with_name("fuzzer.py")), "--count", "60", "--seed", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (b"list \xff\x1b[31m", {"LC_ALL": "C"}, r"KIND: nothing of this kind, got '\\udcff\\x1b\[31m'\. .*"),
        ("list é".encode(), {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, r"KIND: nothing of this kind, got '\?'\. .*"),
        (b"train --config deep_mlp --show", {}, r"the current folder: no such file or directory\."),
    ],
    ids=["bytes", "ascii", "gone"],
)
def test_what_surrounds_a_process_is_no_surprise(
    words: bytes, environment: dict[str, str], says: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    go = f'cd {tmp_path} && {f"rmdir {tmp_path} &&" if request.node.name.endswith("[gone]") else ""} exec "$@"'
    line = [b"sh", b"-c", go.encode(), b"sh", os.fsencode(sys.executable), b"-m", b"bnlab"]
    done = subprocess.run([*line, *words.split(b" ")], env=here, capture_output=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(says, done.stderr.decode().rstrip("\n")), done.stderr
