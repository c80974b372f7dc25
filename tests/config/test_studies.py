"""From a study or an experiment to the cells of a grid: what an axis may say, in which order, and that every cell is
the run that its line makes."""

from __future__ import annotations

import itertools
import math
import random
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bnlab import config
from bnlab.config import statements
from bnlab.config.compose import Composer, hydra_over
from bnlab.config.overrides import logspace, texts
from bnlab.core.errors import UsageError
from bnlab.core.study import Cell, Study
from bnlab.record.runs import flat

CONFIGS = Path(__file__).parent.parent / "configs"


def cells_of(*overrides: str, name: str = "mlp_digits") -> list[Cell]:
    return config.load_study(name, overrides)[1]


# -- axes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "values"),
    [
        ("optim.lr", "1e-3,1e-2,1", [0.001, 0.01, 1]),
        ("optim.lr", "choice(0.1, 0.2)", [0.1, 0.2]),
        ("optim.lr", "range(0.1,0.5,0.1)", [0.1, 0.2, 0.3, 0.4]),
        ("optim.lr", "sort(0.3,0.1,0.2)", [0.1, 0.2, 0.3]),
        ("optim.lr", "shuffle(0.3,0.1,0.2)", [0.3, 0.1, 0.2]),
        ("optim.lr", "logspace(1e-3, 10, 5)", [0.001, 0.01, 0.1, 1, 10]),
        ("optim.lr", "sort(logspace(0.1,1,3),reverse=true)", [1, 0.316, 0.1]),
        ("optim.lr", "0.1,1e-1,0.10", [0.1]),
        ("data.batch_size", "logspace(16,64,3)", [16, 32, 64]),
        ("data.batch_size", "16,full", [16, "full"]),
        ("seed", "range(3)", [0, 1, 2]),
        ("seed", "range(5,0,-2)", [5, 3, 1]),
        ("seed", "shuffle(range(4))", [0, 1, 2, 3]),
        ("optim.drop_at", "[0.5],[0.2,0.9]", [[0.5], [0.2, 0.9]]),
        ("model.bias", "auto,true", ["auto", True]),
        ("norm.momentum", "0.1,null", [0.1, None]),
        ("norm", "none, batch", ["none", "batch"]),
        ("norm", "glob(l*)", ["l1", "l2", "layer", "linf"]),
        ("norm", "glob([*batch],exclude=[g*,n*,mean*,s*])", ["batch", "frozen_batch"]),
        ("optim", "sgd,adam", ["sgd", "adam"]),
    ],
)
def test_an_axis_names_its_values(key: str, text: str, values: list[object]) -> None:
    cells = cells_of(f"{key}={text}")
    assert [cell.values[key] for cell in cells] == values
    assert len({cell.spec.id for cell in cells}) == len(values)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lr=logspace(0,1,3)"], "logspace(lo, hi, n): lo and hi are the values themselves, not exponents, and "
         "must be above 0, got 0."),
        (["optim.lr=logspace(-3,1,5)"], "logspace(lo, hi, n): lo and hi are the values themselves, not exponents, and "
         "must be above 0, got -3."),
        (["optim.lr=logspace(0.1,1,1)"], "logspace(lo, hi, n): n must be at least 2, since both ends are values, "
         "got 1."),
        (["optim.lr=logspace(1,1.001,9)"], "logspace(lo, hi, n): 9 values between 1 and 1.001 are not 9 to 3 digits."),
        (["optim.lr=logspace(0.1,1)"], "optim.lr=logspace(0.1,1): cannot be read: missing a required argument: 'n'."),
        (["optim.lr=logspace(0.1,1,2.5)"], "optim.lr=logspace(0.1,1,2.5): cannot be read: mismatch type argument n: "
         "float is incompatible with int."),
        (["optim.lr=interval(0,1)"], "optim.lr: an interval has no values to run, got 'interval(0,1)'. "
         "Name its values: logspace(lo, hi, n) or range(start, stop, step)."),
        (["optim.lr=glob(*)"], "optim.lr: glob() has nothing to choose from, got 'glob(*)'. "
         "It chooses among the options of a group, such as norm=glob(*)."),
        (["seed=range(0)"], "seed: names no value, got 'range(0)'."),
        (["norm=glob(x*)"], "norm: names no value, got 'glob(x*)'."),
        (["norm=none,bach"], "norm: no such option, got 'bach'. Did you mean: batch?"),
        (["optim.lrr=1,2"], "optim.lrr: no such key. Did you mean: optim.lr?"),
        (["optim.lr=0.1,-1"], "optim.lr: must be a number above 0, got -1."),
        (["name=a,b"], "name: cannot be an axis: with another value it is the same run, got 'a,b'. Give it one value."),
        (["launch.workers=1,2"], "launch.workers: cannot be an axis: with another value it is the same run, got '1,2'. "
         "Give it one value."),
        (["launch=local,inline"], "launch: cannot be an axis: with another value it is the same run, "
         "got 'local,inline'. Give it one value."),
        (["seed=1,2", "seed=3"], "seed: given twice, got 'seed=3'. Give it once."),
        (["+seed=1,2"], "+seed=1,2: nothing can be added to a spec, its keys are fixed. "
         "Where the key exists, write seed=... without the +."),
        (["~norm"], "~norm: nothing can be removed from a spec. Give norm another value."),
        (["optim.lr=0.1,logspace(1,2,2)"], "optim.lr: several values inside one, got '0.1,logspace(1,2,2)'. "
         "Name them one by one."),
    ],
)  # fmt: skip
def test_an_axis_that_is_refused_gives_an_error_of_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        cells_of(*overrides)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("typed", "values"), [("name='a b'", ["'a b'"]), ("seed=shuffle(1,2)", ["1", "2"]), ("norm=glob(l1)", ["l1"])]
)
def test_a_value_is_read_as_the_parser_of_hydra_made_it(typed: str, values: list[str]) -> None:
    """Hydra keeps it under the private name `Override._value`. If another version renames that, quotes, sweeps without
    shuffling and globs need another way to it, in `overrides._parsed` alone."""
    with hydra_over([config.packaged_dir()]) as reader:
        override = reader.read(typed)
        assert hasattr(override, "_value")
        assert texts(override, ["l1", "l2"]) == values


