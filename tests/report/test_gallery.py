"""`bnlab report --gallery`: one page over the studies below a folder, from their runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.cli import main
from bnlab.config import statements
from bnlab.record.folder import RunFolder
from bnlab.report.build import build

Write = Callable[..., Path]
Said = tuple[int, str, str]
QUESTION = "Which <norm> is better?"


class Page(HTMLParser):
    """The attributes of every element by its tag, and the text of each element with an id."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.elements.append((tag, given))
        if tag not in ("meta", "img", "source"):
            self._open.append(given.get("id", ""))

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for name in filter(None, self._open):
            self.texts[name] = f"{self.texts.get(name, '')} {' '.join(data.split())}"

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def sweep(write: Write, root: Path, *, better: str, seeds: int = 7, name: str = "") -> None:
    """The runs of a study with two claims, in which one norm ends at a tenth of the other's loss."""
    for norm, seed in ((norm, seed) for norm in ("none", "batch") for seed in range(seeds)):
        loss = (0.01 if norm == better else 0.1) * (1 + 0.01 * seed)
        write(root, norm=norm, seed=seed, loss=loss, journal=[{"step": 0, "train_loss": 2.0}])
    claim: dict[str, Any] = {"source": "nobody", "metric": "final_train_loss", "at": "best_lr", "expect": "smaller"}
    claim |= {"contrast": {"norm": ["batch", "none"]}, "compare": "ratio", "smallest_effect": 2.0}
    claims = [
        claim | {"name": "lower", "text": "Batch norm ends lower", "notes": {"10": "agrees"}},
        claim | {"name": "far_lower", "text": "Batch norm ends far lower", "smallest_effect": 10, "notes": {}},
    ]
    tree = {"name": name or root.name, "base": "deep_mlp", "title": QUESTION, "claims": claims}
    tree |= {"axes": {"norm": "none,batch", "seed": f"range(0,{seeds})"}}
    tree["provenance"] = {"line": f"bnlab sweep --config {root.name} seed='range({seeds})'"}
    (root / "study.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture
def bnlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs `bnlab report --gallery` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(["report", "--gallery", *words])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


@pytest.fixture
def two(tmp_path: Path, write: Write) -> Path:
    """A folder with a study in which batch norm ends lower, one in which it does not, and one that has only begun."""
    root = tmp_path / "runs"
    sweep(write, root / "lower", better="batch")
    sweep(write, root / "higher", better="none")
    write(root / "begun", status="running")
    sweep(write, root / "begun", better="none", seeds=0)
    return root


def test_the_page_has_the_rows_cards_and_commands_of_the_studies_that_ran(
    two: Path, bnlab: Callable[..., Said]
) -> None:
    code, out, err = bnlab("--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"gallery": "runs/gallery/index.html", "studies": ["higher", "lower"], "failed": []}
    page = Page(two / "gallery" / "index.html")

    known = {name: json.loads((two / name / "verdicts.json").read_text()) for name in ("higher", "lower")}
    decided = {name: {key: of["decision"] for key, of in facts["claims"].items()} for name, facts in known.items()}
    assert decided["lower"] == {"lower": "supported", "far_lower": "inconclusive"}
    assert decided["higher"] == {"lower": "refuted", "far_lower": "refuted"}
    assert "✓ 1 supported ? 1 inconclusive" in " ".join(page.texts["lower"].split())
    assert "✕ 2 refuted" in page.texts["higher"]
    assert QUESTION in page.texts["lower"]
    assert "bnlab sweep --config lower seed='range(7)'" in page.texts["lower"]
    assert "21 s of training on two cores" in page.texts["lower"]
    assert "bnlab sweep --config drift" in page.texts["drift"]
    assert "3 min" in page.texts["drift"]
    assert "begun" not in page.texts

    row = " ".join(page.texts["statement-10"].split())
    assert "✕ 0.1x (0.1 to 0.1) lower" in row
    assert "✓ 10x (10 to 10) lower" in row
    assert "– not run convergence" in row
    for number, count in ((5, 8), (31, 2), (32, 4)):
        text = " ".join(page.texts[f"statement-{number}"].split())
        assert f"✓ {count} of {count} identities hold" in text
        assert "bnlab verify" in text
    assert [name for name in page.texts if name.startswith("statement-")] == [f"statement-{n}" for n in range(1, 35)]
    text = (two / "gallery" / "index.html").read_text(encoding="utf-8")
    assert "of the 2 studies judged here, about 0.1 may have a wrong verdict" in text
    assert text.index('id="statements"') < text.index('id="papers"') < text.index('id="studies"')
    assert text.index('id="studies"') < text.index('id="not-run"')


def test_every_link_leads_somewhere_also_after_the_folder_was_moved(
    two: Path, tmp_path: Path, bnlab: Callable[..., Said]
) -> None:
    assert bnlab()[:2] == (0, "gallery    runs/gallery/index.html\nmade of    2 studies\n")
    moved = tmp_path / "elsewhere"
    shutil.move(two / "gallery", moved)
    page = Page(moved / "index.html")
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [link["href"] for link in page.all("a")]
    assert [link for link in links if link.startswith("#") and link[1:] not in ids] == []
    files = [link for link in links if not link.startswith("#")]
    files += [image["src"] for image in page.all("img")] + [twin["srcset"] for twin in page.all("source")]
    assert [file for file in files if not (moved / file).is_file()] == []
    assert {"lower/report.html", "higher/report.html"} <= set(files)
    assert len(page.all("img")) == len(page.all("source")) == 4
    assert all(len(image["alt"]) > 60 for image in page.all("img"))
    assert page.all("img")[0]["alt"].startswith("All 2 claims are refuted. A row for each claim")
    assert page.all("script") == page.all("link") == []
    assert (moved / "lower/figures/forest.svg").read_text() == (two / "lower/figures/forest.svg").read_text()


def test_a_report_is_built_again_only_if_a_run_ended_after_it(
    two: Path, write: Write, bnlab: Callable[..., Said]
) -> None:
    for name in ("lower", "higher"):
        build(two / name)
    kept = {name: (two / name / "report.html").stat().st_mtime_ns for name in ("lower", "higher")}
    write(two / "lower", norm="batch", seed=9, loss=0.01, journal=[])
    assert bnlab()[0] == 0
    assert (two / "higher" / "report.html").stat().st_mtime_ns == kept["higher"]
    assert (two / "lower" / "report.html").stat().st_mtime_ns > kept["lower"]
    assert json.loads((two / "lower" / "verdicts.json").read_text())["runs"] == 15


def test_a_report_is_built_again_if_a_net_answered_after_it(two: Path, bnlab: Callable[..., Said]) -> None:
    build(two / "lower")
    kept = (two / "lower" / "report.html").stat().st_mtime_ns
    RunFolder(next(two.glob("lower/*/*/*"))).add_answer({"step": 0})
    assert bnlab()[0] == 0
    assert (two / "lower" / "report.html").stat().st_mtime_ns > kept


def test_a_report_of_an_earlier_version_is_built_again(two: Path, bnlab: Callable[..., Said]) -> None:
    build(two / "lower")
    file = two / "lower" / "verdicts.json"
    facts = json.loads(file.read_text())
    del facts["figures"]
    file.write_text(json.dumps(facts))
    assert bnlab()[0] == 0
    assert "figures" in json.loads(file.read_text())


@pytest.mark.parametrize("words", [[], ["some where"]])
def test_nothing_run_yet_is_one_line_with_what_to_type(words: list[str], bnlab: Callable[..., Said]) -> None:
    code, out, err = bnlab(*words)
    assert (code, out) == (2, "")
    place = "".join(words) or "runs"
    here = " --runs 'some where'" if words else ""
    assert err == (
        f"--gallery: no study here has an ended run, got '{place}'. Run one: bnlab sweep --config quickstart{here}\n"
    )


def test_a_study_in_the_place_of_the_page_is_left_alone(two: Path, write: Write, bnlab: Callable[..., Said]) -> None:
    assert bnlab("runs/lower")[2].startswith("--gallery: is a study itself, got 'runs/lower'. Give the folder above")
    sweep(write, two / "gallery", better="none")
    before = sorted((two / "gallery").rglob("*"))
    assert bnlab()[2].startswith("--gallery: is a study, where the page would be, got 'runs/gallery'.")
    assert sorted((two / "gallery").rglob("*")) == before


def test_a_folder_that_cannot_be_read_costs_itself_alone(two: Path, bnlab: Callable[..., Said]) -> None:
    (two / "higher" / "study.yaml").write_text("[")
    code, out, err = bnlab()
    assert code == 3
    assert "made of    1 study" in out
    assert re.fullmatch(r"runs/higher/study\.yaml: not YAML: .* Remove it, .*\n", err)
    assert (two / "gallery" / "lower" / "report.html").is_file()


def test_numbers_that_are_too_many_for_the_report_come_with_it(
    two: Path, monkeypatch: pytest.MonkeyPatch, bnlab: Callable[..., Said]
) -> None:
    monkeypatch.setattr("bnlab.report.page.EMBEDDED", 100)
    assert bnlab()[0] == 0
    page = Page(two / "gallery" / "lower" / "report.html")
    beside = [link["href"] for link in page.all("a") if not link["href"].startswith("data:")]
    assert beside
    assert [link for link in beside if not (two / "gallery" / "lower" / link).is_file()] == []


def test_a_study_counts_once_among_the_wrong_verdicts_to_expect() -> None:
    claims = {"a": {"p": 0.01}, "b": {"p": None}}
    known = {name: {"claims": claims} for name in "abc"} | {"d": {"claims": {"b": {"p": None}}}}
    assert statements.wrong(known) == "of the 3 studies judged here, about 0.15 may have a wrong verdict"
    assert statements.wrong({"a": known["a"]}) == "of the 1 study judged here, about 0.05 may have a wrong verdict"


@pytest.mark.browser
def test_the_page_fits_a_desk_a_phone_and_paper_by_day_and_by_night(
    two: Path, bnlab: Callable[..., Said], browser: Any, looks: Callable[..., Any]
) -> None:
    assert bnlab()[0] == 0
    seen: dict[str, dict[str, Any]] = {}
    for name, page in looks(browser, two / "gallery" / "index.html"):
        seen[name] = page.evaluate(
            """() => ({
                wide: document.documentElement.scrollWidth - innerWidth,
                ink: getComputedStyle(document.body).color,
                shown: [...document.images].map(i => i.complete && i.naturalWidth > 0),
                twin: [...document.images].map(i => i.currentSrc.includes('-dark')),
                row: getComputedStyle(document.querySelector('#statement-1 td')).display,
            })"""
        )
        if name == "day":  # TAB leads to the parts of the page, and what has the focus is marked
            page.keyboard.press("Tab")
            page.keyboard.press("Tab")
            focused = "() => [document.activeElement.hash, getComputedStyle(document.activeElement).outlineStyle]"
            assert page.evaluate(focused) == ["#papers", "solid"]
            page.keyboard.press("Enter")
            assert page.evaluate("() => scrollY") > 300
    assert {name: found["wide"] for name, found in seen.items()} == dict.fromkeys(seen, 0)
    assert all(found["shown"] == [True] * 4 for found in seen.values())
    assert {name: set(found["twin"]) for name, found in seen.items()} == {
        "day": {False},
        "night": {True},
        "phone": {False},
        "paper": {False},
    }
    assert seen["day"]["ink"] == seen["paper"]["ink"] != seen["night"]["ink"]
    assert {name: found["row"] for name, found in seen.items()} == dict.fromkeys(seen, "table-cell") | {
        "phone": "block"
    }


def test_a_study_in_a_folder_is_on_the_page_too(two: Path, bnlab: Callable[..., Said], write: Write) -> None:
    sweep(write, two / "lessons" / "mine", better="batch", name="lessons/mine")
    code, out, err = bnlab("--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["studies"] == ["higher", "lessons/mine", "lower"]
    assert (two / "gallery" / "lessons" / "mine" / "report.html").is_file()
    assert "lessons/mine/report.html" in (two / "gallery" / "index.html").read_text()
