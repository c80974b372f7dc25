"""Colours: legible on light and dark, and never the only sign."""

from __future__ import annotations

import re

import pytest
from matplotlib import colormaps
from matplotlib.colors import to_hex

from bnlab.analysis.arms import OLD_TITLES
from bnlab.core.registry import NORMS
from bnlab.report import style
from bnlab.report.style import DARK_PAPER, LOOKS, PAPER, SPARE, contrast, dark, legible, looks_for

ALL = [*LOOKS.values(), *SPARE]


def test_arms_differ_in_colour_in_marker_and_in_dash() -> None:
    for sign in ("color", "marker", "dash"):
        assert len({getattr(look, sign) for look in ALL}) == len(ALL)


def test_colours_of_the_two_main_arms_are_okabe_and_itos() -> None:
    assert (LOOKS["batch"].color, LOOKS["none"].color) == ("#0072b2", "#d55e00")


@pytest.mark.parametrize("look", ALL, ids=lambda look: look.color)
def test_names_in_the_colour_of_their_line_can_be_read_on_paper_and_in_the_dark(look: style.Look) -> None:
    assert contrast(look.ink, PAPER) >= 4.5
    assert contrast(legible(look.ink, DARK_PAPER), DARK_PAPER) >= 4.5
    assert contrast(look.color, PAPER) >= 1.9  # lines and markers are larger than letters


def test_contrast_is_that_of_wcag() -> None:
    # The guideline's own examples: black on white, and the darkest grey that fails and the lightest that passes AA.
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


def test_in_dark_mode_every_colour_of_a_figure_has_contrast() -> None:
    drawing = " ".join(f"fill: {color}" for color in (PAPER, style.INK, style.MUTED, *(look.color for look in ALL)))
    turned = re.findall("#[0-9a-f]{6}", dark(drawing))
    assert turned[0] == DARK_PAPER
    assert min(contrast(color, DARK_PAPER) for color in turned[1:]) >= 4.5


def test_in_the_dark_the_ends_of_a_colour_bar_stay_as_they_are() -> None:
    ends = [to_hex(colormaps[style.RC["image.cmap"]](end)) for end in (0.0, 1.0)]
    assert [dark(color) for color in ends] == ends


def test_arms_of_one_norm_get_different_looks_and_the_others_keep_theirs() -> None:
    looks = looks_for(["none", "ghost_batch", "ghost_batch", "batch"])
    assert looks[0] == LOOKS["none"]
    assert looks[3] == LOOKS["batch"]
    assert len({look.marker for look in looks}) == 4
    assert len(looks_for(["batch"] * 25)) == 25


def test_names_are_of_norms_that_there_are() -> None:
    assert {choice for group, choice in OLD_TITLES if group == "norm"} <= set(NORMS.names())
    assert set(LOOKS) <= set(NORMS.names())