def test_what_a_plugin_adds_to_one_call_is_gone_for_the_next() -> None:
    dirs = [config.packaged_dir()]
    with hydra_over(dirs) as reader:
        reader.offer("norm", "added", {"defaults": ["batch", "_self_"], "eps": "1e-3", "more": (1, None)})
        assert "added" in reader.options["norm"]
        found = Composer("deep_mlp", reader).values({"norm": "added"})
        assert (found["norm.eps"], found["norm.more"]) == ("1e-3", [1, None])  # text stays text
    with hydra_over(dirs) as reader:
        assert "added" not in reader.options["norm"]


@given(st.floats(1e-6, 1.0), st.floats(1.5, 1e4), st.integers(2, 12))
def test_logspace_has_its_ends_and_equal_ratios_to_three_digits(lo: float, factor: float, n: int) -> None:
    hi = lo * factor
    try:
        found = [float(value) for value in logspace(lo, hi, n).list]
    except UsageError:
        assert factor ** (1 / (n - 1)) < 1.02  # closer than three digits can tell apart
        return
    assert (found[0], found[-1]) == (lo, hi)
    np.testing.assert_allclose(found, np.logspace(math.log10(lo), math.log10(hi), n), rtol=5.1e-3)
    assert all(value == float(f"{value:.3g}") for value in found[1:-1])


# -- cells -------------------------------------------------------------------------------------------------------------


