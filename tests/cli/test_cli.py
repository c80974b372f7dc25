"""The command line as its users meet it: what is printed where, exit codes, signals, and what must not be imported."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab import __version__, config
from bnlab.cli import main
from bnlab.core.registry import load_plugin
from bnlab.record.findings import findings
from bnlab.record.folder import RunFolder
from bnlab.record.runs import read_run

TINY = ("--config", "deep_mlp", "steps=20", "model.depth=2", "model.width=8")
LONG = ("--config", "deep_mlp", "steps=200000", "model.depth=2", "model.width=8", "probes.eval_points=1")
Start = Callable[..., "subprocess.Popen[str]"]
METRICS = {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def bnlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Runs a command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Said:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as ended,
        ):
            main(words)
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a process of its own, in a pipe, in an environment as that of automated builds."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "bnlab", *words],
            cwd=tmp_path,
            env=os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-256color"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        with process:
            process.kill()


def ended(process: subprocess.Popen[str]) -> Said:
    out, err = process.communicate(timeout=120)
    return Said(process.returncode, out, err)


def wait_for(found: Callable[[], object], what: str, seconds: float = 200) -> None:
    limit = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < limit, f"no {what} in {seconds} s"
        time.sleep(0.02)


def journal_of(folder: Path) -> Path | None:
    return next(iter(folder.rglob("journal.jsonl")), None)


def has_records(folder: Path) -> bool:
    journal = journal_of(folder)
    return journal is not None and journal.stat().st_size > 0


def without_clock(journal: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    return [{key: value for key, value in record.items() if not key.endswith("_s")} for record in records]


# -- help and version ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["sweep", "-h"],
        ["report", "-h"],
        ["runs", "-h"],
        ["view", "-h"],
        ["evaluate", "--help"],
        ["list", "-h"],
        ["completion", "-h"],
        [],
    ],
)
def test_help_imports_nothing_that_is_slow(words: list[str]) -> None:
    script = (
        "import sys\nfrom bnlab.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "slow = {'torch', 'numpy', 'hydra', 'omegaconf', 'rich', 'tensorboard', 'sklearn', 'yaml', 'matplotlib'}\n"
        "slow |= {'polars', 'jinja2', 'scipy'}\n"
        "print(sorted(slow & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "Usage: bnlab" in done.stdout + done.stderr


def test_help_names_every_command(bnlab: Callable[..., Said]) -> None:
    said = bnlab("--help")
    assert said.code == 0
    assert [line.split()[0] for line in said.out.split("Commands:\n")[1].splitlines()] == [
        "train",
        "sweep",
        "evaluate",
        "runs",
        "report",
        "view",
        "plot",
        "list",
        "init",
        "schema",
        "ask",
        "completion",
        "verify",
        "data",
    ]


def test_version(bnlab: Callable[..., Said]) -> None:
    assert bnlab("--version") == Said(0, f"bnlab {__version__}\n", "")


# -- mistakes --------------------------------------------------------------------------------------------------------

EXPERIMENTS = ", ".join(config.available("experiments", [config.packaged_dir()]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train"], f"--config: missing. There are: {EXPERIMENTS}."),
        (["train", "quickstart"], "--config: missing. Did you mean: --config deep_mlp?"),
        (["train", *TINY[:2], "batch_size=4"], "batch_size: no such key. Did you mean: data.batch_size?"),
        (
            ["train", "--config", "deep_mpl"],
            "--config: no such experiment, got 'deep_mpl'. Did you mean: deep_mlp?",
        ),
        (["train", *TINY[:2], "steps=-3"], "steps: must be at least 1, got -3."),
        (["train", *TINY[:2], "~norm"], "~norm: nothing can be removed from a spec. Give norm another value."),
        (
            ["train", *TINY[:2], "+foo=1"],
            "+foo=1: nothing can be added to a spec, its keys are fixed. "
            "Where the key exists, write foo=... without the +.",
        ),
        (["train", *TINY[:2], "optim.lrr=1"], "optim.lrr: no such key. Did you mean: optim.lr?"),
        (
            ["train", *TINY[:2], "data.batch_size=1"],
            "data.batch_size: gives norm=batch one value per channel at L00_fc, got 1. "
            "Batch statistics need at least two: use a larger batch, or a norm without them.",
        ),
        (
            ["train", *TINY[:2], "launch=slurm"],
            "launch: bnlab train runs in this process, got 'slurm'. Use bnlab sweep.",
        ),
        (["train", *TINY, "--runs", "/dev/null"], None),
        (["runs"], "RUNS: no such directory, got 'runs'. Train one first: bnlab train --config deep_mlp."),
        (["runs", "."], "RUNS: no runs in this directory, got '.'. Train one first: bnlab train --config deep_mlp."),
        (["list", "norm"], "KIND: nothing of this kind, got 'norm'. Did you mean: norms?"),
        (["list", "norms", "--config-dir", "nowhere"], "--config-dir: no such directory, got 'nowhere'."),
    ],
)
def test_a_mistake_gives_one_line_and_nothing_is_written(
    words: list[str], line: str | None, bnlab: Callable[..., Said], tmp_path: Path
) -> None:
    said = bnlab(*words)
    assert (said.code, said.out) == (2, "")
    if line is None:
        assert re.fullmatch(r"--runs: not a directory, got '/dev/null/.*'\.\n", said.err)
    else:
        assert said.err == line + "\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_a_mistake_too(bnlab: Callable[..., Said]) -> None:
    said = bnlab("train", "--bogus")
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(r"bnlab train: no such option: --bogus.* See: bnlab train --help\n", said.err)


def test_a_status_that_cannot_be_read_is_found_out_again(bnlab: Callable[..., Said]) -> None:
    before = bnlab("train", *TINY, "--json").json
    (Path(before["run"]) / "status.json").write_text("{")
    said = bnlab("train", *TINY, "--json")
    assert (said.code, said.err.count("\n")) == (0, 1)
    assert said.err.startswith("status.json cannot be read: ")
    assert {**said.json, "timing": None} == {**before, "timing": None}


# -- train -----------------------------------------------------------------------------------------------------------


def test_json_is_one_object_that_says_what_the_run_folder_says(tmp_path: Path, start: Start) -> None:
    said = ended(start("train", *TINY, "--json"))
    assert said.code == 0
    folder = tmp_path / said.json["run"]
    assert said.json["id"] == config.load("deep_mlp", TINY[2:]).id
    assert folder.name == f"seed=0-{said.json['id']}"
    status = {key: value for key, value in said.json.items() if key not in ("run", "id", "findings")}
    assert status == json.loads((folder / "status.json").read_text())
    assert said.json["findings"] == [asdict(finding) for finding in findings(read_run(RunFolder(folder)))]
    assert {"name", "text", "figures", "threshold", "source"} == set(said.json["findings"][0])
    assert (said.json["status"], said.json["step"], said.json["dead"]) == ("finished", 20, False)
    assert set(said.json["metrics"]) == METRICS
    assert set(said.json["timing"]) == {"run_s", "measure_s", "steps_per_s", "nets"}
    assert re.fullmatch(r"deep_mlp  batch  lr=0.3  seed=0\n(step .*\n){10}", said.err)


def test_a_finished_run_is_not_run_again(bnlab: Callable[..., Said], tmp_path: Path) -> None:
    first = bnlab("train", *TINY)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    again = bnlab("train", *TINY)
    assert (again.code, again.err) == (0, "")
    lines = again.out.splitlines()
    assert lines[0] == "already finished, nothing to do (--fresh runs it again)"
    assert lines[1].startswith("finished ")
    assert lines[1:] == first.out.splitlines()[1 - len(lines) :]
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files
    as_json = bnlab("train", *TINY, "--json")
    assert as_json.json["status"] == "finished"
    assert as_json.err == lines[0] + "\n"


def test_fresh_runs_again(bnlab: Callable[..., Said], tmp_path: Path) -> None:
    first = bnlab("train", *TINY, "--json").json
    journal = tmp_path / first["run"] / "journal.jsonl"
    records = without_clock(journal)
    journal.write_text("")
    again = bnlab("train", *TINY, "--json", "--fresh").json
    assert without_clock(journal) == records
    assert again["metrics"] == first["metrics"]


def test_a_run_with_other_settings_is_called_another_run(bnlab: Callable[..., Said]) -> None:
    first = bnlab("train", *TINY, "--json").json["run"]
    longer = [word.replace("steps=20", "steps=30") for word in TINY]
    said = bnlab("train", *longer, "--plain")
    assert said.out.splitlines()[0] == f"another run than {first}, which has steps=20"
    assert "another run" not in bnlab("train", *longer).out  # it is there now
    assert "another run" not in bnlab("train", *longer, "seed=1").out  # a further run of the same arm
    said = bnlab("train", *TINY, "optim.momentum=0.5", "--json")
    assert said.err.splitlines()[0] == f"another run than {first}, which has optim.momentum=0.0"
    grid = ("sweep", *TINY, "norm=batch", "optim.lr=0.3", "launch=inline", "optim.momentum=0.7,0.9")
    lines = [line for line in bnlab(*grid, "seed=0,1").out.splitlines() if line.startswith("another run")]
    assert len(lines) == 1
    assert lines[0].startswith("another run than runs/deep_mlp/batch/lr=0.3/seed=0-")
    assert "another run" not in bnlab(*grid, "seed=0,1,2").out  # those of its own grid do not count


def test_plain_lines_and_summary(bnlab: Callable[..., Said]) -> None:
    said = bnlab("train", *TINY, "--plain")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "deep_mlp  batch  lr=0.3  seed=0"
    value = r"\S+( at \d+)?"
    measured = f"loss {value}  accuracy {value}  test accuracy {value}  "  # not before a first record is written
    form = rf"step +\d+/20  ({measured})?\S+/s  eta 0:0\d"
    assert [line for line in lines[1:11] if not re.fullmatch(form, line)] == []
    assert lines[10].startswith("step 20/20  loss ")
    assert [int(line[5:7]) for line in lines[1:11]] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    heads = [line.split("  ")[0] for line in lines[11:]]
    assert [head for head in heads if head] == ["finished", "run", "steepest", "measuring", "findings", "next"]
    assert set(heads[5:-1]) <= {""}, "further findings"
    assert lines[-1] == "next       bnlab view runs/deep_mlp"


@pytest.mark.parametrize("command", ["train", "sweep", "evaluate"])
def test_quiet_leaves_errors_and_the_object_of_json(command: str, bnlab: Callable[..., Said]) -> None:
    words = [command, *TINY, *(["launch=inline"] if command == "sweep" else [])]
    if command == "evaluate":
        assert bnlab("train", *TINY).code == 0
        words = ["evaluate", "runs"]
    said = bnlab(*words, "--quiet", "--json")
    assert (said.code, said.err, said.out.count("\n")) == (0, "", 1)
    assert json.loads(said.out)
    quiet = bnlab(*words, "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    assert (quiet.out == "") == (command != "evaluate")  # whose table is what was asked for
    wrong = bnlab(*words[:-1], "nonsense=3", "--quiet")
    assert (wrong.code, wrong.out, wrong.err.count("\n")) == (2, "", 1)


def test_a_divergence_is_a_result(bnlab: Callable[..., Said]) -> None:
    said = bnlab("train", *TINY, "norm=none", "optim.lr=1e30", "--json")
    assert said.code == 0
    assert said.json["status"] == "diverged"
    assert said.json["metrics"] == dict.fromkeys(METRICS)
    assert set(said.json["diverged"]) == {"step", "loss", "site"}


def test_a_failure_gives_one_line_that_names_the_log(bnlab: Callable[..., Said], tmp_path: Path, start: Start) -> None:
    (tmp_path / "mine" / "norm").mkdir(parents=True)
    (tmp_path / "mine" / "norm" / "broken.yaml").write_text("# Breaks.\ndefaults: [_placement, _self_]\nname: broken\n")
    (tmp_path / "broken.py").write_text(
        "from torch import nn\nfrom bnlab.core.registry import NORMS\n\n"
        "class Broken(nn.Module):\n    def forward(self, x):\n        raise RuntimeError('broken on\\npurpose')\n\n"
        "@NORMS.register('broken')\ndef broken(channels: int, dims: int):\n    return Broken()\n"
    )
    said = ended(start("train", *TINY, "--config-dir", "mine", "norm=broken", "plugins=[broken.py]", "--json"))
    assert (said.code, said.out) == (3, "")
    log = next((tmp_path / "runs").rglob("log.txt"))
    told = said.err.splitlines()[-1]
    assert told == f"RuntimeError: broken on purpose. The traceback is in {log.relative_to(tmp_path)}."
    assert "Traceback" not in said.err
    assert "RuntimeError: broken on\npurpose" in log.read_text()
    assert [row["status"] for row in _rows(bnlab)] == ["failed"]


def test_show_prints_the_spec_and_trains_nothing(bnlab: Callable[..., Said], tmp_path: Path) -> None:
    said = bnlab("train", *TINY, "norm=none", "--show")
    spec = config.load("deep_mlp", [*TINY[2:], "norm=none"])
    assert said.out.splitlines()[:2] == [f"# id: {spec.id}", f"# configs: {config.packaged_dir()}"]
    assert yaml.safe_load(said.out) == spec.tree()
    assert "  depth: 2" in said.out
    assert "# hidden layers" in said.out
    assert bnlab("train", *TINY, "norm=none", "--show", "--json").json == {
        "id": spec.id,
        "config_dirs": [str(config.packaged_dir())],
        "spec": spec.tree(),
    }
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_disconnects_does_not_stop_a_run(tmp_path: Path) -> None:
    words = shlex.join([sys.executable, "-m", "bnlab", "train", *TINY])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | head -1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "deep_mlp  batch  lr=0.3  seed=0\n", "")
    status = json.loads(next(tmp_path.rglob("status.json")).read_text())
    assert status["status"] == "finished"


# -- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_resume(number: signal.Signals, tmp_path: Path, start: Start) -> None:
    process = start("train", *LONG, "--runs", "my runs")
    wait_for(lambda: has_records(tmp_path), "record")
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # in the middle of saving, as like as not
    said = ended(process)
    assert (said.code, said.err) == (130, "")
    lines = said.out.splitlines()
    assert [line.split("  ")[0] for line in lines[-5:]] == ["interrupted", "run", "steepest", "measuring", "resume"]
    again = f"bnlab train {' '.join(LONG)} --runs 'my runs'"
    assert lines[-1] == f"resume       {again}"

    step = json.loads(next(tmp_path.rglob("status.json")).read_text())["step"]
    assert step > 0
    process = start(*shlex.split(again)[1:])
    assert process.stdout is not None
    assert process.stdout.readline() == "deep_mlp  batch  lr=0.3  seed=0\n"
    assert process.stdout.readline() == f"resuming at step {step} of 200000\n"


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path, start: Start) -> None:
    words = ["train", "--config", "deep_mlp", "steps=3000", "probes=none", "model.depth=2", "model.width=8", "--json"]
    process = start(*words, "--runs", "a")
    wait_for(lambda: has_records(tmp_path / "a"), "record")
    process.send_signal(signal.SIGINT)
    said = ended(process)
    assert (said.code, said.json["status"]) == (130, "interrupted")
    assert (
        said.err.splitlines()[-1]
        == f"interrupted; to resume: bnlab {shlex.join([*words[:-1], '--runs', 'a', '--json'])}"
    )
    resumed = ended(start(*words, "--runs", "a"))
    whole = ended(start(*words, "--runs", "b"))
    assert resumed.json["metrics"] == whole.json["metrics"]
    journals = [journal_of(tmp_path / name) for name in ("a", "b")]
    assert journals[0] is not None
    assert journals[1] is not None
    assert without_clock(journals[0]) == without_clock(journals[1])


# -- runs and list ---------------------------------------------------------------------------------------------------


def _rows(bnlab: Callable[..., Said], *where: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = bnlab("runs", *where, "--json").json["runs"]
    return rows


def test_a_run_whose_process_was_killed_is_shown_as_interrupted(
    bnlab: Callable[..., Said], tmp_path: Path, start: Start
) -> None:
    process = start("train", *LONG)
    wait_for(lambda: has_records(tmp_path), "record")
    (running,) = _rows(bnlab)
    busy = bnlab("train", *LONG)
    process.kill()
    process.communicate()
    (killed,) = _rows(bnlab)
    assert (running["status"], killed["status"]) == ("running", "interrupted")
    assert (busy.code, busy.out) == (2, "")
    assert re.fullmatch(
        rf"runs/\S+: process {process.pid} on \S+ is training this run\. Wait for it, or stop it\.\n", busy.err
    )
    assert (running["norm"], running["lr"], running["seed"], running["steps"]) == ("batch", 0.3, 0, 200000)
    assert killed["step"] >= running["step"] >= 0
    assert killed["train_loss"] > 0


def test_runs_shows_a_table_and_one_run_its_card(bnlab: Callable[..., Said]) -> None:
    ended_runs = [bnlab("train", *TINY, f"norm={norm}", "--json").json for norm in ("batch", "none")]
    said = bnlab("runs")
    lines = said.out.splitlines()
    assert lines[0].split() == ["status", "norm", "lr", "seed", "step", "train", "loss", "test", "acc", "age", "run"]
    for line, run in zip(lines[2:], ended_runs, strict=True):
        status, norm, lr, seed, step, loss, accuracy, _, _, path = line.split()
        assert (status, lr, seed, step, path) == ("finished", "0.3", "0", "20/20", run["run"])
        assert norm == Path(path).parts[2]
        assert float(loss) == pytest.approx(run["metrics"]["train_loss"], rel=1e-3)
        assert float(accuracy) == pytest.approx(run["metrics"]["test_accuracy"], rel=1e-3)
    assert [row["run"] for row in _rows(bnlab, "runs/deep_mlp")] == [run["run"] for run in ended_runs]

    path = ended_runs[0]["run"]
    card = bnlab("runs", path).out
    names = [line.split()[0] for line in card.splitlines() if line[0] != " "]
    before, after = ["run", "status", "metrics", "timing", "findings"], ["probes", "spec", "from", "files"]
    assert names == [*before, "model", "norm", "data", "optim", *after]
    assert re.search(r"^status +finished, step 20/20, \d s ago$", card, re.M)
    as_json = bnlab("runs", path, "--json").json
    assert (as_json["run"], as_json["status"], as_json["metrics"]) == (path, "finished", ended_runs[0]["metrics"])
    assert as_json["spec"]["norm"]["name"] == "batch"
    assert as_json["provenance"]["bnlab"] == __version__
    assert as_json["files"]["status.json"] == Path(path, "status.json").stat().st_size


def test_runs_and_list_do_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "spec.yaml").write_text("seed: 1\n")
    for words in (["runs"], ["list", "configs"], ["list", "norms"], ["list", "probes"]):
        script = (
            f"import sys\nfrom bnlab.cli import main\ntry: main({words!r})\n"
            "except SystemExit as end: print(end.code, 'torch' in sys.modules, file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stderr == "0 False\n"


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        ("configs", "experiments"),
        ("experiments", "experiments"),
        ("norms", "norm"),
        ("models", "model"),
        ("data", "data"),
    ],
)
def test_list_names_everything_with_its_description(kind: str, folder: str, bnlab: Callable[..., Said]) -> None:
    files = config.available(folder, [config.packaged_dir()])
    listed = bnlab("list", kind, "--json").json[kind]
    assert listed == [{"name": name, "description": config.description(file)} for name, file in files.items()]
    assert all(item["description"] for item in listed)
    lines = bnlab("list", kind).out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[item["name"], item["description"]] for item in listed]


def test_list_probes_names_presets_and_single_ones(bnlab: Callable[..., Said]) -> None:
    names = [item["name"] for item in bnlab("list", "probes", "--json").json["probes"]]
    assert {"none", "economy", "standard", "full", "activations", "gradients", "batch_moments"} <= set(names)


def test_list_measurements_names_all_that_a_journal_has(bnlab: Callable[..., Said], tmp_path: Path) -> None:
    listed = [item["name"] for item in bnlab("list", "measurements", "--json").json["measurements"]]
    run = bnlab("train", *TINY, "probes=standard", "--json").json["run"]
    for record in without_clock(tmp_path / run / "journal.jsonl"):
        for name in set(record) - {"step"}:
            assert name in listed or f"{name.partition('.')[0]}.*" in listed, name


def test_list_metrics_names_what_claims_may_name(bnlab: Callable[..., Said]) -> None:
    listed = {item["name"]: item for item in bnlab("list", "metrics", "--json").json["metrics"]}
    assert listed["max_stable_lr"]["of"] == "curve"
    assert listed["steps_to"]["options"] == "of, target, smooth"
    assert all(item["description"] and item["source"] for item in listed.values())


def test_list_figures_names_the_plots_of_a_report(bnlab: Callable[..., Said]) -> None:
    listed = {item["name"]: item["description"] for item in bnlab("list", "figures", "--json").json["figures"]}
    assert listed["loss_by_rate"] == "final training loss against the learning rate"
    assert all(listed.values())


def test_list_says_when_there_is_nothing(bnlab: Callable[..., Said], tmp_path: Path) -> None:
    assert bnlab("list", "studies").code == 0
    (tmp_path / "configs" / "studies").mkdir(parents=True)
    (tmp_path / "configs" / "studies" / "mine.yaml").write_text("# My own study.\n")
    listed = bnlab("list", "studies", "--json").json["studies"]
    assert ("mine", "My own study.") in [(row["name"], row["description"]) for row in listed]


OWN = '''
"""Entries of a user."""
from bnlab import FIGURES, METRICS, NORMS, PROBES


@METRICS.register("own_metric", of="run", source="own", unit="")
def metric(run) -> float:
    """A metric."""
    return 1.0


@FIGURES.register("own_figure", subject="a subject")
def figure(view, name):
    """A figure."""


@NORMS.register("own_norm")
class Norm:
    """A norm."""


@PROBES.register("own_probe")
class Probe:
    """A probe."""

    metrics = {"own_measurement": "something measured"}
'''


def test_list_with_a_plugin_names_its_entries_too(bnlab: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = {
        "metrics": ("own_metric", "A metric"),
        "figures": ("own_figure", "a subject"),
        "norms": ("own_norm", "A norm."),
        "probes": ("own_probe", "A probe."),
        "measurements": ("own_measurement", "something measured"),
    }
    try:
        for kind, entry in own.items():
            listed = bnlab("list", kind, "--plugin", "own.py", "--json").json[kind]
            assert entry in [(item["name"], item["description"]) for item in listed]
            assert len(listed) > 1
    finally:
        for registry, name in load_plugin("own.py"):
            registry.forget(name)
    assert bnlab("list", "norms", "--plugin", "gone.py").err.startswith("plugins: no such file, got 'gone.py'.")


@pytest.mark.parametrize(("kind", "meant"), [("metrics", "measurements"), ("figures", "metrics")])
def test_list_of_a_renamed_kind_names_its_successor(kind: str, meant: str, bnlab: Callable[..., Said]) -> None:
    said = bnlab("list", kind)
    assert said.code == 0
    assert f"bnlab list {meant}" in said.err
    assert bnlab("list", kind, "--json").err == ""
