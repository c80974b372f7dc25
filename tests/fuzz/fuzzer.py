"""Random bad input, and what bnlab makes of it: `python tests/fuzz/fuzzer.py --count 10000 --seed 0`.

An input is a command line, and files beside it; it is a function of its kind and its number. Inputs run in forked
children, since some could end the interpreter: a child that dies costs its one input. An input is fine if the command
exits with one of its codes, prints no traceback and no control character, complains in one line of a sane length where
it exits with 2, takes a few seconds of the processor at most, and writes nothing beside the runs folder.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import functools
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[2] / "configs"
CPU_S = 30
"""Seconds of the processor after which an input hangs. The slowest takes 3."""
MEMORY = 6 << 30
LONGEST = 1500
"""Characters of a line that a person still reads."""
CODES = (0, 2, 3, 4)

ODD = (
    *("", " ", "-", "--", "=", ",", "@", "~", "+", "?", "*", "<<", "%", "#", "!", "|", ">", "'"),
    *('"', "\\", "`", "$", "&"),
    *("null", "true", "no", "Off", "~", "nan", ".nan", "inf", "-.inf", "1e400", "1e-400", "1_000", "0x", "0o9", "1:30"),
    *("0", "-1", "1", "3", "0.5", "1e-3", "1e3", "-0.0", "2024", "10", "100000000000000000000", "1e18"),
    *("-9223372036854775809",),
    *("9" * 5000, "-" + "7" * 6000, "0x" + "f" * 5000, "0b" + "1" * 20000, "1." + "3" * 5000, "1e" + "9" * 5000),
    *("[" * 2000, "[" * 2000 + "]" * 2000, "{a: " * 2000 + "1" + "}" * 2000, "{a:" * 500 + "}" * 500, "(" * 2000),
    *("- " * 2000 + "a", "${" * 500, "${" * 300 + "seed" + "}" * 300, "'" * 3001, "\\" * 3000, "&a " * 300),
    *("${seed}", "${nothing}", "${name}", "${oc.env:HOME}", "${oc.env:NOT_THERE}", "${oc.decode:'['}", "${.}", "${..}"),
    *("${oc.create:{a:1}}", "${oc.select:seed,1}", "${hydra:runtime.cwd}", "${now:%Y}", "${model.depth}"),
    *("${oc.dict.keys:.}",),
    *("\x1b[31mred", "\x1b]0;title\x07", "\u202etxt.exe", "\u2028", "\r", "\b\b", "\x7f", "\x9b31m", "\ufeff"),
    *("\udcff",),
    *("é", "数", "😀", "e\u0301", "a b", "a/b", "../x", "..", ".", "/x", "/etc/passwd", "~root", "a\\b", "$HOME"),
    *("a\tb", "-x"),
    *("a" * 300, "é" * 200, "b" * 5000, "x/" * 3000, "<b>x</b>", "<script>alert(1)</script>", "[red]x[/red]"),
    *("a|b", "$x^2$"),
    *("2020-01-01", "2020-01-01 10:00:00", "!!int x", "!!float y", "!!set {a, b}", "!!binary aGk=", "!!binary '%'"),
    *("!!timestamp x", "!!omap [a: 1]", "!!pairs [a: 1]", "!!bool maybe", "!!null 3", "!!str", "!x y"),
    *("!!python/tuple [1]",),
    *("!!python/object/apply:os.system [touch ran]", "!!python/object/apply:pathlib.Path [x]"),
    *("!!python/name:os.system",),
    *("*a", "&a [*a]", "&a {b: *a}", "&a [1, *b]", "[1, 2]", "[a, [b]]", "{a: 1}", "{1: 2}", "{[1]: 2}"),
    *("{null: 1}", "{}", "[]"),
    *("? a", "? [a]\n: b", "- a\n- b", "a: b: c", "a: {b", "a: 1\na: 2", "---", "...", "--- a\n--- b", "%YAML 9.9"),
    *("\t- a",),
    *("1,2", "none,batch", "1,[2,3]", "choice(1,2)", "choice()", "range(0,3)", "range(0,1000000000)", "range(1,1e18)"),
    *("range(1,0)", "range(0,1,0)", "range(0,1,1e-300)", "range(nan,1)", "range(0,inf)", "range(5)"),
    *("range(-1e308,1e308,1e-9)",),
    *("logspace(1,10,1000000000)", "logspace(0,1,3)", "logspace(1,10,3)", "logspace(1e-300,1e300,5)"),
    *("logspace(a,b,c)",),
    *("interval(0,1)", "glob(*)", "glob([a,b],exclude=[*])", "sort(3,2,1)", "sort(1,a)", "shuffle(1,2)"),
    *("tag(a,1)", "str([1])"),
    *("int(x)", "float([1])", "json_str({a:1})", "bool(2)", "extend_list(1)", "range(0,3),4", "choice(range(0,3))"),
    *("f()",),
    *("batch+drift", "economy+ics", "none+none", "batch,", ",batch", "x=y", "key=", "auto", "full", "cpu"),
    *("batch_reference",),
)  # fmt: skip
"""What has gone wrong somewhere, or might: of numbers, nesting, names, paths, YAML, and the grammar of overrides."""

KEYS = (
    *("norm", "model", "data", "optim", "probes", "launch", "name", "seed", "steps", "epochs", "plugins", "device"),
    *("threads",),
    *("loss", "dtype", "precision", "eval_bn", "eval_batch_size", "reduction", "model.depth", "model.width"),
    *("model.init",),
    *("model.activation", "model.init_scale", "model.dropout", "norm.layers", "norm.every", "norm.eps"),
    *("norm.position",),
    *("data.batch_size", "data.subset", "data.crop", "data.shift", "data.label_noise", "data.test_fraction"),
    *("optim.lr",),
    *("optim.momentum", "optim.drop_at", "optim.schedule", "probes.points", "probes.activations.every"),
    *("launch.workers",),
    *("launch.lockstep", "scale", "arm", "hydra.run.dir", "hydra", "model.name", "norm.name", "defaults", "_target_"),
)  # fmt: skip

TINY = {
    "configs/studies/tiny.yaml": b"""
