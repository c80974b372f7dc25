"""A metric from a plugin: claims may name it, reports judge by it, and its absence costs its own claims only."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bnlab.analysis.load import read_runs
from bnlab.analysis.metrics import METRICS, table
from bnlab.board.run import rebuild
from bnlab.cli import main
from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS, READ
from bnlab.record.folder import RunFolder

METRIC = '''
from bnlab import METRICS

@METRICS.register("steps_per_loss", of="run", source="this test", unit="steps", better="lower")
def steps_per_loss(run, *, power: float):
    """Steps over a power of the
    final training loss.

    No more than this is listed."""
    return run.step / run.final("train_loss") ** power
'''
CLAIM = """
  - {name: NAME, text: t, source: s, metric: METRIC, contrast: {norm: [batch, none]}, at: best_lr, expect: larger,
     compare: ratio, smallest_effect: 1, options: OPTIONS}
"""
STUDY = """
base: deep_mlp
overrides: {steps: 4, model: {depth: 2, width: 6}, data.batch_size: 16, plugins: [my_metric.py]}
axes: {norm: "none,batch", seed: "0,1"}
claims:
"""


def claim(name: str, metric: str, options: str) -> str:
    return CLAIM.replace("NAME", name).replace("METRIC", metric).replace("OPTIONS", options)


def forget() -> None:
    """As in a new process: no plugin was loaded."""
    READ.clear()
    for name, entry in list(METRICS._entries.items()):
        if entry.constructor.__module__.startswith("bnlab_plugin_"):
            METRICS.forget(name)
    for module in [name for name in sys.modules if name.startswith("bnlab_plugin_")]:
        del sys.modules[module]


def said(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(list(words))
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
    return code or 0, out.getvalue(), err.getvalue()


ENDED = "with 2 seeds a claim gets a direction only; 6 or more seeds decide\n"
ENDED += "4 runs, all ended, nothing to do (--fresh runs them again)\n4 runs: 4 finished\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the plugin and a study of two claims, one of which names the plugin's metric."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_metric.py").write_text(METRIC)
    claims = claim("own", "steps_per_loss", "{power: 2.0}") + claim("known", "final_train_loss", "{}")
    (tmp_path / "configs" / "studies").mkdir(parents=True)
    (tmp_path / "configs" / "studies" / "mine.yaml").write_text(STUDY + claims)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield tmp_path
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    forget()


def sweep(*words: str) -> tuple[int, str, str]:
    return said("sweep", "--config", "mine", "--config-dir", "configs", "launch=inline", "--json", *words)


def test_a_claim_of_it_is_judged_and_without_its_file_is_not_tested(here: Path) -> None:
    code, out, _ = sweep()
    assert code == 0
    own, known = json.loads(out)["claims"]
    assert (own["verdict"], own["n"]) == (known["verdict"], known["n"]) == ("direction only", 2)
    assert own["effect"] == pytest.approx(known["effect"] ** -2)
    column = pl.read_parquet("runs/mine/summary.parquet")["steps_per_loss(power=2.0)"]
    runs = read_runs(Path("runs/mine")).runs
    assert column.to_list() == [4 / run.final("train_loss") ** 2 for run in runs]

    def claims(*words: str) -> list[dict[str, Any]]:
        forget()
        code, out, err = said("report", "runs/mine", "--json", *words)
        assert (code, err) == (0, "")
        found: list[dict[str, Any]] = json.loads(out)["claims"]
        return found

    assert claims()[0]["effect"] == own["effect"]  # the user's own study names the file
    (here / "configs" / "studies" / "mine.yaml").unlink()
    assert claims("--plugin", "my_metric.py")[0]["effect"] == own["effect"]
    (here / "elsewhere").mkdir()
    (here / "my_metric.py").rename(here / "elsewhere" / "my_metric.py")
    assert claims("--plugin", "elsewhere/my_metric.py")[0]["effect"] == own["effect"]

    lost, still = claims()
    assert (lost["verdict"], lost["effect"]) == ("not tested", None)
    why = "my_metric.py: no code that runs name is run; to run it, give --plugin my_metric.py."
    assert lost["why"] == f"no metric steps_per_loss: {why}"
    assert still == known


def test_to_look_at_runs_runs_no_code_that_they_name(here: Path) -> None:
    assert sweep()[0] == 0
    (here / "configs" / "studies" / "mine.yaml").unlink()
    evil = f"open({str(here / 'ran')!r}, 'w').close()\n"
    for file in [here / "my_metric.py", *here.glob("runs/*/*/*/*/plugins/0/my_metric.py")]:
        file.write_text(evil)
    run = next(here.glob("runs/*/*/*/*/spec.yaml")).parent
    for words in (
        ("report", "runs/mine"), ("report", "runs"), ("report", "--gallery", "runs"), ("runs", "runs"),
        ("runs", str(run)), ("runs", str(run), "--norms"), ("list", "studies"),
    ):  # fmt: skip
        forget()
        code, _, err = said(*words)
        refused = err.startswith("--norms: runs the code of a plugin, so that it must be given, got 'my_metric.py'.")
        assert (code, refused) == ((2, True) if "--norms" in words else (0, False))
        assert not (here / "ran").exists(), words
    assert rebuild(RunFolder(run), "light")  # as `view` does
    assert not (here / "ran").exists()
    said("report", "runs/mine", "--plugin", "my_metric.py")
    assert (here / "ran").exists()


def test_a_report_says_that_it_was_edited_since_the_runs(here: Path) -> None:
    assert sweep()[0] == 0
    forget()
    file = here / "my_metric.py"
    file.write_text(file.read_text() + "# edited\n")
    edited = "my_metric.py: 4 of 4 runs began with another content of it; the report uses my_metric.py as it is now"
    code, out, err = said("report", "runs/mine", "--json")
    assert (code, err, json.loads(out)["notes"]) == (0, f"{edited}\n", [edited])
    assert f"<li>{edited}</li>" in (here / "runs" / "mine" / "report.html").read_text()

    forget()
    code, out, err = sweep()
    # With it as it is now, they are other runs: the grid that was swept last has none of the earlier ones.
    assert (code, err.splitlines()[-1]) == (
        0,
        "4 other runs here, not of the grid that was swept last: bnlab runs runs/mine",
    )
    copies = here.glob("runs/*/*/*/*/plugins/0/my_metric.py")
    copy = next(copy for copy in copies if "# edited" not in copy.read_text())
    forget()
    (here / "configs" / "studies" / "mine.yaml").unlink()
    _, out, err = said("report", "runs/mine", "--json", "--plugin", str(copy))
    _, note = json.loads(out)["notes"]
    assert note.endswith(f"the report uses {copy} as it is now")

    forget()
    file.write_text("from bnlab import NORMS\n@NORMS.register('unused')\ndef unused(channels, dims): ...\n")
    assert read_runs(Path("runs/mine"), plugins=["my_metric.py"]).edited == ()  # it brings nothing that a report uses
    NORMS.forget("unused")


def test_a_report_that_cannot_be_made_ends_a_sweep_in_one_line(here: Path) -> None:
    assert sweep()[0] == 0
    file = here / "runs" / "mine" / "study.yaml"
    before = file.read_text()
    for text, problem in (
        ("a: [", "runs/mine/study.yaml: not YAML: line 2: did not find expected node content."),
        ("[]", "runs/mine/study.yaml: not a study, got []."),
    ):
        file.write_text(text)
        assert sweep() == (2, "", ENDED + f"{problem} Remove it, and sweep the study again.\n")
    file.unlink()
    assert sweep()[0] == 0
    assert file.read_text() == before

    page = here / "runs" / "mine" / "report.html"
    page.unlink()
    page.mkdir()
    code, out, err = sweep()
    assert (code, out) == (2, "")
    assert re.fullmatch(re.escape(ENDED) + r"--runs: is a directory, got 'runs/mine/\S+'\.\n", err)
    code, out, err = said("report", "runs/mine")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"RUNS: is a directory, got 'runs/mine/\S+'\.\n", err)


def test_where_no_run_has_ended_the_failures_are_told_and_no_report(here: Path) -> None:
    code, out, err = sweep("norm=instance", "norm.layers=[0]")
    assert code == 3
    assert json.loads(out)["report"] is None
    assert [row["state"] for row in json.loads(out)["runs"]] == ["not started"] * 2
    assert "RUNS" not in err


def test_a_claim_of_it_is_checked_before_anything_runs(here: Path) -> None:
    study = here / "configs" / "studies" / "mine.yaml"
    study.write_text(study.read_text().replace("power: 2.0", "powre: 2.0"))
    assert sweep() == (2, "", "claims.own.options.powre: no such option, got 2.0. Did you mean: power?\n")
    assert not (here / "runs").exists()


def test_a_name_that_neither_bnlab_nor_a_plugin_has_is_refused(here: Path) -> None:
    shutil.copy(here / "my_metric.py", here / "other.py")
    study = here / "configs" / "studies" / "mine.yaml"
    study.write_text(study.read_text().replace("metric: steps_per_loss", "metric: steps_per_los"))
    assert sweep()[2].startswith("claims.own.metric: no such metric, got 'steps_per_los'. Did you mean: steps_per_loss")


def test_it_is_listed_with_its_plugin(here: Path) -> None:
    (row,) = [row for row in table(["my_metric.py"]) if row["name"] == "steps_per_loss"]
    assert row == {
        "name": "steps_per_loss",
        "of": "run",
        "description": "Steps over a power of the final training loss",
        "source": "this test",
        "unit": "steps",
        "options": "power",
    }
    forget()
    with pytest.raises(UsageError, match="plugins: no such file"):
        table(["none.py"])


def test_its_declaration_is_checked(here: Path) -> None:
    code, out, _ = said("verify", "--plugin", "my_metric.py", "--json")
    assert code == 0
    assert json.loads(out)["contract"] == [
        {"entry": "metric=steps_per_loss", "check": "declared", "ok": True, "why": None}
    ]
    poor = METRIC.replace("power: float", "power").replace('unit="steps"', 'unit=""')
    (here / "poor.py").write_text(poor.replace("steps_per_loss", "poor"))
    code, out, _ = said("verify", "--plugin", "poor.py", "--json")
    assert code == 3
    assert json.loads(out)["contract"][0]["why"] == "power has no type, no unit"
