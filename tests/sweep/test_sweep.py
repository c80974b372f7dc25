"""`bnlab sweep` as its users see it: what it lists, skips, runs again and prints. Run in this process."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab import __version__, config
from bnlab.analysis.claims import Verdict
from bnlab.analysis.load import read_runs
from bnlab.api import Planned
from bnlab.cli import sweep as sweeping
from bnlab.core.registry import NORMS
from bnlab.core.text import command
from bnlab.grids.run import Sweep as Sweeping
from bnlab.launch.inline import Inline
from bnlab.record.folder import RunFolder
from bnlab.record.runs import state_to_resume
from bnlab.report.write import Built

CONFIGS = Path(__file__).parent.parent / "configs"
Sweep = Callable[..., Any]

FRAGILE = '''
"""A norm that fails as long as the file `broken` exists."""
from pathlib import Path

from torch import nn

from bnlab.core.registry import NORMS


class Fragile(nn.Module):
    def forward(self, x):
        if Path("broken").exists():
            raise RuntimeError("broken on\\npurpose")
        return x


@NORMS.register("fragile")
def fragile(channels: int, dims: int):
    return Fragile()
'''


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Arguments of a sweep with a norm that fails as long as the file `broken` exists."""
    (tmp_path / "mine" / "norm").mkdir(parents=True)
    (tmp_path / "mine" / "norm" / "fragile.yaml").write_text("defaults: [_placement, _self_]\nname: fragile\n")
    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "broken").touch()
    entries = dict(NORMS._entries)
    small = ("model.depth=2", "model.width=6", "steps=12", "data.batch_size=16", "probes=none", "optim.lr=0.1")
    yield (
        "--config", "mlp_digits", "--config-dir", "mine", "plugins=[fragile.py]", "norm=none,fragile", "seed=0,1",
        *small,
    )  # fmt: skip
    NORMS._entries.clear()
    NORMS._entries.update(entries)
    for name in [name for name in sys.modules if name.startswith("bnlab_plugin_")]:
        del sys.modules[name]


def files_below(root: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}


# -- listing -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_every_cell_with_its_line_and_writes_nothing(sweep: Sweep, tmp_path: Path) -> None:
    said = sweep("--dry-run", "--json", "--runs", "my runs")
    assert (said.code, said.err) == (0, "")
    cells = config.load_study("tiny", ["launch=inline"], CONFIGS)[1]
    assert said.json["study"] == "tiny"
    for row, cell in zip(said.json["cells"], cells, strict=True):
        assert row == {
            "id": cell.spec.id,
            "run": f"my runs/{cell.spec.folder}",
            "state": "not started",
            "values": cell.values,
            "line": cell.line(runs="my runs", config_dir=CONFIGS),
        }
    text = sweep("--dry-run").out.splitlines()
    assert text[0].split() == ["state", "norm", "lr", "seed", "id"]
    assert text[2].split() == ["not", "started", "none", "0.05", "0", cells[0].spec.id]
    assert text[-3:] == [
        "8 runs: 8 not started; 8 to run",
        "time and disk are not known before a run of this grid has ended",
        "with 2 seeds a claim gets a direction only; 6 or more seeds decide",
    ]
    enough = sweep("--dry-run", "seed=range(7)").out.splitlines()
    assert (enough[-3], enough[-1]) == (
        "28 runs: 28 not started; 28 to run", "with 7 seeds and 1 claim, p is 0.0078 at best",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_estimates_by_the_runs_that_have_ended(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep("seed=0").code == 0
    ended = [file.parent for file in (tmp_path / "runs").rglob("status.json")]
    assert len(ended) == 4
    for folder in ended:
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps({**status, "timing": {"run_s": 90.0}}))
        (folder / "large").write_bytes(bytes(2_000_000))
    said = sweep("--dry-run").out.splitlines()
    assert said[-3:-1] == [
        "8 runs: 4 finished, 4 not started; 4 to run",
        "about 3 min on two workers and 8 MB of disk, as the 4 that have ended",
    ]
    assert sweep().code == 0
    assert "min on two workers" not in sweep("--dry-run").out


def test_a_dry_run_imports_no_torch() -> None:
    script = (
        "import sys; from bnlab.cli import main\n"
        f"try: main(['sweep', '--config', 'tiny', '--config-dir', {str(CONFIGS)!r}, '--dry-run'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert (lines[-4], lines[-1]) == ("8 runs: 8 not started; 8 to run", "False")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--config", "quickstat"],
         "--config: no such study or experiment, got 'quickstat'. Did you mean: quickstart?"),
        (["norm=none,bach"], "norm: no such option, got 'bach'. Did you mean: batch?"),
        (["launch.workers=3"], "launch.workers: launch=inline runs one after the other, got 3. Use launch=local."),
        (["--expect-verdicts", "no.yaml"], "--expect-verdicts: no such file or directory, got 'no.yaml'."),
    ],
)  # fmt: skip
def test_a_mistake_gives_one_line_and_nothing_is_written(
    words: list[str], line: str, sweep: Sweep, tmp_path: Path
) -> None:
    said = sweep(*words)
    assert (said.code, said.out, said.err) == (2, "", line + "\n")
    assert list(tmp_path.iterdir()) == []