base: deep_mlp
axes: {norm: "none,batch", seed: "0"}
claims:
  - {name: larger, text: t, source: s, metric: final_train_loss, contrast: {norm: [batch, none]}, at: best_lr,
     expect: larger, compare: ratio, smallest_effect: 1.1}
  - {name: same, text: t, source: s, metric: final_train_loss, contrast: {norm: [batch, none]}, at: best_lr,
     expect: same, compare: ratio, within: 1.1}
"""
}
"""A study of two runs and two claims."""

FOLDERS = ("experiments", "model", "norm", "data", "optim", "probes", "launch", "probes/one")


@dataclass
class Input:
    """A command line, and the files that are there before it; `environment` goes over that of the process."""

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


# -- inputs --------------------------------------------------------------------------------------------------------


def word(draw: random.Random) -> str:
    """A value: an odd one, several in a row, or characters at random."""
    kind = draw.random()
    if kind < 0.75:
        return draw.choice(ODD)
    if kind < 0.9:
        return draw.choice((",", "", " ", ":", "+")).join(draw.choice(ODD) for _ in range(draw.randint(2, 3)))
    few = "[]{}()=,:+-~@$&*!?|<>%'\"\\ \t\n./01e9ab\x1b\x85é😀#"
    return "".join(draw.choice(few) for _ in range(draw.randint(1, 40)))


def overridden(draw: random.Random) -> str:
    key = draw.choice(KEYS) if draw.random() < 0.8 else word(draw)
    before = draw.choice(("+", "~", "++")) if draw.random() < 0.1 else ""
    return f"{before}{key}{'=' if draw.random() < 0.95 else ''}{word(draw)}"


def typed(arguments: Sequence[str]) -> list[str]:
    """As a shell can pass them: no zero bytes, and each at most 128 KiB."""
    return [text.replace("\0", "")[:100_000] for text in arguments]


def overrides(draw: random.Random) -> Input:
    command = draw.choice((["train", "--show"], ["sweep", "--dry-run"], ["sweep", "--dry-run", "--json"]))
    given = [overridden(draw) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
    config = "tiny" if "sweep" in command and draw.random() < 0.7 else draw.choice(("mlp_digits", "cnn_digits"))
    return Input([*command, "--config", config, "--", *given], TINY if config == "tiny" else {})


def conditions(draw: random.Random) -> Input:
    keys = ("eval_bn", "eval_batch_size", "data.shift", "data.shift_strength", "device")
    given = [f"{draw.choice(keys)}={word(draw)}" if draw.random() < 0.8 else overridden(draw) for _ in range(2)]
    return Input(["evaluate", "nowhere", "--", *given])


def mutated(text: str, draw: random.Random) -> bytes:
    """A YAML with something wrong in it."""
    lines = text.splitlines()
    for _ in range(draw.choice((1, 1, 2))):
        place = draw.randrange(len(lines) + 1)
        here = lines[place] if place < len(lines) else ""
        key, colon, value = here.partition(":")
        match draw.randrange(12):
            case 0 | 1 | 2 | 3:
                lines[place : place + 1] = [f"{key or 'seed'}: {word(draw)}"]
            case 4:
                lines[place : place + 1] = [f"{draw.choice(('', '  '))}{word(draw)}{colon or ':'}{value}"]
            case 5:
                lines[place:place] = [word(draw)]
            case 6:
                del lines[place : place + 1]
            case 7:
                lines[place:place] = [f"{draw.choice((*KEYS, word(draw)))}: {word(draw)}"]
            case 8:
                lines = [line for line in lines if not line.startswith("defaults:")]
                lines[:0] = [f"defaults: {word(draw)}"]
            case 9:
                lines[place : place + 1] = [
                    f"{key or 'a'}: &a {value or '1'}",
                    *(f"b{n}: [*a, *a, *a]" for n in range(3)),
                ]
            case 10:
                lines = [word(draw)]
            case _:
                lines[place:place] = [here, here]
    data = bytearray("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    if draw.random() < 0.12:
        for _ in range(draw.choice((1, 5))):
            data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data) if draw.random() > 0.02 else bytes(data).decode("utf-8", "replace").encode("utf-16")


def bomb(draw: random.Random) -> bytes:
    """Anchors that refer to anchors, or nesting without end."""
    deep, wide = draw.choice((10, 30, 100)), draw.choice((2, 9))
    match draw.randrange(6):
        case 0:
            rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * wide) if n else 'x'}]" for n in range(deep)]
        case 1:
            rows = [
                f"a{n}: &a{n} {{{', '.join(f'k{w}: *a{n - 1}' for w in range(wide)) if n else 'x: 1'}}}"
                for n in range(deep)
            ]
        case 2:
            rows = [
                f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * wide)}]\n  k{n}: 1" if n else "a0: &a0 {x: 1}"
                for n in range(deep)
            ]
        case 3:
            rows = [" " * n + f"k{n}:" for n in range(draw.choice((100, 1200)))]
        case 4:
            rows = ["[" * draw.choice((100, 5000, 100_000))]
        case _:
            rows = [
                "defaults:",
                *(f"  - /{draw.choice(FOLDERS)}/{draw.choice(('fuzz', 'batch', 'mlp', 'deep_mlp'))}" for _ in range(3)),
            ]
    return "\n".join(rows).encode()


def yaml_of(folder: str, draw: random.Random) -> bytes:
    if draw.random() < 0.06:
        return bomb(draw)
    if draw.random() < 0.03:
        return draw.randbytes(draw.choice((1, 30, 2000)))
    return mutated(draw.choice(sorted((CONFIGS / folder).glob("*.yaml"))).read_text(encoding="utf-8"), draw)


def config(draw: random.Random) -> Input:
    """A user's own YAML of an experiment or a group, by a name of its own or in the place of one of bnlab's."""
    folder = draw.choice(FOLDERS)
    file = yaml_of(folder, draw)
    if folder == "experiments":
        name = draw.choice(("fuzz", "deep_mlp"))
        chosen = ["--config", name]
    else:
        usual = {
            "model": "mlp",
            "norm": "batch",
            "data": "digits",
            "optim": "sgd",
            "probes": "economy",
            "launch": "local",
        }
        name = draw.choice(("fuzz", usual.get(folder, "activations")))
        chosen = ["--config", "deep_mlp", f"{folder.partition('/')[0]}={name}"]
    command = draw.choice(
        (["train", "--show"], ["train", "--show"], ["sweep", "--dry-run"], ["list", folder.partition("/")[0]])
    )
    command = ["list", "experiments"] if command == ["list", "experiments"] else command
    if command[0] == "list":
        chosen = []
        command[1] = {"experiments": "configs", "norm": "norms", "model": "models", "launch": "configs"}.get(
            command[1], command[1]
        )
    return Input([*command, *chosen], {f"configs/{folder}/{name}.yaml": file})


def study(draw: random.Random) -> Input:
    file = yaml_of("studies", draw)
    if draw.random() < 0.1:
        axis = draw.choice(("seed", "optim.lr", "model.depth"))
        many = [f"  {key}: range(1, {draw.choice((50, 1000, 10**9))})" for key in (axis, "steps", "threads")]
        file = "\n".join(["base: deep_mlp", "axes:", *dict.fromkeys(many)]).encode()
    command = ["sweep", "--dry-run", "--config", "fuzz", *draw.choice(([], ["seed=0"], ["seed=0"], ["seed=0"]))]
    if draw.random() < 0.04:
        command = draw.choice((["list", "studies"], ["ask", "fuzz"]))
    return Input([*command], {"configs/studies/fuzz.yaml": file})


def expected(draw: random.Random) -> Input:
    good = "larger: supported\nsame: refuted\n"
    file = bomb(draw) if draw.random() < 0.1 else mutated(good, draw)
    if draw.random() < 0.3:
        file = json.dumps({draw.choice(ODD): draw.choice((None, 1, [1], "supported")) for _ in range(3)}).encode()
    name = draw.choice(("expected.yaml", "expected.yaml", "expected.json", word(draw)))
    return Input(
        ["sweep", "--config", "tiny", "--dry-run", "--expect-verdicts", name],
        {**TINY, "expected.yaml": file, "expected.json": file},
    )


def options(draw: random.Random) -> Input:
    """Options and arguments of every command."""
    value = word(draw)
    words = draw.choice(
        (
            ["sweep", "--all", "--dry-run", "--statements", value, "--budget", draw.choice(("1min", value))],
            ["sweep", "--all", "--dry-run", "--budget", value, "--statements", draw.choice(("99", value))],
            ["train", "--config", value],
            ["sweep", "--config", value],
            ["train", "--config", "deep_mlp", "--show", "--config-dir", value],
            ["sweep", "--config", "quickstart", "--dry-run", "--runs", value],
            ["sweep", "--config", "quickstart", "--dry-run", "--config-dir", value],
            ["list", value],
            ["list", "norms", "--plugin", value],
            ["list", "studies", "--runs", value],
            ["ask", "--", value],
            ["runs", "--", value],
            ["runs", "runs", "--where", value],
            ["runs", "runs", "--where", f"seed{value}"],
            ["runs", "runs", "--sort", value],
            ["runs", "runs", "--norms"],
            ["report", "--", value],
            ["report", "--gallery", "--", value],
            ["evaluate", "--", value],
            ["evaluate", "runs", "--plugin", value],
            ["verify", "--plugin", value],
            ["data", "fetch", "--", value],
            ["data", "fetch", "mnist", "--from", value],
            ["view", "--no-open", "--", value],
            ["view", "--port", value, "nowhere"],
            [value],
            ["train", value],
            ["train", f"--{value}"],
        )
    )
    return Input(words)


def name(draw: random.Random) -> Input:
    """Names of runs that are trained. One that is no name is refused."""
    command = draw.choice(("train", "train", "sweep"))
    given = draw.choice((f"name={word(draw)}", f"name='{word(draw)}'", f'name="{word(draw)}"'))
    small = ["steps=1", "model.depth=1", "model.width=3", "probes=none", "launch=inline"]
    return Input([command, "--config", "deep_mlp" if command == "train" else "mlp_digits", "--plain", *small, given])


def plugin(draw: random.Random) -> Input:
    source = draw.choice(
        (
            *(
                "raise SystemExit",
                "raise KeyboardInterrupt" * 0 + "1/0",
                "import nothing_of_that_name",
                "def f(:",
                "\0",
                "x = [" * 300,
            ),
            *(
                "raise Exception('\\x1b[31m' + 'x' * 9000)",
                "class E(Exception):\n def __str__(self): raise ValueError\nraise E",
                "",
            ),
            "from bnlab import NORMS\n@NORMS.register('../x')\ndef f(c, d): ...",
            "from bnlab import NORMS\n@NORMS.register('batch')\ndef f(c, d): ...",
            "from bnlab import NORMS\n@NORMS.register('mine')\ndef f(c, d, *, eps): ...",
            "from bnlab import NORMS\n@NORMS.register('mine')\ndef f(c, d, *, eps: nothing = 1): ...",
            "from bnlab import NORMS\n@NORMS.register('mine')\ndef f(c, d, *, eps: int = 'x\\x1b[0m'): ...",
            "from bnlab import NORMS\n@NORMS.register('mine')\ndef f(c, d, *, eps: object = object()): ...",
        )
    )
    chosen = draw.choice((["norm=mine"], [], ["norm=mine", "norm.eps=2"]))
    file = draw.choice(("mine.py", "mine.py", "mi ne.py", "é.py", "."))
    files = {file: source.encode()} if file != "." else {}
    return Input(["train", "--config", "deep_mlp", "--show", f"plugins=['{file}']", *chosen], files)


def data(draw: random.Random) -> Input:
    """Files of a data set: those of mnist, cut, flipped or others."""
    content = draw.choice(
        (b"", b"\0\0\x08\x03", draw.randbytes(60), b"\x1f\x8b" + draw.randbytes(40), b"\x80\x04cos\nsystem\n.")
    )
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    end = draw.choice(("", ".gz"))
    files = {f"data/mnist/{name}{end}": content for name in names}
    files |= {f"data/cifar10/{draw.choice(('cifar-10-binary.tar.gz', 'test_batch.bin'))}": content}
    kind = draw.choice(("mnist", "cifar10"))
    kept = ("train_x", "train_y", "test_x", "test_y", "sums")
    if draw.random() < 0.5:
        files |= {f"cache/bnlab/decoded/{kind}/{name}.npy": content for name in kept}
    words = draw.choice((["data", "fetch", kind, "--from", f"data/{kind}"], ["data", "fetch", kind, "--from", "data"]))
    return Input(
        words,
        files,
        {
            "BNLAB_DATA": draw.choice(
                ("data", "data/mnist/" + names[0], f"data/{word(draw)}".replace("\0", "").replace("..", ""))
            )
        },
    )


def surroundings(draw: random.Random) -> Input:
    """Odd environments, and folders of configs with odd names."""
    names = (
        "TERM",
        "COLUMNS",
        "LINES",
        "LANG",
        "HOME",
        "XDG_CACHE_HOME",
        "USER",
        "TMPDIR",
        "NO_COLOR",
        "FORCE_COLOR",
        "CUDA_VISIBLE_DEVICES",
        "EDITOR",
    )
    environment = {draw.choice(names): word(draw).replace("\0", "") for _ in range(2)}
    command = draw.choice(
        (
            ["list", "norms"],
            ["list", "studies"],
            ["train", "--config", "deep_mlp", "--show"],
            ["sweep", "--config", "quickstart", "--dry-run"],
            ["runs"],
        )
    )
    file = word(draw).replace("\0", "").replace("/", "")[:60] or "x"
    return Input(command, {f"configs/{draw.choice(FOLDERS)}/{file}.yaml": b"seed: 1\n"}, environment)


KINDS: Mapping[str, tuple[Callable[[random.Random], Input], int]] = {
    "overrides": (overrides, 30), "config": (config, 25), "study": (study, 18), "expected": (expected, 6),
    "options": (options, 10), "conditions": (conditions, 3), "plugin": (plugin, 2), "data": (data, 2),
    "surroundings": (surroundings, 3), "name": (name, 1),
}  # fmt: skip
"""What makes inputs of a kind, and their share in 100."""


def kind_of(number: int) -> str:
    """The kinds in turn, each as often as its share says."""
    turn = [kind for kind, (_, share) in KINDS.items() for _ in range(share)]
    return turn[number * 37 % len(turn)]


def made(number: int, seed: int) -> Input:
    """The input of that number."""
    found = KINDS[kind_of(number)][0](random.Random(f"{seed} {number}"))
    found.arguments = typed(found.arguments)
    return found


# -- what comes out ------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a command ended: its exit code, what it said on stdout and on stderr, and what is wrong with that."""

    code: Any
    said: str
    complained: str
    problem: str | None


