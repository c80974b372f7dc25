"""A run is tied to the code it was made with: plugins that are edited, moved, or changed in the middle of a sweep."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.core.registry import NORMS, READ, digest, load_plugins, read_plugin
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.run.setup import assemble
from bnlab.run.train import train

SCALED = '''
from torch import nn
from bnlab import NORMS

class Scaled(nn.Module):
    def forward(self, x):
        return SCALE * x

@NORMS.register("scaled")
def scaled(channels: int, dims: int):
    """A norm."""
    return Scaled()
'''
SHORT = ("--config", "mlp_digits", "steps=40", "model.depth=2", "model.width=8", "probes=none", "probes.eval_points=1")


def plugin(folder: Path, scale: float, name: str = "mine.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(SCALED.replace("SCALE", str(scale)))
    return folder / name


@pytest.fixture
def bnlab(tmp_path: Path) -> Callable[..., Any]:
    """Runs a command in a process of its own, and gives its exit code, stdout and stderr."""

    def run(*words: object, code: int = 0, where: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "bnlab", *map(str, words)]
        done = subprocess.run(line, cwd=where, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        lines = done.stderr.splitlines(keepends=True)  # on a slow machine there are lines of progress
        done.said = [line for line in lines if line.startswith("runs the code")]
        done.stderr = "".join(line for line in lines if not line.startswith(("answer ", "runs the code")))
        return done

    return run


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Forgets the plugins of a test."""
    before = set(sys.modules)
    yield
    load_plugins([], only=True)
    READ.clear()
    for name in set(sys.modules) - before:
        if name.startswith("bnlab_plugin_") or name in ("helper", "parts", "parts.one"):
            del sys.modules[name]


def answer(done: subprocess.CompletedProcess[str]) -> float:
    (found,) = json.loads(done.stdout)["evaluations"]
    return float(found["metrics"]["test_loss"])


def test_an_evaluation_uses_the_plugin_that_the_run_was_trained_with(bnlab: Callable[..., Any], tmp_path: Path) -> None:
    file = plugin(tmp_path, 1.0)
    content = file.read_bytes()
    run = json.loads(bnlab("train", *SHORT, "plugins=[mine.py]", "norm=scaled", "--json").stdout)
    first, ask = run["metrics"]["test_loss"], ("evaluate", "runs", "eval_bn=running", "--json")
    done = bnlab(*ask)
    assert (answer(done), done.stderr, done.said) == (first, "", ["runs the code in mine.py\n"])

    plugin(tmp_path, -3.0)  # edited: the run's copy is used, and said so
    done = bnlab(*ask)
    assert answer(done) == first
    assert done.said == [f"runs the code in {run['run']}/plugins/0/mine.py\n"]
    assert done.stderr == "mine.py: edited since it was trained with; the copy that the run keeps is used\n"
    assert (tmp_path / run["run"] / "plugins" / "0" / "mine.py").read_bytes() == content

    plugin(tmp_path / "elsewhere", 1.0)
    file.unlink()  # gone, and asked from another folder
    done = bnlab("evaluate", tmp_path / "runs", *ask[2:], where=tmp_path / "elsewhere")
    assert (answer(done), done.stderr) == (first, "")

    shutil.rmtree(tmp_path / run["run"] / "plugins")  # the file itself, with the same content in another folder
    done = bnlab("evaluate", tmp_path / "runs", *ask[2:], where=tmp_path / "elsewhere")
    assert (answer(done), done.stderr) == (first, "")

    plugin(tmp_path, -3.0)
    done = bnlab(*ask, code=2)
    copy, right, wrong = (
        Path(run["run"]) / "plugins" / "0" / "mine.py",
        hashlib.sha256(content).hexdigest()[:8],
        hashlib.sha256(file.read_bytes()).hexdigest()[:8],
    )
    problem = f"plugins: the run was made with content {right}, but mine.py has {wrong}, {copy} is not there"
    remedy = f"got '{run['run']}'. Give --plugin FILE, or train the run again.\n"
    assert (done.stdout, done.stderr) == ("", f"{problem}, {remedy}")

    done = bnlab(*ask, "--plugin", "elsewhere/mine.py")
    assert (answer(done), done.stderr) == (first, "")

    plugin(tmp_path / "elsewhere", -3.0)
    done = bnlab(*ask, "--plugin", "elsewhere/mine.py", code=2)
    problem = f"plugins: the run was made with content {right}, but elsewhere/mine.py has {wrong}"
    assert (done.stdout, done.stderr) == ("", f"{problem}, {remedy}")