# -- running -----------------------------------------------------------------------------------------------------------


def test_what_is_finished_is_not_run_again_and_what_is_missing_is(sweep: Sweep, tmp_path: Path) -> None:
    first = sweep("seed=0", "--json").json
    assert [run["state"] for run in first["runs"]] == ["finished"] * 4
    before = files_below(tmp_path / "runs")
    more = sweep("--json").json
    assert [run["state"] for run in more["runs"]] == ["finished"] * 8
    assert {path for path in before if files_below(tmp_path / "runs")[path] != before[path]} == {
        tmp_path / "runs" / "tiny" / "study.yaml"
    }
    now = files_below(tmp_path / "runs")
    again = sweep("--plain")
    assert again.code == 0
    assert again.out.splitlines()[1:3] == [
        "8 runs, all ended, nothing to do (--fresh runs them again)",
        "8 runs: 8 finished",
    ]
    assert files_below(tmp_path / "runs") == now


def test_the_study_is_saved_beside_its_runs_and_its_claims_in_each(sweep: Sweep, tmp_path: Path) -> None:
    found = sweep("seed=0", "norm=batch", "optim.lr=0.05", "--json").json["runs"][0]
    run, grid = found["run"], found["id"]
    study = config.load_study("tiny", ["seed=0", "norm=batch", "optim.lr=0.05", "launch=inline"], CONFIGS)[0]
    written = yaml.safe_load((tmp_path / "runs" / "tiny" / "study.yaml").read_text())
    digests = {"lower_loss": study.claims[0].digest}
    line = f"bnlab sweep --config tiny launch=inline seed=0 norm=batch optim.lr=0.05 --config-dir {CONFIGS} --json"
    assert written.pop("provenance") == {"bnlab": __version__, "line": line, "claims": digests, "grid": grid}
    assert type(study).from_tree(written) == study
    spec = yaml.safe_load((tmp_path / run / "spec.yaml").read_text())
    assert spec["provenance"]["claims"] == digests


def test_parts_of_files_that_a_killed_sweep_left_are_removed(sweep: Sweep, tmp_path: Path) -> None:
    root = tmp_path / "runs" / "tiny"
    root.mkdir(parents=True)
    old, fresh, mine = (root / name for name in (".study.yaml.123", ".report.html.456", ".notes"))
    for file in (old, fresh, mine):
        file.write_text("x")
    for file in (old, mine):
        os.utime(file, (0, 0))
    assert sweep("seed=0", "optim.lr=0.05", "norm=batch").code == 0
    assert [file.exists() for file in (old, fresh, mine)] == [False, True, True]


