"""What people see of the `quickstart` study: pages of TensorBoard and the report, in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from bnlab.board.serve.server import LOG_AXES, OVERVIEW
from bnlab.board.tags import ASIDE
from bnlab.report.figures import FIGURES
from bnlab.report.style import LOOKS

pytestmark = pytest.mark.browser
expect = pytest.importorskip("playwright.sync_api", reason="needs the [browser] extra").expect

RUNS = 120
SOON = {"timeout": 30_000}
Asked = Callable[[str], Any]


def rgb(color: str) -> str:
    """As a browser writes it."""
    return f"rgb({', '.join(str(int(color[start : start + 2], 16)) for start in (1, 3, 5))})"


def on(page: str, link: str) -> str:
    """The link to another of TensorBoard's pages."""
    return re.sub("#[a-z_]+", f"#{page}", link)


@pytest.fixture(scope="module")
def link(study: Path, viewed: Callable[..., str]) -> str:
    return viewed(str(study), "--single")


def test_the_link_shows_the_pinned_cards_in_a_colour_for_each_norm(
    link: str, asked: Asked, opened: Callable[..., Any]
) -> None:
    tags = asked(link).poll("data/plugin/scalars/tags", lambda found: len(found) == RUNS)
    seen = opened(link)
    cards = seen.page.locator("metrics-pinned-view card-view")
    expect(cards).to_have_count(len(OVERVIEW), **SOON)
    expect(cards.first.locator("line-chart")).to_be_visible(**SOON)
    names = cards.locator(".tag")
    expect(names).to_have_count(len(OVERVIEW), **SOON)
    assert names.evaluate_all("all => all.map(tag => tag.title)") == list(OVERVIEW)
    rows = seen.page.locator("runs-data-table tb-data-table-content-row")
    expect(rows).to_have_count(RUNS, **SOON)
    told_rows = rows.evaluate_all(
        """all => all.map(row => [
            row.textContent.trim(),
            getComputedStyle(row.querySelector('.run-color-swatch')).backgroundColor,
        ])"""
    )
    colours = {
        norm: {colour for name, colour in told_rows if name.startswith(f"{norm}/")} for norm in ("batch", "none")
    }
    assert colours == {norm: {rgb(LOOKS[norm].color)} for norm in ("batch", "none")}
    assert seen.page.get_by_text("Tooltip sorting method").count() == 0, "the settings are closed"
    seen.page.get_by_role("button", name="Settings").last.click()
    assert seen.page.locator("input.slider-input").first.input_value() == "0"
    assert {name for name, _ in told_rows} == set(tags)
    assert seen.errors == []
    assert seen.asked == {urlsplit(link).netloc}


def test_the_table_has_a_row_a_run_with_its_columns(link: str, asked: Asked, opened: Callable[..., Any]) -> None:
    runs = asked(link).poll("data/runs", lambda found: len(found) == RUNS)
    seen = opened(on("hparams", link), height=2600)
    cells = seen.page.locator("tf-hparams-table-view vaadin-grid-cell-content")
    trial = re.compile(r"^\s*(batch|none)/lr=.*/seed=\d+-[0-9a-f]{10}\s*$")
    expect(cells.filter(has_text=trial)).to_have_count(100, **SOON)  # of a page
    trials = [text.strip() for text in cells.all_text_contents() if trial.match(text)]
    assert len(set(trials)) == 100
    assert set(trials) <= set(runs)
    columns = ("Trial ID", "norm", "lr", "seed", "test_accuracy", "test_loss", "train_loss", "diverged")
    places = []
    for column in columns:
        head = cells.filter(has_text=re.compile(rf"^\s*{column}\s*$"))
        expect(head).to_have_count(1, **SOON)
        places.append(head.bounding_box()["x"])
    assert places == sorted(places)
    expect(cells.filter(has_text=re.compile(r"^\s*(batch_size|depth|data|model|optim)\s*$"))).to_have_count(0)
    assert seen.errors == []
    assert seen.asked == {urlsplit(link).netloc}


def test_histograms_of_both_arms_are_there_with_all_tags(
    study: Path, tmp_path: Path, viewed: Callable[..., str], asked: Asked, opened: Callable[..., Any]
) -> None:
    """Of one rate and seed, as somebody would who wants to see the layers."""
    for norm in ("batch", "none"):
        [run] = (study / norm / "lr=0.0562").glob("seed=12-*")
        shutil.copytree(run, tmp_path / norm / run.parent.name / run.name)
    link = viewed(str(tmp_path), "--full")
    tags = asked(link).poll("data/plugin/histograms/tags", lambda found: len(found) == 2)
    names = set().union(*tags.values())
    assert len(names) == 6
    seen = opened(f"{on('timeseries', link).partition('?')[0]}?tagFilter=9_hist#timeseries", height=2000)
    cards = seen.page.locator("histogram-card")
    expect(cards).to_have_count(2 * len(names), **SOON)
    ridges = cards.locator("svg .histogram")
    expect(ridges.first).to_be_visible(**SOON)
    shown = cards.evaluate_all("all => all.map(card => card.innerText)")
    for norm in ("batch", "none"):
        assert sum(f"{norm}/lr=" in text for text in shown) == len(names)
    assert seen.errors == []
    assert seen.asked == {urlsplit(link).netloc}


