"""What a study's verdicts were expected to be, and where they differ: for `--expect-verdicts FILE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import yaml

from bnlab.core.errors import UsageError, nearest
from bnlab.core.study import Study

if TYPE_CHECKING:
    from bnlab.analysis.base import Verdict


def read(file: Path, study: Study) -> dict[str, str]:
    """Claim -> decision, from YAML or JSON.

    Raises:
        UsageError: no such file, not a mapping, a claim that the study does not have, no such decision.
    """
    from bnlab.analysis.base import Decision

    option = "--expect-verdicts"
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(option, (error.strerror or str(error)).lower(), str(file)) from None
    except (ValueError, yaml.YAMLError):
        raise UsageError(option, "cannot be read", str(file), "Write a line for each claim: name: decision.") from None
    if not isinstance(tree, Mapping) or not tree:
        raise UsageError(option, "has no claims", str(file), "Write a line for each claim: name: decision.")
    claims, decisions = [claim.name for claim in study.claims], list(get_args(Decision))
    for name, decision in tree.items():
        if name not in claims:
            raise UsageError(option, f"study {study.name} has no such claim", name, nearest(str(name), claims))
        if decision not in decisions:
            raise UsageError(option, f"no such decision for {name}", decision, nearest(str(decision), decisions))
    return dict(tree)


def differences(expected: Mapping[str, str], found: Sequence[Verdict]) -> list[str]:
    """A line for each claim that was decided otherwise."""
    decided = {verdict.claim.name: verdict.decision for verdict in found}
    return [
        f"{name}: expected {decision}, found {decided.get(name, 'not tested')}"
        for name, decision in expected.items()
        if decided.get(name, "not tested") != decision
    ]
