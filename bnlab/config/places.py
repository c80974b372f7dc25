"""Where configs are: the user's directory, then the packaged one."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.core.errors import UsageError
from bnlab.core.safe import safe_yaml
from bnlab.core.spec import GROUPS


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
    """Name -> file of every YAML in the folder `kind` of `dirs`; the first directory that has a name wins. A study may
    be in a folder of its own, as `lessons/NAME`."""
    found: dict[str, Path] = {}
    for folder in dirs:
        for file in sorted((folder / kind).glob("**/*.yaml" if kind == "studies" else "*.yaml")):
            if not file.stem.startswith("_"):
                found.setdefault(file.relative_to(folder / kind).with_suffix("").as_posix(), file)
    return dict(sorted(found.items()))


def read(file: Path) -> DictConfig:
    """The keys of a YAML: one that does not repeat a key, with 1e-1 as a number and a date as a text.

    Raises:
        UsageError: it cannot be read, is not YAML within the limits of `safe_yaml`, has no keys, or has `defaults` that
            Hydra would not know what to do with.
    """
    try:
        plain = _parsed(file.read_bytes())
        tree = OmegaConf.create(plain)
    except OSError as error:
        raise UsageError(str(file), f"cannot be read, {error.strerror}") from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split()).rstrip(".")
        raise error if isinstance(error, UsageError) else UsageError(str(file), problem) from None
    defaults = plain.get("defaults", [])
    for item in defaults if isinstance(defaults, list) else [defaults]:
        name = next(iter(item.values())) if isinstance(item, dict) and len(item) == 1 else item
        if not isinstance(defaults, list) or not isinstance(name, str):
            raise UsageError(f"{file}, defaults", "must be a list of names, or of group: name", item)
    return tree


@lru_cache(maxsize=512)
def _parsed(data: bytes) -> dict[str, Any]:
    """Parsing takes most of the time of `read`, and specs are composed of the same files again and again."""
    found = safe_yaml(data)
    if not (found is None or isinstance(found, dict)):
        raise ValueError("must have keys and values")
    plain: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(data.decode("utf-8"))))
    return dict(plain)


def below(file: Path, dirs: Sequence[Path]) -> str:
    """Its name below that of `dirs` in which it is."""
    folders = (path for folder in dirs for path in (folder, folder.resolve()))
    return file.relative_to(next(path for path in folders if file.is_relative_to(path))).as_posix()


def contents(names: Iterable[str], dirs: Sequence[Path]) -> dict[str, bytes]:
    """What is in these files now, and in all of the last directory; the first directory that has a name wins. Nothing
    is in one that cannot be read."""
    own = (file.relative_to(dirs[-1]).as_posix() for file in dirs[-1].glob("**/*.yaml"))
    found = {}
    for name in {*names, *own}:
        file = next((folder / name for folder in dirs if (folder / name).is_file()), None)
        with suppress(OSError):
            found[name] = b"" if file is None else file.read_bytes()
    return found


FOR_EDITORS = "# yaml-language-server:"
"""How a comment begins that names a file's schema: no part of what the file says of itself."""


def description(file: Path) -> str:
    """The comment at the top of a YAML, in one line."""
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(("# @", FOR_EDITORS)):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


SHARED = {
    "model": "model/_common",
    "norm": "norm/_placement",
    "data": "data/_feed",
    "optim": "optim/_rate",
    "probes": "probes/_cadence",
    "launch": "launch/local",
}
"""By group, the YAML with the keys that all its choices have."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a run as the YAMLs describe it; `of` is the choice of its group that has it, or this default."""

    name: str
    default: Any
    meaning: str
    of: str = ""


def keys(dirs: Sequence[Path]) -> list[Key]:
    """Every key that can be set behind a command: those of the run, then those of each group and of its choices."""
    found = _keys_of(_first(dirs, "run"), "")
    for group in GROUPS:
        shared = _keys_of(_first(dirs, SHARED[group]), f"{group}.")
        known = {key.name: key for key in shared}
        found += shared
        folder, prefix = ("probes/one", "probes.{}.") if group == "probes" else (group, f"{group}.")
        for name, file in available(folder, dirs).items():
            for key in _keys_of(file, prefix.format(name), f"{group}={name}"):
                usual = known.get(key.name)
                if usual is None or usual.default != key.default:
                    found.append(replace(key, meaning=key.meaning or (usual.meaning if usual else "")))
    return found


def meanings(dirs: Sequence[Path], choices: Mapping[str, str]) -> dict[str, str]:
    """What the YAMLs say of each key where these options of groups are chosen."""
    of = {"", *(f"{group}={choice}" for group, choice in choices.items())}
    return {key.name: key.meaning for key in keys(dirs) if key.of in of or key.of.startswith("probes=")}


def comments(file: Path) -> dict[str, str]:
    """Key -> the comment behind it, of the top level of a YAML."""
    return dict(re.findall(r"^(\w+):[^#\n]*#\s*(.*?)\s*$", file.read_text(encoding="utf-8", errors="replace"), re.M))


def _keys_of(file: Path, prefix: str, of: str = "") -> list[Key]:
    said, tree = comments(file), OmegaConf.to_container(read(file))
    assert isinstance(tree, dict)
    names = [str(name) for name in tree if name not in ("defaults", "name", *GROUPS)]
    return [Key(f"{prefix}{name}", tree[name], said.get(name, ""), of) for name in names]


def _first(dirs: Sequence[Path], name: str) -> Path:
    return next(file for folder in dirs if (file := folder / f"{name}.yaml").is_file())
