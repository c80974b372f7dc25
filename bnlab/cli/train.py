"""`bnlab train`: one run, from its spec to the summary."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from bnlab import cli
from bnlab.core.errors import UsageError
from bnlab.core.text import command
from bnlab.terminal.signs import complain, is_screen, print_json, say, waiting

if TYPE_CHECKING:
    from bnlab.core.spec import RunSpec
    from bnlab.record.folder import RunFolder
    from bnlab.record.journal import Record
    from bnlab.run.setup import Setup
    from bnlab.run.train import Status
    from bnlab.terminal.progress import Progress


@cli.app.command()
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the experiment: norm=none optim.lr=1"),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME", help="The experiment; `bnlab list configs` lists them.")
    ] = None,
    runs: cli.RunsDir = cli.RUNS,
    config_dir: cli.ConfigDir = None,
    as_json: cli.Json = False,
    plain: cli.Plain = False,
    quiet: cli.Quiet = False,
    fresh: cli.Fresh = False,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved spec and train nothing.")] = False,
) -> None:
    """Train one run, or resume it."""
    stop = cli.Stop()  # before the slow imports: a signal during them counts too
    out = cli.words_out(as_json, quiet)
    with waiting("reading the config ...", out, plain=plain):
        from bnlab import config as configs
        from bnlab.core.study import HERE
        from bnlab.record.findings import findings
        from bnlab.record.folder import ENDED, BrokenError, RunFolder
        from bnlab.record.runs import other_than, read_run, state_to_resume

        if config is None:
            raise cli.no_config(config_dir, overrides or (), "experiments")
        given = overrides or []
        spec = configs.load(config, given, config_dir)
    if spec.launch.name not in HERE and not show:
        raise UsageError("launch", "bnlab train runs in this process", spec.launch.name, "Use bnlab sweep.")
    if show:
        _show_spec(spec, configs.config_dirs(config_dir), as_json)
        return
    places = {"runs": runs if runs != cli.RUNS else None, "config_dir": config_dir}
    again = command("bnlab", "train", "--config", config, *given, **places, json=as_json, plain=plain, quiet=quiet)
    folder = RunFolder(runs / spec.folder)
    status: Status = {} if fresh else dict(state_to_resume(folder)[1])
    if status.get("status") in ENDED:
        say(f"already {status['status']}, nothing to do (--fresh runs it again)", out)
    else:
        if line := other_than(folder, spec.tree()):
            say(line, out)
        with waiting("loading PyTorch ...", out, plain=plain):
            from bnlab.run.train import RunFailedError

        try:
            with cli.writing(folder.path):
                status = _trained(spec, folder, fresh=fresh, plain=plain or as_json, out=out, stop=stop)
        except RunFailedError as error:
            complain(str(error))
            raise typer.Exit(cli.FAILED) from None
        except BrokenError as error:
            complain(f"{error} The line: {again} --fresh" if "--fresh" in str(error) else str(error))
            raise typer.Exit(cli.USAGE) from None
    for line in status.pop("recovered", ()):
        complain(line)
    interrupted = status["status"] == "interrupted"
    if as_json:
        found = [asdict(finding) for finding in findings(read_run(folder))]
        print_json({"run": str(folder.path), "id": spec.id, **status, "findings": found})
        if interrupted:
            complain(f"interrupted; to resume: {again}")
    else:
        from bnlab.terminal.summary import show_summary

        following = again if interrupted else command("bnlab", "view", str(runs / spec.name))
        show_summary(status, folder.path, _records(folder), following, out)
    raise typer.Exit(cli.INTERRUPTED if interrupted else cli.OK)


def _show_spec(spec: RunSpec, dirs: list[Path], as_json: bool) -> None:
    """A resolved spec, with its id and the directories its configs may come from; beside each key what it means."""
    import yaml

    from bnlab.config import meanings
    from bnlab.core.spec import GROUPS

    tree = spec.tree()
    if as_json:
        print_json({"id": spec.id, "config_dirs": [str(folder) for folder in dirs], "spec": tree})
        return
    say(f"# id: {spec.id}")
    say(f"# configs: {', '.join(map(str, dirs))}")
    means = meanings(dirs, {group: str(tree[group].get("name")) for group in GROUPS if group in tree})
    lines = yaml.safe_dump(tree, sort_keys=False).splitlines()
    above: list[str] = []
    for line in lines:
        found = re.match(r"( *)(\w+):", line)
        if found:
            above = [*above[: len(found[1]) // 2], found[2]]
        said = means.get(".".join(above), "") if found else ""
        say(f"{line:<24} # {said}" if said else line)


def _trained(spec: RunSpec, folder: RunFolder, *, fresh: bool, plain: bool, out: TextIO, stop: cli.Stop) -> Status:
    """The final status of a run that is trained now, with its progress on `out`."""
    from bnlab.api import train_spec

    if not has_data(spec, out, plain, stop):
        return {"status": "interrupted", "step": 0, "metrics": {}}
    shown: list[Progress] = []

    def begin(setup: Setup) -> tuple[Callable[[Record], None], Callable[[], str | None]]:
        building.close()
        for note in setup.notes:
            say(note, out)
        shown.append(progress := _progress(setup, folder, plain=plain, out=out))

        def stopped() -> str | None:
            progress.tick()
            return stop.reason

        return progress.listen, stopped

    with ExitStack() as building:
        building.enter_context(waiting("building the net ...", out, plain=plain))
        try:
            status = dict(train_spec(spec, folder, fresh=fresh, begin=begin))
            shown[0].finish(status)
        finally:
            for progress in shown:
                progress.close()
    return status


def has_data(spec: RunSpec, out: TextIO, plain: bool, stop: cli.Stop) -> bool:
    """Whether the data set is there. A missing one is downloaded first; False if the user interrupts that.

    Raises:
        UsageError: it cannot be downloaded.
    """
    from bnlab.core.registry import DATA, load_plugins
    from bnlab.files.sources import SOURCES, fetch, present
    from bnlab.terminal.progress import Bars

    load_plugins(spec.plugins)
    DATA.entry(spec.data.name)  # importing it registers its source
    source = SOURCES.get(spec.data.name)
    if source is None or present(source):
        return True
    with Bars(out, plain=plain, of_bytes=True) as report:

        def checked(name: str, done: int, total: int | None) -> None:
            if stop.reason:
                raise KeyboardInterrupt
            report(name, done, total)

        try:
            fetch(source, checked)
        except KeyboardInterrupt:
            return False
    return True


def _progress(setup: Setup, folder: RunFolder, *, plain: bool, out: TextIO) -> Progress:
    """The live display on a screen, else plain lines."""
    from bnlab.terminal.progress import PlainLines

    spec = setup.spec
    title = f"{spec.name}  {spec.norm.name}  lr={spec.optim.lr:.12g}  seed={spec.seed}"

    def begun() -> int:
        return int(folder.status().get("step", 0))

    if plain or not is_screen(out):
        return PlainLines(title, setup.steps, begun, out)
    from bnlab.terminal.live import LiveTable

    point = f"before the {'activation' if spec.norm.position == 'after' else 'norm'}"
    return LiveTable(title, setup.steps, begun, out, [site.name for site in setup.net.sites], point)


def _records(folder: RunFolder) -> list[dict[str, Any]]:
    from bnlab.record.journal import read

    try:
        return list(read(folder.journal_file))
    except (OSError, ValueError):
        return []