def test_a_plugin_given_to_evaluate_goes_before_the_file_and_the_copy_of_the_run(
    bnlab: Callable[..., Any], tmp_path: Path
) -> None:
    plugin(tmp_path, 1.0)
    run = json.loads(bnlab("train", *SHORT, "plugins=[mine.py]", "norm=scaled", "--json").stdout)
    ask = ("evaluate", "runs", "eval_bn=running", "--json")
    text = (tmp_path / "mine.py").read_text()
    (tmp_path / "elsewhere").mkdir()
    for name, content, line in (
        ("mine.py", text + "raise ValueError\n", "plugins: the run was made with content "),  # though the copy is there
        ("other.py", text, "--plugin: no run here has a plugin of this name, got 'elsewhere/other.py'.\n"),
        ("none.py", None, "plugins: no such file, got 'elsewhere/none.py'. Give a path to a Python file.\n"),
    ):
        if content:
            (tmp_path / "elsewhere" / name).write_text(content)
        done = bnlab(*ask, "--plugin", f"elsewhere/{name}", code=2)
        assert done.stderr.startswith(line)
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)

    # Of an older run any content will do: there is nothing to compare with.
    spec = tmp_path / run["run"] / "spec.yaml"
    tree = yaml.safe_load(spec.read_text())
    del tree["provenance"]["plugins"]
    spec.write_text(yaml.safe_dump(tree))
    plugin(tmp_path / "elsewhere", -3.0)
    done = bnlab(*ask, "--plugin", "elsewhere/mine.py")
    assert answer(done) != run["metrics"]["test_loss"]
    assert done.stderr == "elsewhere/mine.py: used as it is now, since runs of an older bnlab keep no copy\n"


def test_a_run_of_an_older_bnlab_is_evaluated_with_the_file_as_it_is_and_that_is_said(
    bnlab: Callable[..., Any], tmp_path: Path
) -> None:
    plugin(tmp_path, 1.0)
    run = json.loads(bnlab("train", *SHORT, "plugins=[mine.py]", "norm=scaled", "--json").stdout)
    folder = tmp_path / run["run"]
    shutil.rmtree(folder / "plugins")
    tree = yaml.safe_load((folder / "spec.yaml").read_text())
    del tree["provenance"]["plugins"]
    (folder / "spec.yaml").write_text(yaml.safe_dump(tree))
    done = bnlab("evaluate", "runs", "eval_bn=running", "--json")
    assert answer(done) == run["metrics"]["test_loss"]
    assert done.stderr == "mine.py: used as it is now, since runs of an older bnlab keep no copy\n"
    assert bnlab("report", "runs").stderr == ""


def test_runs_of_two_contents_of_a_plugin_are_each_evaluated_with_their_own(
    bnlab: Callable[..., Any], tmp_path: Path
) -> None:
    trained = {}
    for scale in (1.0, 0.2):
        plugin(tmp_path, scale)
        run = json.loads(bnlab("train", *SHORT, "plugins=[mine.py]", "norm=scaled", "--json").stdout)
        trained[run["run"]] = run["metrics"]["test_loss"]
    assert len(trained) == len(set(trained.values())) == 2
    found = json.loads(bnlab("evaluate", "runs", "eval_bn=running", "--json").stdout)["evaluations"]
    assert {one["run"]: one["metrics"]["test_loss"] for one in found} == trained


def test_a_sweep_runs_the_code_that_it_started_with(bnlab: Callable[..., Any], tmp_path: Path) -> None:
    """The plugin is edited while the first of three runs waits in it: the others are executed after the edit."""
    loop = "while list(here.rglob('log.txt')) and not (here / 'edited').exists():\n    time.sleep(0.02)\n"
    wait = f"import pathlib, time\nhere = pathlib.Path()\n{loop}"  # a log is there once a run has started
    (tmp_path / "helper.py").write_text("SCALE = 0.5\n")
    text = "from helper import SCALE\n" + SCALED.replace("    return Scaled()", f"    {wait!r}\n    return Scaled()")
    waiting = text.replace(repr(wait), f"exec({wait!r})")
    (tmp_path / "mine.py").write_text(waiting)
    words = [*SHORT, "plugins=[mine.py]", "norm=scaled", "seed=0,1,2", "launch.workers=1", "--json"]
    line = [sys.executable, "-m", "bnlab", "sweep", *words]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweep:
        limit = time.monotonic() + 200
        while not list(tmp_path.rglob("owner.json")) and not list(tmp_path.rglob("log.txt")):
            assert sweep.poll() is None, sweep.communicate()
            assert time.monotonic() < limit
            time.sleep(0.02)
        (tmp_path / "helper.py").write_text("SCALE = -7.0\n")
        (tmp_path / "mine.py").write_text("raise ArithmeticError('edited')\n")
        (tmp_path / "edited").touch()
        out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, err
    assert "Traceback" not in err
    runs = json.loads(out)["runs"]
    assert [run["state"] for run in runs] == ["finished"] * 3
    for run in runs:
        assert run["run"].endswith(run["id"])
        assert (tmp_path / run["run"] / "plugins" / "0" / "mine.py").read_text() == waiting
        assert (tmp_path / run["run"] / "plugins" / "0" / "helper.py").read_text() == "SCALE = 0.5\n"
    found = json.loads(bnlab("evaluate", "runs", "eval_bn=running", "--json").stdout)["evaluations"]
    trained = {run["run"]: run["metrics"]["test_loss"] for run in runs}
    assert {one["run"]: one["metrics"]["test_loss"] for one in found} == trained


