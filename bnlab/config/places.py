"""Where configs are: the user's directory, then the packaged one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.core.errors import UsageError
from bnlab.core.safe import safe_yaml


def packaged_dir() -> Path:
    """The configs that come with bnlab: in an installed wheel beside the code, in a checkout at its root."""
    package = Path(__file__).parent.parent
    for candidate in (package / "_configs", package.parent / "configs"):
        if (candidate / "run.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"bnlab's own configs are missing from {package}: install bnlab again")


def results_file(name: str) -> Path:
    """verdicts.json or identities.json, which come with bnlab: in an installed wheel among the configs, in a checkout
    in docs/."""
    packaged = packaged_dir()
    return next(file for file in (packaged / name, packaged.parent / "docs" / name) if file.is_file())


def config_dirs(user_dir: Path | None) -> list[Path]:
    """Where configs are looked for, in this order: the user's directory (`--config-dir`, else ./configs), the
    packaged one.

    Raises:
        UsageError: a `--config-dir` that is not there.
    """
    if user_dir is not None and not user_dir.is_dir():
        raise UsageError("--config-dir", "no such directory", str(user_dir))
    mine = user_dir or Path("configs")
    packaged = packaged_dir()
    if not mine.is_dir() or mine.resolve() == packaged.resolve():
        return [packaged]
    return [mine.resolve(), packaged]


def available(kind: str, dirs: Sequence[Path]) -> dict[str, Path]:
    """Name -> file of every YAML in the folder `kind` of `dirs`; the first directory that has a name wins."""
    found: dict[str, Path] = {}
    for folder in dirs:
        for file in sorted((folder / kind).glob("*.yaml")):
            if not file.stem.startswith("_"):
                found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def read(file: Path) -> DictConfig:
    """The keys of a YAML: one that does not repeat a key, with 1e-1 as a number and a date as a text.

    Raises:
        UsageError: it cannot be read, is not YAML within the limits of `safe_yaml`, has no keys, or has `defaults` that
            Hydra would not know what to do with.
    """
    try:
        data = file.read_bytes()
        found = safe_yaml(data)
        if not (found is None or isinstance(found, dict)):
            raise UsageError(str(file), "must have keys and values")
        tree = OmegaConf.load(io.StringIO(data.decode("utf-8")))
    except OSError as error:
        raise UsageError(str(file), f"cannot be read, {error.strerror}") from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split()).rstrip(".")
        raise error if isinstance(error, UsageError) else UsageError(str(file), problem) from None
    assert isinstance(tree, DictConfig)
    plain: Any = OmegaConf.to_container(tree)
    defaults = plain.get("defaults", [])
    for item in defaults if isinstance(defaults, list) else [defaults]:
        name = next(iter(item.values())) if isinstance(item, dict) and len(item) == 1 else item
        if not isinstance(defaults, list) or not isinstance(name, str):
            raise UsageError(f"{file}, defaults", "must be a list of names, or of group: name", item)
    return tree


def description(file: Path) -> str:
    """The comment at the top of a YAML, in one line."""
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.lstrip("# "))
    return " ".join(lines)
