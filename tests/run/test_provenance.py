"""The provenance in a run's spec.yaml."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bnlab.core.registry import NORMS, OPTIMIZERS


def test_a_run_names_its_sites_titles_and_classes(spec_of: Callable[..., Any], run: Callable[..., Any]) -> None:
    written = run(spec_of("norm=ghost_batch", "norm.ghost_size=4", "optim=adamw")).folder.spec()["provenance"]
    assert written["titles"] == {"norm": "ghost batch norm", "optim": "AdamW"}
    assert written["classes"] == 10
    assert written["sites"] == ["L00_fc", "L01_fc", "L02_out"]


def test_a_regression_has_no_classes(spec_of: Callable[..., Any], run: Callable[..., Any]) -> None:
    written = run(spec_of(model="deep_linear"))
    assert "classes" not in written.folder.spec()["provenance"]


def test_every_norm_and_optimizer_of_bnlab_has_a_title_of_its_own() -> None:
    for registry in (NORMS, OPTIMIZERS):
        titles = [entry.title for entry in registry.entries()]
        assert len(set(titles)) == len(titles)
    assert NORMS["none"].title == "no norm"
    assert OPTIMIZERS["sgd"].title == "SGD"
