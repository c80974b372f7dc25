"""The command line: the only importer of typer. Here are the application, and what several commands share: options,
exit codes, signals, and how a user's mistake is shown. What a command needs is imported inside its function, so that
help is fast."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from bnlab import __version__
from bnlab.core.errors import UsageError, nearest
from bnlab.core.text import cut
from bnlab.terminal.signs import complain, give_up, only_json, say

OK, USAGE, FAILED, CHANGED, INTERRUPTED = 0, 2, 3, 4, 130
"""Exit codes: done; a mistake of the user; a run or a check failed; another verdict than expected; Ctrl-C."""

RUNS = Path("runs")

app = typer.Typer(
    name="bnlab",
    help="A laboratory for one question: what does batch normalization really do to training?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Plain = Annotated[bool, typer.Option("--plain", help="Print plain lines; no live display.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors and the object of --json alone.")]
ConfigDir = Annotated[
    Path | None, typer.Option(help="Your own configs, searched before the packaged ones.  [default: ./configs]")
]


def _reached(runs: Path) -> Path:
    """Raises OSError for a path that a file system cannot have, or that may not be looked at."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.stat(runs)
    return runs


RunsDir = Annotated[Path, typer.Option("--runs", help="The folder that run folders are written to.", callback=_reached)]
Runs = Annotated[Path, typer.Argument(metavar="[RUNS]", help="A folder of runs, or one run.")]
By = Annotated[
    str | None, typer.Option(metavar="KEYS", help="A row for each setting of norm,optim.lr: mean, sd, interval, n.")
]
Csv = Annotated[bool, typer.Option("--csv", help="Print the table as CSV, with all digits.")]
Latex = Annotated[bool, typer.Option("--latex", help="Print the table as a LaTeX tabular, with booktabs.")]
Style = Annotated[str, typer.Option(metavar="STYLE", help="report, or paper: no title, no footnote.")]
Width = Annotated[str | None, typer.Option(metavar="WIDTH", help="Of pictures: 3.3in, 8.4cm.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start again at step 0 and overwrite what is there.")]


_CommandLineError: Any = typer.BadParameter.__mro__[2]
"""What typer raises for an unknown command or option, a missing one, or a value that is not of its type."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. A mistake of the user is one line: what was typed or written is wrong, or
    a file cannot be read or written."""
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        with only_json() if "--json" in words else contextlib.nullcontext():
            code = app(args=words, prog_name="bnlab", standalone_mode=False)
        raise SystemExit(code or OK)
    except UsageError as error:
        lines = error.lines
    except _CommandLineError as error:
        message, context = error.format_message(), getattr(error, "ctx", None)
        if message.startswith("Usage:"):  # of a command without arguments: its help
            say(message, sys.stderr)
            raise SystemExit(USAGE) from None
        line = f"{context.command_path if context else 'bnlab'}: {message[:1].lower()}{message[1:].rstrip('.')}."
        lines = (f"{cut(line, 600)} See: {context.command_path if context else 'bnlab'} --help",)
    except OSError as error:
        what = str(error.filename or "the current folder")
        if error.filename is None and _has_folder():
            if error.errno != errno.ENOSPC:
                raise
            what = "the output"
            give_up(sys.stdout)
        lines = (f"{cut(what)}: {(error.strerror or str(error)).lower()}.",)
    for line in lines:
        complain(line)
    raise SystemExit(USAGE)


def _has_folder() -> bool:
    """Whether the folder that the command was typed in is still there."""
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _version(wanted: bool) -> None:
    if wanted:
        say(f"bnlab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


class Stop:
    """Notes SIGINT, SIGTERM and SIGHUP. The loop reads `reason` before every step, saves a checkpoint and returns. A
    second signal changes nothing, so that it cannot break a file that is being written."""

    def __init__(self) -> None:
        self.reason: str | None = None
        signal.signal(signal.SIGINT, self._note)
        signal.signal(signal.SIGTERM, self._note)
        # A closed terminal interrupts a run in the same way; under nohup the signal stays ignored.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._note)

    def __call__(self) -> str | None:
        return self.reason

    def _note(self, number: int, frame: object) -> None:
        self.reason = signal.Signals(number).name


def minutes_of(budget: str | None) -> float | None:
    """A time such as `2h`, `1.5h`, `45min`, `90` (minutes), in minutes.

    >>> minutes_of("2h"), minutes_of("45min"), minutes_of("90"), minutes_of(None)
    (120.0, 45.0, 90.0, None)
    """
    if budget is None:
        return None
    found = re.fullmatch(r"(\d+\.?\d*) *(h|m|min)?", budget)
    if found is None:
        raise UsageError("--budget", "must be a time", budget, "Write 2h, or 45min.")
    return float(found[1]) * (60 if found[2] == "h" else 1)


def numbers_of(text: str | None) -> list[int]:
    """Numbers between commas."""
    if text is None:
        return []
    if not re.fullmatch(r"\d{1,9}(, *\d{1,9})*", text):
        raise UsageError("--statements", "must be numbers between commas", text, "Write 3,17.")
    return [int(word) for word in text.split(",")]


class _Nowhere(io.StringIO):
    """An output that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


def words_out(as_json: bool, quiet: bool = False) -> TextIO:
    """Where words for people go: stdout belongs to the object of --json."""
    if quiet:
        return _Nowhere()
    return sys.stderr if as_json else sys.stdout


def no_config(config_dir: Path | None, given: Sequence[str], *kinds: str) -> UsageError:
    """The error of a command without --config: it lists the configs of these kinds, or takes the first word for one."""
    from bnlab.config import RENAMED, available, config_dirs

    dirs = config_dirs(config_dir)
    known = [name for kind in kinds for name in available(kind, dirs)]
    meant = [word if word in known else RENAMED[word] for word in given if word in known or word in RENAMED]
    remedy = f"Did you mean: --config {meant[0]}?" if meant else nearest("", known)
    return UsageError("--config", "missing", remedy=remedy)


@contextlib.contextmanager
def writing(path: Path, key: str = "--runs") -> Iterator[None]:
    """Inside it, an error of the file system is the mistake of `key`.

    Raises:
        UsageError: a file cannot be read or written.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(key, (error.strerror or str(error)).lower(), str(error.filename or path)) from None


COMMANDS = ("train", "sweep", "evaluate", "runs", "plot", "names", "complete", "verify")
"""Files of commands, in the order of the help."""

for _name in COMMANDS:
    importlib.import_module(f"{__name__}.{_name}")