def test_a_plugin_that_is_removed_during_a_sweep_stops_no_run(bnlab: Callable[..., Any], tmp_path: Path) -> None:
    file = plugin(tmp_path, 0.5)
    file.write_text(file.read_text() + "\nimport os\nos.path.exists('mine.py') and os.remove('mine.py')\n")
    done = bnlab("sweep", *SHORT, "plugins=[mine.py]", "norm=scaled", "seed=0,1", "launch=inline", "--json")
    assert [run["state"] for run in json.loads(done.stdout)["runs"]] == ["finished"] * 2
    assert not file.exists()


# -- in one process ----------------------------------------------------------------------------------------------------


def test_the_same_content_in_another_folder_is_the_same_plugin(tmp_path: Path) -> None:
    here, there = plugin(tmp_path / "a", 1.0), plugin(tmp_path / "b", 1.0)
    assert digest(str(here)) == digest(str(there))
    load_plugins([str(here)])
    first = NORMS["scaled"]
    load_plugins([str(there)])
    assert NORMS["scaled"] is first


def test_what_was_read_is_what_is_executed_until_the_next_command(
    tmp_path: Path, spec_of: Callable[..., RunSpec]
) -> None:
    file = plugin(tmp_path, 1.0)
    before = digest(str(file))
    plugin(tmp_path, 2.0)
    assert digest(str(file)) == before
    load_plugins([str(file)])
    scale = NORMS["scaled"].constructor(3, 0)(1.0)
    assert scale == 1.0
    READ.clear()
    assert digest(str(file)) != before
    load_plugins([str(file)])
    assert NORMS["scaled"].constructor(3, 0)(1.0) == 2.0
    plugin(tmp_path, 1.0)
    READ.clear()
    load_plugins([str(file)])
    assert NORMS["scaled"].constructor(3, 0)(1.0) == 1.0


@pytest.mark.parametrize("package", [False, True])
def test_modules_beside_a_plugin_are_part_of_it(package: bool, tmp_path: Path) -> None:
    place = "parts/one.py" if package else "helper.py"
    text = f"from {'parts.one' if package else 'helper'} import SCALE\n" + SCALED
    for folder, scale in (("a", 2.0), ("b", 3.0)):
        (tmp_path / folder / "parts").mkdir(parents=True)
        (tmp_path / folder / "parts" / "__init__.py").write_text("import json\nfrom . import one\n")
        (tmp_path / folder / "mine.py").write_text(text)
        (tmp_path / folder / place).write_text(f"import math\nSCALE = {scale}\n")
        (tmp_path / folder / "other.py").write_text("not read")
    a, b = (str(tmp_path / folder / "mine.py") for folder in ("a", "b"))
    wanted = {"mine.py", "parts/__init__.py", "parts/one.py"} if package else {"mine.py", "helper.py"}
    assert set(read_plugin(a).files) == wanted
    assert digest(a) != digest(b)
    for file, scale in ((a, 2.0), (b, 3.0), (a, 2.0)):
        load_plugins([file], only=True)
        assert NORMS["scaled"].constructor(3, 0)(1.0) == scale
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_run_that_was_begun_with_another_content_is_not_resumed(
    tmp_path: Path, spec_of: Callable[..., RunSpec]
) -> None:
    file = plugin(tmp_path, 1.0)
    load_plugins([str(file)])
    spec = dataclasses.replace(spec_of("probes=none", "steps=4"), plugins=(str(file),))
    folder = RunFolder(tmp_path / "run")
    stop = iter([None, None, "enough"])
    assert train(assemble(spec), folder, stopped=lambda: next(stop))["status"] == "interrupted"
    plugin(tmp_path, 2.0)
    READ.clear()
    with pytest.raises(Exception, match=r"run: not begun with plugins=\['.*mine.py'\] as they are now\. Train the run"):
        train(assemble(spec), folder)
    assert folder.status()["status"] == "interrupted"
    plugin(tmp_path, 1.0)
    READ.clear()
    assert train(assemble(spec), folder)["status"] == "finished"


ONE_D = """
import torch
from torch import nn
from bnlab import DATA, MODELS
from bnlab.data.base import Dataset, Split

@MODELS.register("waves_net")
class Net(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], outputs: int):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(input_shape[0], 4, 3), nn.BatchNorm1d(4)
        self.out = nn.Linear(4, outputs)

    def forward(self, x):
        return self.out(torch.relu(self.bn(self.conv(x))).mean(dim=2))

@DATA.register("waves")
def waves() -> Dataset:
    x = torch.randn(200, 2, 16, generator=torch.Generator().manual_seed(0))
    return Dataset(train=Split(x[:150], torch.arange(150) % 2), test=Split(x[150:], torch.arange(50) % 2), classes=2)
"""


def test_a_model_is_tried_on_a_data_set_of_its_own_file(bnlab: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "waves.py").write_text(ONE_D)
    done = bnlab("verify", "--plugin", "waves.py", "--json")
    rows = json.loads(done.stdout)["contract"]
    assert [row for row in rows if not row["ok"]] == []
    assert {row["entry"] for row in rows} == {"model=waves_net", "data=waves"}
