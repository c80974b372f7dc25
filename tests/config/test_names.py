"""Names that become folders, YAML that a user writes, and options that the chosen entry does not have."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from bnlab import config
from bnlab.analysis.claims import check_reach, read_expected
from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS, PROBES
from bnlab.core.spec import RunSpec
from bnlab.core.study import Study

CONFIGS = Path(__file__).parent.parent / "configs"
Load = Callable[[str], str]


def trained(text: str) -> str:
    """The name of the run that `train` makes."""
    return config.load("deep_mlp", [text]).name


def swept(text: str) -> str:
    """The name of the study that `sweep` makes, which its runs have too."""
    study, cells = config.load_study("tiny", [text], CONFIGS)
    assert {cell.spec.name for cell in cells} == {study.name}
    words = shlex.split(cells[0].line())
    assert config.load(words[3], words[4:]) == cells[0].spec, "its line alone makes another run"
    return study.name


both = pytest.mark.parametrize("load", [trained, swept])


@both
@pytest.mark.parametrize("name", ["../../x", "/abs", "", ".", "a/../b", "a//b", "a/", "..\\x", "${seed}/.."])
def test_a_name_that_leaves_the_folder_of_runs_is_refused(name: str, load: Load) -> None:
    with pytest.raises(UsageError, match=r"^name: cannot be the name of a folder, got '.*'\. Write letters"):
        load(f"name='{name}'")


@both
@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("name=2024", "2024"),
        ("name=1_000", "1_000"),
        ("name=2024.10", "2024.10"),
        ("name=1e-3", "1e-3"),
        ("name=true", "true"),
        ("name=2026-11-26", "2026-11-26"),
        ("name='null'", "null"),
        ("name='a=b'", "a=b"),
        ("name='it\\'s 3'", "it's 3"),
        ("name=paper/figure_1", "paper/figure_1"),
    ],
)
def test_a_name_is_the_text_that_was_typed(typed: str, name: str, load: Load) -> None:
    assert load(typed) == name


@both
@pytest.mark.parametrize("typed", ["name=null", "name=[a]"])
def test_a_name_that_is_no_text_is_refused(typed: str, load: Load) -> None:
    with pytest.raises(UsageError, match=r"^name: must be a string, got"):
        load(typed)


@both
@pytest.mark.parametrize(
    ("typed", "quoted"),
    [
        ("name=a=b", "\"name='a=b'\""),
        ("name=café", "\"name='café'\""),
        ("name=a$(b)", "'name='\"'\"'a$(b)'\"'\"''"),
        ("launch.extra=mem=1G", "\"launch.extra=['mem=1G']\""),
        ("launch.extra=[a=b,--c=d]", "\"launch.extra=['a=b','--c=d']\""),
        ("plugins=[a=b.py,c.py]", "\"plugins=['a=b.py','c.py']\""),
    ],
)
def test_a_text_that_needs_quotes_is_shown_with_them(typed: str, quoted: str, load: Load) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        load(typed)
    assert str(caught.value) == f"{typed}: cannot be read as an override. Put it in quotes: {quoted}"
    assert shlex.split(quoted)[0].startswith(typed.partition("=")[0] + "=")


def test_what_registers_under_a_name_that_is_no_file_s_is_refused() -> None:
    for name in ("../x", "a/b", ""):
        with pytest.raises(UsageError, match=rf"^norm={name}: cannot be the name of a folder"):
            NORMS.register(name)


def test_an_old_run_s_spec_is_held_to_the_same_rule() -> None:
    tree = config.load("deep_mlp", []).tree()
    with pytest.raises(UsageError, match=r"^name: cannot be the name of a folder"):
        RunSpec.from_tree({**tree, "name": "../x"})
    with pytest.raises(UsageError, match=r"^name: cannot be the name of a folder"):
        Study.from_tree({"name": "../x", "base": "deep_mlp"})


# -- YAML that a user writes -------------------------------------------------------------------------------------------


def written(folder: Path, place: str, text: str) -> Path:
    file = folder / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return folder


def test_a_study_named_by_a_date_keeps_it_as_text(tmp_path: Path) -> None:
    written(tmp_path, "studies/dated.yaml", "name: 2026-11-26\nbase: deep_mlp\naxes: {seed: [0]}\n")
    assert config.load_study("dated", [], tmp_path)[0].name == "2026-11-26"


def test_a_number_in_a_study_is_one_with_or_without_a_point(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-1 as text, where axes and experiments read a number."""
    text = "base: deep_mlp\noverrides: {optim.lr: 1e-1}\naxes: {seed: [0]}\n"
    assert config.load_study("s", [], written(tmp_path, "studies/s.yaml", text))[0].overrides == {"optim.lr": 0.1}


def test_a_number_in_a_claim_is_the_one_of_the_axes(tmp_path: Path) -> None:
    claim = "{name: a, text: t, source: s, metric: final_train_loss, at: best_lr, expect: smaller, compare: ratio, "
    claim += "smallest_effect: 2, contrast: {optim.lr: [1e-1, 1e-2]}, where: {model.init_scale: 2e-0}}"
    axes = "axes: {optim.lr: [1e-1, 1e-2], model.init_scale: 2e-0, seed: [0]}"
    written(tmp_path, "studies/s.yaml", f"base: mlp_digits\n{axes}\nclaims: [{claim}]\n")
    study, cells = config.load_study("s", [], tmp_path)
    check_reach(study, cells, ())
    assert (study.claims[0].contrast, study.claims[0].where) == ({"optim.lr": (0.1, 0.01)}, {"model.init_scale": 2.0})
    with pytest.raises(UsageError, match=r"^claims\.a\.contrast\.optim\.lr: no run of this study .*, got 0\.01\. Its"):
        check_reach(study, cells[:1], ())
    as_text = study.tree()  # as an earlier version wrote it beside its runs
    as_text["claims"] = [as_text["claims"][0] | {"contrast": {"optim.lr": ["1e-1", "1e-2"]}}]
    assert Study.from_tree(as_text).claims[0].contrast == {"optim.lr": (0.1, 0.01)}