def test_a_report_is_about_the_grid_that_was_swept_last(
    sweep: Sweep, in_process: Callable[..., Any], tmp_path: Path
) -> None:
    """A single run in the study's folder, and an earlier grid, are not part of it, and are counted once. A part of the
    grid before adds no seeds after a look."""
    small = ("steps=12", "model.depth=2", "model.width=6", "data.batch_size=16")
    root = tmp_path / "runs" / "tiny"

    def swept(seeds: str, norm: str = "none,batch") -> tuple[list[str], set[int], int, Any]:
        assert sweep(f"seed={seeds}", "optim.lr=0.05", f"norm={norm}").code == 0
        found = read_runs(root)
        norms = sorted({run.spec["norm"] for run in found.runs})
        return norms, {run.seed for run in found.runs}, found.others, found.study_provenance.get("earlier_seeds")

    assert in_process("train", "--config", "deep_mlp", *small, "norm=layer", "name=tiny", "--plain").code == 0
    assert swept("0,1,4") == (["batch", "none"], {0, 1, 4}, 1, None)
    assert read_runs(root).apart == [f"1 other run here, not of the grid that was swept last: bnlab runs {root}"]
    assert swept("0,1", "batch") == (["batch"], {0, 1}, 5, None)
    assert swept("2,3") == (["batch", "none"], {2, 3}, 7, ["0,1"])
    assert swept("0,1,2,3,4") == (["batch", "none"], {0, 1, 2, 3, 4}, 1, ["0,1", "2,3"])


def test_a_run_keeps_the_claims_it_was_begun_with(sweep: Sweep, tmp_path: Path) -> None:
    one = ("seed=0", "norm=batch", "optim.lr=0.05")
    run = tmp_path / sweep(*one, "--json").json["runs"][0]["run"]
    claims = yaml.safe_load((run / "spec.yaml").read_text())["provenance"]["claims"]
    (run / "status.json").write_text('{"status": "interrupted", "step": 12}')
    edited = tmp_path / "edited" / "studies"
    edited.mkdir(parents=True)
    text = (CONFIGS / "studies" / "tiny.yaml").read_text()
    (edited / "tiny.yaml").write_text(text.replace("smallest_effect: 0.1", "smallest_effect: 0.2"))
    assert sweep("--config", "tiny", "--config-dir", str(edited.parent), *one).code == 0
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    assert yaml.safe_load((run / "spec.yaml").read_text())["provenance"]["claims"] == claims
    study = yaml.safe_load((tmp_path / "runs" / "tiny" / "study.yaml").read_text())
    assert study["provenance"]["claims"].keys() == claims.keys()
    assert study["provenance"]["claims"] != claims


def test_fresh_runs_everything_again(sweep: Sweep, tmp_path: Path) -> None:
    run = sweep("norm=batch", "optim.lr=0.05", "--json").json["runs"][0]
    journal = tmp_path / run["run"] / "journal.jsonl"
    size = journal.stat().st_size
    journal.write_text("")
    (journal.parent / "status.json").write_text("{")
    broken = sweep("norm=batch", "optim.lr=0.05", "--json")
    assert broken.code == 3
    assert "checkpoint.pt: cannot be used: journal.jsonl is cut off" in broken.json["runs"][0]["error"]
    again = sweep("norm=batch", "optim.lr=0.05", "--fresh", "--json").json["runs"][0]
    assert again["metrics"] == run["metrics"]
    assert abs(journal.stat().st_size - size) < 200  # but for the digits of the clock


def test_plain_lines_tell_each_tenth(sweep: Sweep) -> None:
    said = sweep("seed=range(6)", "optim.lr=0.05,1e30", "norm=none,batch")
    lines = [line for line in said.out.splitlines() if line.startswith("run ")]
    assert [line[:9] for line in lines] == [f"run {count:>2}/24" for count in (3, 5, 8, 10, 12, 15, 17, 20, 22, 24)]
    assert re.fullmatch(r"run 24/24  12 diverged  0:\d\d  eta 0:00", lines[-1])
    assert said.out.splitlines()[-1] == "24 runs: 12 finished, 12 diverged"
    assert said.code == 0  # divergence is a result


@pytest.mark.parametrize(
    ("seeds", "line"),
    [
        ("seed=3", "with 1 seed a claim gets a direction only; 6 or more seeds decide"),
        ("seed=range(2)", "with 2 seeds a claim gets a direction only; 6 or more seeds decide"),
        ("seed=range(6)", None),
    ],
)
def test_too_few_seeds_for_a_verdict_are_reported_at_launch(seeds: str, line: str | None, sweep: Sweep) -> None:
    first = sweep(seeds, "norm=none", "optim.lr=0.05", "steps=2").out.splitlines()[0]
    assert (first == line) is (line is not None)
    assert sweep("--config", "mlp_digits", "steps=2", "model.width=4").out.startswith("run 1/1")


# -- failures ----------------------------------------------------------------------------------------------------------


