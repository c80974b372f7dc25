"""What is changed in TensorBoard's page: every place is there in the installed version, and what is served has it."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorboard

from bnlab.board.compare import build
from bnlab.board.serve import server
from bnlab.board.serve.page import CHANGES, Look, changed, files
from bnlab.board.serve.server import LOG_AXES, Server, command, look_of
from bnlab.board.tags import ASIDE
from bnlab.report.style import LOOKS
from tests.board.conftest import sweep

ORIGINAL = Path(tensorboard.__file__).with_name("webfiles.zip")
PLACES = [1, 1, 1, 1, 2, 2, 1, 1]
"""How often each of CHANGES is in TensorBoard 2.21: both cards of Custom Scalars, and both ways to a list of runs."""


@pytest.fixture(scope="module")
def script() -> str:
    with zipfile.ZipFile(ORIGINAL) as assets:
        return assets.read("index.js").decode()


def test_every_place_that_is_changed_is_there(script: str) -> None:
    assert [len(re.findall(pattern, script)) for pattern in CHANGES] == PLACES
    made = changed(script, "{}")
    assert made.count("bnlab.colour(") == 3
    assert made.count("bnlab.log(") == 3
    assert made.count("bnlab.listed(") == 2
    assert made.count("this._actualSize=!0") == 1
    assert made.count("width: auto;max-width:100%;") == 1


def test_a_script_of_another_version_is_left_as_it_is() -> None:
    assert changed("let other=1;", '{"colours":{},"log":""}').endswith("\nlet other=1;")


def test_the_address_of_the_script_follows_the_look() -> None:
    """Browsers keep a script for a day, also that of another sweep at the same port."""

    def address(look: Look) -> str:
        with zipfile.ZipFile(files(ORIGINAL, look.json())) as made:
            return re.findall(r"index\.js\?_file_hash=\w+", made.read("index.html").decode())[0]

    one = address(Look(colours={"batch": "#0072b2"}))
    assert one == address(Look(colours={"batch": "#0072b2"}))
    assert one != address(Look(colours={"batch": "#d55e00"}))


def test_what_is_served_has_the_look_and_opens_with_the_settings_closed(tmp_path: Path, asked: Any) -> None:
    look = Look(colours={"batch": "#0072b2"}, log="loss")
    with Server(command(tmp_path, port=0, bind_all=False, runs=1, look=look)) as started:
        page = asked(started.address())
        (name,) = re.findall(r'src="(index\.js\?[^"]+)"', page.text())
        served = page.text(name)
    assert f"look:{look.json()}" in served
    assert '{...{"timeSeriesSettingsPaneOpened": false},...kept}' in served, "what the user sets later is kept"


def test_norms_have_the_colours_of_the_report_wherever_the_root_is() -> None:
    runs = ["deep/er/batch/lr=1/seed=0-a", "deep/er/none/lr=1/seed=0-b"]
    assert look_of(runs).colours == {norm: LOOKS[norm].color for norm in ("batch", "none")}
    assert look_of(runs[:1]).colours == {}, "one norm is coloured by learning rate"


@pytest.mark.parametrize(
    ("names", "is_log"),
    [
        (("1_progress/train_loss", "1_progress/test_loss", "train_loss", "train_loss; band: within reach"), True),
        (("2_drift_mean_pre/00_median_of_layers", "4_grad_norm/00_total", "gradient norm at step 3"), True),
        (("variance of pre-activations at step 3", "5_landscape/loss_range", "5_landscape/grad_change"), True),
        (("1_progress/test_accuracy", "test_accuracy", "1_progress/lr", "9_hist_pre/L01_fc"), False),
        (("6_act_percentiles_act_in/first_p15", "layer 0: from above p85, p50, p15"), False),
    ],
)
def test_what_spans_decades_has_a_logarithmic_axis(names: tuple[str, ...], is_log: bool) -> None:
    assert [bool(re.search(LOG_AXES, name)) for name in names] == [is_log] * len(names)


# -- the comparison ---------------------------------------------------------------------------------------------------


def test_a_comparison_has_the_report_s_colours_and_shades_of_them(swept: Path, tmp_path: Path) -> None:
    found = build(swept, tmp_path / "logs")
    for arm, norm in (("batch norm", "batch"), ("no norm", "none")):
        own = LOOKS[norm].color
        assert found.colours[arm] == found.colours[f"{arm}/lr=0.05"] == own
        assert re.fullmatch("#[0-9a-f]{6}", found.colours[f"{arm}/lr=1000000"])
        assert found.colours[f"{arm}/lr=1000000"] != own


def test_an_arm_that_has_no_run_yet_gets_its_colour_when_it_has_one(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnlab.board.compare.draw_all", lambda prepared: ([], []))
    ignored = shutil.ignore_patterns("batch", "*.pt", "events.*", "figures")
    found = build(shutil.copytree(swept, tmp_path / "copied", ignore=ignored), tmp_path / "logs")
    assert {name.partition("/")[0] for name in found.names} == {"no norm"}
    assert found.colours["batch norm"] == LOOKS["batch"].color


def test_an_arm_has_its_colour_at_settings_that_figures_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report draws some of many settings."""
    monkeypatch.setattr("bnlab.board.compare.draw_all", lambda prepared: ([], []))
    axes = ("norm=none,batch", "optim.lr=0.05", "seed=range(0,2)", "model.activation=relu,tanh")
    root = sweep(tmp_path / "runs", *axes)
    monkeypatch.setattr("bnlab.report.prepare.MOST_VIEWS", 1)
    found = build(root, tmp_path / "logs")
    wanted = {
        f"{arm}, activation {function}/lr=0.05": LOOKS[norm].color
        for arm, norm in (("batch norm", "batch"), ("no norm", "none"))
        for function in ("relu", "tanh")
    }
    assert found.colours.items() >= wanted.items()
    assert set(found.names) == set(wanted)


