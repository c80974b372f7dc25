"""The wheel carries the configs, and works where there is no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_trains_outside_the_checkout(tmp_path: Path) -> None:
    built = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(built, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    yamls = {file.relative_to(ROOT / "configs") for file in (ROOT / "configs").rglob("*.yaml")}
    assert {file.relative_to(installed / "bnlab/_configs") for file in installed.rglob("*.yaml")} == yamls

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


def test_every_direct_dependency_is_pinned() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'^  "([A-Za-z0-9_-]+)[><=]', project, re.M) + re.findall(r'= \["([A-Za-z0-9_-]+)>=', project)
    pinned = re.findall(r"^([a-z0-9-]+)==[\w.]+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert {name.lower() for name in named} <= set(pinned)
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
