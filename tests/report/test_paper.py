"""`--style paper`: bare pictures of the width that was asked for, and tables in LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from bnlab.core.errors import UsageError
from bnlab.report.build import drawn_from
from bnlab.report.style import Format
from bnlab.report.write import pdf

Command = Callable[..., Any]
STUDY = """
name: grid
base: deep_mlp
axes: {norm: 'none,batch'}
claims:
  - {name: lower_loss, text: Lower, source: mine, metric: final_train_loss, contrast: {norm: [batch, none]},
     at: best_lr, expect: smaller, compare: ratio, smallest_effect: 1.5}
"""


def boxes(data: bytes) -> list[float]:
    """Width and height of a PDF's page, in inches."""
    found = re.search(rb"/MediaBox \[ *0 0 ([\d.]+) ([\d.]+) *\]", data)
    assert found
    return [float(side) / 72 for side in found.groups()]


def test_a_report_for_a_paper_has_pictures_and_tables_and_nothing_else(grid: Path, in_process: Command) -> None:
    (grid / "study.yaml").write_text(STUDY)
    before = set(grid.rglob("*"))
    out = grid.parent / "paper"
    said = in_process("report", grid, "--style", "paper", "--width", "8.4cm", "--out", out, "--json")
    assert (said.code, said.err) == (0, "")
    assert set(grid.rglob("*")) == before
    files = {Path(file).name for file in said.json["files"]}
    assert files == {file.name for file in out.iterdir()}
    pictures = {name for name in files if name.endswith(".pdf")}
    assert {"forest.pdf", "loss_by_rate.pdf", "drift.pdf"} <= pictures
    assert files - pictures == {name.replace("pdf", "csv") for name in pictures} | {
        f"{table}.{kind}" for table in ("verdicts", "arms") for kind in ("tex", "csv")
    }
    for name in pictures:
        assert boxes((out / name).read_bytes())[0] == pytest.approx(8.4 / 2.54, abs=0.01)
    [row] = csv.DictReader(io.StringIO((out / "verdicts.csv").read_text()))
    assert (row["claim"], row["arms"], row["seeds"]) == ("lower loss", "batch and none", "3")
    lines = (out / "arms.tex").read_text().splitlines()
    assert lines[0] == "\\begin{tabular}{lrrrrrrrrrrr}"
    assert {line.partition(" & ")[0] for line in lines[4:-2]} == {"batch norm", "no norm"}


def test_a_bare_picture_has_no_title_and_its_letters_can_be_read(grid: Path) -> None:
    bare = drawn_from(grid, (), Format.of("paper", "3.3in"))
    whole = drawn_from(grid)
    assert [figure.drawn.name for figure in bare.figures] == [figure.drawn.name for figure in whole.figures]
    for small, large in zip(bare.figures, whole.figures, strict=True):
        said = " ".join(text.get_text() for text in small.drawn.figure.findobj(Text))
        assert small.drawn.title == large.drawn.title
        assert " ".join(small.drawn.title.split()[:3]) not in " ".join(said.split())
        assert repr(small.drawn.rows) == repr(large.drawn.rows)
        sizes = [text.get_fontsize() for text in small.drawn.figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= 4.8
        assert max(sizes) <= 8
        width, height = small.drawn.figure.get_size_inches()
        assert width == pytest.approx(3.3)
        assert boxes(pdf(small.drawn)) == pytest.approx([width, height], abs=0.01)


@pytest.mark.parametrize(
    ("style", "width", "inches", "sheet"),
    [
        ("paper", None, 3.3, 4.4),
        ("paper", "8.4cm", 3.307, 4.409),
        ("paper", "5in", 5, 5.6),
        ("paper", "7", 7, 7),
        ("report", None, 5.6, 5.6),
    ],
)
def test_a_width_is_read(style: str, width: str | None, inches: float, sheet: float) -> None:
    found = Format.of(style, width)
    assert (found.width, found.sheet) == pytest.approx((inches, sheet), abs=1e-3)
    assert found.is_bare == (style == "paper")


@pytest.mark.parametrize("width", ["0.5in", "40in", "wide", "-3in", "3.3mm", "1e9"])
def test_a_width_that_no_picture_can_have_is_refused(width: str) -> None:
    with pytest.raises(UsageError, match=r"--width: must be a width from 2\.5in to 12in"):
        Format.of("paper", width)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("report", "--style", "papr"), "--style: no such style, got 'papr'. Did you mean: paper?"),
        (("report", "--width", "3in"), "--width: needs --style paper, got '3in'."),
        (("plot", "--y", "final_train_loss", "--style", "x"), "--style: no such style, got 'x'."),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], line: str, grid: Path, in_process: Command) -> None:
    command, *more = words
    said = in_process(command, grid, *more)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(line)


def test_a_plot_can_be_bare(grid: Path, in_process: Command) -> None:
    out = grid.parent / "x.pdf"
    said = in_process("plot", grid, "--y", "final_train_loss", "--style", "paper", "--out", out)
    assert (said.code, said.err) == (0, "")
    assert boxes(out.read_bytes())[0] == pytest.approx(3.3, abs=0.01)