def test_one_failure_costs_one_run_and_is_reported_with_its_log(
    sweep: Sweep, fragile: tuple[str, ...], tmp_path: Path
) -> None:
    said = sweep(*fragile)
    assert (said.code, said.err) == (3, "")
    logs = sorted(file for file in (tmp_path / "runs").rglob("log.txt") if "fragile" in str(file))
    lines = said.out.splitlines()
    assert "4 runs: 2 finished, 2 failed" in lines
    for seed, log in zip((0, 1), logs, strict=True):
        assert "RuntimeError: broken on\npurpose" in log.read_text()
        row = next(line for line in lines if line.startswith(f"fragile seed={seed}"))
        assert row.split("  ")[1].strip() == "RuntimeError: broken on purpose"
        assert row.endswith(str(log.relative_to(tmp_path)))
    alone = next(line for line in lines if line.startswith("alone"))
    assert alone.endswith("norm=fragile seed=0 name=mlp_digits --config-dir mine")
    assert lines[-1].startswith("again   bnlab sweep --config mlp_digits")
    assert lines[-1].endswith("--retry-failed")


def test_failed_runs_are_repeated_only_with_the_option(sweep: Sweep, fragile: tuple[str, ...], tmp_path: Path) -> None:
    assert sweep(*fragile).code == 3
    (tmp_path / "broken").unlink()
    before = files_below(tmp_path / "runs")
    again = sweep(*fragile, "--json")
    assert again.code == 3
    assert [run["state"] for run in again.json["runs"]] == ["finished", "failed"] * 2
    assert again.json["runs"][1]["error"] == "RuntimeError: broken on\npurpose"
    assert files_below(tmp_path / "runs") == before
    retried = sweep(*fragile, "--json", "--retry-failed")
    assert retried.code == 0
    assert [run["state"] for run in retried.json["runs"]] == ["finished"] * 4


def test_fail_fast_begins_nothing_more(sweep: Sweep, fragile: tuple[str, ...]) -> None:
    said = sweep(*fragile, "--fail-fast", "--json")
    assert said.code == 3
    assert [run["state"] for run in said.json["runs"]] == ["finished", "failed", "not started", "not started"]


def test_a_cell_that_cannot_be_set_up_is_reported_and_leaves_nothing(sweep: Sweep, tmp_path: Path) -> None:
    said = sweep("norm=none,instance", "seed=0", "optim.lr=0.05", "--json")
    assert said.code == 3
    assert [run["state"] for run in said.json["runs"]] == ["finished", "not started"]
    assert said.json["runs"][1]["error"].startswith("norm: a dense layer has one value per channel and example")
    assert len(list((tmp_path / "runs").rglob("spec.yaml"))) == 1


def test_the_line_that_resumes_a_sweep_is_quoted_for_the_shell() -> None:
    places = {"runs": Path("my runs"), "config_dir": None}
    flags = {"fail_fast": True, "json": False, "plain": True, "expect_verdicts": Path("e.yaml")}
    line = command("bnlab", "sweep", "--config", "a", "seed=range(0, 6)", **places, **flags)
    assert line == (
        "bnlab sweep --config a 'seed=range(0, 6)' --runs 'my runs' --fail-fast --plain --expect-verdicts e.yaml"
    )
    assert shlex.split(line)[4] == "seed=range(0, 6)"


# -- others at work ----------------------------------------------------------------------------------------------------


def test_a_run_at_work_elsewhere_is_left_alone_and_taken_over_when_its_process_is_gone(
    sweep: Sweep, tmp_path: Path
) -> None:
    cells = config.load_study("tiny", ["launch=inline"], CONFIGS)[1]
    folder = RunFolder(tmp_path / "runs" / cells[2].spec.folder)
    held = threading.Event()

    def other() -> None:
        with folder.owned():
            held.set()
            limit = time.monotonic() + 200
            while len(list(tmp_path.rglob("status.json"))) < 7 and time.monotonic() < limit:
                time.sleep(0.01)
            time.sleep(0.3)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    said = sweep()
    thread.join()
    lines = said.out.splitlines()
    assert (said.code, lines[-1]) == (0, "8 runs: 8 finished")
    waiting = lines.index("1 run is running in another process; waiting")
    assert [line[:7] for line in lines[waiting - 1 :: 2][:2]] == ["run 7/8", "run 8/8"]


