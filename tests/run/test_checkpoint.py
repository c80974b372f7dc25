"""A run that is killed at any moment and resumed equals the uninterrupted one, bit for bit, journal included."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bnlab.core.registry import PROBES
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal, read, without_clock
from bnlab.run.checkpoint import restore
from bnlab.run.setup import assemble
from bnlab.run.train import train

SpecOf = Callable[..., RunSpec]
Run = Callable[..., Any]
StateBits = Callable[..., Any]

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "mlp": ("mlp", ("norm=batch", "optim.momentum=0.9")),
    "cnn": ("cnn", ("norm=batch", "optim=adam", "optim.lr=0.01", "optim.schedule=cosine")),
    "noise": ("mlp", ("norm=noisy_batch",)),
    "frozen": ("cnn", ("norm=frozen_batch", "norm.refresh_every=7")),
    "reference": ("mlp", ("norm=batch_reference", "norm.momentum=null", "optim=adam", "optim.lr=0.01")),
}
PROBED = ("probes=full", "probes.activations.batch=24", "launch.checkpoint_s=0")


class _PowerCut(BaseException):
    """Ends a run at any point, without output."""


def _finish(spec: RunSpec, folder: RunFolder) -> Any:
    setup = assemble(spec)
    status = train(setup, folder)
    return setup, status, [without_clock(record) for record in read(folder.journal_file)]


def _without_times(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key != "timing"}


def _equal(spec: RunSpec, folder: RunFolder, whole: Any, state_bits: StateBits) -> None:
    """Finish the run in the folder and compare it with the uninterrupted one."""
    setup, status, records = _finish(spec, folder)
    assert records == whole.clockless
    assert state_bits(setup) == state_bits(whole.setup)
    assert _without_times(status) == _without_times(whole.status)


# -- real processes --------------------------------------------------------------------------------

KILLER = '''
"""Starts a run in child processes and kills each at a random moment, until one finishes."""
import json, os, random, signal, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)
from bnlab.record.folder import RunFolder
from bnlab.run.setup import assemble
from bnlab.core.spec import RunSpec
from bnlab.run.train import train

path, tree, seed, kills = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
draw = random.Random(seed)
for attempt in range(kills + 1):
    child = os.fork()
    if child == 0:
        train(assemble(RunSpec.from_tree(tree)), RunFolder(path))
        os._exit(0)
    if attempt < kills:
        while not (path / "owner.json").exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
    _, how = os.waitpid(child, 0)
    status = RunFolder(path).status()
    told = {"killed": os.WIFSIGNALED(how), "code": how, "status": status.get("status"), "step": status.get("step")}
    print(json.dumps(told), flush=True)
    if not os.WIFSIGNALED(how):
        break
'''


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == min(CASES) else [pytest.mark.slow]) for case in sorted(CASES)]
)
def test_a_run_killed_again_and_again_equals_the_uninterrupted_one(
    case: str, spec_of: SpecOf, run: Run, state_bits: StateBits, tmp_path: Path
) -> None:
    model, overrides = CASES[case]
    spec = spec_of(*overrides, *PROBED, "steps=36", model=model)
    whole = run(spec, "whole")
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill seed {seed}")  # shown when the test fails
    folder = RunFolder(tmp_path / "killed")
    command = [sys.executable, "-c", KILLER, str(folder.path), json.dumps(spec.tree()), str(seed), "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    attempts = [json.loads(line) for line in done.stdout.splitlines()]
    print(done.stdout)
    assert attempts[-1]["code"] == 0
    assert sum(attempt["killed"] for attempt in attempts) >= 2, "the run was too quick to be killed"
    assert attempts[-1]["status"] == "finished"
    records = [without_clock(record) for record in read(folder.journal_file)]
    assert records == whole.clockless
    assert _without_times(folder.status()) == _without_times(whole.status)
    setup = assemble(spec)
    restore(folder, setup.net.module, setup.optimizer, setup.observer, setup.steps)
    assert state_bits(setup) == state_bits(whole.setup)


def test_a_run_repeated_in_another_process_equals_this_one(
    spec_of: SpecOf, run: Run, state_bits: StateBits, tmp_path: Path
) -> None:
    """A fresh interpreter, another hash seed, killed once by another process."""
    spec = spec_of("norm=batch", *PROBED, "steps=40")
    whole = run(spec, "whole")
    folder = RunFolder(tmp_path / "killed")
    script = (
        "import json, sys, torch; torch.set_num_threads(1); from pathlib import Path\n"
        "from bnlab.record.folder import RunFolder; from bnlab.run.setup import assemble\n"
        "from bnlab.core.spec import RunSpec\n"
        "from bnlab.run.train import train\n"
        "train(assemble(RunSpec.from_tree(json.loads(sys.argv[2]))), RunFolder(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, str(folder.path), json.dumps(spec.tree())]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONHASHSEED": "7"})
    deadline = time.monotonic() + 200
    while not folder.checkpoint_file.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert folder.status()["status"] == "running"
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "8"}, check=True, timeout=200)
    assert [without_clock(record) for record in read(folder.journal_file)] == whole.clockless
    setup = assemble(spec)
    restore(folder, setup.net.module, setup.optimizer, setup.observer, setup.steps)
    assert state_bits(setup) == state_bits(whole.setup)


# -- at every single write -------------------------------------------------------------------------


class _Cutter:
    """Cuts the power at the n-th write of a run: a rename that does not happen, or half a line of the journal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None) -> None:
        self.at, self.count = at, 0
        rename, append = os.replace, Journal.append

        def replace(source: Any, target: Any) -> None:
            if self._now():
                raise _PowerCut
            rename(source, target)

        def half(journal: Journal, record: Any) -> None:
            if self._now():
                size = os.fstat(journal._file.fileno()).st_size
                append(journal, record)
                end = os.fstat(journal._file.fileno()).st_size
                journal._file.truncate(size + (end - size) // 2)
                raise _PowerCut
            append(journal, record)

        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(Journal, "append", half)

    def _now(self) -> bool:
        self.count += 1
        return self.count - 1 == self.at


@pytest.mark.parametrize("checkpoint_s", ["0", "1000"])
def test_a_power_cut_at_any_write_costs_nothing_but_time(
    checkpoint_s: str,
    spec_of: SpecOf,
    run: Run,
    state_bits: StateBits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a checkpoint before every step, and with only the last one: every rename and every line is cut once, also at
    the moments between the last checkpoint, the last record and the last status."""
    spec = spec_of("steps=4", "probes.activations.batch=8", f"launch.checkpoint_s={checkpoint_s}", "optim.momentum=0.9")
    whole = run(spec, "whole")
    with monkeypatch.context() as patch:
        counter = _Cutter(patch, None)
        _finish(spec, RunFolder(tmp_path / "counted"))
    assert counter.count >= 4 + 5 + (3 if checkpoint_s == "0" else 0)
    for at in range(counter.count):
        folder = RunFolder(tmp_path / f"cut-{at}")
        with monkeypatch.context() as patch:
            _Cutter(patch, at)
            with pytest.raises(_PowerCut, match=r"^$"):
                train(assemble(spec), folder)
        assert folder.status().get("status") in (None, "running")
        _equal(spec, folder, whole, state_bits)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 0.5, 0.75, 0.99])
def test_journal_lines_after_the_checkpoint_are_written_again(
    share: float, spec_of: SpecOf, run: Run, state_bits: StateBits, tmp_path: Path
) -> None:
    """A kill some steps after the checkpoint leaves later records, the last of them cut anywhere."""
    spec = spec_of(*PROBED[:-1], "launch.checkpoint_s=1000")
    whole = run(spec, "whole")
    folder = RunFolder(tmp_path / "cut")
    steps = iter(range(100))
    train(assemble(spec), folder, stopped=lambda: "a test" if next(steps) == 5 else None)
    vouched = folder.journal_file.stat().st_size
    rest = whole.folder.journal_file.read_bytes()[vouched:]
    with open(folder.journal_file, "ab") as file:
        file.write(rest[: int(share * len(rest))])
    _equal(spec, folder, whole, state_bits)


def test_every_probe_measures_the_same_after_a_kill_before_any_step(
    spec_of: SpecOf, run: Run, state_bits: StateBits, tmp_path: Path
) -> None:
    """Each probe at every step, also the costly ones, which are otherwise rarely due."""
    every = ("+".join(["probes=full", *PROBES.names()]), *(f"probes.{probe}.every=1" for probe in PROBES.names()))
    spec = spec_of("norm=batch", *PROBED[1:], *every, "probes.sharpness.top=2", "steps=4")
    whole = run(spec, "whole")
    for record in whole.records[1:4]:
        names = {key.partition(".")[0] for key in record}
        for probe in PROBES.names():
            metrics = {name.partition(".")[0] for name in PROBES.entry(probe).constructor.metrics}
            assert metrics & names, f"{probe} was not measured"
        assert {"lambda_2", "ics_cos", "drift50", "abs_over_sum", "thm41_error", "loss_range"} <= names
    for at in range(4):
        folder = RunFolder(tmp_path / f"killed-{at}")
        steps = iter(range(4))

        def killed(steps: Iterator[int] = steps, at: int = at) -> str | None:
            if next(steps) == at:
                raise _PowerCut
            return None

        with pytest.raises(_PowerCut, match=r"^$"):
            train(assemble(spec), folder, stopped=killed)
        assert folder.status().get("status") in (None, "running")
        _equal(spec, folder, whole, state_bits)


# -- asked to stop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("stops", [[0], [1, 5, 11], list(range(12))])
def test_a_stopped_run_is_interrupted_and_resumes_where_it_was(
    stops: list[int], case: str, spec_of: SpecOf, run: Run, state_bits: StateBits, tmp_path: Path
) -> None:
    model, overrides = CASES[case]
    spec = spec_of(*overrides, *PROBED[:-1], model=model)
    whole = run(spec, "whole")
    folder = RunFolder(tmp_path / "stopped")
    step = 0
    for stop in stops:
        setup = assemble(spec)
        wait = iter(range(step, 100))
        status = train(setup, folder, stopped=lambda wait=wait, stop=stop: "a test" if next(wait) == stop else None)
        assert (status["status"], status["step"]) == ("interrupted", stop)
        assert folder.status()["status"] == "interrupted"
        assert "interrupted by a test" in (folder.path / "log.txt").read_text()
        step = stop
    _equal(spec, folder, whole, state_bits)


def test_the_time_of_a_run_in_parts_is_the_sum_of_its_parts(spec_of: SpecOf, tmp_path: Path) -> None:
    spec = spec_of("norm=batch")
    folder = RunFolder(tmp_path)
    steps = iter(range(100))
    first = train(assemble(spec), folder, stopped=lambda: "a test" if next(steps) == 6 else None)
    second = train(assemble(spec), folder)
    assert second["timing"]["run_s"] > first["timing"]["run_s"] > 0
    assert second["timing"]["measure_s"] > first["timing"]["measure_s"] > 0


def test_a_divergence_after_a_resume_is_found_by_the_loss_the_run_began_with(
    spec_of: SpecOf, run: Run, tmp_path: Path
) -> None:
    spec = spec_of("norm=none", "optim.lr=0.01", "model.depth=2", "probes=none", model="deep_linear")
    whole = run(spec, "whole")
    assert whole.status["status"] == "diverged"
    at = whole.status["step"]
    assert 2 <= at < 12
    assert whole.status["diverged"]["site"] is None
    folder = RunFolder(tmp_path / "stopped")
    steps = iter(range(1000))
    train(assemble(spec), folder, stopped=lambda: "a test" if next(steps) == at else None)
    _, status, records = _finish(spec, folder)
    assert _without_times(status) == _without_times(whole.status)
    assert records == whole.clockless


def test_a_checkpoint_holds_no_more_than_tensors_and_numbers(spec_of: SpecOf, run: Run) -> None:
    """So that loading it runs no code from the file."""
    ended = run(spec_of("optim=adam", *PROBED))
    content = torch.load(ended.folder.checkpoint_file, weights_only=True)
    assert set(content) == {"progress", "journal_crc", "module", "optimizer", "random", "carries"}
    assert content["progress"]["step"] == 12
    assert set(content["carries"]) == set(ended.setup.spec.probes.options)


def test_without_a_checkpoint_a_run_begins_at_step_0(spec_of: SpecOf, tmp_path: Path) -> None:
    setup = assemble(spec_of())
    progress, _ = restore(RunFolder(tmp_path), setup.net.module, setup.optimizer, setup.observer, setup.steps)
    assert (progress.step, progress.initial_loss, progress.journal_bytes) == (0, None, 0)


def test_a_module_that_draws_from_torchs_own_generator_is_repeatable_and_resumable_too(
    spec_of: SpecOf, run: Run, state_bits: StateBits, tmp_path: Path
) -> None:
    spec = spec_of("norm=batch", *PROBED[:-1])

    def with_dropout() -> Any:
        setup = assemble(spec)
        setup.net.sites[0].activation.register_forward_hook(
            lambda module, args, out: torch.dropout(out, 0.5, module.training)
        )
        return setup

    ended = []
    for where, stop in (("whole", None), ("stopped", 5)):
        folder = RunFolder(tmp_path / where)
        torch.manual_seed(torch.seed())  # whatever state the process is in
        asked = iter(range(100))
        setup = with_dropout()
        status = train(setup, folder, stopped=lambda asked=asked, stop=stop: "a test" if next(asked) == stop else None)
        if stop is not None:
            assert status["status"] == "interrupted"
            torch.rand(7)
            setup = with_dropout()
            status = train(setup, folder)
        assert status["status"] == "finished"
        ended.append((state_bits(setup), [without_clock(record) for record in read(folder.journal_file)]))
    assert ended[0] == ended[1]
    assert ended[0][1] != run(spec, "without").clockless  # so the dropout was at work
