"""From a name and overrides to a spec: what is found where, what is refused and how, and that one meaning is one id."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from torch import nn

from bnlab import config
from bnlab.config.schema import schema
from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.core.spec import RunSpec
from bnlab.core.text import leaves
from bnlab.record.folder import RunFolder
from bnlab.run.setup import assemble
from bnlab.run.train import train

EXPERIMENTS = list(config.available("experiments", [config.packaged_dir()]))
ONE_A_MODEL = {config.load(name, ()).model.name: name for name in reversed(EXPERIMENTS)}
"""An experiment with each model that experiments have."""


def _load(*overrides: str) -> RunSpec:
    return config.load("deep_mlp", overrides)


# -- what comes with bnlab -------------------------------------------------------------------------

THIN = {"vgg": ["model.width=0.0625"], "resnet": ["model.width=0.25", "model.depth=14"]}
"""What spares drawing millions of weights for every norm."""


def _fitting(name: str, *overrides: str) -> list[str]:
    """The overrides, and such as make the experiment fit the 200 examples that the tests have of the real data sets."""
    spec = config.load(name, overrides)
    if spec.data.name not in ("mnist", "fashion_mnist", "cifar10"):
        return list(overrides)
    large = "activations" in spec.probes.options and spec.probes.options["activations"]["batch"] > 200
    fitting = ["data.subset=null", "data.batch_size=60", *["probes.activations.batch=200"] * large]
    return [*overrides, *fitting, *THIN.get(spec.model.name, [])]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_packaged_experiment_can_be_assembled_under_its_own_name(name: str) -> None:
    spec = config.load(name, _fitting(name))
    assert spec.name == name
    setup = assemble(spec)
    assert setup.steps == spec.steps or (
        spec.epochs and setup.steps == math.ceil(spec.epochs * setup.batches.per_epoch)
    )


@pytest.mark.parametrize("norm", sorted({*config.available("norm", [config.packaged_dir()])} - {"own"}))
@pytest.mark.parametrize("name", sorted(ONE_A_MODEL.values()))
def test_every_norm_composes_with_an_experiment_of_every_model(name: str, norm: str) -> None:
    spec = config.load(name, _fitting(name, f"norm={norm}"))
    assert spec.norm.name == norm
    if norm == "instance" and spec.model.name in ("mlp", "deep_linear"):
        with pytest.raises(UsageError, match=r"^norm: a dense layer has one value per channel and example"):
            assemble(spec)
    else:
        assemble(spec)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_with_every_probe(name: str) -> None:
    assemble(config.load(name, _fitting(name, "probes=full")))


@pytest.mark.parametrize("probes", list(config.available("probes", [config.packaged_dir()])))
@pytest.mark.parametrize("name", sorted(ONE_A_MODEL.values()))
def test_every_preset_of_probes_composes_with_an_experiment_of_every_model(name: str, probes: str) -> None:
    assemble(config.load(name, _fitting(name, f"probes={probes}")))


def test_probes_none_measures_nothing_and_full_has_all_of_standard_and_that_all_of_economy() -> None:
    chosen = {name: set(_load(f"probes={name}").probes.options) for name in ("none", "economy", "standard", "full")}
    assert chosen["none"] == set()
    assert {"batch_moments", "gradients", "activations"} <= chosen["economy"] <= chosen["standard"] <= chosen["full"]


def test_the_paper_s_settings_are_those_of_the_paper() -> None:
    """Ioffe & Szegedy 2015, section 4.1, and Santurkar et al. 2018, section 3.2."""
    ioffe = config.load("mlp_digits", [])
    assert (ioffe.model.options["depth"], ioffe.model.options["width"], ioffe.model.activation) == (3, 100, "sigmoid")
    assert (ioffe.data.batch_size, ioffe.model.init, ioffe.loss) == (60, "gaussian", "cross_entropy")
    linear = config.load("deep_linear", [])
    assert (linear.model.options["depth"], linear.model.options["width"], linear.model.init) == (25, 10, "glorot")
    assert (linear.data.batch_size, linear.data.options["size"], linear.data.options["dimension"]) == ("full", 1000, 10)
    assert (linear.loss, linear.reduction, linear.optim.name, linear.optim.lr, linear.steps) == (
        "mse",
        "sum",
        "sgd",
        1e-7,
        10000,
    )


def test_the_settings_on_the_papers_data_are_those_of_the_papers() -> None:
    """Ioffe & Szegedy 2015, section 4.1; Santurkar et al. 2018, sections 2 and 3.1; He et al. 2016, section 4.2 with
    Bjorck et al. 2018; Yang et al. 2019, figure 2."""
    ioffe = config.load("ioffe_mnist", [])
    assert (ioffe.data.name, ioffe.data.binarize, ioffe.data.batch_size, ioffe.steps) == ("mnist", True, 60, 50000)
    assert (ioffe.model.options, ioffe.model.activation) == ({"depth": 3, "width": 100}, "sigmoid")
    vgg = config.load("santurkar_vgg", [])
    assert (vgg.data.name, vgg.data.augments, vgg.data.batch_size, vgg.steps) == ("cifar10", False, 128, 15000)
    assert (vgg.optim.lr, vgg.optim.schedule, vgg.model.init) == (0.1, "constant", "glorot")
    assert vgg.optim.options == {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    dln = config.load("santurkar_linear", [])
    assert (dln.model, dln.data, dln.steps) == tuple(
        getattr(config.load("deep_linear", []), key) for key in ("model", "data", "steps")
    )
    assert (dln.probes.options["landscape"]["low"], dln.probes.options["landscape"]["high"]) == (0.01, 30)
    resnet = config.load("bjorck_resnet110", [])
    assert (resnet.model.options["depth"], resnet.epochs, resnet.data.batch_size) == (110, 165, 128)
    assert (resnet.data.crop, resnet.data.flip, resnet.optim.lr, resnet.optim.drop_at) == (4, True, 0.1, (0.5, 0.75))
    yang = config.load("yang_mlp", [])
    assert (yang.model.options["width"], yang.epochs, yang.norm.options["eps"]) == (384, 10, 1e-3)
    assert yang.optim.lr == pytest.approx(1e-5 * float(yang.data.batch_size))
    weight = assemble(yang).net.sites[1].affine.get_parameter("weight").detach().double()
    assert weight.var().item() == pytest.approx(1 / 384, rel=5 * (2 / weight.numel()) ** 0.5)


# -- overrides -------------------------------------------------------------------------------------


def test_overrides_reach_shared_keys_options_and_groups() -> None:
    spec = _load("norm=batch_reference", "norm.eps=1e-3", "norm.layers=[0,2]", "optim.lr=0.25", "norm.momentum=null")
    assert (spec.norm.name, spec.norm.layers, spec.optim.lr) == ("batch_reference", (0, 2), 0.25)
    assert spec.norm.options == {"eps": 1e-3, "momentum": None, "affine": True}


def test_a_key_may_be_set_before_its_group_is_chosen() -> None:
    assert _load("optim.lr=0.2", "optim=adam") == _load("optim=adam", "optim.lr=0.2")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["optim.lr=0.30000000000000004"], ["optim.lr=0.3"]),
        (["optim.lr=1"], ["optim.lr=1.0"]),
        (["optim.lr=1e-1"], ["optim.lr=0.1"]),
        (["norm=batch"], []),
        (["seed=0"], []),
        (["norm.eps=0.00001"], ["norm.eps=1e-5"]),
        (["model.width=100", "model.depth=3"], ["model.depth=3", "model.width=100"]),
        (["launch.checkpoint_s=1"], ["launch.checkpoint_s=2"]),
        (["launch.lockstep=off"], ["launch.lockstep=8"]),
        (["name=mine"], ["name=yours"]),
    ],
)
def test_one_meaning_is_one_id(one: list[str], other: list[str]) -> None:
    assert _load(*one).id == _load(*other).id


def test_a_sum_of_floats_is_the_number_it_was_meant_to_be() -> None:
    assert _load(f"optim.lr={0.1 + 0.2!r}").optim.lr == 0.3
    assert _load(f"norm.eps={0.1 + 0.2!r}").norm.options["eps"] == 0.3
    assert _load(f"optim.drop_at=[{0.1 + 0.2!r},0.5]").optim.drop_at == (0.3, 0.5)


def test_two_meanings_are_two_ids() -> None:
    sets = (["seed=1"], ["norm=none"], ["optim.lr=0.31"], ["norm.eps=2e-5"], ["probes=none"], ["model.bias=true"])
    ids = {_load(*overrides).id for overrides in ([], *sets)}
    assert len(ids) == 1 + len(sets)


def test_the_id_is_the_same_in_another_process() -> None:
    script = "from bnlab import config; print(config.load('deep_mlp', ['norm=none', 'optim.lr=0.7']).id)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _load("norm=none", "optim.lr=0.7").id


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        ([], 1000, None),
        (["steps=7"], 7, None),
        (["epochs=2"], None, 2.0),
        (["epochs=0.5"], None, 0.5),
        (["epochs=2", "steps=null"], None, 2.0),
        (["steps=7", "epochs=null"], 7, None),
    ],
)
def test_the_length_of_a_run_is_the_one_that_was_typed(
    overrides: list[str], steps: int | None, epochs: float | None
) -> None:
    spec = _load(*overrides)
    assert (spec.steps, spec.epochs) == (steps, epochs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lrr=1"], "optim.lrr: no such key. Did you mean: optim.lr?"),
        (["lr=1"], "lr: no such key. Did you mean: optim.lr?"),
        (["data.batchsize=2"], "data.batchsize: no such key. Did you mean: data.batch_size?"),
        (
            ["hydra.run.dir=x"],
            "hydra.run.dir=x: bnlab is not run by Hydra, so its own settings have no effect. Leave it out.",
        ),
        (["norm=bach"], "norm: no such option, got 'bach'. Did you mean: batch?"),
        (["model=resent"], "model: no such option, got 'resent'. Did you mean: resnet?"),
        (
            ["+foo=1"],
            "+foo=1: nothing can be added to a spec, its keys are fixed. "
            "Where the key exists, write foo=... without the +.",
        ),
        (
            ["++optim.lr=1"],
            "++optim.lr=1: nothing can be added to a spec, its keys are fixed. "
            "Where the key exists, write optim.lr=... without the +.",
        ),
        (["~norm"], "~norm: nothing can be removed from a spec. Give norm another value."),
        (["~optim.lr"], "~optim.lr: nothing can be removed from a spec. Give optim.lr another value."),
        (
            ["optim.lr=1,2"],
            "optim.lr: several values, and `train` makes one run, got '1,2'. Give one of them, or use `bnlab sweep`.",
        ),
        (
            ["norm=none,batch"],
            "norm: several values, and `train` makes one run, got 'none,batch'. "
            "Give one of them, or use `bnlab sweep`.",
        ),
        (
            ["seed=range(0,3)"],
            "seed: several values, and `train` makes one run, got 'range(0,3)'. "
            "Give one of them, or use `bnlab sweep`.",
        ),
        (["optim.lr=1", "optim.lr=2"], "optim.lr: given twice, got 'optim.lr=2'. Give it once."),
        (["norm=none", "norm=batch"], "norm: given twice, got 'norm=batch'. Give it once."),
        (["optim"], "optim: cannot be read as an override. Write key=value."),
        (["optim.lr='"], "optim.lr=': cannot be read as an override. Write key=value."),
        (["optim.lr=0"], "optim.lr: must be a number above 0, got 0."),
        (["optim.lr=-1"], "optim.lr: must be a number above 0, got -1."),
        (["optim.lr=inf"], "optim.lr: must be finite, got inf."),
        (["optim.lr=nan"], "optim.lr: must be finite, got nan."),
        (["optim.lr=fast"], "optim.lr: must be a number, got 'fast'."),
        (["steps=0"], "steps: must be at least 1, got 0."),
        (["steps=null"], "steps: missing. Give steps or epochs."),
        (["steps=5", "epochs=2"], "epochs: cannot go with steps, got 2. Give one of the two."),
        (["norm.layers=[]"], "norm.layers: must be 'all' or not be empty, got []."),
    ],
)
def test_an_override_that_is_refused_gives_an_error_of_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        _load(*overrides)
    assert str(caught.value) == message
    assert "\n" not in message


def test_a_group_of_keys_is_not_a_key() -> None:
    with pytest.raises(
        UsageError, match=r"^probes\.activations: a group of keys, not a key, got 3\. Set one of probes\."
    ):
        _load("probes.activations=3")


def test_keys_and_values_where_a_list_belongs_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^optim\.drop_at: .*, got \{'a': 1\}\.$"):
        _load("optim.drop_at={a:1}")


def test_a_group_cannot_be_put_under_another_name() -> None:
    """Hydra's `group@package=option`: it would be taken for `group=option`, and the package forgotten."""
    with pytest.raises(UsageError, match=r"^norm@optim"):
        _load("norm@optim=none")


