"""Damaged files of a run, one at a time: every command says so in one line, shows the other runs, and the line that
began the runs writes what was damaged again, with the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.analysis.load import read_runs, summary
from bnlab.board.serve import Serving
from bnlab.record.folder import RunFolder, find_runs
from bnlab.run.setup import assemble
from bnlab.run.train import train

GRID = ("--config", "tiny", "--config-dir", str(Path(__file__).parent.parent / "configs"), "optim.lr=0.05", "seed=0,1")
SWEEP = ("sweep", *GRID, "norm=batch", "launch=inline", "--json")

BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
NOT_UTF_8 = b"\xff\xfe\x00x"

STATUS: dict[str, bytes] = {
    "an empty file": b"",
    "an empty object": b"{}",
    "half": b'{"status": "fini',
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "a text": b'"x"',
    "not UTF-8": NOT_UTF_8,
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 900 + b"1" + b"}" * 900,
    "zeros": bytes(4096),
    "NaN": b'{"status": NaN}',
    "a status of a number": b'{"status": 3}',
    "a status of another word": b'{"status": "done"}',
    "no status": b'{"step": 12, "steps": 12}',
    "a step of a text": b'{"status": "finished", "step": "x", "steps": 12, "metrics": {}}',
    "steps of a list": b'{"status": "finished", "step": 12, "steps": [12], "metrics": {}}',
    "metrics of a list": b'{"status": "finished", "step": 12, "steps": 12, "metrics": [1]}',
    "a metric of a text": b'{"status": "finished", "step": 12, "steps": 12, "metrics": {"train_loss": "x"}}',
    "timing of a number": b'{"status": "finished", "step": 12, "steps": 12, "metrics": {}, "timing": 3}',
    "dead of a text": b'{"status": "finished", "step": 12, "steps": 12, "metrics": {}, "dead": "no"}',
    "diverged of a list": b'{"status": "diverged", "step": 12, "steps": 12, "metrics": {}, "diverged": []}',
    "an error of a list": b'{"status": "failed", "error": ["x"]}',
}

SPEC: dict[str, bytes | Callable[[bytes], bytes]] = {
    "an empty file": b"",
    "half": lambda data: data[: len(data) // 2],
    "a list": b"- 1\n- 2\n",
    "a text": b"x",
    "a number": b"3",
    "not YAML": b"a: [",
    "not UTF-8": NOT_UTF_8,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "zeros": bytes(4096),
    "an anchor bomb": BOMB.encode(),
    "deep lists": b"[" * 100_000,
    "deep blocks": b"- " * 100_000 + b"1",
    "deep mappings": b"{a: " * 100_000,
    "a recursive alias": b"a: &a [*a]",
    "a recursive merge": b"a: &a {<<: *a}",
    "an object of Python": b"!!python/object/apply:os.system ['touch evil']",
    "a rate of a text": lambda data: data.replace(b"  lr: 0.05", b"  lr: abc"),
    "another rate": lambda data: data.replace(b"  lr: 0.05", b"  lr: 0.5"),
    "a rate of 5,000 digits": lambda data: data.replace(b"  lr: 0.05", b"  lr: " + b"9" * 5000),
    "a rate of 400 digits": lambda data: data.replace(b"  lr: 0.05", b"  lr: " + b"9" * 400),
    "a seed of a list": lambda data: data.replace(b"seed: 0", b"seed: [0]"),
    "a date as a name": lambda data: data.replace(b"name: tiny", b"name: !!timestamp 2020-01-01"),
    "no optimizer": lambda data: data.replace(b"optim:", b"optimizer:"),
    "plugins of a number": lambda data: data.replace(b"plugins: []", b"plugins: 3"),
    "provenance of a number": lambda data: data.partition(b"provenance:")[0] + b"provenance: 3\n",
    "sites of numbers": lambda data: data.replace(b"  sites:\n", b"  sites: 3\n  more:\n"),
    "numbers as keys": b"1: 2\n",
}

JOURNAL: dict[str, Callable[[bytes], bytes]] = {
    "half a line in the middle": lambda data: data[:700] + data[720:],
    "an empty line": lambda data: data.replace(b"\n", b"\n\n", 1),
    "garbage in the middle": lambda data: data[:700] + b"\xff\x00" * 20 + data[740:],
    "a list as a line": lambda data: data.replace(b"\n", b"\n[1, 2]\n", 1),
    "deep lists as a line": lambda data: data.replace(b"\n", b"\n" + b"[" * 5000 + b"\n", 1),
    "a step of a text": lambda data: data.replace(b'"step":3', b'"step":"x"'),
    "a loss of a text": lambda data: data.replace(b'"train_loss":', b'"train_loss":"x', 1),
    "not a line": lambda data: b"\xff" * 500,
    "zeros": lambda data: bytes(len(data)),
    "an empty file": lambda data: b"",
}

CASES = [
    *(("status.json", name) for name in STATUS),
    *(("spec.yaml", name) for name in SPEC),
    *(("journal.jsonl", name) for name in JOURNAL),
    *((file, "a folder") for file in ("status.json", "spec.yaml")),
    *((file, "gone") for file in ("journal.jsonl", "checkpoint.pt", "log.txt", "owner.json")),
    *(("owner.json", name) for name in ("[]", '{"host": 3}', '{"host": "x", "heartbeat_s": "x"}', "[" * 9000)),
]


def damage(file: Path, name: str) -> None:
    if name in ("a folder", "gone"):
        file.unlink(missing_ok=True)
        if name == "a folder":
            file.mkdir()
        return
    if file.name == "owner.json":
        file.write_text(name)
        return
    change: Any = {"status.json": STATUS, "spec.yaml": SPEC, "journal.jsonl": JOURNAL}[file.name][name]
    data = change if isinstance(change, bytes) else change(file.read_bytes())
    assert data != (file.read_bytes() if file.is_file() else b"")
    file.write_bytes(data)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, small: Callable[..., Any]) -> Path:
    """The two runs of the grid, finished; made by hand, as the sweep makes them."""
    from bnlab import config

    root = tmp_path_factory.mktemp("swept")
    _, cells = config.load_study("tiny", ("optim.lr=0.05", "seed=0,1", "norm=batch"), Path(GRID[3]))
    for cell in cells:
        train(assemble(cell.spec), RunFolder(root / cell.spec.folder), profile="light")
    return root


@pytest.mark.parametrize(
    ("file", "name"),
    [
        pytest.param(file, name, id=f"{file}-{name[:40]}", marks=[] if index % 9 == 3 else [pytest.mark.slow])
        for index, (file, name) in enumerate(CASES)
    ],
)
def test_a_damaged_file_costs_a_line_and_nothing_else(
    file: str,
    name: str,
    swept: Path,
    bnlab: Callable[..., Any],
    traces_of: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(swept, "runs")
    hurt, other = (folder.path for folder in find_runs(Path("runs")))
    damage(hurt / file, name)
    listed = hurt if (hurt / "spec.yaml").exists() else None  # without a spec.yaml, a folder is no run

    table = bnlab("runs", "runs", "--json")
    rows = {row["run"]: row["status"] for row in table.json["runs"]}
    assert (table.code, rows[str(other)]) == (0, "finished")
    read = file in ("journal.jsonl", "checkpoint.pt", "log.txt", "owner.json")
    assert rows.get(str(hurt)) == ("finished" if read else "unreadable" if listed else None)
    assert table.err.count("\n") == (0 if read or not listed else 1)
    if listed:
        card = bnlab("runs", hurt)
        assert (card.code, card.err.count("\n")) == (0, 0 if read else 1)
        assert card.err.startswith("" if read else f"{hurt / file}: ")

    collection = read_runs(Path("runs"))
    assert summary(collection).height == len(collection.runs) == (2 if read else 1)
    said = (file == "journal.jsonl" and name != "gone") or (not read and listed)
    seen = len(collection.damage)  # a journal is searched for what is needed: damage beside that is not seen
    assert seen <= 1 if "in the middle" in name else seen == bool(said)
    asked = bnlab("evaluate", "runs", "eval_bn=running", "--json")
    assert str(other) in {one["run"] for one in asked.json["evaluations"]}
    assert asked.err.count("\n") == (1 if file == "spec.yaml" and listed else 0)
    shutil.copytree("runs", "shown")
    monkeypatch.setattr(Serving, "serve", lambda *_: None)
    view = bnlab("view", "shown", "--full", "--no-open")
    assert (view.code, view.err) == (0, "")
    assert view.out.count("could not write the events of 1 run; the old ones stay\n") == len(view.out.splitlines()) - 1
    assert not Path("evil").exists()

    again = bnlab(*SWEEP)
    if name == "a folder":
        assert (again.code, [run["state"] for run in again.json["runs"]][1]) == (3, "finished")
        assert ": is a directory" in again.json["runs"][0]["error"]
        return
    assert again.code == 0
    if file in ("spec.yaml", "status.json", "checkpoint.pt", "log.txt", "owner.json"):
        assert traces_of(Path("runs")).keys() == traces_of(swept).keys()
    if file in ("spec.yaml", "status.json"):
        assert traces_of(Path("runs")) == traces_of(swept)
        assert RunFolder(hurt).problem() is None
        assert "Traceback" not in again.err
    assert "Traceback" not in "".join(log.read_text() for log in Path("runs").rglob("log.txt"))