def run(given: Input, folder: Path) -> Ended:
    """Run the command with its files in the empty folder `folder`."""
    from bnlab.cli import main

    work = folder / "work"
    for place, content in given.files.items():
        with contextlib.suppress(OSError, ValueError):
            (work / place).parent.mkdir(parents=True, exist_ok=True)
            (work / place).write_bytes(content)
    work.mkdir(parents=True, exist_ok=True)
    before = _files(folder)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
    code: Any = 0
    problem = None
    with _inside(work, given.environment), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(given.arguments)
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "/bnlab/" in frame.filename] or frames
            place = f"{Path(own[-1].filename).name}:{own[-1].lineno} ({own[-1].name})"
            words = " ".join(str(error).split())[:90] if not isinstance(error, TimeoutError) else ""
            problem = f"{type(error).__name__} at {place}: {words}"
    for stream in (out, err):
        stream.flush()
    said, complained = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err))  # type: ignore[attr-defined]
    return Ended(code, said, complained, problem or judged(code, said, complained, _files(folder) - before))


def judged(code: Any, said: str, complained: str, written: set[str]) -> str | None:
    """What is wrong with how a command ended, what it said on stdout and stderr, and the files that it wrote."""
    if code not in CODES:
        return f"exit code {code}"
    for text in (said, complained):
        if "Traceback (most recent call last)" in text:
            return f"traceback: {text.strip().splitlines()[-1][:100]}"
        if found := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]", text):
            return f"control character {found[0]!r}"
    lines = complained.splitlines()
    if code == 2:
        if len(lines) != 1 and not (len(lines) == 2 and lines[0].startswith("data=")):
            return f"{len(lines)} lines: {complained[:120]!r}"
        if ": " not in lines[0]:
            return f"no key: {lines[0][:100]!r}"
    if longest := max((len(line) for line in lines), default=0) > LONGEST:
        return f"a line of {max(map(len, lines))} characters" if longest else None
    places = [
        place
        for place in written
        if not re.match(r"work/(runs|data|cache)(/|$)|work/.*/?\.(mnist|cifar10)\.lock$", place)
    ]
    return f"wrote {sorted(places)[0][:100]!r}" if places else None


