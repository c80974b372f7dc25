"""Event files in the profile that so many runs are to be looked at with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from bnlab.board.events import PATTERN, Profile, shown
from bnlab.board.tags import FULL_RUNS
from bnlab.record.folder import RunFolder, find_runs


def bring(root: Path, *, full: bool, say: Callable[[str], None]) -> None:
    """With `full`, every run at or below `root` shows all its tags. Without, where more than 50 do, they show the light
    profile; and a file that does not show its whole journal, since its process was killed, does. Runs that somebody is
    at work on stay as they are, and so do those in folders that cannot be written: which is told."""
    runs = find_runs(root)
    many = not full and sum(_is_full(run) for run in runs) > FULL_RUNS
    wanted: list[tuple[RunFolder, Profile]] = []
    for run in runs:
        target: Profile = "full" if full or (_is_full(run) and not many) else "light"
        as_it_is = target == "full" and _is_of_old(run)
        if run.journal_file.is_file() and shown(run) != target and not as_it_is and not run.alive():
            wanted.append((run, target))
    if not wanted:
        return
    from bnlab.board.rebuild import rebuild

    count = len(wanted)
    if many:
        say(f"more than {FULL_RUNS} runs: shown with a dozen tags each; all tags: bnlab view RUNS --full")
    elif full:
        say(f"writing all tags of {count} run{'s' * (count != 1)}")
    failed = 0
    for run, target in wanted:
        try:
            rebuild(run, target)
        except (OSError, ValueError, KeyError, yaml.YAMLError):
            failed += 1
    if failed:
        say(f"the events of {failed} run{'s' * (failed != 1)} could not be written anew, and stay as they are")


def _is_of_old(run: RunFolder) -> bool:
    """Whether its events are of a version that knew no profiles: they show all tags, by the names of the sites, which
    then were not written down elsewhere."""
    return any(not file.name.endswith((".light", ".full")) for file in run.path.glob(PATTERN))


def _is_full(run: RunFolder) -> bool:
    """Whether its events show all tags."""
    return any(not file.name.endswith(".light") for file in run.path.glob(PATTERN))