def test_every_cell_is_the_run_of_its_own_line() -> None:
    """Composing once for all cells of one combination of groups changes nothing: compared with `load`, which composes
    each one, over groups, values, options of norms and references to other keys."""
    axes = ["norm=none,batch,noisy_batch", "optim=sgd,adam", "optim.lr=0.1,0.30000000000000004", "seed=range(2)"]
    more = ["probes=none,economy", "model.width=${data.batch_size},8", "data.batch_size=32", "model.init=he"]
    cells = cells_of(*axes, *more)
    assert len(cells) == len({cell.spec.id for cell in cells}) == 3 * 2 * 2 * 2 * 2 * 2
    for cell in random.Random(0).sample(cells, 16):
        words = shlex.split(cell.line())
        assert words[:4] == ["bnlab", "train", "--config", "mlp_digits"]
        spec = config.load(words[3], words[4:])
        assert (spec, spec.id, spec.folder) == (cell.spec, cell.spec.id, cell.spec.folder)


def test_the_line_of_a_cell_on_a_cluster_runs_here() -> None:
    """`bnlab train` runs in its own process."""
    cells = cells_of("launch=slurm", "launch.partition=short", "steps=7")
    assert "steps=7" in cells[0].line()
    assert "launch" not in cells[0].line()
    assert "launch=inline" in cells_of("launch=inline")[0].line()


def test_the_first_seed_of_every_arm_comes_before_any_second_one() -> None:
    cells = cells_of("seed=0,1", "norm=none,batch", "optim.lr=0.1,1")
    order = [(cell.values["seed"], cell.values["norm"], cell.values["optim.lr"]) for cell in cells]
    assert order == list(itertools.product([0, 1], ["none", "batch"], [0.1, 1]))
    assert list(cells[0].values) == ["seed", "norm", "optim.lr"]


def test_a_shuffle_changes_nothing() -> None:
    plain, shuffled = cells_of("optim.lr=0.1,0.2,0.3"), cells_of("optim.lr=shuffle(0.1,0.2,0.3)")
    assert [cell.spec for cell in plain] == [cell.spec for cell in shuffled]


def test_a_grid_of_nothing_but_one_experiment_is_one_run() -> None:
    study, cells = config.load_study("mlp_digits", ["steps=7"])
    assert (study.name, study.base, study.claims, study.axes) == ("mlp_digits", "mlp_digits", (), {})
    assert [cell.spec for cell in cells] == [config.load("mlp_digits", ["steps=7"])]


def test_cells_that_are_one_run_are_listed_once() -> None:
    assert len(cells_of("seed=0,1,${model.depth}", "model.depth=1")) == 2


@pytest.mark.parametrize("name", list(config.available("studies", [config.packaged_dir()])))
def test_every_packaged_study_has_runs_and_comes_back_from_its_own_tree(name: str) -> None:
    study, cells = config.load_study(name, [])
    assert cells
    assert study.name == name == cells[0].spec.name
    assert Study.from_tree(yaml.safe_load(yaml.safe_dump(study.tree()))) == study


def test_a_thousand_cells_are_listed_in_a_moment() -> None:
    start = time.process_time()
    cells = cells_of("norm=none,batch,layer,rms", "optim.lr=logspace(1e-3,10,25)", "seed=range(10)")
    assert len(cells) == 1000
    assert time.process_time() - start < 15


# -- studies -----------------------------------------------------------------------------------------------------------


def test_a_study_s_axes_are_lists_or_in_the_grammar_of_the_command_line() -> None:
    study, cells = config.load_study("tiny", [], CONFIGS)
    assert study.axes == {"norm": "none,batch", "optim.lr": "0.05,0.5", "seed": "0,1"}
    assert study.overrides == {
        "steps": 12,
        "model.depth": 2,
        "model.width": 6,
        "data.batch_size": 16,
        "probes.points": 20,
    }
    assert [claim.name for claim in study.claims] == ["lower_loss"]
    assert [cell.values for cell in cells[:2]] == [
        {"norm": "none", "optim.lr": 0.05, "seed": 0},
        {"norm": "none", "optim.lr": 0.5, "seed": 0},
    ]
    assert cells[0].line(runs="my runs") == (
        "bnlab train --config deep_mlp steps=12 model.depth=2 model.width=6 data.batch_size=16 probes.points=20 "
        "norm=none optim.lr=0.05 seed=0 name=tiny --runs 'my runs'"
    )


