"""Which arms some runs have, in which order, and what they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bnlab.analysis.arms import OLD_TITLES, arms_of, title
from bnlab.analysis.load import Collection
from bnlab.core.registry import NORMS, OPTIMIZERS
from bnlab.core.study import Claim, axes_of
from bnlab.record.runs import Run

RunOf = Callable[..., Run]
Collect = Callable[..., Collection]
ClaimOf = Callable[..., Claim]


def names(collection: Collection) -> list[str]:
    return list(arms_of(collection).names.values())


def test_controls_come_first_and_numbers_by_size(run_of: RunOf, collect: Collect) -> None:
    norms = ("layer", "batch", "none")
    assert names(collect([run_of(norm=norm) for norm in norms])) == ["no norm", "batch norm", "layer norm"]
    sizes = [run_of(spec={"data.batch_size": size}) for size in (128, 16, 32)]
    assert names(collect(sizes)) == ["batch size 16", "batch size 32", "batch size 128"]
    assert names(collect([run_of()])) == ["batch norm"]
    assert names(collect([run_of(spec={"norm.layers": [0, 2]}), run_of(spec={"norm.layers": [1]})])) == [
        "layers 0 2",
        "layers 1",
    ]


def test_learning_rate_seed_and_what_is_measured_are_no_axes(run_of: RunOf) -> None:
    specs: list[dict[str, Any]] = [{"threads": 1, "probes.points": 7}, {"threads": 2, "probes.points": 9}]
    runs = [run_of(lr=0.1 + index, seed=index, spec=spec) for index, spec in enumerate(specs)]
    assert axes_of([run.spec for run in runs]) == []


def test_data_that_are_drawn_by_the_run_s_seed_make_no_axis(run_of: RunOf) -> None:
    tied = [run_of(seed=seed, spec={"data.data_seed": seed}) for seed in (3, 4)]
    assert axes_of([run.spec for run in tied]) == []
    free = run_of(seed=5, spec={"data.data_seed": 0})
    assert axes_of([run.spec for run in (*tied, free)]) == ["data.data_seed"]


def test_an_option_is_an_axis_where_runs_of_one_choice_differ_in_it(run_of: RunOf, collect: Collect) -> None:
    one = [run_of(norm="none"), run_of(norm="ghost_batch", spec={"norm.ghost_size": 16})]
    assert axes_of([run.spec for run in one]) == ["norm"]
    two = [*one, run_of(norm="ghost_batch", spec={"norm.ghost_size": 32})]
    assert axes_of([run.spec for run in two]) == ["norm", "norm.ghost_size"]
    assert names(collect(two)) == ["no norm", "ghost batch norm, ghost size 16", "ghost batch norm, ghost size 32"]


def test_the_arm_axis_is_what_claims_contrast(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [run_of(norm=norm, spec={"model.depth": depth}) for norm in ("none", "batch") for depth in (2, 8)]
    by_norm, by_depth = collect(runs), collect(runs, [claim_of(contrast={"model.depth": (8, 2)})])
    assert (arms_of(by_norm).axis, arms_of(by_norm).rest) == ("norm", ("model.depth",))
    assert (arms_of(by_depth).axis, arms_of(by_depth).rest) == ("model.depth", ("norm",))
    assert arms_of(by_norm).label(runs[0]) == "no norm, depth 2"
    assert arms_of(by_depth).label(runs[0]) == "depth 2, no norm"
    assert arms_of(by_norm).labels(runs[:3]) == ["no norm, depth 2", "batch norm, depth 2", "no norm, depth 8"]


@pytest.mark.parametrize(
    ("choice", "titles", "found"),
    [
        ({"norm": "l1"}, None, "L1 batch norm"),  # a run from before titles were written
        ({"norm": "my_norm"}, None, "my_norm"),
        ({"norm": "my_norm"}, {"norm": "my own norm"}, "my own norm"),
        ({"norm": "batch"}, {"norm": "batch normalization", "optim": "SGD"}, "batch normalization"),
        ({"norm": "batch"}, {"optim": "SGD"}, "batch norm"),
    ],
)
def test_a_title_is_that_of_the_provenance(
    choice: dict[str, str], titles: dict[str, str] | None, found: str, run_of: RunOf, collect: Collect
) -> None:
    run = run_of(**choice, provenance={"titles": titles} if titles else {})
    assert title(run, "norm") == found
    other = run_of(norm="none")
    assert names(collect([run, other])) == ["no norm", found]
    old = run_of(**choice, seed=1)  # of the same norm, without titles
    assert names(collect([run, old, other])) == ["no norm", found]


def test_old_and_new_runs_have_the_same_titles() -> None:
    now = {("norm", norm.name): norm.title for norm in NORMS.entries()}
    now |= {("optim", optimizer.name): optimizer.title for optimizer in OPTIMIZERS.entries()}
    assert {key: now[key] for key in OLD_TITLES} == OLD_TITLES
