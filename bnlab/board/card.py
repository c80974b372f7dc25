"""What is at the head and at the end of a run's event file: its card, and its row in the HParams table.

The table has one row a run. TensorBoard takes its columns from the first description of the experiment that it finds in
any run; without one, every tag would be a column. So every run carries the description, the same for runs of one kind:
any folder of runs then has one, folders need not be writable, and the list of runs has no entry that is not a run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.plugins.hparams import api_pb2, metadata, summary_v2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.text.summary_v2 import text_pb

from bnlab.board.events import scalar, tensor_value
from bnlab.core.spec import ModelSpec
from bnlab.core.text import command, markdown
from bnlab.record.folder import ENDED
from bnlab.record.runs import flat, run_id

CARD = "run_card"
RESULTS = {
    "diverged": "1 if the run diverged, else 0",
    "train_loss": "at the end; the first training loss where it is larger than that, or the run diverged",
    "test_loss": "at the end; the first training loss where it is larger than that, or the run diverged",
    "train_accuracy": "at the end; 0 if the run diverged",
    "test_accuracy": "at the end; 0 if the run diverged",
}
"""Columns of the table. TensorBoard leaves a run with a value that is not finite out of the table's plots."""

CAP = 10.0
"""In place of a first loss that is not finite itself."""

USUAL = ("norm", "optim.lr", "seed", "model", "model.depth", "data", "data.batch_size", "optim")
"""Keys of a spec that are columns for every run, under their last part; other keys keep their whole name."""


def head(tree: Mapping[str, Any], folder: Path, begun_s: float) -> bytes:
    """The card, the experiment and the run's row, as a Summary. `tree`: a spec.yaml, also of another version.

    Raises:
        KeyError: not a spec.
    """
    run = run_id(folder, tree)
    axes = (tree.get("provenance") or {}).get("axes") or ("norm", "optim.lr", "seed")
    values = columns(tree, axes)
    # The table first shows five columns: those that differ, then the others by name.
    differing = {"log10_lr" if key == "optim.lr" else column(key) for key in axes}
    experiment = api_pb2.Experiment(
        name="bnlab",
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=_type(value), differs=name in differing)
            for name, value in values.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=_tag(name)), display_name=name, description=meaning)
            for name, meaning in RESULTS.items()
            if tree["loss"] == "cross_entropy" or not name.endswith("accuracy")
        ],
    )
    parts = (
        text_pb(CARD, card(tree, run)).SerializeToString(),
        _hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        summary_v2.hparams_pb(values, trial_id=run, start_time_secs=begun_s).SerializeToString(),
    )
    return b"".join(parts)


def columns(tree: Mapping[str, Any], axes: Iterable[str]) -> dict[str, str | float]:
    """A run's row: the usual columns, the axes of its sweep, and the logarithm of the learning rate."""
    spec = flat(tree)
    found: dict[str, str | float] = {}
    for key in (*USUAL, *axes):
        value = spec.get(key)
        if value is not None and not (key == "data.batch_size" and isinstance(value, str)):  # "full" is not a number
            found[column(key)] = value if isinstance(value, str | float | int) else str(value)
    found["log10_lr"] = math.log10(spec["optim.lr"])
    return found


def column(key: str) -> str:
    """
    >>> [column(key) for key in ("norm", "optim.lr", "norm.layers", "optim.momentum")]
    ['norm', 'lr', 'norm.layers', 'optim.momentum']
    """
    return key.rpartition(".")[2] if key in USUAL else key


def card(tree: Mapping[str, Any], run: str) -> str:
    """A run's card, in Markdown."""
    model, data, optim, provenance = tree["model"], tree["data"], tree["optim"], tree.get("provenance") or {}
    shared = {field.name for field in dataclasses.fields(ModelSpec)}
    size = [f"{key} {value}" for key, value in model.items() if key not in shared]
    sha, dirty = provenance.get("git_sha"), " with changes" if provenance.get("git_dirty") else ""
    argv = provenance.get("argv")
    rows = {
        "norm": tree["norm"]["name"],
        "model": ", ".join([model["name"], *size, model["activation"]]),
        "data": f"{data['name']}, batches of {data['batch_size']}",
        "optimizer": f"{optim['name']}, {optim['schedule']} learning rate",
        "learning rate": f"{optim['lr']:.12g}",
        "seed": tree["seed"],
        "length": f"{tree['steps']} steps" if tree["steps"] else f"{tree['epochs']} epochs",
        "run": run,
        "bnlab": provenance.get("bnlab"),
        "git": sha and f"{sha}{dirty}",
        "torch": provenance.get("torch"),
        "command": command("bnlab", *map(str, argv[1:])) if argv else None,
    }
    shown = {name: markdown(value) for name, value in rows.items() if value is not None}
    lines = [f"| {name} | {f'<code>{text}</code>' if name == 'command' else text} |" for name, text in shown.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def tail(status: Mapping[str, Any], first_loss: float) -> bytes:
    """The results of a run that has ended, as a Summary; empty for other runs."""
    if status.get("status") not in ENDED:
        return b""
    cap = first_loss if math.isfinite(first_loss) else CAP
    found = {"diverged": float(status["status"] == "diverged")}
    for name, value in (status.get("metrics") or {}).items():
        if name in RESULTS and name.endswith("loss"):
            found[name] = cap if value is None else min(value, cap)
        elif name in RESULTS:
            found[name] = 0.0 if value is None else value
    end = HParamsPluginData(session_end_info=SessionEndInfo(status=api_pb2.STATUS_SUCCESS))
    scalars = [scalar(_tag(name), value) for name, value in found.items()]
    return b"".join([*scalars, _hparams(metadata.SESSION_END_INFO_TAG, end)])


def _tag(name: str) -> str:
    return f"9_result/{name}"


def _type(value: str | float) -> Any:
    """The type of a column, from a value in it."""
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def _hparams(tag: str, data: HParamsPluginData) -> bytes:
    """The plugin reads the metadata; the tensor is empty."""
    return tensor_value(tag, metadata.create_summary_metadata(data), metadata.NULL_TENSOR)
