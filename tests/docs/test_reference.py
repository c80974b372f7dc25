"""The generated references are those that the code gives now."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["cli", "config", "entries", "figures", "measurements", "metrics"]
"""Files of docs/reference."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as they are written now; in a process of its own, in which no test has registered anything."""
    folder = tmp_path_factory.mktemp("reference")
    command = [sys.executable, str(ROOT / "docs" / "reference.py"), str(folder), f"{folder}-schema"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_there_is_a_page_for_each(written: Path) -> None:
    assert sorted(file.stem for file in written.iterdir()) == PAGES
    assert sorted(file.stem for file in (ROOT / "docs" / "reference").iterdir()) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_the_code_gives(page: str, written: Path) -> None:
    now, kept = ((folder / f"{page}.md").read_text() for folder in (written, ROOT / "docs" / "reference"))
    first = next((line for line in now.splitlines() if line not in kept.splitlines()), "a line less")
    assert now == kept, f"docs/reference/{page}.md is out of date; run `make docs`. First new line: {first}"


@pytest.mark.parametrize("kind", ["experiment", "study"])
def test_a_schema_is_what_the_code_gives(kind: str, written: Path) -> None:
    now, kept = (Path(folder, f"{kind}.json").read_text() for folder in (f"{written}-schema", ROOT / "configs/schema"))
    assert json.loads(now) == json.loads(kept), f"configs/schema/{kind}.json is out of date; run `make docs`"


def test_the_pages_have_what_a_reader_looks_for(written: Path) -> None:
    text = {page: (written / f"{page}.md").read_text() for page in PAGES}
    assert re.search(r"^\| `--fresh` \|.*step 0", text["cli"], re.M)
    assert re.search(r"^\| `optim.lr` \| a number above 0 \| `0.1` \|", text["config"], re.M)
    assert re.search(r"^\| `norm.momentum` \| a number from 0, up to 1 or null \| `0.1` \|", text["entries"], re.M)
    assert "    G_i  = dL/dW_i" in text["measurements"]
    assert re.search(r"^\| `steps_to` \|.*`of`, `target`, `smooth`.*\| steps \| lower \|", text["metrics"], re.M)
    assert "| `loss_by_rate` |" in text["figures"]
