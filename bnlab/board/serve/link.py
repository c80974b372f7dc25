"""The address of TensorBoard's page, set up: colours, pins, what is shown."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path

OVERVIEW = (
    "1_progress/loss",
    "1_progress/accuracy",
    "1_progress/eval_loss",
    "1_progress/eval_accuracy",
    "2_drift_mean_pre/00_median_of_layers",
    "4_grad_norm/00_total",
)
"""The tags to pin, where a run has them; board/tags.py gives them their names."""

TICKED = 40
"""As many runs, all of them, are ticked at first in TensorBoard's older pages; of more, none."""

HEAD_BYTES = 1 << 18
"""Of an event file: its first event, which names the tags, and more."""


def norm_names(runs: Iterable[str]) -> list[str]:
    """The norms that the run names tell apart, in the order of the names: the part before `lr=...`.

    >>> norm_names(["a/batch/lr=1/seed=0-f", "a/none/lr=1/seed=0-e", "lr=2/seed=0-d"])
    ['batch', 'none']
    """
    found = (match.group(1) for run in runs if (match := re.search(r"(?:^|/)([^/]+)/lr=", run)))
    return list(dict.fromkeys(found))


def colour_regex(runs: Sequence[str]) -> str | None:
    """What runs are grouped by for their colour: the norm, or the learning rate where there is one norm only.

    >>> colour_regex(["batch/lr=1/seed=0", "none/lr=1/seed=0"])
    '(?:^|/)(batch|none)/lr='
    >>> colour_regex(["batch/lr=1/seed=0", "batch/lr=2/seed=0"])
    '(?:^|/)(lr=[^/]+)/'
    """
    norms = norm_names(runs)
    if len(norms) > 1:
        return f"(?:^|/)({'|'.join(re.escape(norm) for norm in sorted(norms))})/lr="
    rates = {match.group(1) for run in runs if (match := re.search(r"(?:^|/)(lr=[^/]+)/", run))}
    return "(?:^|/)(lr=[^/]+)/" if len(rates) > 1 else None


def tags_to_pin(files: Iterable[Path]) -> list[str]:
    """Those of `OVERVIEW` that a file names: tags stand in event files as they are."""
    seen: set[str] = set()
    for file in files:
        with open(file, "rb") as opened:
            head = opened.read(HEAD_BYTES)
        seen |= {tag for tag in OVERVIEW if tag.encode() in head}
        if len(seen) == len(OVERVIEW):
            break
    return [tag for tag in OVERVIEW if tag in seen]


def deep_link(base: str, runs: Sequence[str], pins: Sequence[str], run_filter: str | None) -> str:
    """The address of the page, set up: no smoothing (it misleads at the start of training), colours, pins."""
    query = {"smoothing": "0"}
    if regex := colour_regex(runs):
        query["runColorGroup"] = f"regex:{regex}"
    if pins:
        query["pinnedCards"] = json.dumps([{"plugin": "scalars", "tag": tag} for tag in pins], separators=(",", ":"))
    if run_filter is not None:
        query["runFilter"] = run_filter
    return f"{base.rstrip('/')}/?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}#timeseries"


def compare_link(base: str, runs: Sequence[str], shown: Sequence[str], pins: Sequence[str], pattern: str | None) -> str:
    """The address of the Custom Scalars page on which `shown` of the `runs` are ticked, or all that match a pattern;
    the Time Series page beside it is set up as for single runs.

    That page keeps its state behind the `#`: the ticks as JSON in base 64. What is not named there is ticked where
    there are few runs, so that what is not to be is named too. The run at the top has no series, but the figures.
    """
    state = {"_smoothingWeight": "0"}
    if pattern is not None:
        state["regexInput"] = pattern
    else:
        ticks = {run: run in shown for run in (runs if len(runs) < TICKED else shown)} | {".": True}
        state["runSelectionState"] = base64.b64encode(json.dumps(ticks, separators=(",", ":")).encode()).decode()
    behind = "&".join(f"{key}={urllib.parse.quote(value, safe='')}" for key, value in state.items())
    return deep_link(base, runs, pins, pattern).removesuffix("timeseries") + f"custom_scalars&{behind}"
