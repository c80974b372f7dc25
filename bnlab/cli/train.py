"""One `bnlab train` in a terminal, from its spec to the summary: signals, progress, what to print, the exit code."""

from __future__ import annotations

import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bnlab.core.errors import UsageError
from bnlab.record.folder import ENDED, RunFolder
from bnlab.terminal import summary
from bnlab.terminal.progress import PlainLines, Progress
from bnlab.terminal.signs import complain, is_screen, print_json, say

if TYPE_CHECKING:
    from bnlab.core.spec import RunSpec
    from bnlab.run.setup import Setup
    from bnlab.run.train import Status

DONE, FAILED, INTERRUPTED = 0, 3, 130


class Stop:
    """Notes SIGINT, SIGTERM and SIGHUP from its making on; the loop asks it before every step, saves a checkpoint and
    returns. A second signal adds nothing, so that it cannot break a file that is being written."""

    def __init__(self) -> None:
        self.reason: str | None = None
        signal.signal(signal.SIGINT, self._note)
        signal.signal(signal.SIGTERM, self._note)
        # A closed terminal stops a run as gently; under nohup it does not at all.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.reason = signal.Signals(number).name


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """What was typed after `bnlab train`."""

    config: str
    overrides: tuple[str, ...]
    runs: Path
    config_dir: Path | None
    as_json: bool
    plain: bool
    fresh: bool

    def again(self) -> str:
        """The line to type to go on: the same, less --fresh.

        >>> Typed(config="a", overrides=("norm=none",), runs=Path("my runs"), config_dir=None, as_json=False,
        ...       plain=True, fresh=True).again()
        "bnlab train --config a norm=none --runs 'my runs' --plain"
        """
        words = ["bnlab", "train", "--config", self.config, *self.overrides]
        if self.runs != Path("runs"):
            words += ["--runs", str(self.runs)]
        if self.config_dir is not None:
            words += ["--config-dir", str(self.config_dir)]
        return shlex.join(words + ["--json"] * self.as_json + ["--plain"] * self.plain)


def train(spec: RunSpec, typed: Typed, stop: Stop) -> int:
    """Train, or say what is there already; the exit code.

    Raises:
        UsageError: a spec that cannot be set up, a run that somebody is at work on, a folder that cannot be written.
    """
    folder = RunFolder(typed.runs / spec.folder)
    status = {} if typed.fresh else _written(folder)
    if status.get("status") in ENDED:
        note = f"already {status['status']}, nothing to do (--fresh runs it again)"
        say(note, sys.stderr if typed.as_json else sys.stdout)
    else:
        from bnlab.run.train import RunFailedError

        try:
            status = _trained(spec, folder, typed, stop)
        except RunFailedError as error:
            complain(str(error))
            return FAILED
        except OSError as error:
            problem = (error.strerror or str(error)).lower()
            raise UsageError("--runs", problem, str(error.filename or folder.path)) from None
    interrupted = status["status"] == "interrupted"
    if typed.as_json:
        print_json({"run": str(folder.path), "id": spec.id, **status})
        if interrupted:
            complain(f"interrupted; to go on: {typed.again()}")
    else:
        following = typed.again() if interrupted else shlex.join(["bnlab", "view", str(typed.runs / spec.name)])
        summary.show(status, folder.path, _records(folder), following)
    return INTERRUPTED if interrupted else DONE


def _trained(spec: RunSpec, folder: RunFolder, typed: Typed, stop: Stop) -> Status:
    """The final status of a run that is trained now, with its progress on the terminal."""
    from bnlab.run import host
    from bnlab.run.setup import assemble
    from bnlab.run.train import train as train_run

    out, plain = sys.stderr if typed.as_json else sys.stdout, typed.plain or typed.as_json
    if not has_data(spec, out, plain, stop):
        return {"status": "interrupted", "step": 0, "metrics": {}}
    host.prepare(spec.threads)
    setup = assemble(spec)
    progress = _progress(setup, folder, plain=plain, out=out)

    def stopped() -> str | None:
        progress.tick()
        return stop.reason

    try:
        status = train_run(setup, folder, fresh=typed.fresh, listen=progress.listen, stopped=stopped)
        progress.finish(status)
    finally:
        progress.close()
    return status


def has_data(spec: RunSpec, out: TextIO, plain: bool, stop: Stop) -> bool:
    """Whether the data set is there; one that is nowhere is downloaded first, unless the user stops that."""
    from bnlab.core.registry import DATA, load_plugins
    from bnlab.files.sources import SOURCES, present

    load_plugins(spec.plugins)
    DATA.entry(spec.data.name)  # which enters its source
    source = SOURCES.get(spec.data.name)
    if source is None or present(source):
        return True
    from bnlab.terminal.fetching import download

    return download(source, out, plain, lambda: stop.reason)


def _progress(setup: Setup, folder: RunFolder, *, plain: bool, out: TextIO) -> Progress:
    """The live display where there is a screen to draw on, else plain lines."""
    spec = setup.spec
    title = f"{spec.name}  {spec.norm.name}  lr={spec.optim.lr:.12g}  seed={spec.seed}"

    def begun() -> int:
        return int(folder.status().get("step", 0))

    if plain or not is_screen(out):
        return PlainLines(title, setup.steps, begun, out)
    from bnlab.terminal.live import LiveTable

    return LiveTable(title, setup.steps, begun, out, [site.name for site in setup.net.sites])


def _written(folder: RunFolder) -> Status:
    """The last status, empty where there is none.

    Raises:
        UsageError: it cannot be read, so that it is not known whether the run has ended.
    """
    try:
        return folder.status()
    except ValueError:
        raise UsageError(str(folder.status_file), "cannot be read", remedy="Run it again with --fresh.") from None
    except OSError as error:
        raise UsageError("--runs", (error.strerror or str(error)).lower(), str(folder.path)) from None


def _records(folder: RunFolder) -> list[dict[str, Any]]:
    from bnlab.record.journal import read

    try:
        return list(read(folder.journal_file))
    except (OSError, ValueError):
        return []
