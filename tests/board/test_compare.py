"""What a comparison shows, read back with TensorBoard's own readers, against slow twins over the journals."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2

from bnlab.board.compare import Chart, Compared, build, files_of, layout
from bnlab.board.compare.lines import AVERAGED
from bnlab.board.tags import ASIDE, hidden_sites
from bnlab.board.tags import tags as tags_of_a_run
from bnlab.core.errors import UsageError
from bnlab.record.folder import find_runs
from bnlab.record.journal import Record, read

GOOD, BAD = "batch norm/lr=0.05", "no norm/lr=1000000"


@pytest.fixture(scope="module")
def made(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compared, Path]:
    logs = tmp_path_factory.mktemp("compared") / "logs"
    return build(swept, logs), logs


@pytest.fixture
def root(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be changed; without figures, which take a second."""
    monkeypatch.setattr("bnlab.board.compare.draw_all", lambda prepared: ([], []))
    ignored = shutil.ignore_patterns("*.pt", "events.*", "figures", "report.html")
    return shutil.copytree(swept, tmp_path / "copied", ignore=ignored)


def shown(logs: Path, name: str = ".") -> EventAccumulator:
    found = EventAccumulator(str(logs / name), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def points(logs: Path, name: str, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in shown(logs, name).Scalars(tag)}


def journals(swept: Path, where: str) -> list[list[Record]]:
    return [list(read(file)) for file in sorted(swept.glob(f"{where}/seed=*/journal.jsonl"))]


def common_steps(seeds: list[list[Record]], metric: str) -> list[int]:
    """Steps at which every seed has it, finite."""
    having = [
        {record["step"] for record in records if isinstance(record.get(metric), float | list)} for records in seeds
    ]
    return sorted(set.intersection(*having))


def values(seeds: list[list[Record]], metric: str, step: int) -> list[Any]:
    return [next(record[metric] for record in records if record["step"] == step) for records in seeds]


def twin(figures: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval, by scipy."""
    mean = statistics.fmean(figures)
    low, high = stats.t.interval(0.95, len(figures) - 1, loc=mean, scale=stats.sem(figures))
    return mean, low, high


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_an_accuracy_is_the_mean_over_seeds_with_its_t_interval(swept: Path, made: tuple[Compared, Path]) -> None:
    seeds = journals(swept, "batch/lr=0.05")
    assert len(seeds) == 3
    found = [points(made[1], GOOD, f"1_progress/train_accuracy{end}") for end in ("", ".lo", ".hi")]
    steps = common_steps(seeds, "train_accuracy")
    assert len(steps) > 10
    for one in found:
        assert list(one) == steps
    for step in steps:
        mean, low, high = twin(values(seeds, "train_accuracy", step))
        wanted = (mean, max(0.0, low), min(1.0, high))
        assert [one[step] for one in found] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_a_loss_is_the_geometric_mean_of_smoothed_losses_with_the_interval_of_its_logarithm(
    swept: Path, made: tuple[Compared, Path]
) -> None:
    seeds = journals(swept, "batch/lr=0.05")
    found = [points(made[1], GOOD, f"1_progress/train_loss{end}") for end in ("", ".lo", ".hi")]
    steps = common_steps(seeds, "train_loss")
    assert list(found[0]) == steps
    for place, step in enumerate(steps):
        window = steps[max(0, place - 4) : place + 1]
        last = [statistics.median(one) for one in zip(*(values(seeds, "train_loss", at) for at in window), strict=True)]
        wanted = [10**end for end in twin([math.log10(loss) for loss in last])]
        assert [one[step] for one in found] == pytest.approx(wanted, rel=1e-5)
        assert found[0][step] == pytest.approx(statistics.geometric_mean(last), rel=1e-5)


def test_drift_is_the_geometric_mean_of_medians_over_layers(swept: Path, made: tuple[Compared, Path]) -> None:
    seeds = journals(swept, "none/lr=0.05")
    found = points(made[1], "no norm/lr=0.05", "2_drift_mean_pre/00_median_of_layers")
    steps = common_steps(seeds, "drift_mean.pre")[1:]  # equal gaps, but nothing says so of the first
    assert list(found) == steps
    for step in steps:
        medians = [statistics.median(layers) for layers in values(seeds, "drift_mean.pre", step)]
        assert found[step] == pytest.approx(statistics.geometric_mean(medians), rel=1e-5)


def test_the_landscape_band_is_of_geometric_means_at_equal_steps(swept: Path, made: tuple[Compared, Path]) -> None:
    seeds = journals(swept, "batch/lr=0.05")
    steps = common_steps(seeds, "loss_lo")
    assert len(steps) > 3
    for metric, tag in (("train_loss", "loss"), ("loss_lo", "loss_lo"), ("loss_hi", "loss_hi")):
        found = points(made[1], GOOD, f"5_landscape/{tag}")
        assert list(found) == steps
        for step in steps:
            wanted = statistics.geometric_mean(values(seeds, metric, step))
            assert found[step] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("place", "layer"), [("first", 0), ("middle", 1), ("last", 2)])
def test_percentiles_are_means_of_one_hidden_layer(
    place: str, layer: int, swept: Path, made: tuple[Compared, Path]
) -> None:
    seeds = journals(swept, "batch/lr=0.05")
    assert hidden_sites(4)[("first", "middle", "last").index(place)] == layer
    for percentile in ("p15", "p50", "p85"):
        found = points(made[1], GOOD, f"6_act_percentiles_act_in/{place}_{percentile}")
        assert found
        for step, value in found.items():
            figures = [layers[layer] for layers in values(seeds, f"act_{percentile}.act_in", step)]
            assert value == pytest.approx(statistics.fmean(figures), rel=1e-5, abs=1e-6)


def test_a_depth_profile_has_the_layer_for_its_step(swept: Path, made: tuple[Compared, Path]) -> None:
    seeds = journals(swept, "batch/lr=0.05")
    steps = common_steps(seeds, "drift_mean.pre")[1:]
    moments = dict(zip(("first", "middle", "last"), (steps[0], steps[len(steps) // 2 - 1], steps[-1]), strict=True))
    for metric, tag in (("act_var.pre", "act_var"), ("grad_norm", "grad_norm"), ("drift_mean.pre", "drift")):
        for place, step in moments.items():
            found = points(made[1], GOOD, f"9_depth/{tag}_{place}")
            by_layer = zip(*values(seeds, metric, step), strict=True)
            wanted = [statistics.geometric_mean(seed) for seed in by_layer]
            assert list(found) == [0, 1, 2, 3]
            assert list(found.values()) == pytest.approx(wanted, rel=1e-5)


def test_a_mean_ends_where_the_first_seed_diverges(swept: Path, made: tuple[Compared, Path]) -> None:
    seeds = journals(swept, "none/lr=1000000")
    ends = [json.loads(file.read_text()) for file in sorted(swept.glob("none/lr=1000000/seed=*/status.json"))]
    assert {end["status"] for end in ends} == {"diverged"}
    found = points(made[1], BAD, "1_progress/train_loss")
    assert list(found) == common_steps(seeds, "train_loss")
    assert max(found) <= min(end["step"] for end in ends)
    assert all(map(math.isfinite, found.values()))
    first = min(end["step"] for end in ends)
    assert f"| {BAD} | 3 | 3 of 3, the first at step {first} |  |  |" in text(made[1], "3_runs")


def test_two_seeds_are_their_own_band_and_one_has_none(root: Path, tmp_path: Path) -> None:
    for folder in root.glob("none/*/seed=2-*"):
        shutil.rmtree(folder)
    for folder in [*root.glob("batch/*/seed=2-*"), *root.glob("batch/lr=0.05/seed=1-*")]:
        shutil.rmtree(folder)
    build(root, tmp_path / "logs")
    pair = journals(root, "none/lr=0.05")
    (single,) = journals(root, "batch/lr=0.05")
    for end, wanted in (("", statistics.fmean), (".lo", min), (".hi", max)):
        found = points(tmp_path / "logs", "no norm/lr=0.05", f"1_progress/test_accuracy{end}")
        for step, value in found.items():
            assert value == pytest.approx(wanted(values(pair, "test_accuracy", step)), rel=1e-5)
        of_one = points(tmp_path / "logs", GOOD, f"1_progress/test_accuracy{end}")
        assert list(of_one.values()) == pytest.approx(
            [one["test_accuracy"] for one in single if "test_accuracy" in one]
        )
    assert "Bands around them: both seeds," in text(tmp_path / "logs", "2_how_to_read")
    assert f"1 line of one seed, without a band: {GOOD}." in text(tmp_path / "logs", "2_how_to_read")


# -- what is there ----------------------------------------------------------------------------------------------------


def text(logs: Path, name: str) -> str:
    (event,) = shown(logs, ASIDE).Tensors(f"0_text/{name}")
    found: str = event.tensor_proto.string_val[0].decode()
    return found


def test_a_line_for_every_arm_and_rate_and_what_trains_is_shown_first(made: tuple[Compared, Path]) -> None:
    found, logs = made
    assert found.names == ("no norm/lr=0.05", BAD, GOOD, "batch norm/lr=1000000")
    assert found.shown == ("no norm/lr=0.05", GOOD)
    assert found.runs == 12
    folders = sorted(file.parent.relative_to(logs).as_posix() for file in logs.rglob("events.out.tfevents.*"))
    assert folders == sorted([ASIDE, *found.names])
    first = {name: next(iter((logs / name).iterdir())).name for name in [*found.names, ASIDE]}
    assert sorted(first, key=first.__getitem__)[:2] == list(found.shown)  # TensorBoard lists them in the order of time


def test_means_have_the_tags_that_single_runs_have(swept: Path, made: tuple[Compared, Path]) -> None:
    records = journals(swept, "batch/lr=0.05")[0]
    sites = [f"L{layer:02d}_fc" for layer in range(4)]
    single = {tag for record in records for tag, _, _ in tags_of_a_run(record, sites)}
    assert {figure.tag for figure in AVERAGED} <= single
    assert {figure.tag for figure in AVERAGED} <= set(shown(made[1], GOOD).Tags()["scalars"])


def layout_of(logs: Path) -> Any:
    (event,) = shown(logs, ASIDE).Tensors("custom_scalars__config__")
    found = layout_pb2.Layout()
    found.ParseFromString(event.tensor_proto.string_val[0])
    return found


def test_every_regex_of_the_layout_matches_one_tag_and_every_band_has_its_three(made: tuple[Compared, Path]) -> None:
    _, logs = made
    written = set(shown(logs, GOOD).Tags()["scalars"])
    lines = bands = 0
    for category in layout_of(logs).category:
        for chart in category.chart:
            for regex in chart.multiline.tag:
                assert len([tag for tag in written if re.match(regex, tag)]) == 1, regex
                lines += 1
            for series in chart.margin.series:
                assert {series.value, series.lower, series.upper} <= written
                steps = [list(points(logs, GOOD, tag)) for tag in (series.value, series.lower, series.upper)]
                assert steps[0] == steps[1] == steps[2]
                bands += 1
    assert (lines, bands) == (3 * 3 + 3 * 3, 3 + 3 + 3)


def test_rows_have_charts_of_one_kind_and_bands_in_reverse(made: tuple[Compared, Path]) -> None:
    categories = layout_of(made[1]).category[3:]  # below the verdicts
    assert [category.title.partition(";")[0] for category in categories[:3]] == [
        "1. Loss and accuracy",
        "2. Landscape along the gradient",
        "3. Drift and gradients",
    ]
    titles = [[chart.title for chart in category.chart] for category in categories]
    assert titles[0] == ["test_accuracy", "test_loss", "train_loss"]
    assert titles[3] == [f"layer {layer}: from above p85, p50, p15" for layer in range(3)]
    for category in categories:
        assert len({chart.WhichOneof("content") for chart in category.chart}) == 1


def test_a_tag_with_signs_of_regular_expressions_is_matched_alone() -> None:
    message = layout({"t": [Chart(title="a", tags=("g/a.b (c)", "g/a"))]})
    found = layout_pb2.Layout()
    found.ParseFromString(Summary.FromString(message).value[0].tensor.string_val[0])
    one, other = found.category[0].chart[0].multiline.tag
    assert [tag for tag in ("g/a.b (c)", "g/axb (c)", "g/a.b (c)d") if re.match(one, tag)] == ["g/a.b (c)"]
    assert [tag for tag in ("g/a", "g/a.b (c)") if re.match(other, tag)] == ["g/a"]


def test_lines_and_bands_in_one_row_are_refused() -> None:
    mixed = [Chart(title="a", tags=("g/a",)), Chart(title="b", tags=("g/b", "g/c", "g/d"), band=True)]
    with pytest.raises(AssertionError, match="the page would reorder them"):
        layout({"t": mixed})


def test_figures_are_those_of_the_report_and_verdicts_are_shown(swept: Path, made: tuple[Compared, Path]) -> None:
    found = shown(made[1], ASIDE)
    pictures = {tag.rpartition("/")[2]: tag for tag in found.Tags()["tensors"] if re.search(r"/\d\d_", tag)}
    reported = {file.stem: file.read_bytes() for file in (swept / "figures").glob("*.png")}
    assert {name[3:] for name in pictures} == set(reported)
    assert len(reported) > 3
    for name, tag in pictures.items():
        width, height, png = found.Tensors(tag)[0].tensor_proto.string_val
        assert png == reported[name[3:]]
        assert (int(width), int(height)) == tuple(int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    lines = text(made[1], "1_verdicts").splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("- **→ direction only**: Batch norm trains at larger learning rates")


# -- again ------------------------------------------------------------------------------------------------------------


def files(logs: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in logs.rglob("events.out.tfevents.*")}


def running(folder: Path, step: int) -> None:
    """The run as it was while it was at that step."""
    (folder / "status.json").write_text(json.dumps({"status": "running", "step": 0, "steps": 24}))
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[:step]) + lines[step][:20])


def test_what_has_not_changed_is_not_written_again(swept: Path, made: tuple[Compared, Path]) -> None:
    before, seen = files(made[1]), files_of(swept)
    assert build(swept, made[1]) == made[0]
    assert files(made[1]) == before
    assert files_of(swept) == seen


def test_changed_lines_are_rewritten_and_missing_ones_removed(root: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    build(root, logs)
    before, seen = files(logs), files_of(root)
    (folder,) = root.glob("none/lr=0.05/seed=2-*")
    shutil.rmtree(folder)
    assert files_of(root) != seen
    build(root, logs)
    changed = {Path(file).parent.relative_to(logs).as_posix() for file in set(before) ^ set(files(logs))}
    assert changed == {ASIDE, "no norm/lr=0.05"}
    shutil.rmtree(root / "none" / "lr=0.05")
    assert "no norm/lr=0.05" not in build(root, logs).names
    assert not (logs / "no norm" / "lr=0.05").exists()


def test_an_unfinished_run_counts_only_where_too_few_have_ended(root: Path, tmp_path: Path) -> None:
    first, second, _ = sorted(root.glob("batch/lr=0.05/seed=*"))
    running(first, 6)
    build(root, tmp_path / "logs")
    whole = points(tmp_path / "logs", GOOD, "1_progress/train_accuracy")
    assert max(whole) == 23
    assert f"| {GOOD} | 2 |  |  | 1 |" in text(tmp_path / "logs", "3_runs")
    running(second, 9)
    build(root, tmp_path / "logs")
    assert list(points(tmp_path / "logs", GOOD, "1_progress/train_accuracy")) == [0, 1, 2, 3, 4, 5]
    assert f"| {GOOD} | 3 |  |  | 2 |" in text(tmp_path / "logs", "3_runs")
    assert "Some runs have not ended." in text(tmp_path / "logs", "2_how_to_read")


def test_a_sweep_of_which_no_run_has_ended_is_compared_without_figures(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for run in find_runs(root):
        running(run.path, 1)
    found = build(root, tmp_path / "logs")
    assert len(found.names) == 4
    assert not [tag for tag in shown(tmp_path / "logs", ASIDE).Tags()["tensors"] if re.search(r"/\d\d_", tag)]
    assert list(points(tmp_path / "logs", BAD, "1_progress/train_loss")) == [0]


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_one_run_or_no_seeds_or_several_sweeps_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^RUNS: no such directory, got '.*nowhere'\. Train one first"):
        build(tmp_path / "nowhere", tmp_path / "logs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"^RUNS: no runs in this directory, got '.*empty'\. Train one first"):
        build(tmp_path / "empty", tmp_path / "logs")
    with pytest.raises(UsageError, match=r"^--compare: this is one run, got '.*'\. Give the folder of a sweep over"):
        build(find_runs(root)[0].path, tmp_path / "logs")
    for seed in (1, 2):
        for folder in root.glob(f"*/*/seed={seed}-*"):
            shutil.rmtree(folder)
    with pytest.raises(
        UsageError, match=r"^--compare: no arm has two seeds at one learning rate, .*'seed=range\(0,6\)'"
    ):
        build(root, tmp_path / "logs")
    running(next(root.glob("batch/lr=0.05/seed=0-*")), 6)
    assert len(build(root, tmp_path / "going").names) == 4  # more seeds will come
    above = tmp_path / "above"
    for name in ("one", "two"):
        shutil.copytree(root, above / name)
    with pytest.raises(UsageError, match=r"^--compare: several sweeps here, got .* Give one: .*one, .*two\.$"):
        build(above, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