@pytest.mark.parametrize("text", ["optim.lr=${nothing}", "optim.lr=${oc.env:BNLAB_NO_SUCH_VARIABLE}"])
def test_a_reference_to_nothing_gives_an_error_of_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"^optim\.lr: ") as caught:
        _load(text)
    assert "\n" not in str(caught.value)


def test_a_reference_to_another_key_is_that_key_s_value() -> None:
    assert _load("seed=${model.depth}").seed == 10


def test_an_unknown_experiment_gets_the_nearest_one_proposed() -> None:
    message = r"^--config: no such experiment, got 'deep_mpl'\. Did you mean: deep_mlp\?$"
    with pytest.raises(UsageError, match=message):
        config.load("deep_mpl", [])


def test_a_failed_load_leaves_nothing_behind() -> None:
    expected = _load("optim.lr=0.2").id
    for bad in (["norm=bach"], ["+foo=1"], ["optim.lr=nan"], ["optim.lr=1,2"]):
        with pytest.raises(UsageError, match=r"."):
            _load(*bad)
        assert _load("optim.lr=0.2").id == expected


# -- a user's own configs --------------------------------------------------------------------------

MY_NORM = '''
"""A norm of a user's own: each example over its own features."""
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from bnlab.core.registry import NORMS


@NORMS.register("mine")
class Mine(nn.Module):
    def __init__(self, channels: int, dims: int, *, eps: Annotated[float, Gt(0)]) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x / (x.pow(2).mean(dim=1, keepdim=True) + self.eps).sqrt()
'''


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A user's config directory: a packaged norm's YAML with another eps, a norm and an experiment of their own."""
    (tmp_path / "my_norm.py").write_text(MY_NORM)
    for group in ("norm", "experiments"):
        (tmp_path / "configs" / group).mkdir(parents=True)
    packaged = (config.packaged_dir() / "norm" / "batch.yaml").read_text()
    (tmp_path / "configs" / "norm" / "batch.yaml").write_text(packaged.replace("eps: 1.0e-5", "eps: 0.5"))
    (tmp_path / "configs" / "norm" / "mine.yaml").write_text(
        "# Each example over its own features.\ndefaults: [_placement, _self_]\nname: mine\neps: 0.001\n"
    )
    (tmp_path / "configs" / "experiments" / "own.yaml").write_text(
        "# @package _global_\n# A study of my own.\ndefaults:\n  - /run\n  - override /norm: mine\n  - _self_\n"
        f"name: own\nsteps: 6\nplugins: ['{tmp_path / 'my_norm.py'}']\nmodel: {{depth: 2, width: 5}}\n"
    )
    yield tmp_path / "configs"
    NORMS.forget("mine")
    for name in [name for name in sys.modules if name.startswith("bnlab_plugin_")]:
        del sys.modules[name]


def test_a_user_s_yaml_takes_precedence_over_the_packaged_one(mine: Path) -> None:
    assert config.load("deep_mlp", [], mine).norm.options["eps"] == 0.5
    assert _load().norm.options["eps"] == 1e-5
    assert config.load("deep_mlp", ["norm=batch_reference"], mine).norm.options["eps"] == 1e-5
    found = config.available("norm", config.config_dirs(mine))
    assert found["batch"].parent == mine / "norm"
    assert found["none"].parent == config.packaged_dir() / "norm"


def test_a_user_s_experiment_with_a_norm_of_their_own_trains(mine: Path, tmp_path: Path) -> None:
    spec = config.load("own", ["norm.eps=0.25"], mine)
    assert (spec.name, spec.norm.name, spec.steps) == ("own", "mine", 6)
    setup = assemble(spec)
    for site in setup.net.sites[:-1]:
        assert isinstance(site.norm, nn.Module)
        x = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.0]])
        torch.testing.assert_close(site.norm(x), x / (5 + 0.25) ** 0.5)
    assert train(setup, RunFolder(tmp_path / "run"))["status"] == "finished"
    moved = setup.net.sites[0].norm
    assert isinstance(moved, nn.Module)
    assert not torch.equal(moved.get_parameter("gain"), torch.ones(5))


def test_a_user_s_own_norm_gets_its_options_checked(mine: Path) -> None:
    with pytest.raises(UsageError, match=r"^norm\.eps: must be a number above 0, got 0\.$"):
        assemble(config.load("own", ["norm.eps=0"], mine))
    with pytest.raises(UsageError, match=r"^norm\.momentum: norm=mine has no such option, got 0\.1\. There are: eps, "):
        config.load("own", ["norm.momentum=0.1"], mine)


def test_configs_in_the_working_directory_are_found_without_being_named(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mine.parent)
    assert config.load("own", []).name == "own"


def test_a_missing_config_dir_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--config-dir: no such directory, got '.*nowhere'\.$"):
        config.load("deep_mlp", [], tmp_path / "nowhere")


def _experiment(mine: Path, body: str) -> None:
    text = f"# @package _global_\n# Mine.\ndefaults:\n  - /run\n  - _self_\nname: mine\n{body}\n"
    (mine / "experiments" / "mine.yaml").write_text(text)


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ("stepz: 10", "stepz"),
        ("optim: {momntum: 0.9}", r"optim\.momntum"),
        ("launch: {worker: 2}", r"launch\.worker"),
        ("probes: {gradient: {noise: true}}", "probes"),
        ("optims: {lr: 0.9}", "optims"),
    ],
)
def test_a_key_in_a_file_that_nothing_reads_is_refused(mine: Path, body: str, key: str) -> None:
    """A misspelt key in a file is the same mistake as on the command line."""
    _experiment(mine, body)
    with pytest.raises(UsageError, match=f"^{key}: "):
        assemble(config.load("mine", [], mine))


def _plain(mine: Path, text: str, *overrides: str) -> RunSpec:
    (mine / "experiments" / "mine.yaml").write_text(text)
    return config.load("mine", list(overrides), mine)


def test_a_file_without_defaults_says_what_is_other_than_in_the_base(mine: Path) -> None:
    spec = _plain(mine, "model: {depth: 3}\nnorm: layer\nsteps: 20\noptim: {lr: 0.5}\n")
    base = _plain(mine, "")
    assert (spec.name, spec.norm.name, spec.steps, spec.optim.lr) == ("mine", "layer", 20, 0.5)
    assert spec.model.options == {**base.model.options, "depth": 3}
    assert (spec.data, spec.probes, spec.loss) == (base.data, base.probes, base.loss)
    assert _plain(mine, "norm: layer\n", "norm=batch", "norm.eps=1e-3").norm.options["eps"] == 1e-3


def test_settings_of_a_model_do_not_hold_for_another_without_defaults_either(mine: Path) -> None:
    assert _plain(mine, "model: {depth: 3}\n", "model=cnn").model.name == "cnn"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("stepz: 3\n", "stepz: no such key, got 3. Did you mean: steps?"),
        ("norm: bach\n", "norm: no such option, got 'bach'. Did you mean: batch?"),
        ("- 3\n", ".*mine.yaml: must have keys and values."),
        (
            "defaults: [_self_]\nname: mine\n",
            ".*mine.yaml: has `defaults` without /run. Put /run first, or leave out all.",
        ),
    ],
)
def test_a_mistake_in_a_file_without_defaults_is_one_line(mine: Path, text: str, line: str) -> None:
    with pytest.raises(UsageError, match=f"^{line.replace('?', '[?]')}$"):
        _plain(mine, text)


def test_a_study_is_no_experiment_and_says_how_to_run_it() -> None:
    hint = r"It is a study: bnlab sweep --config lr_smoothing\.$"
    with pytest.raises(UsageError, match=rf"^--config: no such experiment, got 'lr_smoothing'\. {hint}"):
        config.load("lr_smoothing", [])


def test_a_file_that_gives_epochs_does_not_silently_train_the_default_number_of_steps(mine: Path) -> None:
    """`steps: 1000` comes from the base file: either the experiment's epochs win, or both together are refused."""
    _experiment(mine, "epochs: 3")
    try:
        spec = config.load("mine", [], mine)
    except UsageError as error:
        assert "epochs" in str(error)  # noqa: PT017  (either answer is right; silence is not)
    else:
        assert (spec.steps, spec.epochs) == (None, 3.0)


