"""`bnlab evaluate`: what trained nets answer under other conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnlab.cli import FAILED, By, Csv, Json, Latex, Plain, Quiet, app, words_out
from bnlab.cli.table import Form, grouped_out, known, short, some, status_of
from bnlab.core.errors import UsageError
from bnlab.core.spec import canonical
from bnlab.terminal.signs import complain, print_json, say

if TYPE_CHECKING:
    from bnlab.core.spec import RunSpec
    from bnlab.record.folder import RunFolder


@app.command()
def evaluate(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="One run, or a folder of runs.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUES]...", help="eval_bn=batch eval_batch_size=2,64 data.shift=blur ..."),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A plugin that runs were made with, from where it is now; may be repeated."),
    ] = None,
    by: By = None,
    csv: Csv = False,
    latex: Latex = False,
    as_json: Json = False,
    plain: Plain = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate trained nets under other conditions.

    The test data may be shifted, and batch norm may use other statistics. Nothing is trained. Answers of finished runs
    are kept in answers.jsonl beside them, where claims and `bnlab plot --y answer_accuracy` find them.

    bnlab evaluate runs/quickstart eval_bn=running,batch eval_batch_size=2,64 --by norm,eval_bn,eval_batch_size
    """
    form = Form(as_json=as_json, csv=csv, latex=latex)
    from bnlab.config.conditions import load_conditions

    conditions = load_conditions(overrides or ())
    from bnlab.core.conditions import condition_key, under
    from bnlab.core.registry import read_plugin
    from bnlab.record.folder import BrokenError, RunFolder, runs_below
    from bnlab.terminal.progress import Bars
    from bnlab.terminal.tables import show_answers

    folders = runs_below(runs)
    saved = [folder for folder in folders if folder.has_checkpoint]
    if not saved:
        raise UsageError("RUNS", "no run here has a checkpoint", str(runs), "A run saves one at its end.")
    given = plugin or []
    for file in given:
        read_plugin(file)
    specs: list[tuple[RunFolder, list[RunSpec]]] = []
    notes: set[str] = set()
    broken: list[BrokenError] = []
    for folder in saved:
        try:
            asked = [under(folder.read_spec(), condition) for condition in conditions]
        except BrokenError as error:  # of this run, which must not cost the others
            broken.append(error)
            continue
        files = asked[0].plugins
        plugins = folder.plugins(files, given)
        specs.append((folder, [replace(spec, plugins=plugins) for spec in asked]))
        if "plugins" not in folder.provenance():
            notes |= {f"{file}: used as it is now, since runs of an older bnlab keep no copy" for file in plugins}
        pairs = zip(files, plugins, strict=True)
        edited = [file for file, used in pairs if used not in (file, *given) and Path(file).is_file()]
        notes |= {f"{file}: edited since it was trained with; the copy that the run keeps is used" for file in edited}
    if others := {*given} - {file for _, of_run in specs for file in of_run[0].plugins}:
        raise UsageError("--plugin", "no run here has a plugin of this name", min(others))
    for file in dict.fromkeys(file for _, of_run in specs for file in of_run[0].plugins):
        complain(f"runs the code in {file}")
    found: list[dict[str, Any]] = []
    unkept: set[str] = set()
    # Another device rounds otherwise, and another plugin is other code.
    keep = not given and not any("device" in condition for condition in conditions)
    with Bars(words_out(True, quiet), plain=plain) as progress:
        progress("answer", 0, len(saved) * len(conditions))
        for folder, of_run in specs:
            run = {"run": str(folder.path), "status": status_of(folder)["status"]}
            stored = folder.answers() if keep and run["status"] == "finished" else None
            try:
                for answer in _answers(folder, of_run, stored or {}):
                    if stored is not None and condition_key(answer) not in stored:
                        try:
                            folder.add_answer(answer)
                        except OSError as error:
                            unkept.add(f"{folder.path}: answers are not kept, {(error.strerror or str(error)).lower()}")
                    shift = {key: answer.pop(f"data.{key}") for key in ("shift", "shift_strength")}
                    found.append({**run, **shift, **answer})
                    progress("answer", len(found), len(saved) * len(conditions))
            except BrokenError as error:
                broken.append(error)
    if broken and not found:
        raise broken[0]
    for note in (*sorted(notes), *some(sorted(unkept), "runs whose answers are not kept"), *map(str, broken)):
        complain(note)
    left_out = [folder for folder in folders if folder not in saved]
    if by or form.other:
        flat = [{**known(RunFolder(Path(row["run"]))), **_answer_row(row)} for row in found]
        if by:
            asked_keys = list(_answer_row(found[0]))[:4]
            conditions_ = {canonical(row := {key: one[key] for key in asked_keys}): row for one in flat}
            lost = [one for folder in left_out if (one := known(folder))["status"] == "diverged"]
            nothing = dict.fromkeys(found[0]["metrics"])
            flat += [{**run, **condition, **nothing} for run in lost for condition in conditions_.values()]
            grouped_out(flat, by, None, form, asked_keys)
        else:
            rows = [{key: row[key] for key in ("run", "norm", "lr", "seed", *_answer_row(found[0]))} for row in flat]
            form.put(rows, list(rows[0]), [[short(value) for value in row.values()] for row in rows])
    elif as_json:
        print_json({"evaluations": found, "left_out": [str(folder.path) for folder in left_out]})
    else:
        show_answers(found)
    if not (as_json or form.other):
        for folder in left_out:
            say(f"left out   {folder.path}: no checkpoint, {status_of(folder)['status']}")
    if broken:
        raise typer.Exit(FAILED)


def _answers(
    folder: RunFolder, specs: Sequence[RunSpec], stored: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The answer under each of the specs, those that are not stored from the net."""
    from bnlab.core.conditions import condition_key, settings
    from bnlab.core.text import leaves
    from bnlab.run.answer import answers

    keys = [condition_key(settings(dict(leaves(spec.tree())), {})) for spec in specs]
    left = [spec for spec, key in zip(specs, keys, strict=True) if key not in stored]
    fresh = answers(folder, left) if left else iter(())
    for key in keys:
        yield dict(stored[key]) if key in stored else next(fresh)


def _answer_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as a flat row: its conditions as keys of a spec, and what it found."""
    shift = {"data.shift": row["shift"], "data.shift_strength": row["shift_strength"]}
    return {**shift, **{key: row[key] for key in ("eval_bn", "eval_batch_size", "step")}, **row["metrics"]}
