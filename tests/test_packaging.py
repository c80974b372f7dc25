"""The wheel carries all files of the package, and works where there is no checkout; the sdist has the checkout's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import yaml

import bnlab

ROOT = Path(__file__).parent.parent


def test_the_wheel_trains_outside_the_checkout(tmp_path: Path) -> None:
    built = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(built, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert _files(installed / "bnlab/_configs") == _files(ROOT / "configs") | {"verdicts.json", "identities.json"}
    # Templates, styles and completions too: all that is not Python.
    assert {name for name in _files(installed / "bnlab") if not name.startswith("_configs/")} == _files(ROOT / "bnlab")

    words = [sys.executable, "-P", "-m", "bnlab"] if sys.version_info >= (3, 11) else [sys.executable, "-m", "bnlab"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import bnlab; print(bnlab.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
    done = subprocess.run(
        [*words, "train", "--config", "deep_mlp", "steps=2"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").rglob("spec.yaml"))) == 1


def _files(folder: Path) -> set[str]:
    """Names of files below a folder, less what Python and tools leave there."""
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {file.as_posix() for file in files if "__pycache__" not in file.parts and file.suffix != ".pyc"}


def test_the_sdist_has_what_a_checkout_has(tmp_path: Path) -> None:
    built = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(built, cwd=ROOT, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    top = {"pyproject.toml", "AGENTS.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md"}
    assert top | {"Makefile", "constraints.txt", "runs/README.md"} <= packed
    for folder in ("bnlab", "configs", "docs"):
        assert {f"{folder}/{name}" for name in _files(ROOT / folder)} <= packed


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == bnlab.__version__
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}


def test_every_direct_dependency_is_pinned() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'^  "([A-Za-z0-9_-]+)[><=]', project, re.M) + re.findall(r'= \["([A-Za-z0-9_-]+)>=', project)
    pinned = re.findall(r"^([a-z0-9-]+)==[\w.]+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert {name.lower() for name in named} <= set(pinned)
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
