"""The TensorBoard view, read back with TensorBoard's own readers, against the journal."""

from __future__ import annotations

import math
import re
import statistics
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from bnlab.board.events import Profile
from bnlab.board.run import Board, Extent, Histograms
from bnlab.board.tags import LIGHT, tags
from bnlab.core.registry import PROBES
from bnlab.core.spec import RunSpec
from bnlab.probes._histograms import HISTOGRAM_BINS, HISTOGRAM_LIMIT
from bnlab.record.journal import read
from bnlab.run.observe import Schedule

SITES = ["L00_fc", "L01_fc", "L02_fc", "L03_out"]
COUNTS = [0.0] * (HISTOGRAM_BINS + 2)
RECORD: dict[str, Any] = {
    "step": 40,
    "lr": 0.1,
    "train_loss": 0.5,
    "train_accuracy": 0.75,
    "test_loss": 0.6,
    "grad_norm": [1.0, 2.0, 4.0, 9.0],
    "first_over_last": None,
    "drift_mean.pre": [0.1, None, 0.3, 0.7],
    "sampling_floor.act_in": [1.0, 2.0, 3.0, 5.0],
    "act_p50.pre": [10.0, 20.0, 30.0, 40.0],
    "dead_fraction": [0.5, 0.25, 0.0, None],
    "my_own": 7.0,
    "my_vector": [1.0, 2.0, 3.0, 4.0],
    "histogram.pre.L01_fc": [*COUNTS[:61], 3.0, *COUNTS[62:]],
    "wall_s": 1234.5,
}
SHOWN: dict[str, float] = {
    "1_progress/lr": 0.1,
    "1_progress/train_loss": 0.5,
    "1_progress/train_accuracy": 0.75,
    "1_progress/test_loss": 0.6,
    "2_drift_mean_pre/00_median_of_layers": 0.3,
    "2_drift_mean_pre/L00_fc": 0.1,
    "2_drift_mean_pre/L01_fc": math.nan,
    "2_drift_mean_pre/L02_fc": 0.3,
    "2_drift_mean_pre/L03_out": 0.7,
    "2_drift_mean_act_in/00_sampling_floor": 2.5,
    "4_grad_norm/00_first_over_last": math.nan,
    "4_grad_norm/00_median_of_layers": 3.0,
    "4_grad_norm/L00_fc": 1.0,
    "4_grad_norm/L01_fc": 2.0,
    "4_grad_norm/L02_fc": 4.0,
    "4_grad_norm/L03_out": 9.0,
    "5_other/my_own": 7.0,
    "5_my_vector/00_median_of_layers": 2.5,
    "5_my_vector/L00_fc": 1.0,
    "5_my_vector/L01_fc": 2.0,
    "5_my_vector/L02_fc": 3.0,
    "5_my_vector/L03_out": 4.0,
    "6_act_percentiles_pre/L00_fc_p50": 10.0,
    "6_act_percentiles_pre/L01_fc_p50": 20.0,
    "6_act_percentiles_pre/L02_fc_p50": 30.0,
    "8_dead_units/00_median_of_layers": 0.25,
    "8_dead_units/L00_fc": 0.5,
    "8_dead_units/L01_fc": 0.25,
    "8_dead_units/L02_fc": 0.0,
    "8_dead_units/L03_out": math.nan,
}


AROUND = ("run_card", "_hparams_/", "9_result/")
"""Tags of what stands before the records and after them."""


def _events(folder: Path) -> list[Event]:
    """Those of the records, by TensorBoard's own loader, which checks the checksums."""
    [file] = folder.glob("events.out.tfevents.*")
    first, *rest = LegacyEventFileLoader(str(file)).Load()
    assert first.file_version == "brain.Event:2"
    summaries = [event for event in rest if event.HasField("summary")]
    return [event for event in summaries if not event.summary.value[0].tag.startswith(AROUND)]


def _written(folder: Path, records: list[dict[str, Any]], sites: list[str], profile: Profile = "full") -> list[Event]:
    board = Board(folder, sites, extent=Extent(records=len(records), steps=records[-1]["step"]), profile=profile)
    board.rewrite(records)
    board.end({}, records, 0)
    return _events(folder)


