"""Links of all pages lead somewhere; what the guide tells a reader to type works, in its order."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "AGENTS.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
SMALL = ["steps=10", "optim.lr=0.01,0.1", "seed=0,1", "probes.points=5"]
"""Makes the quickstart study eight short runs."""


def _anchors(page: Path) -> set[str]:
    """Those that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_index_has_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    folders = (ROOT / "docs", ROOT / "docs" / "reference")
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.parent in folders}
    assert pages - {"index.md"} <= set(re.findall(r"\]\(([^)]+)\)", text))


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the guide has a reader write, and a small version of its first study."""
    folder = tmp_path_factory.mktemp("guide")
    plugins = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    [net] = re.findall(r"`my_net\.py`:\n\n```python\n(.*?)```", plugins, re.S)
    (folder / "my_net.py").write_text(net)
    [study] = re.findall(r"`configs/studies/my_study\.yaml`:\n\n```yaml\n(.*?)```", GUIDE, re.S)
    (folder / "configs" / "studies").mkdir(parents=True)
    (folder / "configs" / "studies" / "my_study.yaml").write_text(study)
    _run(folder, "sweep", "--config", "quickstart", *SMALL)
    return folder


def _run(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "bnlab", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


SHORTER: dict[str, Callable[[list[str]], list[str]]] = {
    "train": lambda words: [*words, "steps=2"],
    "sweep": lambda words: words if "--dry-run" in words else [*words, "--dry-run"],
    "view": lambda words: [words[0], "--help"],
}
"""What makes a command short enough for a test."""


@pytest.mark.slow
def test_every_command_of_the_guide_works_in_its_order(there: Path) -> None:
    lines = "".join(re.findall(r"```bash\n(.*?)```", GUIDE, re.S)).splitlines()
    commands = [shlex.split(line) for line in lines]
    known = {"sweep", "runs", "report", "plot", "view", "train", "verify", "list"}
    assert {command[1] for command in commands} == known
    for program, *words in commands:
        assert program == "bnlab"
        out = _run(there, *SHORTER.get(words[0], list)(words))
        expected = {"runs": "batch", "train": "finished", "verify": "checks hold", "sweep": "run"}
        assert expected.get(words[0], "") in out


@pytest.mark.slow
def test_the_python_of_the_guide_reads_the_runs(there: Path) -> None:
    [text] = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    (there / "read.py").write_text(text)
    done = subprocess.run([sys.executable, "read.py"], cwd=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 8
    assert lines[0].startswith("batch 0.01 0 finished (")
