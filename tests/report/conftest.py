"""Run folders written by hand: what figures and pages are made of, without training."""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnlab.core.spec import id_of
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal, Series
from bnlab.record.runs import Run
from bnlab.report.style import looks_for
from bnlab.report.views import Group, View

SITES = 4  # three hidden layers and the head
STEPS = 40


def records(seed: int = 0, *, growth: float = 2.0, drift: float = 0.1, spread: float = 1.5) -> list[dict[str, Any]]:
    """A journal with everything that figures read, at steps 0, 2, ..., 40: simple closed forms."""
    found = []
    for step in range(0, STEPS + 1, 2):
        loss = 2.0 * 0.9**step * (1 + 0.1 * seed)
        record: dict[str, Any] = {"step": step, "train_loss": loss}
        record |= {"loss_lo": loss / spread, "loss_hi": loss * spread, "loss_range": spread - 1 / spread}
        record["delta_norm"] = [growth ** (SITES - 2 - layer) * (1 + 0.1 * seed) for layer in range(SITES)]
        if step:
            record["drift_mean.pre"] = [drift * (layer + 1) for layer in range(SITES)]
        counts = np.zeros(122)
        counts[60 - step // 2 : 63 + step // 2] = 10
        record["histogram.pre.L01_fc"] = counts.tolist()
        record["histogram.pre.L03_fc"] = counts.tolist()
        found.append(record)
    return found


def write_run(
    root: Path,
    *,
    norm: str = "batch",
    lr: float = 0.1,
    seed: int = 0,
    status: str = "finished",
    loss: float = 0.1,
    dead: bool = False,
    journal: Sequence[Mapping[str, Any]] | None = None,
    spec: Mapping[str, Any] | None = None,
    error: str | None = None,
    metrics: Mapping[str, float | None] | None = None,
    argv: Sequence[str] = ("bnlab", "train", "--config", "deep_mlp", "steps=40"),
) -> Path:
    """A run below `root`, laid out as `bnlab train` does."""
    tree: dict[str, Any] = {
        "name": root.name,
        "seed": seed,
        "steps": STEPS,
        "loss": "cross_entropy",
        "reduction": "mean",
    }
    tree |= {"model": {"name": "mlp", "activation": "relu", "depth": 3}, "optim": {"name": "sgd", "lr": lr}}
    tree |= {"norm": {"name": norm, "layers": "all", "every": 1, "position": "before"}}
    tree |= {"data": {"name": "digits", "batch_size": 64}, "probes": {"landscape": {"low": 0.5, "high": 4.0}}}
    for key, value in (spec or {}).items():
        group, _, option = key.partition(".")
        tree[group] = tree[group] | {option: value} if option else value
    folder = RunFolder(root / norm / f"lr={lr:g}" / f"seed={seed}-{id_of(tree, ())}")
    folder.path.mkdir(parents=True)
    folder.write_spec(tree, {"bnlab": "0.1.0", "git_sha": "c0ffee" * 6, "git_dirty": False, "argv": list(argv)})
    writer = Journal(folder.journal_file)
    for record in records(seed) if journal is None else journal:
        writer.append(record)
    writer.close()
    bad = status == "diverged"
    found = dict.fromkeys(("train_loss", "test_loss", "train_accuracy", "test_accuracy"), None if bad else 0.9)
    found |= {} if bad else {"train_loss": loss}
    state: dict[str, Any] = {"status": status, "step": 7 if bad else STEPS, "steps": STEPS, "dead": dead}
    state |= {"metrics": found | dict(metrics or {}), "timing": {"run_s": 3.0}}
    folder.write_status(state | ({"error": error} if error else {}))
    return folder.path


@pytest.fixture
def write() -> Callable[..., Path]:
    """See `write_run`."""
    return write_run


def write_grid(root: Path) -> Path:
    """Two arms, three rates, three seeds; without a norm, the largest rate diverges."""
    for norm, lr, seed in ((n, lr, s) for n in ("none", "batch") for lr in (0.01, 0.1, 1.0) for s in range(3)):
        diverged = norm == "none" and lr == 1.0
        loss = {0.01: 0.4, 0.1: 0.1, 1.0: 0.2}[lr] * (1 + 0.1 * seed)
        measured = records(seed, growth=2.0 if norm == "batch" else 1.0, drift=0.1 if norm == "batch" else 0.8)
        status = "diverged" if diverged else "finished"
        write_run(
            root,
            norm=norm,
            lr=lr,
            seed=seed,
            status=status,
            loss=loss,
            argv=("bnlab", "sweep", "--config", "grid"),
            journal=measured[: 4 if diverged else None],
        )
    return root


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """See `write_grid`."""
    return write_grid(tmp_path / "grid")


@pytest.fixture(scope="module")
def shared_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for tests that leave it as it is; with two runs that have not ended."""
    root = write_grid(tmp_path_factory.mktemp("shared") / "grid")
    write_run(root, norm="layer", status="failed", error="ValueError: <no>")
    write_run(root, norm="group", status="running")
    return root


def seen(
    lr: float = 0.1,
    seed: int = 0,
    *,
    folder: Path,
    loss: float = 0.1,
    diverged: bool = False,
    dead: bool = False,
    spec: Mapping[str, Any] | None = None,
    **series: Any,
) -> Run:
    """A run below `folder`; a series is values at steps 0, 1, 2, ..., or (steps, values). `__` stands for a dot. Its
    journal on the disk has the names alone."""
    journal: dict[str, Series] = {}
    for name, given in series.items():
        steps, values = given if isinstance(given, tuple) else (range(len(given)), given)
        journal[name.replace("__", ".")] = Series(np.array(steps, np.int64), np.array(values, np.float64))
    metrics = {} if diverged else {"train_loss": loss}
    status = {"status": "diverged" if diverged else "finished", "step": STEPS, "steps": STEPS, "dead": dead}
    run = Run(
        path=folder / uuid.uuid4().hex,
        id=f"{lr}-{seed}",
        spec={"optim": "sgd", "optim.lr": lr, "seed": seed, **(spec or {})},
        provenance={},
        status=status | {"metrics": metrics},
    )
    run._series.update(journal)
    run.path.mkdir()
    writer = Journal(run.folder.journal_file)
    writer.append({"step": 0} | dict.fromkeys(journal, 0.0))
    writer.close()
    return run


def view_of(arms: Mapping[str, Sequence[Run]], **more: Any) -> View:
    """Arms by label, the control first."""
    looks = looks_for(["none", "batch", "layer", "group"][: len(arms)])
    groups = [Group(label=label, look=look, runs=tuple(arms[label])) for label, look in zip(arms, looks, strict=True)]
    pair = (groups[1], groups[0]) if len(groups) == 2 else None
    return View(groups=tuple(groups), pair=pair, chance_loss=math.log(10), **more)


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Run]:
    """See `seen`."""
    return functools.partial(seen, folder=tmp_path)


@pytest.fixture
def view() -> Callable[..., View]:
    """See `view_of`."""
    return view_of


LOOKS = {
    "day": (1180, "light", "screen"),
    "night": (1180, "dark", "screen"),
    "phone": (390, "light", "screen"),
    "paper": (700, "dark", "print"),
}
"""How a page is looked at: width, colour scheme, medium."""


def looked_at(browser: Any, file: Path) -> Iterator[tuple[str, Any]]:
    """The page in each of `LOOKS`; it must write nothing to the console, and ask for nothing but files."""
    said: list[str] = []
    asked: list[str] = []
    for name, (width, scheme, media) in LOOKS.items():
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.emulate_media(media=media, color_scheme=scheme)
        page.goto(file.as_uri())
        yield name, page
        page.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []


@pytest.fixture
def looks() -> Callable[..., Iterator[tuple[str, Any]]]:
    return looked_at
