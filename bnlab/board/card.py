"""What is at the head and at the end of a run's event file: its card, and its row in the HParams table.

The table has one row a run. TensorBoard takes its columns from the first description of the experiment that it finds in
any run; without one, every tag would be a column. So every run carries the description, the same for runs of one kind:
any folder of runs then has one, folders need not be writable, and the list of runs has no entry that is not a run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.plugins.hparams import api_pb2, metadata, summary_v2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.text.summary_v2 import text_pb

from bnlab.board.events import scalar, tensor_value
from bnlab.core.spec import ModelSpec
from bnlab.core.text import command, markdown
from bnlab.record.findings import Finding
from bnlab.record.folder import ENDED
from bnlab.record.runs import flat, run_id

CARD, FINDINGS = "run_card", "run_findings"
RESULTS = {
    "test_accuracy": "at the end; 0 if the run diverged",
    "test_loss": "at the end; the first training loss where it is larger than that, or the run diverged",
    "train_loss": "at the end; the first training loss where it is larger than that, or the run diverged",
    "diverged": "1 if the run diverged, else 0",
    "train_accuracy": "at the end; 0 if the run diverged",
}
"""Columns of the table, after those of the axes. TensorBoard leaves a run with a value that is not finite out of the
table's plots."""

CAP = 10.0
"""In place of a first loss that is not finite itself."""

USUAL = ("norm", "optim.lr", "seed", "model", "model.depth", "data", "data.batch_size", "optim")
"""Keys of a spec that have columns under their last part; other keys keep their whole name. All are columns of a run
that is of no sweep."""

ORDER = {"norm": 1, "optim.lr": 3, "seed": 4}
"""Of columns: TensorBoard sorts them by name, so they are named `1_norm`, other keys `2_...`, but shown as `norm`."""


def head(tree: Mapping[str, Any], folder: Path, begun_s: float) -> bytes:
    """The card, the experiment and the run's row, as a Summary. `tree`: a spec.yaml, also of another version.

    Raises:
        KeyError: not a spec.
    """
    run = run_id(folder, tree)
    swept = (tree.get("provenance") or {}).get("axes")
    axes = swept or ("norm", "optim.lr", "seed")
    values = columns(tree, axes if swept else USUAL)
    results = [name for name in RESULTS if tree["loss"] == "cross_entropy" or not name.endswith("accuracy")]
    others = [f"{key.rpartition('.')[2]}={value}" for key, value in values.items() if key not in ORDER] if swept else []
    trial = "/".join([tree["norm"]["name"], f"lr={tree['optim']['lr']:.12g}", *others, f"seed={tree['seed']}-{run}"])
    shown_card: bytes = text_pb(CARD, card(tree, run)).SerializeToString()
    return shown_card + table_row(values, axes, {name: RESULTS[name] for name in results}, trial, begun_s)


def table_row(
    values: Mapping[str, str | float], axes: Iterable[str], results: Mapping[str, str], trial: str, begun_s: float
) -> bytes:
    """The experiment and a row of the table, as a Summary: the values of the columns by key, the `axes` first, then
    what there will be of results. TensorBoard shows five columns of either kind at first, and sorts rows by trial."""
    experiment = api_pb2.Experiment(
        name="bnlab",
        hparam_infos=[
            api_pb2.HParamInfo(name=column(key), display_name=shown(key), type=_type(value), differs=key in axes)
            for key, value in values.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=_tag(name)), display_name=name, description=meaning)
            for name, meaning in results.items()
        ],
    )
    start = summary_v2.hparams_pb(
        {column(key): value for key, value in values.items()}, trial_id=trial, start_time_secs=begun_s
    )
    described = _hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))
    return described + bytes(start.SerializeToString())


def columns(tree: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str | float]:
    """A run's row: its values of these keys."""
    spec = flat(tree)
    found: dict[str, str | float] = {}
    for key in keys:
        value = spec.get(key)
        if value is not None and not (key == "data.batch_size" and isinstance(value, str)):  # "full" is not a number
            found[key] = value if isinstance(value, str | float | int) else str(value)
    return found


def column(key: str) -> str:
    """
    >>> [column(key) for key in ("norm", "optim.lr", "norm.layers", "optim.momentum")]
    ['1_norm', '3_lr', '2_norm.layers', '2_optim.momentum']
    """
    return f"{ORDER.get(key, 2)}_{shown(key)}"


def shown(key: str) -> str:
    """The head of a key's column."""
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
        "model": ", ".join([model["name"], *size, *filter(None, [model.get("activation")])]),
        "data": f"{data['name']}, batches of {data['batch_size']}",
        "optimizer": optim["name"] + (f", {optim['schedule']} learning rate" if "schedule" in optim else ""),
        "learning rate": f"{optim['lr']:.12g}",
        "seed": tree["seed"],
        "length": f"{tree['steps']} steps" if tree.get("steps") else f"{tree['epochs']} epochs",
        "run": run,
        "bnlab": provenance.get("bnlab"),
        "git": sha and f"{sha}{dirty}",
        "torch": provenance.get("torch"),
        "command": command(*map(str, ["python", *argv] if "loop" in tree else ["bnlab", *argv[1:]])) if argv else None,
    }
    shown = {name: markdown(value) for name, value in rows.items() if value is not None}
    lines = [f"| {name} | {f'<code>{text}</code>' if name == 'command' else text} |" for name, text in shown.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def tail(status: Mapping[str, Any], first_loss: float, found: Sequence[Finding] = ()) -> bytes:
    """The results of a run that has ended, and what was found in it, as a Summary; empty for other runs."""
    if status.get("status") not in ENDED:
        return b""
    lines = "\n".join(f"- {markdown(finding.text)}" for finding in found)
    text: bytes = text_pb(FINDINGS, lines).SerializeToString() if lines else b""
    return table_results(results_of(status, first_loss)) + text


def results_of(status: Mapping[str, Any], first_loss: float) -> dict[str, float]:
    """What the table shows of a run that has ended: finite numbers."""
    cap = first_loss if math.isfinite(first_loss) else CAP
    found = {"diverged": float(status["status"] == "diverged")}
    for name, value in (status.get("metrics") or {}).items():
        if name in RESULTS and name.endswith("loss"):
            found[name] = cap if value is None else min(value, cap)
        elif name in RESULTS:
            found[name] = 0.0 if value is None else value
    return found


def table_results(found: Mapping[str, float]) -> bytes:
    """The results in a row of the table, as a Summary."""
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
