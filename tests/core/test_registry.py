"""Names, constructors and their YAMLs: each entry is one file and one YAML that agree."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import bnlab
from bnlab import config
from bnlab.core.errors import UsageError
from bnlab.core.registry import (
    DATA,
    EXECUTORS,
    MODELS,
    NORMS,
    OPTIMIZERS,
    PROBES,
    Entry,
    Registry,
    load_plugin,
    load_plugins,
)
from bnlab.core.typed import check_options, option_names

PACKAGED = config.packaged_dir()
FOLDERS = {"norm": NORMS, "model": MODELS, "data": DATA, "optim": OPTIMIZERS, "probes/one": PROBES, "launch": EXECUTORS}
ENTRIES = [(folder, name) for folder in FOLDERS for name in config.available(folder, [PACKAGED])]
YAMLS = [file for file in sorted(PACKAGED.rglob("*.yaml")) if not file.name.startswith("_")]


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_every_name_has_a_yaml_and_every_yaml_a_name(folder: str) -> None:
    assert FOLDERS[folder].names() == list(config.available(folder, [PACKAGED]))


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_every_name_leads_to_an_entry(folder: str) -> None:
    registry = FOLDERS[folder]
    assert [registry.entry(name).name for name in registry.names()] == registry.names()


def _merged(file: Path) -> dict[str, Any]:
    """A YAML with what its `defaults` list names beside it, as Hydra would compose it."""
    tree = yaml.safe_load(file.read_text())
    merged: dict[str, Any] = {}
    for part in tree.pop("defaults", ["_self_"]):
        merged |= tree if part == "_self_" else _merged(file.with_name(f"{part}.yaml"))
    return merged


@pytest.mark.parametrize(("folder", "name"), ENTRIES)
def test_the_yaml_has_exactly_the_options_of_the_constructor_and_fitting_values(folder: str, name: str) -> None:
    tree = _merged(PACKAGED / folder / f"{name}.yaml")
    if folder == "probes/one":
        assert tree.pop("every") == 1, "how often a probe is due is an option of them all"
        options = tree
    else:
        assert tree["name"] == name
        kind = {"norm": "_placement", "model": "_common", "data": "_feed", "optim": "_rate", "launch": "local"}[folder]
        shared = set(_merged(PACKAGED / folder / f"{kind}.yaml")) | {"name"}
        options = {key: value for key, value in tree.items() if key not in shared}
    constructor = FOLDERS[folder].entry(name).constructor
    assert sorted(options) == sorted(option_names(constructor))
    given = {key: options[key] for key in option_names(constructor)}
    checked = check_options(constructor, options, folder)
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in checked.items()} == given


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: str(file.relative_to(PACKAGED)))
def test_every_yaml_begins_with_a_comment_that_says_what_it_is(file: Path) -> None:
    text = config.description(file)
    assert len(text) > 10
    assert text.endswith(".")


@pytest.mark.parametrize(("folder", "name"), ENTRIES)
def test_every_constructor_says_what_it_is(folder: str, name: str) -> None:
    assert FOLDERS[folder].entry(name).constructor.__doc__


def test_listing_names_imports_neither_torch_nor_the_entries() -> None:
    script = (
        "import sys; from bnlab.core.registry import NORMS, MODELS, PROBES\n"
        "names = NORMS.names() + MODELS.names() + PROBES.names()\n"
        "assert 'batch' in names and 'mlp' in names and 'gradients' in names\n"
        "print([name for name in ('torch', 'numpy', 'bnlab.norms.batch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("folder", "name", "hint"),
    [
        ("norm", "bach", "Did you mean: batch?"),
        ("model", "ml", "Did you mean: mlp?"),
        ("optim", "sdg", "Did you mean: sgd?"),
        ("optim", "zzzzz", "There are: adam, adamw, sgd."),
    ],
)
def test_an_unknown_name_gets_the_nearest_one_proposed(folder: str, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"^{folder}: no such option, got '{name}'") as caught:
        FOLDERS[folder].entry(name)
    assert str(caught.value).endswith(hint)


def test_options_are_checked_against_the_constructor_s_annotations() -> None:
    def build(given: int, *, width: int, rate: float, tags: list[str] | None) -> Any:
        return given, width, rate, tags

    registry = Registry("thing", "bnlab.norms", Entry)
    registry.register("thing", traits={"big"})(build)
    assert registry.build("thing", {"width": 3, "rate": 2, "tags": ["a"]}, 7) == (7, 3, 2.0, ["a"])
    assert registry.entry("thing").traits == {"big"}
    for options, message in (
        ({"width": 3.0, "rate": 1.0, "tags": None}, r"^thing\.width: must be an integer, got 3\.0\.$"),
        ({"width": 3, "rate": "1", "tags": None}, r"^thing\.rate: must be a number, got '1'\.$"),
        (
            {"width": 3, "rate": 1, "tags": None, "widht": 4},
            r"^thing\.widht: no such option, got 4\. Did you mean: width\?$",
        ),
        ({"width": 3, "rate": 1}, r"^thing\.tags: missing\. Its YAML must give it a value\.$"),
    ):
        with pytest.raises(UsageError, match=message):
            registry.build("thing", options, 7)


# -- plugins ---------------------------------------------------------------------------------------

PLUGIN = '''
from bnlab.core.registry import NORMS
from torch import nn

@NORMS.register("{name}", traits={{"cancels_bias"}})
def norm(channels: int, dims: int, *, scale: float) -> nn.Module:
    """A norm of a user's own."""
    return nn.Identity()