@pytest.mark.parametrize(
    ("place", "text", "given"),
    [
        ("studies/mine.yaml", "base: deep_mlp\naxes: {seed: [0]}\naxes: {seed: [1]}\n", None),
        ("studies/mine.yaml", "base: deep_mlp\noverrides:\n  steps: 3\n  steps: 4\n", None),
        ("experiments/mine.yaml", "# @package _global_\ndefaults: [/run, _self_]\nname: a\nname: b\n", None),
        ("norm/mine.yaml", "defaults: [_placement, _self_]\nname: batch\neps: 1\neps: 2\n", "norm=mine"),
        ("probes/one/mine.yaml", "every: 1\nevery: 2\n", "probes=mine"),
    ],
)
def test_a_doubled_key_is_refused_by_file_and_key(place: str, text: str, given: str | None, tmp_path: Path) -> None:
    written(tmp_path, place, text)
    with pytest.raises(UsageError, match=r"found duplicate key (axes|steps|name|eps|every)") as caught:
        config.load_study("quickstart" if given else "mine", [given] if given else [], tmp_path)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_claim_that_is_expected_twice_is_refused(tmp_path: Path) -> None:
    study = config.load_study("tiny", [], CONFIGS)[0]
    (tmp_path / "expected.yaml").write_text("lower_loss: supported\nlower_loss: refuted\n")
    with pytest.raises(UsageError, match=r"^--expect-verdicts: has a claim twice"):
        read_expected(tmp_path / "expected.yaml", study)
    (tmp_path / "expected.yaml").write_text("lower_loss: supported\n")
    assert read_expected(tmp_path / "expected.yaml", study) == {"lower_loss": "supported"}


# -- options that the chosen entry does not have -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["norm=none", "norm.momentum=0.3"], "norm.momentum: norm=none has no such option, got 0.3. "
         "There are: every, layers, position."),
        (["model=resnet", "model.channels=[3]"], "model.channels: model=resnet has no such option, got [3]. "),
        (["optim=adam", "optim.momentum=0.2"], "optim.momentum: optim=adam has no such option, got 0.2. There are: "),
        (["data=gaussian_clusters", "data.foo=2"], "data.foo: data=gaussian_clusters has no such option, got 2. "),
        (["launch.foo=2"], "launch.foo: launch=local has no such option, got 2. There are: checkpoint_s, "),
        (["probes=none", "probes.landscape.every=2"], "probes.landscape.every: the chosen probes have no such option, "
         "got 2. There are: eval_points, points."),
        (["norm=none", "norm.postion=after"], "norm.postion: no such key. Did you mean: norm.position?"),
    ],
)  # fmt: skip
def test_an_option_of_another_choice_is_refused_by_the_chosen_one(overrides: list[str], message: str) -> None:
    for load in (config.load, lambda name, given: config.load_study(name, given)):
        with pytest.raises(UsageError, match=r".") as caught:
            load("mlp_digits", overrides)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("chosen", "probes"),
    [
        ("none+propagation+ics", {"propagation", "ics"}),
        ("propagation+ics", {"batch_moments", "gradients", "activations", "propagation", "ics"}),
        ("standard+ics", {"batch_moments", "gradients", "activations", "landscape", "lipschitz", "ics"}),
        ("none+own_probe+ics", {"own_probe", "ics"}),
    ],
)
def test_single_probes_are_added_to_a_preset(chosen: str, probes: set[str], tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    text = "from bnlab import PROBES\n@PROBES.register('own_probe')\nclass Own:\n    metrics = {}\n"
    file.write_text(text + "    needs = frozenset()\n    def __init__(self, *, size: int = 3):\n        pass\n")
    try:
        spec = config.load("mlp_digits", [f"plugins=['{file}']", f"probes={chosen}"])
        written(tmp_path, "studies/s.yaml", f"base: mlp_digits\noverrides: {{probes: {chosen}, plugins: ['{file}']}}\n")
        assert config.load_study("s", ["seed=0"], tmp_path)[1][0].spec.probes == spec.probes
    finally:
        PROBES.forget("own_probe")
    assert set(spec.probes.options) == probes


def test_a_preset_keeps_its_options_of_a_probe_that_is_added_again() -> None:
    full, again = (config.load("mlp_digits", [f"probes={chosen}"]) for chosen in ("full", "full+landscape+ics"))
    assert again.id == full.id


@pytest.mark.parametrize("chosen", ["none+x", "none+economy", "ics+"])
def test_what_is_added_to_a_preset_is_a_single_probe(chosen: str) -> None:
    with pytest.raises(UsageError, match=r"^probes: no such option, got "):
        config.load("mlp_digits", [f"probes={chosen}"])


def test_settings_of_a_study_for_its_own_probes_do_not_hold_for_others_that_are_typed() -> None:
    """Nobody can take an override of a study back, so it must not forbid a choice."""
    study, cells = config.load_study("quickstart", ["probes=none", "seed=8", "optim.lr=0.1"])
    assert "probes.activations.histogram_every" in study.overrides
    assert {tuple(cell.spec.probes.options) for cell in cells} == {()}
    words = shlex.split(cells[0].line())
    assert config.load(words[3], words[4:]) == cells[0].spec
    with pytest.raises(UsageError, match=r"^probes\.landscape\.every: the chosen probes have no such option"):
        config.load_study("quickstart", ["probes=none", "probes.landscape.every=3"])