def test_a_file_with_epochs_in_place_of_steps_trains_those(mine: Path) -> None:
    _experiment(mine, "epochs: 3\nsteps: null")
    spec = config.load("mine", [], mine)
    assert (spec.steps, spec.epochs) == (None, 3.0)
    assert assemble(spec).steps == 3 * (1438 // 60)
    assert config.load("mine", ["steps=9"], mine).steps == 9


@pytest.mark.parametrize("body", ["optim: [", "defaults: 3", "optim: ${nothing}"])
def test_a_broken_file_gives_an_error_of_one_line_with_its_name(mine: Path, body: str) -> None:
    _experiment(mine, body)
    with pytest.raises(UsageError, match=r"mine\.yaml|optim") as caught:
        config.load("mine", [], mine)
    assert "\n" not in str(caught.value)


def test_an_experiment_without_a_name_is_reported(mine: Path) -> None:
    (mine / "experiments" / "nameless.yaml").write_text("# @package _global_\n# Mine.\ndefaults: [/run, _self_]\n")
    with pytest.raises(UsageError, match=r"^name: missing\. Experiment nameless must give it a value\.$"):
        config.load("nameless", [], mine)


@pytest.mark.parametrize("probe", ["ics", "sharpness", "gradients"])
def test_any_probe_can_be_chosen_by_name_and_joins_those_of_economy(probe: str) -> None:
    economy = config.load("deep_mlp", ["probes=economy"]).probes.options
    named = config.load("deep_mlp", [f"probes={probe}"]).probes.options
    assert set(named) == {*economy, probe}
    assert {name: named[name] for name in economy} == economy


def test_probes_are_named_in_a_list_or_joined_by_a_plus() -> None:
    joined = config.load("deep_mlp", ["probes=economy+bn_statistics+ics"])
    for text in ("probes=[economy,bn_statistics,ics]", "probes=[economy, bn_statistics, ics]"):
        assert config.load("deep_mlp", [text]).id == joined.id
    assert {"bn_statistics", "ics", "gradients"} <= set(joined.probes.options)
    with pytest.raises(UsageError, match=r"^probes: no such option, got 'economy\+nothing'\."):
        config.load("deep_mlp", ["probes=[economy,nothing]"])


@pytest.mark.parametrize(("old", "new"), sorted(config.RENAMED.items()))
def test_an_old_name_of_an_experiment_gets_the_new_one(old: str, new: str) -> None:
    with pytest.raises(UsageError, match=rf"^--config: no such experiment, got '{old}'\. It is named {new} now\.$"):
        config.load(old, [])


def test_no_experiment_has_the_name_of_a_study() -> None:
    dirs = [config.packaged_dir()]
    assert not config.available("experiments", dirs).keys() & config.available("studies", dirs).keys()


def test_every_key_has_a_default_and_a_meaning() -> None:
    found = {(key.name, key.of): key for key in config.keys([config.packaged_dir()])}
    assert [name for name, key in found.items() if not key.meaning] == []
    assert found["optim.lr", ""].default == 0.1
    assert found["optim.lr", "optim=adam"].default == 0.001
    assert found["norm.ghost_size", "norm=ghost_batch"].meaning.startswith("examples normalized together")
    known = {name for name, _ in found}
    for experiment in ("deep_mlp", "santurkar_vgg_small"):
        tree = config.load(experiment, ["probes=full"]).tree()
        assert {key for key, _ in leaves(tree) if not key.endswith("name")} <= known


@pytest.mark.parametrize("kind", ["study", "experiment"])
def test_the_schema_fits_what_comes_with_bnlab_and_refuses_what_bnlab_does(kind: str) -> None:
    checker = Draft202012Validator(schema(kind, [config.packaged_dir()]))
    checker.check_schema(checker.schema)
    files = config.available({"study": "studies"}.get(kind, "experiments"), [config.packaged_dir()])
    trees = {name: yaml.safe_load(file.read_text()) for name, file in files.items()}
    assert {name: [error.message for error in checker.iter_errors(tree)] for name, tree in trees.items()} == {
        name: [] for name in trees
    }
    wrong: dict[str, list[Any]] = {
        "study": [{"axes": {}}, {"base": "deep_mlp", "titel": "x"}, {"base": "deep_mlp", "claims": [{"name": "a"}]}],
        "experiment": [{"stepz": 3}, {"steps": "many"}, {"data": {"batch_size": 0}}, {"optim": {"lr": "high"}}],
    }
    for tree in wrong[kind]:
        assert not checker.is_valid(tree), tree


@pytest.mark.parametrize("kind", ["study", "experiment"])
def test_the_first_line_of_a_yaml_names_its_schema(kind: str) -> None:
    folder = config.packaged_dir() / {"study": "studies"}.get(kind, "experiments")
    wanted = (config.packaged_dir() / "schema" / f"{kind}.json").resolve()
    files = [file for file in folder.rglob("*.yaml") if not file.stem.startswith("_")]
    first = {file: file.read_text(encoding="utf-8").splitlines()[0] for file in files}
    named = {file: line.removeprefix("# yaml-language-server: $schema=") for file, line in first.items()}
    assert [file.name for file, name in named.items() if (file.parent / name).resolve() != wanted] == []


def test_a_line_for_editors_is_no_description_and_no_end_of_hydras_header(tmp_path: Path) -> None:
    line = "# yaml-language-server: $schema=../schema/experiment.json\n"
    (tmp_path / "experiments").mkdir()
    file = tmp_path / "experiments" / "mine.yaml"
    file.write_text(f"{line}# @package _global_\n# A first run.\ndefaults: [/run, _self_]\nname: mine\nsteps: 3\n")
    assert config.description(file) == "A first run."
    assert config.load("mine", (), tmp_path).steps == 3


def test_the_schema_says_what_keys_mean() -> None:
    found = schema("experiment", [config.packaged_dir()])
    depth = found["$defs"]["ModelSpec"]["properties"]["depth"]
    assert "model=mlp: hidden layers" in depth["description"].splitlines()
    assert found["properties"]["steps"]["default"] == 1000
    names = found["properties"]["norm"]["anyOf"][0]["anyOf"][0]["enum"]
    assert set(names) == set(config.available("norm", [config.packaged_dir()]))


def test_meanings_are_those_of_the_chosen_options() -> None:
    means = config.meanings([config.packaged_dir()], {"norm": "batch", "model": "vgg", "optim": "adam"})
    assert means["model.width"] == "times 64, 128, 256, 512, 512 channels"
    assert "norm.ghost_size" not in means
    assert means["probes.landscape.every"] == "at every n-th measured step"


def test_a_yaml_that_is_edited_added_or_removed_between_two_calls_counts(mine: Path) -> None:
    """What was composed is kept, with the files that it was made of."""
    for eps in (0.5, 0.25):
        (mine / "norm" / "batch.yaml").write_text(f"defaults: [_placement, _self_]\nname: batch\neps: {eps}\n")
        assert config.load("deep_mlp", ["norm=batch"], mine).norm.options["eps"] == eps
    (mine / "norm" / "_placement.yaml").write_text("layers: all\nevery: 1\nposition: after\n")
    assert config.load("deep_mlp", ["norm=batch"], mine).norm.position == "after"
    (mine / "norm" / "_placement.yaml").unlink()
    (mine / "norm" / "batch.yaml").unlink()
    norm = config.load("deep_mlp", ["norm=batch"], mine).norm
    assert (norm.position, norm.options["eps"]) == ("before", 1e-5)


def test_an_option_of_a_plugin_that_is_edited_between_two_calls_counts(tmp_path: Path) -> None:
    plugin = tmp_path / "edited_norm.py"
    overrides = [f"plugins=['{plugin}']", "norm=edited"]
    for eps in (0.5, 0.25):
        plugin.write_text(
            "from bnlab import NORMS\n\n@NORMS.register('edited')\ndef edited(channels, dims, *, eps: float = "
            f"{eps}):\n    return None\n"
        )
        assert config.load("deep_mlp", overrides).norm.options["eps"] == eps
        NORMS.forget("edited")