def _scalars(event: Event) -> dict[str, float]:
    return {
        value.tag: value.simple_value for value in event.summary.value if value.WhichOneof("value") == "simple_value"
    }


def _single(value: float) -> float:
    return float(np.float32(value))


def test_a_record_is_one_event_with_every_value_under_its_tag(tmp_path: Path) -> None:
    [event] = _written(tmp_path, [RECORD], SITES)
    assert (event.step, event.wall_time) == (40, 1234.5)
    found = _scalars(event)
    assert sorted(found) == sorted(SHOWN)
    for tag, value in SHOWN.items():
        assert found[tag] == pytest.approx(_single(value), nan_ok=True, abs=0), tag


def test_numpy_values_of_a_running_record_are_shown_as_those_read_back_from_the_journal(tmp_path: Path) -> None:
    live = {
        key: np.array([math.nan if item is None else item for item in value], dtype=np.float32)
        if isinstance(value, list)
        else np.float32(math.nan)
        if value is None
        else value
        for key, value in RECORD.items()
    }
    (tmp_path / "live").mkdir()
    (tmp_path / "later").mkdir()
    [one], [other] = _written(tmp_path / "live", [live], SITES), _written(tmp_path / "later", [RECORD], SITES)
    assert list(_scalars(one)) == list(_scalars(other))
    for tag, value in _scalars(one).items():
        assert value == pytest.approx(_scalars(other)[tag], rel=1e-6, nan_ok=True), tag


def test_an_event_forgets_the_one_before_it(tmp_path: Path) -> None:
    """Records with the same keys share a template: no value and no histogram may stay behind in it."""
    other = RECORD | {"step": 41, "train_loss": 0.25, "grad_norm": [8.0, 8.0, 8.0, None], "wall_s": 1235.0}
    without = {key: value for key, value in other.items() if not key.startswith("histogram")} | {"step": 42}
    first, second, third, fourth = _written(tmp_path, [RECORD, other, without, RECORD | {"step": 43}], SITES)
    assert [event.step for event in (first, second, third, fourth)] == [40, 41, 42, 43]
    assert _scalars(second)["1_progress/train_loss"] == 0.25
    assert math.isnan(_scalars(second)["4_grad_norm/L03_out"])
    assert _scalars(first)["4_grad_norm/L03_out"] == _scalars(fourth)["4_grad_norm/L03_out"] == 9.0
    histograms = [
        sum(value.HasField("histo") for value in event.summary.value) for event in (first, second, third, fourth)
    ]
    assert histograms == [1, 1, 0, 1]


LAST = HISTOGRAM_BINS + 1


@pytest.mark.parametrize("filled", [[61], [0], [LAST], [0, 10, LAST], [30, 31, 80], list(range(LAST + 1)), []])
def test_a_histogram_has_its_counts_in_its_bins_without_the_empty_ends(tmp_path: Path, filled: list[int]) -> None:
    """TensorBoard draws from the first bucket to the last on a linear axis."""
    counts = [float(3 * (index + 1)) if index in filled else 0.0 for index in range(LAST + 1)]
    [event] = _written(tmp_path, [{"step": 0, "histogram.pre.L01_fc": counts, "wall_s": 0.0}], SITES)
    [value] = event.summary.value
    assert value.tag == "9_hist_pre/L01_fc"
    histo = value.histo
    inner = [math.sinh(math.asinh(HISTOGRAM_LIMIT) * (2 * i / HISTOGRAM_BINS - 1)) for i in range(HISTOGRAM_BINS + 1)]
    edges = [-2 * HISTOGRAM_LIMIT, *inner, 2 * HISTOGRAM_LIMIT]  # bin i lies between edges i and i + 1
    assert histo.num == sum(counts)
    if not filled:
        assert list(histo.bucket) == [0.0]
        return
    low, high = filled[0], filled[-1]
    assert list(histo.bucket) == counts[low : high + 1]
    assert list(histo.bucket_limit) == pytest.approx(edges[low + 1 : high + 2], rel=1e-12, abs=1e-12)
    assert (histo.min, histo.max) == pytest.approx((edges[low], edges[high + 1]), rel=1e-12, abs=1e-12)
    weighted = [(count, (a + b) / 2) for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True)]
    assert histo.sum == pytest.approx(sum(count * x for count, x in weighted), rel=1e-9, abs=1e-9)
    assert histo.sum_squares == pytest.approx(sum(count * x * x for count, x in weighted), rel=1e-9, abs=1e-9)


