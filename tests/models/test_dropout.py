"""Dropout: its law, its places, the passes of probes, a run that is resumed or measured, ids without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.net.adopt import adopted
from bnlab.net.dropout import Dropout
from bnlab.run.setup import assemble
from bnlab.verify.checks import refuse_differences, trace

SpecOf = Callable[..., RunSpec]
DROPPED = ("model.dropout=0.4", "steps=4")
PROBED = ("probes=full+propagation+representation", "probes.activations.batch=24", "probes.representation.batch=24")


def test_a_share_p_is_0_and_the_rest_is_scaled_by_the_rest_s_share() -> None:
    drop, x = Dropout(0.3), torch.full((200, 100), 2.0)
    drop.bind(7, "L00_fc_drop")
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0.0, 2 / 0.7])
    assert float((out == 0).double().mean()) == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 20_000) ** 0.5)
    assert not torch.equal(drop(x), out)  # another step
    drop.steps.zero_()
    assert torch.equal(drop(x), out)
    drop.bind(8, "L00_fc_drop")
    drop.steps.zero_()
    assert not torch.equal(drop(x), out)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("position", ["before", "after"])
def test_it_follows_every_hidden_nonlinearity_and_a_norm_behind_it(position: str, spec_of: SpecOf) -> None:
    setup = assemble(spec_of(*DROPPED, "norm=batch", f"norm.position={position}"))
    names = list(dict(setup.net.module.named_children()))
    for index, site in enumerate(setup.net.sites):
        own = [name for name in names if name.startswith(f"{site.name}_")]
        last = index == len(setup.net.sites) - 1
        assert [name.rpartition("_")[2] == "drop" for name in own] == [False] * (len(own) - 1) + [not last]
    plain = assemble(spec_of("norm=batch"))
    assert not any(isinstance(part, Dropout) for part in plain.net.module.modules())


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_a_measured_run_is_the_run_and_its_passes_have_the_step_s_masks(
    model: str, spec_of: SpecOf, run: Callable[..., Any], tmp_path: Path
) -> None:
    measured = trace(spec_of(*DROPPED, *PROBED, "norm=batch", model=model), tmp_path / "full")
    bare = trace(spec_of(*DROPPED, "probes=none", "probes.points=1", "norm=batch", model=model), tmp_path / "none")
    refuse_differences(measured, bare)
    still = run(spec_of(*DROPPED, *PROBED, "norm=batch", "optim.lr=1e-8", "dtype=float64", model=model), "still")
    for record in still.records[:-1]:
        if "loss_lo" in record:
            assert record["loss_lo"] == pytest.approx(record["train_loss"], rel=1e-4)
        assert max(record["propagation.all"]) < 1e-4


@pytest.mark.parametrize(
    ("group", "key", "absent", "other"), [("model", "dropout", 0, "0.1"), ("data", "shuffle", "every_epoch", "once")]
)
def test_without_a_newer_key_an_id_is_what_it_was_before_there_was_one(
    group: str, key: str, absent: object, other: str, spec_of: SpecOf
) -> None:
    tree = spec_of("norm=batch").tree()
    assert tree[group].pop(key) == absent
    assert RunSpec.from_tree(tree).id == spec_of("norm=batch").id
    assert spec_of("norm=batch", f"{group}.{key}={other}").id != spec_of("norm=batch").id


def test_a_module_of_the_user_has_its_own(spec_of: SpecOf) -> None:
    spec = spec_of("model.dropout=0.5")
    with pytest.raises(UsageError, match=r"^model\.dropout: has no effect: model=mlp has its own, got 0\.5\."):
        adopted(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), spec.model, spec.norm, (4,), 2, 0)
