"""The spec and its id: one meaning, one text, one id."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnlab.core.errors import UsageError, nearest
from bnlab.core.registry import READ
from bnlab.core.spec import GROUPS, NOT_HASHED, SCHEMA_VERSION, RunSpec, canonical

TREE: dict[str, Any] = {
    "name": "golden",
    "seed": 3,
    "steps": 100,
    "epochs": None,
    "loss": "cross_entropy",
    "reduction": "mean",
    "eval_bn": "running",
    "eval_batch_size": "auto",
    "device": "cpu",
    "dtype": "float32",
    "precision": "float32",
    "threads": 1,
    "plugins": [],
    "model": {
        "name": "mlp",
        "activation": "relu",
        "init": "he",
        "init_scale": 1.0,
        "init_std": 0.01,
        "bias": "auto",
        "dropout": 0.0,
        "depth": 3,
        "width": 100,
    },
    "norm": {
        "name": "batch",
        "layers": "all",
        "every": 1,
        "position": "before",
        "eps": 1e-5,
        "momentum": 0.1,
        "affine": True,
    },
    "data": {
        "name": "digits",
        "batch_size": 60,
        "shuffle": "every_epoch",
        "subset": None,
        "normalize": "channel",
        "binarize": False,
        "crop": 0,
        "flip": False,
        "label_noise": 0.25,
        "shift": "none",
        "shift_strength": None,
        "test_fraction": 0.2,
    },
    "optim": {
        "name": "sgd",
        "lr": 0.1,
        "schedule": "constant",
        "warmup_steps": 0,
        "drop_at": [0.5, 0.75],
        "drop_factor": 0.1,
        "momentum": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
    },
    "probes": {"points": 200, "eval_points": 50, "gradients": {"noise": False}, "batch_moments": {}},
    "launch": {
        "name": "local",
        "workers": "auto",
        "per_device": 1,
        "checkpoint_s": 30,
        "lockstep": "auto",
        "timeout": None,
    },
}
GOLDEN_ID = "73e71a343a"
"""The id of TREE. If this changes, every run that anybody has kept gets another id: raise SCHEMA_VERSION knowingly."""


def _with(key: str, value: Any) -> dict[str, Any]:
    """TREE with one dotted key set."""
    tree = copy.deepcopy(TREE)
    node = tree
    *groups, last = key.split(".")
    for group in groups:
        node = node[group]
    node[last] = value
    return tree


def test_the_id_of_a_spec_is_golden() -> None:
    assert RunSpec.from_tree(TREE).id == GOLDEN_ID


def test_the_id_is_the_sha256_of_the_sorted_spec_without_its_name_and_launch() -> None:
    hashed = {key: value for key, value in copy.deepcopy(TREE).items() if key not in ("name", "launch")}
    del hashed["model"]["dropout"], hashed["data"]["shuffle"]  # as in every run from before there were such keys
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":")).replace("1.0,", "1,").replace("0.0,", "0,")
    text = text.replace('"weight_decay":0.0', '"weight_decay":0')
    digest = hashlib.sha256(f"bnlab schema {SCHEMA_VERSION} {text}".encode()).hexdigest()
    assert RunSpec.from_tree(TREE).id == digest[:10]


def test_the_id_is_the_same_in_another_process_with_another_hash_seed() -> None:
    script = f"from bnlab.core.spec import RunSpec; print(RunSpec.from_tree({TREE!r}).id)"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == GOLDEN_ID


def test_where_it_runs_and_what_it_is_called_are_not_part_of_the_id() -> None:
    assert NOT_HASHED == ("name", "launch")
    for key, value in (("name", "other"), ("launch.checkpoint_s", 1)):
        assert RunSpec.from_tree(_with(key, value)).id == GOLDEN_ID


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 4),
        ("steps", 101),
        ("loss", "mse"),
        ("reduction", "sum"),
        ("device", "cuda"),
        ("dtype", "float64"),
        ("threads", 2),
        ("plugins", ["my.py"]),
        ("model.depth", 4),
        ("model.bias", True),
        ("model.dropout", 0.5),
        ("data.shuffle", "once"),
        ("model.init_scale", 2.0),
        ("norm.name", "batch_reference"),
        ("norm.momentum", None),
        ("norm.layers", [0, 2]),
        ("norm.position", "after"),
        ("data.batch_size", "full"),
        ("data.subset", 500),
        ("data.normalize", "none"),
        ("data.binarize", True),
        ("data.crop", 4),
        ("data.flip", True),
        ("data.label_noise", 0.0),
        ("optim.lr", 0.1000001),
        ("optim.drop_at", [0.75, 0.5]),
        ("probes.gradients", {"noise": True}),
        ("probes.points", 100),
    ],
)
def test_everything_that_a_run_depends_on_is_part_of_the_id(key: str, value: Any) -> None:
    assert RunSpec.from_tree(_with(key, value)).id != GOLDEN_ID


def test_a_change_of_meaning_changes_every_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.core.spec.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    assert RunSpec.from_tree(TREE).id != GOLDEN_ID


@pytest.mark.parametrize(
    ("key", "value"), [("optim.lr", 0.1 + 1e-16), ("model.init_scale", 1), ("norm.eps", 0.00001), ("optim.momentum", 0)]
)
def test_one_meaning_written_in_two_ways_is_one_id(key: str, value: Any) -> None:
    assert RunSpec.from_tree(_with(key, value)).id == GOLDEN_ID


def test_the_order_of_keys_does_not_matter() -> None:
    turned = {key: TREE[key] for key in reversed(TREE)}
    for group in GROUPS:
        turned[group] = {key: TREE[group][key] for key in reversed(TREE[group])}
    assert RunSpec.from_tree(turned).id == GOLDEN_ID


def test_a_spec_survives_the_way_through_yaml_s_form() -> None:
    spec = RunSpec.from_tree(TREE)
    assert spec.tree() == TREE
    assert RunSpec.from_tree(spec.tree()) == spec
    assert RunSpec.from_tree(json.loads(json.dumps(spec.tree()))) == spec


@given(
    seed=st.integers(0, 2**63),
    lr=st.floats(1e-12, 1e6),
    layers=st.one_of(st.just("all"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
    bias=st.sampled_from(["auto", True, False]),
    batch_size=st.one_of(st.just("full"), st.integers(1, 10**6)),
    options=st.dictionaries(
        st.text("abcdefgh_", min_size=1, max_size=8).filter(lambda name: name not in ("bias", "layers")),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4),
        max_size=4,
    ),
)
def test_any_spec_survives_the_way_there_and_back(
    seed: int, lr: float, layers: Any, bias: Any, batch_size: Any, options: dict[str, Any]
) -> None:
    tree = copy.deepcopy(TREE) | {"seed": seed}
    tree["optim"]["lr"] = lr
    tree["norm"]["layers"] = layers
    tree["model"]["bias"] = bias
    tree["data"]["batch_size"] = batch_size
    tree["norm"] |= options
    spec = RunSpec.from_tree(tree)
    assert spec.tree() == tree
    again = RunSpec.from_tree(spec.tree())
    assert again == spec
    assert again.id == spec.id
    assert len(spec.id) == 10


def test_a_run_s_folder_names_the_arm_first() -> None:
    spec = RunSpec.from_tree(TREE)
    assert spec.folder == f"golden/batch/lr=0.1/seed=3-{GOLDEN_ID}"
    assert RunSpec.from_tree(_with("optim.lr", 1e-6)).folder.split("/")[2] == "lr=1e-06"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(-1e9, 1e9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def _turned(value: Any) -> Any:
    """The same with every mapping's keys in reverse."""
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    return [_turned(item) for item in value] if isinstance(value, list) else value