def test_arms_side_by_side_show_their_bands_and_a_depth_profile(
    study: Path, viewed: Callable[..., str], asked: Asked, opened: Callable[..., Any]
) -> None:
    link = viewed(str(study))
    layout = asked(link).poll("data/plugin/custom_scalars/layout", bool)
    charts = [chart for category in layout["category"] for chart in category["chart"]]
    bands = sum("margin" in chart for chart in charts)
    asked(link).poll("data/runs", lambda found: len(found) == 11)
    seen = opened(link, height=3000)
    margins = seen.page.locator("tf-custom-scalar-margin-chart-card")
    lines = seen.page.locator("tf-custom-scalar-multi-line-chart-card")
    expect(margins).to_have_count(bands, **SOON)
    expect(lines).to_have_count(len(charts) - bands, **SOON)
    drawn = re.compile(r"M.*L")
    expect(margins.first.locator("path.area").first).to_have_attribute("d", drawn, **SOON)
    expect(lines.last.locator("path.line").first).to_have_attribute("d", drawn, **SOON)
    boxes = seen.page.locator("tf-runs-selector paper-checkbox")
    expect(boxes).to_have_count(10)  # not the run that has the figures
    ticked = boxes.evaluate_all("all => all.filter(box => box.checked).map(box => box.name)")
    assert 3 <= len(ticked) <= 6
    assert {name.split("/")[0] for name in ticked} == {"batch norm", "no norm"}
    heads = seen.page.locator("tf-category-paginated-view .heading").all_inner_texts()
    assert all(re.match("[✓✕?→·] ", head) for head in heads[:3])
    assert heads[3].startswith("1. Loss and accuracy")
    strokes = margins.first.locator("path.line").evaluate_all("all => all.map(line => getComputedStyle(line).stroke)")
    assert {rgb(LOOKS[norm].color) for norm in ("batch", "none")} <= set(strokes)
    logs = seen.page.locator("paper-icon-button[title='Toggle y-axis log scale'][selected]")
    expect(logs).to_have_count(sum(bool(re.search(LOG_AXES, chart["title"])) for chart in charts), **SOON)
    assert seen.errors == []
    assert seen.asked == {urlsplit(link).netloc}
    assert dict(parse_qsl(urlsplit(link).query))["smoothing"] == "0"


def test_figures_are_large_and_lines_beside_them_have_their_colours(
    study: Path, viewed: Callable[..., str], asked: Asked, opened: Callable[..., Any]
) -> None:
    link = viewed(str(study))
    asked(link).poll("data/runs", lambda found: len(found) == 11)
    seen = opened(on("images", link), height=2000)
    figures = seen.page.locator("tf-image-loader img")
    expect(figures.first).to_be_visible(**SOON)
    assert figures.first.bounding_box()["width"] > 700
    seen.page.goto("about:blank")
    seen.page.goto(on("timeseries", link))
    rows = seen.page.locator("runs-data-table tb-data-table-content-row")
    expect(rows.first).to_be_visible(**SOON)
    swatches = "all => all.map(row => getComputedStyle(row.querySelector('.run-color-swatch')).backgroundColor)"
    names = [name.strip() for name in rows.all_text_contents()]
    assert 3 <= len(names) <= 6, "the lines of the first page"
    assert ASIDE not in names
    assert {rgb(LOOKS[norm].color) for norm in ("batch", "none")} <= set(rows.evaluate_all(swatches))
    assert seen.errors == []


def test_the_report_fits_a_desk_a_phone_and_paper_by_day_and_by_night(study: Path, opened: Callable[..., Any]) -> None:
    views = {
        "day": {"width": 1180, "color_scheme": "light"},
        "night": {"width": 1180, "color_scheme": "dark"},
        "phone": {"width": 390, "color_scheme": "light"},
        "paper": {"width": 700, "color_scheme": "dark"},
    }
    inks, drawn = {}, {}
    for name, how in views.items():
        seen = opened((study / "report.html").as_uri(), **how)
        if name == "paper":
            seen.page.emulate_media(media="print", color_scheme="dark")
        loaded = "() => [...document.images].every(i => i.complete && i.naturalWidth > 0)"
        seen.page.wait_for_function(loaded, **SOON)
        found = seen.page.evaluate(
            """() => ({
                wide: document.documentElement.scrollWidth - innerWidth,
                ink: getComputedStyle(document.body).color,
                shown: document.images.length,
            })"""
        )
        assert found["wide"] == 0, name
        inks[name], drawn[name] = found["ink"], found["shown"]
        assert seen.errors == []
        assert {host for host in seen.asked if host} == set()
    assert inks["day"] == inks["phone"] == inks["paper"] != inks["night"]
    assert set(drawn.values()) == {drawn["day"]}
    assert 4 <= drawn["day"] <= len(FIGURES.names())