def test_typed_overrides_replace_those_of_the_study() -> None:
    typed = ["optim.lr=0.1,0.2,0.3", "norm=batch", "steps=5,6", "model.depth=3", "model.init=glorot", "name=mine"]
    study, cells = config.load_study("tiny", typed, CONFIGS)
    assert study.name == "mine"
    assert study.axes == {"optim.lr": "0.1,0.2,0.3", "seed": "0,1", "steps": "5,6"}
    assert study.overrides == {
        "model.depth": 3,
        "model.width": 6,
        "data.batch_size": 16,
        "probes.points": 20,
        "norm": "batch",
        "model.init": "glorot",
    }
    assert len(cells) == 12
    assert {cell.spec.folder.split("/")[0] for cell in cells} == {"mine"}
    assert {(cell.spec.norm.name, cell.spec.model.options["depth"]) for cell in cells} == {("batch", 3)}
    assert {cell.spec.steps for cell in cells} == {5, 6}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("base: deep_mlp\naxis: {seed: 1}", "axis: no such key, got {'seed': 1}. Did you mean: axes?"),
        ("axes: {seed: 1}", "base: missing"),
        ("base: nothing", "base: no such experiment, got 'nothing'. There are: "),
        ("base: deep_mlp\naxes: [1]", "axes: must have keys and values, got [1]"),
        ("- 1", "mine.yaml: must have keys and values"),
        ("base: [", "expected node content"),
        ("base: deep_mlp\nclaims: 3", "claims: must be a list, got 3"),
        ("base: deep_mlp\nclaims: [3]", "claims.0: must have keys and values, got 3"),
        ("base: deep_mlp\nclaims: [{nam: x}]", "claims.0.nam: no such key, got 'x'. Did you mean: name?"),
        ("base: deep_mlp\nclaims: [{name: x}]", "claims.0.text: missing"),
        ("base: deep_mlp\noverrides: {seed: '1,2'}", "seed: several values"),
        ("base: deep_mlp\naxes: {optim: {lrr: [1, 2]}}", "optim.lrr: no such key"),
    ],
)
def test_a_mistake_in_a_study_gives_an_error_of_one_line(body: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.yaml").write_text(body)
    with pytest.raises(UsageError, match=r".") as caught:
        config.load_study("mine", [], tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_gets_the_nearest_study_or_experiment_proposed() -> None:
    with pytest.raises(
        UsageError, match=r"^--config: no such study or experiment, got 'tinny'\. Did you mean: tiny\?$"
    ):
        config.load_study("tinny", [], CONFIGS)


def test_two_claims_of_one_name_are_refused() -> None:
    tree = yaml.safe_load((CONFIGS / "studies" / "tiny.yaml").read_text())
    tree |= {"name": "tiny", "axes": {}, "claims": tree["claims"] * 2}
    with pytest.raises(UsageError, match=r"^claims: two of one name, got 'lower_loss'\. Rename one of them\.$"):
        Study.from_tree(tree)


ARMS = """
base: deep_mlp
title: Does it work?
minutes: 2
arms:
  none: {norm: none}
  first: {norm: batch, norm.layers: [0]}
  deep: {norm: batch, model: {depth: 3}}
axes: {optim.lr: [0.1, 1], seed: 'range(0, 2)'}
scales:
  paper: {base: mlp_digits, overrides: {steps: 7}, axes: {seed: 'range(0, 3)'}}
"""


@pytest.fixture
def armed(tmp_path: Path) -> Path:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.yaml").write_text(
        ARMS.replace("{name: batch, layers: [0]}", "batch, norm.layers: [0]")
    )
    return tmp_path


def test_named_arms_are_an_axis_of_settings(armed: Path) -> None:
    study, cells = config.load_study("mine", [], armed)
    assert (study.title, study.minutes, study.axes["arm"]) == ("Does it work?", 2, "none,first,deep")
    assert len(cells) == 3 * 2 * 2
    found = {(cell.values["arm"], cell.spec.norm.name, str(cell.spec.norm.layers)) for cell in cells}
    assert found == {("none", "none", "all"), ("first", "batch", "(0,)"), ("deep", "batch", "all")}
    assert {cell.spec.model.options["depth"] for cell in cells if cell.values["arm"] == "deep"} == {3}
    for cell in cells:
        assert study.arm_of(flat(cell.spec.tree())) == cell.values["arm"]
        assert not any(word.startswith("arm=") for word in cell.overrides)
    assert Study.from_tree(study.tree()) == study


def test_some_of_the_arms_may_be_typed(armed: Path) -> None:
    for typed, count in (("arm=first", 4), ("arm=none,deep", 8)):
        assert len(config.load_study("mine", [typed], armed)[1]) == count
    with pytest.raises(UsageError, match=r"^arm: the study has no such arm, got 'frst'. Did you mean: first\?"):
        config.load_study("mine", ["arm=frst"], armed)


def test_a_scale_takes_the_place_of_base_overrides_and_axes(armed: Path) -> None:
    study, cells = config.load_study("mine", ["scale=paper", "optim.lr=0.5"], armed)
    assert (study.name, study.base, len(cells)) == ("mine-paper", "mlp_digits", 9)
    assert {(cell.spec.steps, cell.spec.optim.lr) for cell in cells} == {(7, 0.5)}
    with pytest.raises(UsageError, match=r"^scale: study mine has no such scale, got 'papr'. It has: paper\.$"):
        config.load_study("mine", ["scale=papr"], armed)


def test_settings_that_another_base_does_not_have_are_left_out_and_a_scale_has_its_own_figures(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    text = """
base: cnn_digits
overrides: {steps: 7, model.channels: [4, 4], probes: none, probes.points: 3}
axes: {norm: "none,batch"}
scales:
  paper: {base: bjorck_resnet110, overrides: {epochs: null}, figures: [{kind: by, by: norm, metric: trains}]}
  wrong: {base: bjorck_resnet110, overrides: {epochs: null, model.channels: [4]}}
"""
    (tmp_path / "studies" / "mine.yaml").write_text(text)
    study, cells = config.load_study("mine", ["scale=paper"], tmp_path)
    assert study.figures == ({"kind": "by", "by": "norm", "metric": "trains"},)
    assert [(cell.spec.model.options["depth"], cell.spec.steps, cell.spec.probes.points) for cell in cells] == [
        (110, 7, 3)
    ] * 2
    with pytest.raises(UsageError, match=r"^model.channels: model=resnet has no such option"):
        config.load_study("mine", ["scale=wrong"], tmp_path)


def test_a_study_in_a_folder_has_the_folder_in_its_name_and_bears_on_no_statement(tmp_path: Path) -> None:
    (tmp_path / "studies" / "own").mkdir(parents=True)
    (tmp_path / "studies" / "own" / "mine.yaml").write_text("# Mine.\nbase: deep_mlp\naxes: {seed: [0, 1]}\n")
    (tmp_path / "studies" / "own" / "_part.yaml").write_text("base: deep_mlp\n")
    dirs = [tmp_path, config.packaged_dir()]
    names = {name for name in config.available("studies", dirs) if "/" in name}
    assert {"own/mine", "lessons/karpathy_activations"} <= names
    assert not any("_part" in name for name in names)
    assert not any("/" in name for name in statements.studies(dirs))
    study, cells = config.load_study("own/mine", [], tmp_path)
    assert study.name == "own/mine"
    assert [cell.spec.folder.rpartition("/")[0] for cell in cells] == ["own/mine/batch/lr=0.3"] * 2
