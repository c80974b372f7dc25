"""What stands at the head of a run's event file and at its end: its card, and its row in the HParams table.

The table has one row a run. TensorBoard takes its columns from a description of the experiment, which it looks for in
all runs, and takes the first; without one every tag would be a column. Every run carries it, the same for runs of one
kind: so there is one wherever one looks from, a folder that cannot be written is no hindrance, and the list of runs has
no entry that is no run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, summary_v2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.text.summary_v2 import text_pb

from bnlab.board.template import scalar
from bnlab.core.spec import ModelSpec, canonical
from bnlab.record.folder import ENDED

CARD = "run_card"
RESULTS = {
    "diverged": "1 if the run diverged, else 0",
    "train_loss": "at the end; the first training loss where it is larger than that, or the run diverged",
    "test_loss": "at the end; the first training loss where it is larger than that, or the run diverged",
    "train_accuracy": "at the end; 0 if the run diverged",
    "test_accuracy": "at the end; 0 if the run diverged",
}
"""Columns of the table. A value that is not finite would take its run out of the table's pictures."""

CAP = 10.0
"""In place of a first loss that is not finite itself."""

USUAL = {
    "norm": "norm",
    "optim.lr": "lr",
    "seed": "seed",
    "model": "model",
    "model.depth": "depth",
    "data": "data",
    "data.batch_size": "batch_size",
    "optim": "optim",
}
"""Keys of a spec that are columns for every run, and their names there."""


def head(tree: Mapping[str, Any], name: str, begun_s: float) -> bytes:
    """The card, the experiment and the run's row, as a Summary. `tree`: a spec.yaml, of another version too; `name`: of
    the run's folder, which ends in its id.

    Raises:
        KeyError: not a spec.
    """
    provenance, run = tree.get("provenance") or {}, _id(tree, name)
    axes = provenance.get("axes") or ("norm", "optim.lr", "seed")
    values = columns(tree, axes)
    # Five columns are shown at first: those which differ, then the others by name.
    differing = {"log10_lr" if key == "optim.lr" else column(key) for key in axes}
    experiment = api_pb2.Experiment(
        name="bnlab",
        hparam_infos=[
            api_pb2.HParamInfo(
                name=name,
                type=_type(value),
                differs=name in differing,
            )
            for name, value in values.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=_tag(name)), display_name=name, description=meaning)
            for name, meaning in RESULTS.items()
            if tree["loss"] == "cross_entropy" or not name.endswith("accuracy")
        ],
    )
    parts = (
        text_pb(CARD, card(tree, run)),
        _hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        summary_v2.hparams_pb(values, trial_id=run, start_time_secs=begun_s),
    )
    return b"".join(part.SerializeToString() for part in parts)


def columns(tree: Mapping[str, Any], axes: Iterable[str]) -> dict[str, str | float]:
    """What a run is told by: names, and numbers. Beside what is always looked at, the axes of the sweep it is from;
    the learning rate by its logarithm too."""
    found: dict[str, str | float] = {}
    for key in (*USUAL, *axes):
        group, _, option = key.partition(".")
        value = tree.get(group)
        if isinstance(value, Mapping):
            value = value.get(option or "name")
        if value is not None and not (key == "data.batch_size" and isinstance(value, str)):  # "full" is no number
            found[column(key)] = value if isinstance(value, str | float | int) else str(value)
    found["log10_lr"] = math.log10(tree["optim"]["lr"])
    return found


def column(key: str) -> str:
    """
    >>> [column(key) for key in ("norm", "optim.lr", "norm.layers", "optim.momentum")]
    ['norm', 'lr', 'norm.layers', 'optim.momentum']
    """
    return USUAL.get(key, key)


def card(tree: Mapping[str, Any], run: str) -> str:
    """A run's card, in Markdown."""
    model, data, optim, provenance = tree["model"], tree["data"], tree["optim"], tree.get("provenance") or {}
    shared = {field.name for field in dataclasses.fields(ModelSpec)}
    size = [f"{key} {value}" for key, value in model.items() if key not in shared]
    sha, dirty = provenance.get("git_sha"), " with changes" if provenance.get("git_dirty") else ""
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
        "command": _code(provenance.get("argv")),
    }
    lines = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def tail(status: Mapping[str, Any], first_loss: float) -> bytes:
    """The results of a run that has ended, as a Summary; nothing of one that has not."""
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
    return b"".join([*scalars, _hparams(metadata.SESSION_END_INFO_TAG, end).SerializeToString()])


def _id(tree: Mapping[str, Any], name: str) -> str:
    """As the folder's name has it; of a folder that was renamed, something as good."""
    if found := re.search(r"-([0-9a-f]{10})$", name):
        return found[1]
    text = canonical({key: value for key, value in tree.items() if key != "provenance"})
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _tag(name: str) -> str:
    return f"9_result/{name}"


def _code(argv: Sequence[str] | None) -> str | None:
    """The command line, with the program's name for wherever it lies."""
    return f"`{shlex.join(['bnlab', *(str(word) for word in argv[1:])])}`" if argv else None


def _type(value: str | float) -> Any:
    """Of a column, from a value in it."""
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def _hparams(tag: str, data: HParamsPluginData) -> Summary:
    """As the plugin wants it: everything in the metadata, and a tensor of nothing."""
    described = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])
