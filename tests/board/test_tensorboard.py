"""What bnlab takes from inside TensorBoard, which promises no stable interface there: when a new version moves or
changes something, these tests say what, and what breaks with it."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import metadata as layouts
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.image import metadata as images
from tensorboard.plugins.text import metadata as texts

import bnlab.board
from bnlab.board.events import EventFile, scalar

PLACES = {
    "tensorboard.compat.proto.event_pb2": "events",  # the events and their framing
    "tensorboard.compat.proto.summary_pb2": "events",  # scalars and histograms
    "tensorboard.compat.proto.tensor_pb2": "events",  # texts and images
    "tensorboard.compat.proto.tensor_shape_pb2": "events",
    "tensorboard.compat.proto.types_pb2": "events",
    "tensorboard": "serve/page",  # the files of its page
    "tensorboard.main": "serve/page",
    "tensorboard.plugins.custom_scalar": "compare/__init__",  # the page of a comparison
    "tensorboard.plugins.hparams": "card",  # the table of runs
    "tensorboard.plugins.hparams.plugin_data_pb2": "card",
    "tensorboard.plugins.image": "compare/__init__",
    "tensorboard.plugins.text": "compare/__init__",
    "tensorboard.plugins.text.summary_v2": "card",
}
"""Each of TensorBoard's modules -> the one module of bnlab.board that imports it."""


def test_each_of_tensorboards_modules_is_imported_in_one_place() -> None:
    root = Path(bnlab.board.__file__).parent
    found: dict[str, set[str]] = defaultdict(set)
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tensorboard"):
                found[str(node.module)].add(file.relative_to(root).with_suffix("").as_posix())
    assert found == {module: {place} for module, place in PLACES.items()}


def test_the_tags_that_plugins_look_for_are_the_known_ones() -> None:
    assert layouts.CONFIG_SUMMARY_TAG == "custom_scalars__config__"
    assert hparams.EXPERIMENT_TAG == "_hparams_/experiment"
    assert hparams.SESSION_END_INFO_TAG == "_hparams_/session_end_info"
    names = [layouts, hparams, images, texts]
    assert [module.PLUGIN_NAME for module in names] == ["custom_scalars", "hparams", "images", "text"]
    assert hparams.NULL_TENSOR.tensor_shape.dim[0].size == 0


def test_a_scalar_ends_with_its_four_bytes() -> None:
    """thin.Template puts numbers there without protobuf."""
    one, two = scalar("a/b", 1.0), scalar("a/b", 2.0)
    assert (one[:-4], one[-4:], two[-4:]) == (two[:-4], b"\x00\x00\x80?", b"\x00\x00\x00@")


@pytest.mark.parametrize("length", [1, 100, 20_000])
def test_an_event_is_the_one_that_protobuf_writes(length: int, tmp_path: Path) -> None:
    """events.EventFile joins the serialized head and summary by hand; lengths of one, two and three bytes."""
    file = EventFile(tmp_path)
    file.add(7, 1.5, scalar("x" * length, 0.25))
    file.publish("full")
    file.close()
    _, event = LegacyEventFileLoader(str(file.path)).Load()
    value = Summary.Value(tag="x" * length, simple_value=0.25)
    assert event.SerializeToString() == Event(wall_time=1.5, step=7, summary=Summary(value=[value])).SerializeToString()
