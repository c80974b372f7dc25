"""`bnlab evaluate`: trained nets on the test split again, from their checkpoints. It trains and writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnlab.cli.app import Json, Plain, app
from bnlab.core.errors import UsageError
from bnlab.terminal.signs import print_json, say

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
    as_json: Json = False,
    plain: Plain = False,
) -> None:
    """Evaluate trained nets under other conditions.

    The test data may be shifted, and batch norm may use other statistics. Nothing is trained or written.
    """
    from bnlab.config.conditions import load_conditions, under

    conditions = load_conditions(overrides or ())
    from bnlab.cli.runs import spec_of, status_of
    from bnlab.record.folder import runs_below
    from bnlab.terminal.progress import Bars
    from bnlab.terminal.tables import show_answers

    folders = runs_below(runs)
    saved = [folder for folder in folders if folder.checkpoint_file.is_file()]
    if not saved:
        raise UsageError("RUNS", "no run here has a checkpoint", str(runs), "A run saves one at its end.")
    specs = [(folder, [under(spec_of(folder), condition) for condition in conditions]) for folder in saved]
    answers: list[dict[str, Any]] = []
    with Bars(sys.stderr, plain=plain) as count:
        count("answer", 0, len(saved) * len(conditions))
        for folder, of_run in specs:
            for answer in ask(folder, of_run):
                answers.append(answer)
                count("answer", len(answers), len(saved) * len(conditions))
    left_out = [folder for folder in folders if folder not in saved]
    if as_json:
        print_json({"evaluations": answers, "left_out": [str(folder.path) for folder in left_out]})
        return
    show_answers(answers)
    for folder in left_out:
        say(f"left out   {folder.path}: no checkpoint, {status_of(folder)['status']}")


def ask(folder: RunFolder, specs: Sequence[RunSpec]) -> Iterator[dict[str, Any]]:
    """Loss and accuracy of the net in a run's checkpoint, under each of the specs.

    Raises:
        UsageError: a spec that cannot be evaluated, or a checkpoint of another net.
    """
    from bnlab.cli.runs import status_of
    from bnlab.net.evaluate import evaluate as evaluated
    from bnlab.probes.base import to_host
    from bnlab.run import checkpoint, host
    from bnlab.run.setup import assemble

    for spec in specs:
        host.prepare(spec.threads)
        setup = assemble(spec)
        step = checkpoint.restore_weights(folder.checkpoint_file, setup.net.module)
        test = setup.dataset.test
        found: dict[str, Any] = to_host(evaluated(setup.inference, test, spec.loss, spec.reduction))
        yield {
            "run": str(folder.path),
            "status": status_of(folder)["status"],
            "step": step,
            "shift": spec.data.shift,
            "shift_strength": spec.data.shift_strength,
            "eval_bn": spec.eval_bn,
            "eval_batch_size": spec.eval_batch_size,
            "examples": len(test),
            "metrics": {f"test_{name}": float(value) for name, value in found.items()},
        }