@given(value=PLAIN)
def test_canonical_text_does_not_depend_on_the_order_of_keys_and_is_json(value: Any) -> None:
    text = canonical(value)
    assert canonical(_turned(value)) == text
    assert canonical(json.loads(text)) == text


@given(whole=st.integers(-(10**11), 10**11))
def test_canonical_text_takes_1_and_1_0_as_one(whole: int) -> None:
    assert canonical(whole) == canonical(float(whole)) == str(whole)


@given(one=st.floats(1e-6, 1e6), other=st.floats(1e-6, 1e6))
def test_canonical_text_tells_numbers_apart_from_the_12th_digit_on(one: float, other: float) -> None:
    apart = abs(one - other) / max(one, other)
    if apart > 1e-11:
        assert canonical(one) != canonical(other)
    assert float(canonical(one)) == pytest.approx(one, rel=1e-11)


def test_canonical_text_keeps_large_integers_whole() -> None:
    assert canonical(2**63) != canonical(2**63 + 1)
    assert canonical([1, True, "1", None]) == '[1,true,"1",null]'


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.lr", 0, "optim.lr: must be a number above 0, got 0."),
        ("optim.lr", -0.5, "optim.lr: must be a number above 0, got -0.5."),
        ("optim.lr", math.inf, "optim.lr: must be finite, got inf."),
        ("optim.lr", math.nan, "optim.lr: must be finite, got nan."),
        ("optim.lr", "0.1", "optim.lr: must be a number, got '0.1'."),
        ("optim.lr", True, "optim.lr: must be a number, got true."),
        ("optim.drop_at", [0.5, 1.5], "optim.drop_at: must be below 1, got [0.5, 1.5]."),
        ("optim.warmup_steps", -1, "optim.warmup_steps: must be at least 0, got -1."),
        ("steps", 0, "steps: must be at least 1, got 0."),
        ("steps", 1.5, "steps: must be an integer, got 1.5."),
        ("steps", True, "steps: must be an integer, got true."),
        ("seed", -1, "seed: must be at least 0, got -1."),
        ("threads", 0, "threads: must be at least 1, got 0."),
        ("epochs", 0, "epochs: must be a number above 0, got 0."),
        ("data.batch_size", 0, "data.batch_size: must be 'full' or be at least 1, got 0."),
        ("data.subset", 0, "data.subset: must be at least 1, got 0."),
        ("data.batch_size", 2.0, "data.batch_size: must be 'full' or be an integer, got 2.0."),
        ("norm.layers", [], "norm.layers: must be 'all' or not be empty, got []."),
        ("norm.every", 0, "norm.every: must be at least 1, got 0."),
        ("norm.position", "behind", "norm.position: must be 'before' or 'after', got 'behind'."),
        ("model.bias", "maybe", "model.bias: must be 'auto' or be a boolean, got 'maybe'."),
        ("probes.points", 0, "probes.points: must be at least 1, got 0."),
        ("launch.checkpoint_s", -1, "launch.checkpoint_s: must be at least 0, got -1."),
        ("plugins", "my.py", "plugins: must be a list, got 'my.py'."),
    ],
)
def test_a_wrong_value_gives_one_line_with_its_key(key: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match="^" + key) as caught:
        RunSpec.from_tree(_with(key, value))
    assert str(caught.value) == message