'''


@pytest.fixture
def clean() -> Iterator[None]:
    """Takes what a plugin registered, and the plugin itself, away again."""
    entries, modules = dict(NORMS._entries), set(sys.modules)
    yield
    NORMS._entries.clear()
    NORMS._entries.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith("bnlab_plugin_"):
            del sys.modules[name]


@pytest.mark.usefixtures("clean")
def test_a_plugin_joins_by_its_file_once(tmp_path: Path) -> None:
    file = tmp_path / "my_norm.py"
    file.write_text(PLUGIN.format(name="mine") + "LOADED = []\n")
    load_plugins([str(file)])
    assert "mine" in NORMS.names()
    assert option_names(NORMS.entry("mine").constructor) == ["scale"]
    first = NORMS.entry("mine").constructor
    load_plugins([str(file)])
    assert NORMS.entry("mine").constructor is first


@pytest.mark.usefixtures("clean")
def test_two_plugins_may_not_register_one_name(tmp_path: Path) -> None:
    for stem in ("one", "other"):
        (tmp_path / f"{stem}.py").write_text(PLUGIN.format(name="mine"))
    load_plugins([str(tmp_path / "one.py")])
    message = r"norm=mine: registered twice, got 'bnlab_plugin_other"
    with pytest.raises(UsageError, match=message):
        load_plugins([str(tmp_path / "other.py")])


@pytest.mark.usefixtures("clean")
def test_two_plugins_of_one_file_name_may_not_register_one_name_either(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_norm.py").write_text(f"# {folder}\n" + PLUGIN.format(name="mine"))
    load_plugins([str(tmp_path / "one" / "my_norm.py")])
    with pytest.raises(UsageError, match=r"norm=mine: registered twice"):
        load_plugins([str(tmp_path / "other" / "my_norm.py")])


@pytest.mark.parametrize("imported", [True, False])
@pytest.mark.usefixtures("clean")
def test_a_plugin_may_not_take_the_name_of_one_of_bnlab_s_own(imported: bool, tmp_path: Path) -> None:
    """Whether or not bnlab's own has been imported yet."""
    if imported:
        NORMS.entry("batch")
    else:
        NORMS._entries.pop("batch", None)
    (tmp_path / "my_batch.py").write_text(PLUGIN.format(name="batch"))
    with pytest.raises(UsageError, match=r"norm=batch: registered twice"):
        load_plugins([str(tmp_path / "my_batch.py")])


@pytest.mark.parametrize("raised", ["ValueError('no')", "SystemExit('no')"])
def test_a_constructor_of_a_plugin_that_fails_is_a_mistake_of_its_name(raised: str, tmp_path: Path) -> None:
    file = tmp_path / "failing.py"
    file.write_text(
        f"from bnlab import NORMS\n\n@NORMS.register('failing')\ndef failing(channels, dims):\n    raise {raised}\n"
    )
    load_plugin(str(file))
    kind = raised.partition("(")[0]
    said = rf"^norm=failing: its constructor fails: {kind} in failing\.py, line 5: no\.$"
    with pytest.raises(UsageError, match=said):
        NORMS.build("failing", {}, 3, 0)
    NORMS.forget("failing")


def test_a_missing_plugin_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"^plugins: no such file, got 'nowhere\.py'\. Give a path to a Python file\.$"
    ):
        load_plugins(["nowhere.py"])


@pytest.mark.usefixtures("clean")
def test_a_plugin_that_failed_is_tried_again_and_not_taken_for_loaded(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise ArithmeticError('in the plugin')\n")
    for _ in range(2):
        with pytest.raises(Exception, match="in the plugin"):
            load_plugins([str(file)])


def test_a_file_of_the_package_gives_the_entries_it_registers() -> None:
    """So that `bnlab verify --plugin` can check what a contributor adds inside bnlab."""
    folder = Path(bnlab.__file__).parent
    assert load_plugin(str(folder / "norms" / "l2.py")) == [(NORMS, "l2")]
    assert {name for _, name in load_plugin(str(folder / "analysis" / "metrics" / "rates.py"))} >= {"max_stable_lr"}


def test_the_public_names_come_from_their_homes() -> None:
    assert set(bnlab.__all__) == {*bnlab._FACE, "__version__"} == set(dir(bnlab))
    for name, home in bnlab._FACE.items():
        assert getattr(bnlab, name) is getattr(importlib.import_module(home), name)