def _files(folder: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(above, name), folder)
        for above, inside, names in os.walk(folder)
        for name in (*inside, *names)
    }


@contextlib.contextmanager
def _inside(work: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """In this folder, with this environment over a neutral one, and signals as they were."""
    import bnlab.terminal.tables  # noqa: F401  (rich reads the environment where it is imported)

    kept = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    os.environ |= {"BNLAB_DATA": str(work / "data"), "XDG_CACHE_HOME": str(work / "cache")}
    for key, value in environment.items():
        with contextlib.suppress(UnicodeEncodeError):
            os.environ[key] = value
    at = os.getcwd()
    os.chdir(work)
    try:
        yield
    finally:
        os.chdir(at)
        for key in {*os.environ} - {*kept}:
            del os.environ[key]
        os.environ.update(kept)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@dataclass
class Found:
    """An input that is not fine."""

    number: int
    kind: str
    problem: str


def _child(numbers: Sequence[int], seed: int, pipe: int) -> None:
    """Run these inputs, and tell each before and after it."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)

    def too_long(*_: object) -> None:
        raise TimeoutError(f"{CPU_S} s of the processor")

    signal.signal(signal.SIGPROF, too_long)
    for number in numbers:
        os.write(pipe, json.dumps([number]).encode() + b"\n")
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 2 * CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        folder = Path(tempfile.mkdtemp(prefix="bnlab-fuzz-"))
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        try:
            problem = run(made(number, seed), folder).problem
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            shutil.rmtree(folder, ignore_errors=True)
        used_now = resource.getrusage(resource.RUSAGE_SELF)
        spent = used_now.ru_utime + used_now.ru_stime - used.ru_utime - used.ru_stime
        os.write(pipe, json.dumps([number, problem, spent]).encode() + b"\n")


def warm() -> None:
    """Import, and let parsers learn, in this process what every child would: it takes as long as thirty inputs. And let
    bnlab's own YAML be read once."""
    from bnlab.config import compose, places

    once = functools.cache(places.read)
    compose.read = lambda file: copy.deepcopy(once(file)) if CONFIGS in file.parents else places.read(file)
    for words in (["train", "--config", "deep_mlp", "--show"], ["sweep", "--config", "quickstart", "--dry-run"]):
        with tempfile.TemporaryDirectory(prefix="bnlab-fuzz-") as folder:
            run(Input(words), Path(folder))


def run_all(
    numbers: Sequence[int], seed: int, each: int = 200, tell: Callable[[int], None] = lambda done: None
) -> tuple[list[Found], float]:
    """Run the inputs of these numbers, `each` in a process. Those that are not fine, and the longest time of one, in
    seconds of the processor."""
    warm()
    found: list[Found] = []
    left, slowest = list(numbers), 0.0
    while left:
        part = left[:each]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(reader)
                _child(part, seed, writer)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        begun, done = None, 0
        with open(reader, encoding="utf-8") as lines:
            for text in lines:
                number, *result = json.loads(text)
                begun = None if result else number
                if result:
                    done += 1
                    slowest = max(slowest, result[1])
                    if result[0] is not None:
                        found.append(Found(number, kind_of(number), result[0]))
                        tell(found[-1])
        _, status = os.waitpid(child, 0)
        if begun is not None:
            ended = (
                signal.Signals(os.WTERMSIG(status)).name
                if os.WIFSIGNALED(status)
                else os.waitstatus_to_exitcode(status)
            )
            found.append(Found(begun, kind_of(begun), f"ended the interpreter: {ended}"))
            done += 1
        left = left[done or 1 :]
        tell(len(numbers) - len(left))
    return found, slowest


def main() -> None:
    """Print every input that is not fine, and counts by kind; exit with 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="show this input, and run it alone")
    asked = parser.parse_args()
    if asked.number is not None:
        given = made(asked.number, asked.seed)
        print([text[:300] for text in given.arguments], given.environment)
        for place, content in given.files.items():
            print(f"--- {place}\n{content[:3000].decode('utf-8', 'backslashreplace')}")
        print(run(given, Path(tempfile.mkdtemp(prefix="bnlab-fuzz-"))))
        return
    start = time.monotonic()
    found, slowest = run_all(range(asked.count), asked.seed, tell=lambda what: print(what, file=sys.stderr, flush=True))
    for one in sorted(found, key=lambda one: one.problem):
        print(f"{one.kind:12} {one.number:6}  {one.problem}")
    kinds, wrong = Counter(map(kind_of, range(asked.count))), Counter(one.kind for one in found)
    print("; ".join(f"{kind} {count}, {wrong[kind]} wrong" for kind, count in kinds.items()))
    took = f"slowest {slowest:.1f} s, in {time.monotonic() - start:.0f} s"
    print(f"seed {asked.seed}: {asked.count} inputs, {len(found)} wrong, {took}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
