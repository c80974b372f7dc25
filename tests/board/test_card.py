"""A run's card, and its row in the HParams table, as a real server shows them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.compat.proto.summary_pb2 import Summary

from bnlab.board.card import CAP, columns, head, tail
from bnlab.core.spec import RunSpec
from bnlab.record.findings import Finding, findings
from bnlab.record.runs import read_run

TEXTS = ["run_card", "run_findings"]
RESULTS = ["test_accuracy", "test_loss", "train_loss", "diverged", "train_accuracy"]


def results(row: dict[str, Any]) -> dict[str, float]:
    return {value["name"]["tag"].removeprefix("9_result/"): value["value"] for value in row["metricValues"]}


def test_the_table_has_a_row_for_every_run_and_its_results(
    spec_of: Callable[..., RunSpec],
    run: Callable[..., Any],
    tensorboard: Callable[..., Any],
    hparams: Callable[..., Any],
    tmp_path: Path,
) -> None:
    more = {"provenance": {"axes": ["norm", "optim.lr", "model.init_scale"]}}
    specs = (
        spec_of("norm=batch"),
        spec_of("norm=none", "optim.lr=1e6", "model.depth=4"),
        spec_of("norm=batch", "seed=1"),
    )
    good, bad = (run(spec, spec.folder, **more) for spec in specs[:2])
    light = run(specs[2], specs[2].folder, profile="light", **more)
    assert bad.status["status"] == "diverged"
    server = tensorboard(tmp_path)
    experiment, table = hparams(server, 3)
    assert [row["name"] for row in table] == [
        f"{norm}/lr={lr}/init_scale=1.0/seed={seed}-{ended.setup.spec.id}"
        for norm, lr, seed, ended in (
            ("batch", "0.05", 0, good),
            ("batch", "0.05", 1, light),
            ("none", "1000000", 0, bad),
        )
    ], "sorted by the axes"
    found = {row["name"].rpartition("-")[2]: row for row in table}
    for ended in (good, bad, light):
        spec, row = ended.setup.spec, found[ended.setup.spec.id]
        assert row["hparams"] == {"1_norm": spec.norm.name, "3_lr": spec.optim.lr, "2_model.init_scale": 1}
        [session] = row["sessions"]
        assert (session["name"], session["status"]) == (
            ended.folder.path.relative_to(tmp_path).as_posix(),
            "STATUS_SUCCESS",
        )
        assert sorted(results(row)) == sorted(RESULTS)
    assert results(found[good.setup.spec.id]) == pytest.approx({"diverged": 0} | good.status["metrics"], rel=1e-6)
    first = bad.records[0]["train_loss"]
    worst = {"diverged": 1, "train_loss": first, "test_loss": first, "train_accuracy": 0, "test_accuracy": 0}
    assert results(found[bad.setup.spec.id]) == pytest.approx(worst, rel=1e-6)

    assert [metric["displayName"] for metric in experiment["metricInfos"]] == RESULTS
    names = [info["displayName"] for info in experiment["hparamInfos"]]
    assert names == ["norm", "model.init_scale", "lr"], "the axes, and nothing that is the same in all runs"
    assert len(server.get("data/runs")) == 3, "no run beside the runs"


def test_a_run_of_no_sweep_has_all_usual_columns(
    spec_of: Callable[..., RunSpec],
    run: Callable[..., Any],
    tensorboard: Callable[..., Any],
    hparams: Any,
    tmp_path: Path,
) -> None:
    spec = spec_of("norm=batch")
    run(spec, spec.folder)
    experiment, [row] = hparams(tensorboard(tmp_path), 1)
    names = [info["displayName"] for info in experiment["hparamInfos"]]
    assert names == ["norm", "lr", "seed", "batch_size", "data", "depth", "model", "optim"]
    assert row["name"] == f"batch/lr=0.05/seed=0-{spec.id}"


def test_a_run_s_card_is_shown_as_text(
    spec_of: Callable[..., RunSpec],
    run: Callable[..., Any],
    tensorboard: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bnlab", "train", "--config", "it is"])
    spec = spec_of("norm=batch", "seed=3")
    run(spec, f"seed=3-{spec.id}")
    server = tensorboard(tmp_path)
    server.poll("data/plugin/text/tags", lambda tags: sorted(tags.get(f"seed=3-{spec.id}", ())) == TEXTS)
    [shown] = server.get(f"data/plugin/text/text?run=seed%3D3-{spec.id}&tag=run_card")
    for text in (
        "batch",
        "mlp, depth 2, width 6, relu",
        "digits, batches of 16",
        "sgd, constant learning rate",
        "0.05",
    ):
        assert f"<td>{text}</td>" in shown["text"]
    assert f"<td>{spec.id}</td>" in shown["text"]
    assert "<td>12 steps</td>" in shown["text"]
    assert "<td><code>bnlab train --config 'it is'</code></td>" in html.unescape(shown["text"])


def test_what_was_found_in_a_run_is_shown_as_text(
    spec_of: Callable[..., RunSpec], run: Callable[..., Any], tensorboard: Callable[..., Any], tmp_path: Path
) -> None:
    ended = run(spec_of("norm=none", "optim.lr=1e6", "model.depth=4"), "a")
    found = findings(read_run(ended.folder))
    assert found[0].name == "diverged"
    server = tensorboard(tmp_path)
    server.poll("data/plugin/text/tags", lambda tags: sorted(tags.get("a", ())) == TEXTS)
    [shown] = server.get("data/plugin/text/text?run=a&tag=run_findings")
    assert re.findall("<li>(.*?)</li>", html.unescape(shown["text"])) == [finding.text for finding in found]


def test_a_finding_is_one_line_of_text(spec_of: Callable[..., RunSpec]) -> None:
    status = {"status": "finished", "metrics": {"train_loss": 1.0}}
    shown = tail(status, 2.0, [Finding(name="dead", text="L00_<b>\n|x| is dead")])
    assert b"- L00_&#60;b&#62; &#124;x&#124; is dead" in shown
    assert b"run_findings" not in tail(status, 2.0)


def test_the_columns_of_a_run_follow_the_axes_of_its_sweep(spec_of: Callable[..., RunSpec]) -> None:
    tree = spec_of("norm=group", "norm.groups=2").tree()
    assert columns(tree, ["norm.groups", "norm.layers"])["norm.groups"] == 2
    assert columns(tree, ["norm.layers"])["norm.layers"] == "all"
    assert columns(tree | {"norm": tree["norm"] | {"layers": [0, 1]}}, ["norm.layers"])["norm.layers"] == "[0, 1]"
    assert "norm.momentum" not in columns(tree, ["norm.momentum"])
    full = tree | {"data": tree["data"] | {"batch_size": "full"}}
    assert "data.batch_size" not in columns(full, ["data.batch_size"])
    momentum = tree | {"optim": tree["optim"] | {"momentum": 0.9}}
    assert columns(momentum, ["data.batch_size", "optim.momentum"]).items() >= {
        ("data.batch_size", 16),
        ("optim.momentum", 0.9),
    }


def scalars(message: bytes) -> dict[str, float]:
    return {
        value.tag.removeprefix("9_result/"): value.simple_value
        for value in Summary.FromString(message).value
        if value.HasField("simple_value")
    }


@pytest.mark.parametrize(
    ("final", "first", "shown"), [(0.5, 2.0, 0.5), (3.0, 2.0, 2.0), (None, 2.0, 2.0), (None, math.nan, CAP)]
)
def test_a_final_loss_is_at_most_the_first(final: float | None, first: float, shown: float) -> None:
    status = {"status": "finished", "metrics": {"train_loss": final, "test_accuracy": None}}
    assert scalars(tail(status, first)) == {"diverged": 0.0, "train_loss": shown, "test_accuracy": 0.0}


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", None])
def test_a_run_that_has_not_ended_has_no_results(status: str | None) -> None:
    assert tail({"status": status, "metrics": {"train_loss": 1.0}}, 2.0) == b""


def test_a_regression_has_no_columns_for_accuracy(spec_of: Callable[..., RunSpec]) -> None:
    tree = spec_of(model="deep_linear").tree()
    assert b"train_loss" in head(tree, Path("a"), 0.0)
    assert b"accuracy" not in head(tree, Path("a"), 0.0)


def test_a_spec_of_another_version_has_a_card_too(spec_of: Callable[..., RunSpec]) -> None:
    tree = spec_of().tree() | {"another": 3}
    assert b"digits" in head(tree, Path("seed=0-0123456789"), 0.0)
    assert b"0123456789" in head(tree, Path("seed=0-0123456789"), 0.0)
    renamed = [
        re.findall(rb"\| run \| ([0-9a-f]{10}) \|", head(made, Path("copy"), 0.0))[0]
        for made in (tree, tree | {"seed": 1})
    ]
    assert renamed[0] != renamed[1]
    with pytest.raises(KeyError, match="loss"):
        head({"another": 3, "optim": {"lr": 1.0}}, Path("copy"), 0.0)