def test_runs_that_cannot_be_in_a_stack_wait_for_no_other_process(sweep: Sweep) -> None:
    said = sweep("norm=batch", "norm.momentum=null", "launch.lockstep=auto")
    assert said.code == 0
    assert "4 runs: 4 finished" in said.out
    assert "another process" not in said.out


def test_what_another_sweep_has_run_again_since_is_not_run_once_more(tmp_path: Path) -> None:
    """Two `--fresh` sweeps at once: a run that the other one ends first is used as it is."""
    cells = config.load_study("tiny", ["launch=inline", "seed=0", "norm=batch"], CONFIGS)[1]
    Sweeping(cells, tmp_path).run(Inline())
    ours = Sweeping(cells, tmp_path, fresh=True)
    assert len(ours.left) == 2
    time.sleep(0.02)
    Sweeping(cells, tmp_path, fresh=True).run(Inline())
    before = files_below(tmp_path)
    ours.run(Inline())
    assert (ours.left, ours.failures) == ([], [])
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (None, "not started"),
        ({"status": "running", "step": 3}, "interrupted"),
        ({"status": "interrupted", "step": 3}, "interrupted"),
        ({"status": "failed", "error": "E: x"}, "failed"),
        ({"status": "finished", "step": 3}, "finished"),
        ({"status": "diverged", "step": 3}, "diverged"),
    ],
)
def test_the_state_of_a_cell_is_that_of_its_folder(status: dict[str, Any] | None, state: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert state_to_resume(folder) == ("not started", {})
    folder.path.mkdir()
    if status is not None:
        folder.write_status(status)
    assert state_to_resume(folder) == (state, status or {})
    with folder.owned():
        assert state_to_resume(folder)[0] == (state if state in ("finished", "diverged") else "running")


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_verdicts_are_printed_and_compared_with_the_expected_ones(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = config.load_study("tiny", [], CONFIGS)[0].claims[0]
    verdict = Verdict(
        claim=claim, decision="refuted", effect=-0.5, interval=(-0.75, -0.25), p=0.03125, n=6, seeds=(0, 1),
        treated=None, control=None, why="because",
    )  # fmt: skip
    reported: list[Path] = []

    def report(plan: Planned) -> Built:
        reported.append(plan.root)
        return Built(path=plan.root / "report.html", verdicts=(verdict,), figures=(), unfinished=(), runs=1)

    monkeypatch.setattr(sweeping, "_reported", report)
    (tmp_path / "right.yaml").write_text("lower_loss: refuted")
    (tmp_path / "wrong.yaml").write_text("lower_loss: supported")
    right = sweep("seed=0", "--expect-verdicts", "right.yaml")
    assert right.code == 0
    assert right.out.splitlines()[-3:] == [
        "- refuted         Batch norm ends at a lower loss than no norm",
        "                  difference -0.5 [-0.75, -0.25] (matters from 0.1), n 6, p 0.031",
        "report  runs/tiny/report.html",
    ]
    wrong = sweep("seed=0", "--expect-verdicts", "wrong.yaml", "--json")
    assert wrong.code == 4
    assert wrong.err.splitlines()[-1] == "lower_loss: expected supported, found refuted"
    assert wrong.json["report"] == "runs/tiny/report.html"
    assert [(one["name"], one["verdict"], one["interval"]) for one in wrong.json["claims"]] == [
        ("lower_loss", "refuted", [-0.75, -0.25])
    ]
    assert reported == [Path("runs/tiny")] * 2


@pytest.mark.parametrize(("seeds", "profile"), [(25, "full"), (26, "light")])
def test_more_than_fifty_runs_are_written_with_the_light_profile(seeds: int, profile: str, tmp_path: Path) -> None:
    """The profile is not part of a run's identity: the id is the same in both."""
    _, cells = config.load_study("quickstart", (f"seed=range(0,{seeds})", "optim.lr=0.1"))
    tasks = [task for group in Sweeping(cells, tmp_path)._groups(1) for task in group.tasks]
    assert len(tasks) == 2 * seeds
    assert {task.profile for task in tasks} == {profile}
    assert [task.provenance["axes"] for task in tasks] == [["norm", "seed"]] * len(tasks)
    _, alone = config.load_study("quickstart", ("seed=0", "optim.lr=0.1"))
    assert tasks[0].spec.id == alone[0].spec.id
