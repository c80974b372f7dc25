"""report.html and the files beside it, from run folders alone."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
import yaml

from bnlab.analysis.load import read_runs
from bnlab.analysis.metrics import METRICS
from bnlab.cli import main
from bnlab.core.errors import UsageError
from bnlab.core.registry import load_plugin
from bnlab.record.findings import findings
from bnlab.record.folder import RunFolder
from bnlab.record.runs import read_run
from bnlab.report.build import build
from bnlab.report.figures import FIGURES, in_order
from bnlab.report.page import setting_of
from bnlab.report.write import Built

Write = Callable[..., Path]
OWN = [entry.name for entry in in_order() if entry.order < 100]
"""The figures with a place of their own in a report. The grid here has what each of them shows."""
VOID = {"meta", "img", "source", "br", "link"}
HOSTILE = "<script>alert('x')</script> & \"quotes\" <b>"


@dataclass
class Page(HTMLParser):
    """A page that was parsed: its elements with their attributes, its text; every element closed that was opened."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    still_open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def of(cls, file: Path) -> Page:
        page = cls()
        page.feed(file.read_text(encoding="utf-8"))
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.still_open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.still_open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def study(root: Path, **claim: Any) -> None:
    """Put a study of one claim over the grid."""
    made: dict[str, Any] = {"name": "rates", "text": "Batch norm trains at larger rates", "source": "Bjorck 2018"}
    made |= {"metric": "max_stable_lr", "contrast": {"norm": ["batch", "none"]}, "at": "curve", "expect": "larger"}
    made |= {"compare": "ratio", "smallest_effect": 2.0} | claim
    axes = {"norm": "none,batch", "optim.lr": "0.01,0.1,1", "seed": "range(0,3)"}
    tree = {"name": "grid", "base": "deep_mlp", "overrides": {}, "axes": axes, "claims": [made]}
    (root / "study.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def built(shared_grid: Path) -> Built:
    """A report of a study whose claim has hostile words."""
    study(shared_grid, text=HOSTILE, source=f"Bjorck et al. 2018 {HOSTILE}")
    return build(shared_grid)


@pytest.fixture(scope="module")
def page(built: Built) -> Page:
    """It, parsed."""
    return Page.of(built.path)


def decoded(data: str) -> str:
    kind, _, content = data.partition(";base64,")
    assert kind.startswith("data:")
    return base64.b64decode(content).decode()


def test_the_page_is_one_file_without_script_or_request(built: Built, page: Page) -> None:
    assert page.still_open == []
    assert page.all("script") == []
    assert page.all("link") == []
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    loaded = [attributes[key] for _, attributes in page.elements for key in ("src", "srcset") if key in attributes]
    assert loaded
    assert all(source.startswith("data:") for source in loaded)
    assert "url(" not in built.path.read_text(encoding="utf-8").split("</style>")[0]
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")


def test_every_figure_has_a_text_that_says_what_it_shows_a_dark_twin_and_its_data(built: Built, page: Page) -> None:
    grid = built.path.parent
    assert [name for name in built.figures if name in OWN] == OWN
    assert built.figures[0] == "forest"
    images, twins = page.all("img"), page.all("source")
    assert len(images) == len(twins) == len(built.figures)
    for name, image, twin in zip(built.figures, images, twins, strict=True):
        light, turned = decoded(image["src"]), decoded(twin["srcset"])
        assert light == (grid / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert "#fefefe" in light
        assert "#fefefe" not in turned
        assert len(ElementTree.fromstring(turned)) == len(ElementTree.fromstring(light)) > 0
        assert len(image["alt"]) > 60
    assert images[1]["alt"].startswith("Batch norm trains at rates 10× larger than no norm")  # the claim's number
    links = {link["download"]: link["href"] for link in page.all("a") if "download" in link}
    for name in built.figures:
        text = (grid / "figures" / f"{name}.csv").read_text(encoding="utf-8")
        assert decoded(links[f"{name}.csv"]) == text
        assert len(list(csv.reader(io.StringIO(text)))) > (1 if name == "forest" else 2)  # the study has one claim
        assert (grid / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_bytes_and_figures_of_runs_that_are_gone_go(built: Built, tmp_path: Path) -> None:
    other = tmp_path / "grid"
    shutil.copytree(built.path.parent, other)
    (other / "report.html").unlink()
    (other / "figures" / "old.svg").write_text("<svg/>")
    roots = (built.path.parent, build(other).path.parent)
    made = [{file.name: file.read_bytes() for file in _written(root)} for root in roots]
    assert made[0] == made[1]
    assert len(made[0]) == 2 + 3 * len(built.figures)


def _written(root: Path) -> list[Path]:
    return [root / "report.html", root / "summary.parquet", *sorted((root / "figures").iterdir())]


def test_a_verdict_is_a_card_with_its_numbers_and_the_commands_behind_it(built: Built, page: Page) -> None:
    (verdict,) = built.verdicts
    words = " ".join(page.text.split()).replace("\xa0", " ")
    assert verdict.measured in words
    assert verdict.why not in words  # its numbers stand there once
    assert "→ 1 direction only" in words
    assert "10× 95 %: 10 to 10×" in words
    assert "Bjorck et al. 2018" in words
    assert "bnlab sweep --config grid" in words
    assert "bnlab train --config deep_mlp norm=none optim.lr=0.01 seed=2 name=grid" in words


def test_what_matters_most_comes_first(built: Built) -> None:
    text = built.path.read_text(encoding="utf-8")
    parts = ("<dl>", 'id="forest"', 'id="loss_by_rate"', 'id="claim-rates"', "<h2>Arms", "<h2>Final", "<h2>Figures")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert text.index('id="drift"') > places[-1]


def test_words_of_a_claim_cannot_become_part_of_the_page(page: Page) -> None:
    assert page.all("script") == []
    assert page.text.count(HOSTILE) == 2


def test_the_table_tells_what_diverged_and_marks_the_best(page: Page) -> None:
    assert page.text.count("✕ 3 of 3 diverged") == 1
    assert len([span for span in page.all("span") if span.get("class") == "best"]) == 2


def test_the_summary_has_a_row_a_run(built: Built) -> None:
    frame = pl.read_parquet(built.path.parent / "summary.parquet")
    assert len(frame) == 18
    assert frame["norm"].value_counts().sort("norm")["count"].to_list() == [9, 9]


def test_runs_without_an_end_are_named_with_their_log(built: Built, page: Page) -> None:
    assert sorted(run.spec["norm"] for run in built.unfinished) == ["group", "layer"]
    assert "ValueError: <no>" in page.text
    assert re.search(r"layer/lr=0\.1/seed=0-\w+/log\.txt", page.text)
    assert "layer norm" not in page.text.lower()


def test_one_run_has_a_report_of_its_own(grid: Path) -> None:
    (run,) = (grid / "batch" / "lr=0.1").glob("seed=0-*")
    built = build(run)
    assert built.path == run / "report.html"
    assert "loss_by_rate" not in built.figures
    assert {"learning_curves", "drift", "gradient_depth"} <= set(built.figures)
    text = Page.of(built.path).text
    assert "only one learning rate" in text
    assert "batch, lr 0.1, seed 0" in text


def test_the_findings_of_a_few_runs_are_listed_run_by_run(grid: Path) -> None:
    run = next((grid / "none" / "lr=1").iterdir())
    page = Page.of(build(run).path)
    assert f"No norm, lr 1, {run.name.partition('-')[0].replace('=', ' ')}" in page.text
    found = findings(read_run(RunFolder(run)))
    assert [finding.name for finding in found] == ["diverged", "nothing"]
    assert all(finding.text in page.text for finding in found)
    assert "diverged: Bjorck et al. 2018" in page.text


def test_the_findings_of_many_runs_are_counted(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "Diverged: 3 of 18 runs no norm: 3 of 9" in text
    assert "Nothing" not in text


def test_many_runs_without_findings_say_so(tmp_path: Path, write: Write) -> None:
    calm = [{"step": step, "train_loss": 2.0} for step in range(10)]
    for seed in range(6):
        write(tmp_path / "g", seed=seed, journal=calm)
    assert "Nothing stands out in 6 runs" in Page.of(build(tmp_path / "g").path).text


def test_what_was_not_measured_is_said_with_what_to_do(tmp_path: Path, write: Write) -> None:
    bare = [{"step": step, "train_loss": 1.0 / (1 + step)} for step in range(9)]
    for norm, lr in ((norm, lr) for norm in ("none", "batch") for lr in (0.1, 1.0)):
        write(tmp_path / "g", norm=norm, lr=lr, journal=bare)
    built = build(tmp_path / "g")
    assert built.figures == ("loss_by_rate", "steps_to_target", "learning_curves")
    text = Page.of(built.path).text
    assert text.count("probes=standard") == 2
    assert text.count("probes=economy") == 2


def test_a_report_of_runs_that_all_diverged_is_reported(tmp_path: Path, write: Write) -> None:
    journal = [{"step": 0, "train_loss": 2.0}, {"step": 1, "train_loss": None}]
    for lr in (1.0, 10.0):
        write(tmp_path / "g", lr=lr, status="diverged", journal=journal)
    built = build(tmp_path / "g")
    assert "every run diverged" in Page.of(built.path).text
    assert built.figures


def test_nothing_to_report_is_one_clear_error(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UsageError, match=r"RUNS: no such directory"):
        build(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"RUNS: no runs in this directory"):
        build(tmp_path)
    write(tmp_path / "g", status="running")
    with pytest.raises(UsageError, match=r"RUNS: no run has ended yet"):
        build(tmp_path / "g")
    assert not (tmp_path / "g" / "report.html").exists()


def test_a_folder_of_studies_has_a_page_that_leads_to_their_reports(tmp_path: Path, write: Write) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, journal=[])
    write(tmp_path / "three", status="running")
    built = build(tmp_path)
    assert [part.path.parent.name for part in built.parts] == ["one", "two"]
    links = [link["href"] for link in Page.of(built.path).all("a")]
    assert links == ["one/report.html", "two/report.html"]
    assert all((tmp_path / link).is_file() for link in links)


@pytest.mark.browser
def test_the_page_fits_a_desk_a_phone_and_paper_by_day_and_by_night(
    built: Built, browser: Any, looks: Callable[..., Any]
) -> None:
    seen: dict[str, dict[str, Any]] = {}
    for name, page in looks(browser, built.path):
        seen[name] = page.evaluate(
            """() => ({
                wide: document.documentElement.scrollWidth - innerWidth,
                paper: getComputedStyle(document.body).backgroundColor,
                ink: getComputedStyle(document.body).color,
                shown: [...document.images].map(i => i.complete && i.naturalWidth > 0),
                twin: [...document.images].map(i => i.currentSrc !== i.src),
            })"""
        )
    assert {name: found["wide"] for name, found in seen.items()} == dict.fromkeys(seen, 0)
    assert all(all(found["shown"]) and len(found["shown"]) == len(built.figures) for found in seen.values())
    assert {name: set(found["twin"]) for name, found in seen.items()} == {
        "day": {False},
        "night": {True},
        "phone": {False},
        "paper": {False},
    }
    assert seen["day"]["ink"] == seen["night"]["ink"].replace("232, 234, 237", "22, 24, 28") == seen["paper"]["ink"]
    assert seen["night"]["paper"] == "rgb(18, 20, 23)"


def told(built: Built, monkeypatch: pytest.MonkeyPatch, *, as_json: bool) -> Path:
    """Print a report that is built already."""
    monkeypatch.setattr("bnlab.report.build.build", lambda *_: built)
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["report", str(built.path.parent), *["--json"] * as_json])
    return built.path


def test_json_says_what_the_report_says(
    built: Built, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = told(built, monkeypatch, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == str(path)
    assert said["figures"] == list(built.figures)
    (claim,) = said["claims"]
    assert {"name", "verdict", "effect", "interval", "p", "n", "why"} <= set(claim)
    assert (claim["name"], claim["verdict"], claim["n"], claim["p"]) == ("rates", "direction only", 3, None)
    assert claim["effect"] == pytest.approx(10)


def test_the_terminal_tells_verdicts_what_is_left_out_and_where_the_report_is(
    built: Built, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = told(built, monkeypatch, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["arm", "lr", "n"]
    assert lines[2].startswith("no norm     0.1  3       3/9")
    assert lines[4] == "! 3 seeds cannot tell 2 arms apart: 6 or more can"
    assert lines[5].startswith("→ direction only")
    assert lines[6].strip().startswith("ratio 10")
    assert any(re.match(r"left out +layer/lr=0\.1/seed=0-\w+: failed at step 40", line) for line in lines)
    assert f"report     {path}" in lines
    assert re.match(r"made of    18 runs, 8 figures, in [\d.]+ s", lines[-1])


def test_a_report_opens_with_what_was_trained(tmp_path: Path, write: Callable[..., Path]) -> None:
    """Lists are no keys of a set, and texts and numbers have no common order: a user's own model may have all."""
    widths: list[Any] = [[8, 16], 32, "wide", None]
    for seed, width in enumerate(widths):
        spec = {"model.width": width, "optim.momentum": 0.9, "optim.schedule": "cosine", "epochs": None}
        write(tmp_path, lr=10.0, seed=seed, spec=spec)
    for seed in range(4, 12):
        write(tmp_path, lr=0.001 * 2**seed, seed=seed, spec={"steps": None, "epochs": 5})
    assert dict(setting_of(read_runs(tmp_path).runs)) == {
        "Data": "digits, batch size 64",
        "Net": "mlp, depth 3, width wide, 32, [8,16], activation relu",
        "Training": "40 steps, 5 epochs, cross entropy, SGD, momentum 0.9, schedule cosine",
        "Learning rate": "9 values, 0.016 to 10",
        "Seed": "0 to 11",
    }


def test_a_report_goes_into_another_folder_and_leaves_the_runs_alone(
    grid: Path, write: Callable[..., Path], in_process: Callable[..., Any], tmp_path: Path
) -> None:
    study(grid)
    for seed in range(2):
        write(grid.parent / "other", seed=seed)
    before = {file: file.read_bytes() for file in grid.parent.rglob("*") if file.is_file()}
    mine = tmp_path / "papers" / "figures" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    said = in_process("report", grid, "--out", tmp_path / "papers", "--json")
    assert (said.code, said.json["report"]) == (0, str(tmp_path / "papers" / "report.html"))
    assert {"report.html", "verdicts.json", "summary.parquet"} <= {one.name for one in (tmp_path / "papers").iterdir()}
    assert (tmp_path / "papers" / "figures" / "forest.svg").is_file()
    assert mine.read_bytes() == b"mine"
    assert {file: file.read_bytes() for file in before} == before
    assert set(grid.rglob("*.html")) == set()
    both = in_process("report", tmp_path, "--out", tmp_path / "both", "--json")
    assert both.code == 0
    assert (tmp_path / "both" / "grid" / "report.html").is_file()
    assert 'href="grid/report.html"' in (tmp_path / "both" / "report.html").read_text()
    assert (
        in_process("report", grid, "--gallery", "--out", "x").err == "--out: cannot be used with --gallery, got 'x'.\n"
    )
    blocked = in_process("report", grid, "--out", mine)
    assert (blocked.code, blocked.err) == (2, f"--out: not a directory, got '{mine}/figures'.\n")


PLUGIN = '''
"""Final training losses, as one number a run."""

from matplotlib.figure import Figure

from bnlab import FIGURES
from bnlab.report.views import Drawn, Missing, View


@FIGURES.register("last_losses", subject="final training losses", reads=("train_loss",))
def draw(view: View, name: str) -> Drawn:
    rows = [(run.lr, run.seed, float(run.series("train_loss").values[-1])) for g in view.groups for run in g.runs]
    if not rows:
        raise Missing("no runs")
    figure = Figure()
    figure.add_subplot().plot([row[0] for row in rows], [row[2] for row in rows], "o")
    about = "A point a run."
    return Drawn(name, "Losses at the end", "One point a run.", about, ("lr", "seed", "loss"), rows, figure)
'''


def test_a_plugin_brings_a_figure_that_comes_after_the_others(tmp_path: Path, write: Write) -> None:
    plugin = tmp_path / "my_figure.py"
    plugin.write_text(PLUGIN)
    root = tmp_path / "runs" / "s"
    write(root, spec={"plugins": [str(plugin)]})
    write(root, norm="none", spec={"plugins": [str(plugin)]})
    try:
        built = build(root, [str(plugin)])
    finally:
        FIGURES.forget("last_losses")
    assert built.figures[-1] == "last_losses"
    lines = (root / "figures" / "last_losses.csv").read_text().splitlines()
    assert lines[0] == "lr,seed,loss"
    assert len(lines) == 1 + 2
    assert "Losses at the end" in (root / "report.html").read_text()


BROKEN = '''
from bnlab import FIGURES, METRICS


@METRICS.register("a_word", of="run", source="own", unit="")
def a_word(run):
    """A word."""
    return "high"


@METRICS.register("an_error", of="run", source="own", unit="")
def an_error(run):
    """An error."""
    return run.nothing


@FIGURES.register("no_figure", subject="nothing")
def no_figure(view, name):
    """An error."""
    raise ValueError("nothing\\nto draw")
'''


def test_what_a_plugin_does_wrong_costs_its_own_part_of_the_report_alone(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN)
    without = build(grid)
    study(grid, metric="a_word", at="best_lr", compare="difference", smallest_effect=0.0)
    load_plugin(str(plugin))
    try:
        built = build(grid)
        with pytest.raises(SystemExit, match=r"^3$"):
            main(["report", str(grid)])
    finally:
        FIGURES.forget("no_figure")
        METRICS.forget("a_word")
        METRICS.forget("an_error")
    lines = [
        "metric=a_word: must give a float or a Value, got 'high'.",
        "metric=an_error: AttributeError in broken.py, line 14: 'Run' object has no attribute 'nothing'.",
        "figure=no_figure: cannot be drawn, ValueError in broken.py, line 20: nothing to draw",
    ]
    assert list(built.failed) == lines
    assert capsys.readouterr().err.splitlines() == lines
    assert built.figures == without.figures
    assert built.verdicts[0].decision == "not tested"
    assert built.verdicts[0].why == lines[0]
    assert "nothing to draw" in (grid / "report.html").read_text()
    assert pl.read_parquet(grid / "summary.parquet")["a_word"].null_count() == built.runs


def test_a_report_does_without_a_plugin_that_is_gone(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "s", spec={"plugins": [str(tmp_path / "gone.py")]})
    assert build(tmp_path / "s").runs == 1
