"""From `--config NAME` and overrides to specs and grids of them: the only importer of hydra."""

from bnlab.config.compose import RENAMED, load
from bnlab.config.places import available, config_dirs, description, keys, meanings, packaged_dir
from bnlab.config.studies import load_study, own_plugins

__all__ = [
    "RENAMED",
    "available",
    "config_dirs",
    "description",
    "keys",
    "load",
    "load_study",
    "meanings",
    "own_plugins",
    "packaged_dir",
]
