"""`bnlab evaluate`: trained nets asked again, from their checkpoints. Nothing is trained, and nothing is written."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bnlab.cli.runs import runs_below, spec_of, status_of
from bnlab.config.questions import Question, asked
from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.net.evaluate import evaluate
from bnlab.probes.base import to_host
from bnlab.record.folder import RunFolder
from bnlab.run import checkpoint, host
from bnlab.run.setup import assemble
from bnlab.terminal import tables
from bnlab.terminal.counting import Count
from bnlab.terminal.signs import print_json, say


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question to one net, and what it came to on the test split."""

    run: str
    status: str
    step: int
    shift: str
    shift_strength: float | None
    eval_bn: str
    eval_batch_size: int | str
    examples: int
    metrics: Mapping[str, float]


def show(root: Path, questions: Sequence[Question], as_json: bool, plain: bool) -> None:
    """Print the answers of all runs at or below `root` that have a checkpoint; on stderr, how many there are so far.

    Raises:
        UsageError: no such runs, or a question that one of them cannot be asked; before any is answered.
    """
    folders = runs_below(root)
    saved = [folder for folder in folders if folder.checkpoint_file.is_file()]
    if not saved:
        raise UsageError("RUNS", "no run here has a checkpoint", str(root), "A run saves one at its end.")
    specs = [(folder, [asked(spec_of(folder), question) for question in questions]) for folder in saved]
    answers = []
    with Count("answer", len(saved) * len(questions), sys.stderr, plain=plain) as count:
        count()
        for folder, of_run in specs:
            for answer in ask(folder, of_run):
                answers.append(answer)
                count()
    left_out = [str(folder.path) for folder in folders if folder not in saved]
    if as_json:
        print_json({"evaluations": [asdict(answer) for answer in answers], "left_out": left_out})
        return
    tables.show_answers([asdict(answer) for answer in answers])
    for path in left_out:
        say(f"left out   {path}: no checkpoint, {status_of(RunFolder(Path(path)))['status']}")


def ask(folder: RunFolder, specs: Sequence[RunSpec]) -> Iterator[Answer]:
    """The answers of one run's net, as its checkpoint has it, one after the other.

    Raises:
        UsageError: what the specs ask makes no sense, or the checkpoint is not of such a net.
    """
    for spec in specs:
        host.prepare(spec.threads)
        setup = assemble(spec)
        step = checkpoint.restore_weights(folder.checkpoint_file, setup.net.module)
        test = setup.dataset.test
        found: dict[str, Any] = to_host(evaluate(setup.inference, test, spec.loss, spec.reduction))
        yield Answer(
            run=str(folder.path),
            status=status_of(folder)["status"],
            step=step,
            shift=spec.data.shift,
            shift_strength=spec.data.shift_strength,
            eval_bn=spec.eval_bn,
            eval_batch_size=spec.eval_batch_size,
            examples=len(test),
            metrics={f"test_{name}": float(value) for name, value in found.items()},
        )
