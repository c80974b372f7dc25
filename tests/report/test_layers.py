"""Figures of every layer over steps, of counts in colour, and of the loss at the start: their numbers, worked out by
hand."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bnlab.record.runs import Run
from bnlab.report.figures import FIGURES
from bnlab.report.views import Drawn, Missing, View
from bnlab.report.write import styled, table

MakeRun = Callable[..., Run]
Make = Callable[..., View]
STEPS = [0, 10, 20, 40]


@pytest.fixture(autouse=True)
def _style() -> Any:
    with styled():
        yield


def rows_of(drawn: Drawn) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table(drawn))))


def draw(kind: str, shown: View, **options: Any) -> Drawn:
    drawn: Drawn = FIGURES[kind].constructor(shown, "x", **options)
    return drawn


def arms(run_of: MakeRun, view: Make, name: str) -> View:
    """Of two hidden layers and the head, at steps 0 to 40: the layer's number plus 1, times the seed's factor, times 10
    without a norm."""
    return view(
        {
            arm: [run_of(seed=s, **{name: (STEPS, [[f * (1 + s), f * 2 * (1 + s), 99.0]] * 4)}) for s in range(3)]
            for arm, f in (("no norm", 0.01), ("batch norm", 0.001))
        }
    )


def test_every_hidden_layer_has_its_median_over_seeds(run_of: MakeRun, view: Make) -> None:
    found = draw("layers", arms(run_of, view, "my__x"), of="my.x", log="y", reference=0.003)
    rows = rows_of(found)
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        factor = {"no norm": 0.01, "batch norm": 0.001}[row["arm"]]
        assert float(row["median"]) == pytest.approx(factor * (1 + int(row["layer"])) * 2)
    assert found.title == "my.x, mean over steps: 10× lower with batch norm"


@pytest.mark.parametrize(
    ("kind", "of"),
    [("update_ratio", "update_ratio"), ("saturation", "saturated_fraction"), ("dead_units", "dead_fraction")],
)
def test_named_figures_are_of_their_measurement(kind: str, of: str, run_of: MakeRun, view: Make) -> None:
    of_arms = arms(run_of, view, of)
    found = draw(kind, of_arms)
    assert rows_of(found) == rows_of(draw("layers", of_arms, of=of))
    assert found.title.startswith(f"{of}, mean over steps")
    lines = [line.get_ydata() for ax in found.figure.axes for line in ax.lines if len(set(line.get_ydata())) == 1]
    assert any(line[0] == 1e-3 for line in lines) == (kind == "update_ratio")
    assert {ax.get_yscale() for ax in found.figure.axes} == {"log" if kind == "update_ratio" else "linear"}


def test_a_layer_without_the_measurement_is_not_drawn(run_of: MakeRun, view: Make) -> None:
    values = [[0.5, math.nan, 0.25, math.nan]] * 4
    found = draw("layers", view({"no norm": [run_of(my__x=(STEPS, values))]}), of="my.x")
    (ax,) = found.figure.axes
    assert [text.get_text() for text in ax.texts] == ["0", "2"]
    assert len(ax.lines) == 2


def test_a_measurement_of_the_net_has_no_layers(run_of: MakeRun, view: Make) -> None:
    with pytest.raises(Missing, match="one value a step"):
        draw("layers", view({"no norm": [run_of(my__x=(STEPS, [1.0] * 4))]}), of="my.x")


def counts(centre: int) -> list[float]:
    found = np.zeros(122)
    found[centre - 1 : centre + 2] = 5, 10, 5
    return found.tolist()


def test_a_map_has_the_counts_of_every_bin_between_the_tails(run_of: MakeRun, view: Make) -> None:
    moving = [counts(61 + step // 10) for step in STEPS]
    still = [counts(61)] * 4
    of_arms = view(
        {
            arm: [run_of(seed=seed, histogram__act_in__L01_fc=(STEPS, values)) for seed in range(3)]
            for arm, values in (("no norm", moving), ("batch norm", still))
        }
    )
    found = draw("activation_map", of_arms, site="L01_fc")
    rows = rows_of(found)
    assert len(rows) == 2 * 4 * 3
    last = [row for row in rows if (row["arm"], row["step"]) == ("no norm", "40")]
    width = math.asinh(1000.0) / 60
    for row, bin_, count in zip(last, (63, 64, 65), (5, 10, 5), strict=True):
        assert float(row["bin_low"]) == pytest.approx(math.sinh((bin_ - 60) * width))
        assert float(row["count"]) == count
    image = next(ax.collections[0] for ax in found.figure.axes if ax.collections)
    assert image.get_clim() == (0, pytest.approx(math.log1p(10)))


def test_a_map_of_what_was_not_counted_is_missing(run_of: MakeRun, view: Make) -> None:
    with pytest.raises(Missing, match="no histograms of that site"):
        draw("activation_map", view({"no norm": [run_of(my__x=(STEPS, [1.0] * 4))]}), site="L07_fc")


def test_the_loss_at_the_start_stands_beside_that_of_a_uniform_guess(run_of: MakeRun, view: Make) -> None:
    runs = [run_of(lr=lr, seed=s, train_loss=([0, 20], [3.0 + s, 1.0])) for s in range(3) for lr in (0.1, 1.0)]
    found = draw("initial_loss", view({"no norm": runs}))
    assert [float(row["course"]) for row in rows_of(found)] == [3.0, 4.0, 5.0]
    assert {row["reference"] for row in rows_of(found)} == {"2.30258509"}
