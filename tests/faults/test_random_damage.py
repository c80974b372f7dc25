"""Random damage to the files of a run: no traceback, no hang; the run ends with the bits of an undisturbed one, or with
one line."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab import config
from bnlab.analysis.load import read_runs, summary
from bnlab.cli import main
from bnlab.record.folder import BrokenError, RunFolder
from bnlab.run.setup import assemble
from bnlab.run.train import train

FILES = ("checkpoint.pt", "checkpoint.previous.pt", "journal.jsonl", "status.json", "spec.yaml", "owner.json")
SMALL = ("steps=6", "model.depth=2", "model.width=3", "data.batch_size=16", "data.subset=64", "probes=none")
SPEC = config.load("deep_mlp", [*SMALL, "launch.checkpoint_s=0"])
DAMAGES = int(os.environ.get("BNLAB_DAMAGES", "200"))


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The file with some bits flipped, a part cut out, doubled or made up, its lines swapped, or numbers replaced."""
    for _ in range(draw.choice((1, 1, 1, 3))):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((1, 8, 200, 5000)))
        match draw.randrange(8):
            case 0 if data:
                start = min(start, len(data) - 1)
                data = data[:start] + bytes([data[start] ^ 1 << draw.randrange(8)]) + data[start + 1 :]
            case 1:
                data = data[:start] + data[end:]
            case 2:
                data = data[:start]
            case 3:
                data = data[:start] + draw.choice((draw.randbytes(end - start), bytes(end - start))) + data[end:]
            case 4:
                data = data[:end] + data[start:end] + data[end:]
            case 5:
                lines = data.splitlines(keepends=True) or [b""]
                one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
                lines[one], lines[other] = lines[other], lines[one]
                data = b"".join(lines)
            case 6:
                new = draw.choice((b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'"x"', b"9" * 400, b"0"))
                digits = [place for place, byte in enumerate(data) if byte in b"0123456789"] or [0]
                place = draw.choice(digits)
                data = data[:place] + new + data[place + 1 :]
            case _:
                data = (
                    data[:start] + draw.choice((b"\n", b"\0", b"\xff", b"[" * 300, b"&a ", b"*a", b'"')) + data[start:]
                )
    return data


def _typed(*words: str) -> tuple[str, str]:
    """What a command says on stdout and on stderr. A traceback leaves it as an exception."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        main([*words])
    return out.getvalue(), err.getvalue()


class Tried:
    """Damages an interrupted run, of 4 of 6 steps, again and again, and looks at what bnlab makes of it."""

    def __init__(self, work: Path, bits: Callable[[Path], Any]) -> None:
        self.bits, self.run = bits, RunFolder(work / "runs" / SPEC.folder)
        self.kept, self.other = work / "kept", RunFolder(work / "runs" / "other")
        steps, whole = iter(range(100)), RunFolder(work / "whole" / SPEC.folder)
        train(assemble(SPEC), whole)
        [self.whole] = bits(work / "whole").values()
        train(assemble(SPEC), self.run, stopped=lambda: "a test" if next(steps) == 4 else None)
        shutil.copytree(self.run.path, self.kept)
        shutil.copytree(whole.path, self.other.path)
        (self.kept / "owner.json").write_text('{"host": "x", "pid": 7, "heartbeat_s": 5.0, "token": "t"}')

    def once(self, draw: random.Random) -> str:
        """What becomes of the run with a damaged file or two."""
        shutil.rmtree(self.run.path)
        shutil.copytree(self.kept, self.run.path)
        for file in draw.sample(FILES, draw.choice((1, 1, 1, 2))):
            path = self.run.path / file
            path.write_bytes(damaged(path.read_bytes(), draw))
        root = self.run.path.parents[3]
        said, complained = _typed("runs", str(root), "--json")
        assert said.count("\n") == 1
        assert '"finished"' in said
        assert complained.count("\n") <= 1
        if draw.random() < 0.02:  # it takes seconds
            said, complained = _typed("report", str(root), "--json")
            assert said.count("\n") == 1
            assert complained.count("\n") <= 2
        collection = read_runs(root)
        assert summary(collection).height >= 1
        try:
            train(assemble(SPEC), self.run)
        except BrokenError as error:
            return "refused" if re.fullmatch(r".+ Train the run again with --fresh\.", str(error)) else str(error)
        [found] = self.bits(self.run.path).values()
        return "whole" if found == self.whole else "other bits"


@pytest.mark.slow
def test_random_damage_costs_a_line_or_nothing(tmp_path: Path, traces_of: Callable[[Path], Any]) -> None:
    tried, draw = Tried(tmp_path, traces_of), random.Random(0)
    ended = Counter(tried.once(draw) for _ in range(DAMAGES))
    print(dict(ended))
    assert set(ended) == {"whole", "refused"}
    assert ended["whole"] > DAMAGES / 2
