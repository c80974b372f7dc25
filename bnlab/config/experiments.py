"""From an experiment's name and overrides to the spec of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnlab.config.compose import Composer, hydra_over
from bnlab.config.offers import offer_plugins
from bnlab.config.overrides import Overrides
from bnlab.config.places import config_dirs
from bnlab.core.spec import RunSpec


def load(name: str, overrides: Sequence[str], user_dir: Path | None = None) -> RunSpec:
    """The spec of experiment `name` with the overrides of one run.

    Raises:
        UsageError: an unknown experiment, group option or key, a wrong type or value, an override bnlab does not take.
    """
    dirs = config_dirs(user_dir)
    with hydra_over(dirs):
        reader = Overrides(dirs)
        composer = Composer(name, dirs, reader)
        offer_plugins(name, overrides, reader)
        return composer.spec(overrides)