def test_a_comparison_has_a_table_of_its_lines(
    swept: Path, tmp_path: Path, tensorboard: Callable[..., Any], hparams: Callable[..., Any]
) -> None:
    build(swept, tmp_path / "logs")
    experiment, rows = hparams(tensorboard(tmp_path / "logs"), 4)
    assert [info["displayName"] for info in experiment["hparamInfos"]] == ["arm", "lr"]
    assert [info["displayName"] for info in experiment["metricInfos"]][:4] == [
        "test_accuracy",
        "test_loss",
        "train_loss",
        "diverged",
    ]
    assert [row["name"] for row in rows] == [
        f"{arm}/lr={lr}" for arm in ("batch norm", "no norm") for lr in ("0.05", "1000000")
    ]
    statuses = [json.loads(file.read_text()) for file in sorted(swept.glob("batch/lr=0.05/seed=*/status.json"))]
    figures = {value["name"]["tag"]: value["value"] for value in rows[0]["metricValues"]}
    accuracies = [status["metrics"]["test_accuracy"] for status in statuses]
    assert figures["9_result/test_accuracy"] == pytest.approx(sum(accuracies) / 3, rel=1e-6)
    losses = [status["metrics"]["test_loss"] for status in statuses]
    assert figures["9_result/test_loss"] == pytest.approx((losses[0] * losses[1] * losses[2]) ** (1 / 3), rel=1e-5)
    assert figures["9_result/diverged"] == 0
    assert {value["name"]["tag"]: value["value"] for value in rows[3]["metricValues"]}["9_result/diverged"] == 1


def test_no_run_is_named_by_a_dot(swept: Path, tmp_path: Path) -> None:
    build(swept, tmp_path / "logs")
    assert not list((tmp_path / "logs").glob("events.*"))
    assert list((tmp_path / "logs" / ASIDE).glob("events.*"))
    link = server.compare_link("http://127.0.0.1:1/", ["a b/lr=0.1", "a b/lr=1"], ["a b/lr=0.1"], [], None)
    assert "runFilter=%5E%28a%20b%2Flr%3D0%5C.1%29%24" in link, "the Time Series page shows what the first page shows"