def test_a_word_that_is_nearly_a_choice_gets_the_choice_proposed() -> None:
    with pytest.raises(UsageError, match=r"got 'tahn'\. Did you mean: tanh\?$"):
        RunSpec.from_tree(_with("model.activation", "tahn"))


@pytest.mark.parametrize("key", ["steps", "optim.lr", "model", "norm.layers"])
def test_a_missing_key_is_named(key: str) -> None:
    tree = copy.deepcopy(TREE)
    group, _, last = key.rpartition(".")
    del (tree[group] if group else tree)[last]
    with pytest.raises(UsageError, match=f"^{key}: missing"):
        RunSpec.from_tree(tree)


def test_a_key_that_no_run_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^momentum: "):
        RunSpec.from_tree(_with("momentum", 0.9))


def test_an_error_reads_key_problem_value_remedy() -> None:
    assert str(UsageError("a.b", "is wrong", None, "Fix it.")) == "a.b: is wrong, got null. Fix it."
    assert str(UsageError("a.b", "is wrong")) == "a.b: is wrong."
    assert str(UsageError("a.b", "is wrong", "x")) == "a.b: is wrong, got 'x'."
    assert issubclass(UsageError, ValueError)


def test_the_nearest_known_word_is_proposed() -> None:
    known = ["optim.lr", "optim.momentum", "model.depth"]
    assert nearest("optim.lrr", known) == "Did you mean: optim.lr?"
    assert nearest("lr", known) == "Did you mean: optim.lr?"
    assert nearest("zzz", known) == "There are: model.depth, optim.lr, optim.momentum."
    assert nearest("zzz", [str(number) for number in range(41)]) == ""


def test_the_id_depends_on_a_plugin_s_content(spec_of: Callable[..., RunSpec], tmp_path: Path) -> None:
    here, there = tmp_path / "a.py", tmp_path / "b.py"
    here.write_text("X = 1\n")
    there.write_text("X = 1\n")
    spec = spec_of()

    def id_with(file: Path) -> str:
        return dataclasses.replace(spec, plugins=(str(file),)).id

    before = id_with(here)
    assert before == id_with(there) != spec.id
    here.write_text("X = 2\n")
    assert id_with(here) == before  # what was read holds until the next command
    READ.clear()
    assert id_with(here) != before
