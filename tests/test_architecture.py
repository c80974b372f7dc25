"""The floors: an import points down, or sideways to the base of a package; third parties are pinned to their place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import bnlab

ROOT = Path(bnlab.__file__).parent
FLOORS: dict[int, tuple[str, ...]] = {
    0: ("errors", "typed", "spec", "study", "registry", "seeds", "sources", "theory"),
    1: ("state", "losses", "host", "fetch", "moments", "norms", "data", "optim"),
    2: ("models", "probes", "tap", "precision", "journal", "folder", "evaluate"),
    3: ("observe", "checkpoint", "board", "recorder", "setup", "train"),
    4: ("sweep", "verify"),
    5: ("analysis", "report", "compare"),
    6: ("config", "terminal", "cli", "view", "listing", "__main__"),
}
FLOOR = {part: floor for floor, parts in FLOORS.items() for part in parts}

PINNED: dict[str, tuple[str, ...]] = {
    "hydra": ("config",),
    "omegaconf": ("config",),
    "typer": ("cli",),
    "rich": ("terminal",),
    "tensorboard": ("board", "view"),
    "google_crc32c": ("board",),
    "pydantic": ("typed",),
    "filelock": ("folder", "fetch"),
    "sklearn": ("data",),
    "matplotlib": ("report",),
    "jinja2": ("report",),
    "polars": ("journal", "analysis"),
    "ray": ("sweep",),
    "submitit": ("sweep",),
    "pooch": ("fetch",),
    "platformdirs": ("sources",),
}
TORCHLESS = (
    "bnlab.errors",
    "bnlab.typed",
    "bnlab.spec",
    "bnlab.study",
    "bnlab.registry",
    "bnlab.sources",
    "bnlab.fetch",
    "bnlab.config",
    "bnlab.analysis.verdicts",
    "bnlab.analysis.summary",
    "bnlab.compare.build",
    "bnlab.sweep.run",
    "bnlab.sweep.executors",
)


@dataclass(frozen=True, slots=True)
class Import:
    """A module that imports another, and whether it does so when it is itself imported."""

    source: str
    target: str
    at_once: bool


def _modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = _modules()


def _imports() -> Iterator[Import]:
    for name, file in MODULES.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inside = {
            node
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative import"
                module = node.module or ""
                # `from bnlab import checkpoint` imports a module, `from bnlab.spec import RunSpec` a name in one.
                below = [f"{module}.{alias.name}" for alias in node.names if f"{module}.{alias.name}" in MODULES]
                targets = below or [module]
            else:
                continue
            for target in targets:
                yield Import(name, target, node not in inside)


IMPORTS = list(_imports())
OWN = [found for found in IMPORTS if found.target.split(".")[0] == "bnlab"]


def _part(module: str) -> str:
    """`bnlab.norms.batch` -> `norms`; the package itself holds the version alone and has no floor."""
    return module.split(".")[1] if "." in module else ""


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30
    assert len(OWN) > 60
    assert Import("bnlab.registry", "bnlab.errors", True) in OWN
    assert any(found.target.startswith("hydra") for found in IMPORTS)


def test_every_module_has_its_floor() -> None:
    homeless = {_part(module) for module in MODULES} - set(FLOOR) - {""}
    assert homeless == set()


def test_no_import_points_up() -> None:
    upward = [
        f"{found.source} -> {found.target}"
        for found in OWN
        if _part(found.target) and FLOOR[_part(found.source)] < FLOOR[_part(found.target)]
    ]
    assert upward == []


def test_files_of_one_package_rest_on_its_base_alone() -> None:
    """One norm, model, probe does not know another. All may rest on helpers of their package, whose names begin with
    an underscore."""
    plug_ins = ("norms", "data", "optim", "models", "probes")
    sideways = [
        f"{found.source} -> {found.target}"
        for found in OWN
        if _part(found.source) == _part(found.target)
        and _part(found.source) in plug_ins
        and not found.target.endswith(".base")
        and not found.source.endswith(".base")
        and not found.target.rpartition(".")[2].startswith("_")
    ]
    assert sideways == []


def test_no_module_leads_back_to_itself() -> None:
    below: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in OWN:
        if found.target in MODULES and found.target != "bnlab":
            below[found.source].add(found.target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in sorted(below[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("library", sorted(PINNED))
def test_a_third_party_stays_in_its_place(library: str) -> None:
    elsewhere = [
        found.source
        for found in IMPORTS
        if found.target.split(".")[0] == library and _part(found.source) not in PINNED[library]
    ]
    assert elsewhere == []


def test_every_third_party_is_a_known_one() -> None:
    free = {"torch", "numpy", "scipy", "yaml", "orjson", "annotated_types"}
    used = {found.target.split(".")[0] for found in IMPORTS} - set(sys.stdlib_module_names) - {"bnlab"}
    assert used - free - set(PINNED) == set()


def test_functional_call_has_one_caller() -> None:
    callers = [name for name, file in MODULES.items() if "functional_call(" in file.read_text(encoding="utf-8")]
    assert callers == ["bnlab.state"]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_is_longer_than_300_lines(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 300


def test_the_median_module_is_short() -> None:
    lengths = sorted(len(file.read_text(encoding="utf-8").splitlines()) for file in MODULES.values())
    assert lengths[len(lengths) // 2] <= 110


@pytest.mark.parametrize("module", TORCHLESS)
def test_torch_is_not_reached_from(module: str) -> None:
    script = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_loading_a_config_does_not_reach_torch() -> None:
    script = (
        "import sys; from bnlab import config; config.load('quickstart', ['optim.lr=0.2']).id\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