def test_every_tag_has_a_numbered_group(spec_of: Callable[..., RunSpec], run: Callable[..., Any]) -> None:
    """TensorBoard sorts groups by name: the loss must come first."""
    ended = run(spec_of("probes=full", "probes.activations.batch=24"))
    found = sorted({value.tag for event in _events(ended.folder.path) for value in event.summary.value})
    assert found[0].startswith("1_progress/")
    assert [tag for tag in found if not re.fullmatch(r"[1-9]_[a-z_]+/[A-Za-z0-9_]+", tag)] == []
    assert len(found) == len(set(found))


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_event_file_of_a_run_says_what_its_journal_says(
    model: str, dtype: str, spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    ended = run(spec_of("probes=full", "probes.activations.batch=24", f"dtype={dtype}", model=model))
    sites = [site.name for site in ended.setup.net.sites]
    events = _events(ended.folder.path)
    assert [event.step for event in events] == [record["step"] for record in ended.records]
    shown = 0
    for event, record in zip(events, ended.records, strict=True):
        assert event.wall_time == record["wall_s"]
        scalars = _scalars(event)
        sources = tags(record, sites)
        assert sorted(scalars) == sorted(tag for tag, _, _ in sources)
        for tag, metric, index in sources:
            value = record[metric]
            if index is None:
                value = statistics.median(item for item in value if item is not None)
            elif index >= 0:
                value = value[index]
            expected = math.nan if value is None else value
            assert scalars[tag] == pytest.approx(_single(expected), rel=1e-6, nan_ok=True), (tag, record["step"])
            shown += 1
        metrics = {key for key in record if key != "step" and not key.endswith("_s")}
        histograms = {
            "histogram." + value.tag.removeprefix("9_hist_").replace("/", ".")
            for value in event.summary.value
            if value.HasField("histo")
        }
        assert {metric for _, metric, _ in sources} | histograms == metrics
    assert shown > 500


def test_a_probe_declares_the_groups_of_its_measurements() -> None:
    """A group shows every site; `group/card` is a median or a scalar, `group/*_card` is three hidden sites."""

    class Own:
        groups: ClassVar[dict[str, str]] = {
            "own": "4_own",
            "own_median": "4_own/00_other_median",
            "own_unit": "6_own/*_p50",
            "own_scalar": "4_own",
        }

    record = {"own.pre": [1.0] * 4, "own_median": [1.0] * 4, "own_unit": [1.0] * 4, "own_scalar": 2.0, "unknown": 3.0}
    assert [tag for tag, _, _ in tags(record, SITES)][:3] == [
        "5_other/own_scalar",
        "5_other/unknown",
        "5_own_median/00_median_of_layers",
    ]
    PROBES.register("own_probe")(Own)
    try:
        found = tags(record, SITES)
    finally:
        PROBES.forget("own_probe")
    assert found == [
        ("4_own/00_other_median", "own_median", None),
        ("4_own/own_scalar", "own_scalar", -1),
        ("4_own_pre/00_median_of_layers", "own.pre", None),
        *((f"4_own_pre/{site}", "own.pre", index) for index, site in enumerate(SITES)),
        ("5_other/unknown", "unknown", -1),
        *((f"6_own/{SITES[index]}_p50", "own_unit", index) for index in (0, 1, 2)),
    ]


def test_tensorboard_s_accumulator_shows_the_same_series(
    spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    ended = run(spec_of())
    accumulator = EventAccumulator(str(ended.folder.path), size_guidance={"scalars": 0}).Reload()
    losses = [(record["step"], record["train_loss"]) for record in ended.records if "train_loss" in record]
    assert [(scalar.step, scalar.value) for scalar in accumulator.Scalars("1_progress/train_loss")] == [
        (step, pytest.approx(loss, rel=1e-7)) for step, loss in losses
    ]


def test_writing_the_view_again_gives_the_same_events_in_one_file(
    spec_of: Callable[..., RunSpec], run: Callable[..., Any], tmp_path: Path
) -> None:
    ended = run(spec_of("probes=full", "probes.activations.batch=24"))
    sites = [site.name for site in ended.setup.net.sites]
    live = _events(ended.folder.path)
    rounds = []
    for _ in range(2):
        events = _written(ended.folder.path, list(read(ended.folder.journal_file)), sites)
        assert [(event.step, event.wall_time) for event in events] == [(event.step, event.wall_time) for event in live]
        rounds.append([event.SerializeToString() for event in events])
    assert rounds[0] == rounds[1]


def test_the_event_file_of_a_diverged_run_shows_the_step_of_divergence(
    spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    ended = run(spec_of("norm=none", "optim.lr=1e6", "model.depth=4"))
    assert ended.status["status"] == "diverged"
    events = _events(ended.folder.path)
    assert [event.step for event in events] == [record["step"] for record in ended.records]
    assert events[-1].step == ended.status["diverged"]["step"]


def test_the_framing_is_that_of_a_tfrecord(tmp_path: Path) -> None:
    """Length, its checksum, the message, its checksum; a changed byte is found by TensorBoard's reader."""
    board = Board(tmp_path, SITES, extent=Extent(records=1, steps=40))
    board.rewrite([RECORD])
    board.close()
    [file] = tmp_path.glob("events.out.tfevents.*")
    data = bytearray(file.read_bytes())
    [length] = struct.unpack("<Q", data[:8])
    [second] = struct.unpack("<Q", data[16 + length : 24 + length])
    assert len(data) == 16 + length + 16 + second
    data[20 + length + 8] ^= 1
    file.write_bytes(data)
    assert list(LegacyEventFileLoader(str(file)).Load())[1:] == []


def test_the_light_profile_shows_a_dozen_tags_and_no_layer(
    spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    spec = spec_of("probes=full", "probes.activations.batch=24", "probes.sharpness.every=1")
    full, light = run(spec, "full"), run(spec, "light", profile="light")
    every, few = _events(full.folder.path), _events(light.folder.path)
    assert len(LIGHT) == 12
    assert {value.tag for event in few for value in event.summary.value} == set(LIGHT)
    wanted = [(event.step, {tag: x for tag, x in _scalars(event).items() if tag in LIGHT}) for event in every]
    assert [(event.step, _scalars(event)) for event in few] == [
        (step, pytest.approx(found, nan_ok=True, abs=0)) for step, found in wanted
    ]


def test_histograms_are_kept_of_fifty_steps_at_most(tmp_path: Path) -> None:
    counts = [*COUNTS[:61], 3.0, *COUNTS[62:]]
    records = [{"step": step, "histogram.pre.L01_fc": counts, "wall_s": float(step)} for step in range(400)]
    steps = [event.step for event in _written(tmp_path, records, SITES) if event.summary.value]
    assert len(steps) == 50
    assert steps == [-(-399 * part // 50) for part in range(50)]


def test_histograms_at_every_fourth_of_the_usual_points_are_all_kept(tmp_path: Path) -> None:
    """200 points, of which every fourth has histograms: 50 steps, whatever the length of the run."""
    for steps in (200, 300, 997, 1000, 5003):
        schedule = Schedule(steps=steps, points=200, eval_points=50)
        kept = Histograms(steps)
        shown = [
            kept.of({"step": step, "histogram.pre.L01_fc": COUNTS}) != b""
            for step in range(0, steps, 4 * schedule.every)
        ]
        assert all(shown), steps
        assert not kept.left_out
