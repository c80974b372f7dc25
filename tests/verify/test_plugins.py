"""`bnlab verify --plugin`: good plugins pass, every broken one gets its line; what docs/plugins.md shows works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab import config
from bnlab.cli.verify import check_plugin
from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS, PROBES, REGISTRIES
from bnlab.core.seeds import stream
from bnlab.core.spec import RunSpec
from bnlab.core.state import outputs_now
from bnlab.net.build import Net
from bnlab.verify import norm_contract
from bnlab.verify.checks import Finding, findings
from bnlab.verify.contract import PROBE_CHECKS, measured_by
from bnlab.verify.norm_contract import Layer

SpecOf = Callable[..., RunSpec]
DOCS = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
SHORT: dict[str, list[str]] = {"verify": [], "train": ["steps=40"]}
COMMANDS = {"my_metric": ["verify"], "my_figure": ["verify", "sweep"]}
"""The commands of examples that no single run uses."""
EXAMPLES = re.findall(r"`(my_\w+)\.py`:\n\n```python\n(.*?)```", DOCS, re.S)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Removes what a plugin registered, and the plugin itself."""
    yield
    for registry in REGISTRIES:
        for name, entry in list(registry._entries.items()):
            if not entry.constructor.__module__.startswith(f"{registry.package}."):
                registry.forget(name)
    for name in [name for name in sys.modules if name.startswith("bnlab_plugin_")]:
        del sys.modules[name]


# -- norms -----------------------------------------------------------------------------------------


class Centred(nn.Module):
    """A good norm, which the others break: x minus the batch's mean; in evaluation, minus a running one."""

    running: Tensor

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.over, self.shape = ((0, 2, 3), (1, -1, 1, 1)) if dims else ((0,), (1, -1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running", torch.zeros(channels))

    def mean(self, x: Tensor) -> Tensor:
        mean = x.mean(self.over)
        with torch.no_grad():
            self.running += 0.1 * (mean - self.running)
        return mean

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x) if self.training else self.running
        return x - mean.view(self.shape) + self.bias.view(self.shape)


class PlainAttribute(Centred):
    """Counts its steps in an attribute, which no checkpoint has."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += self.training
        return super().forward(x) / (1 + 0.1 * self.count)


class GlobalNoise(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0.1 * torch.randn_like(x) if self.training else 0)


class NumpyNoise(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0.1 * np.random.rand() if self.training else 0)


class OwnNoise(Centred):
    """Good noise: a function of seed, layer and a step that is in a buffer."""

    steps: Tensor

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__(channels, dims)
        self.register_buffer("steps", torch.tensor(0))

    def bind(self, seed: int, name: str) -> None:
        self.key = (seed, name)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.training:
            seed, name = self.key
            x = x + 0.1 * torch.randn(x.shape, generator=stream(seed, "noise", name, int(self.steps))).to(x)
            self.steps += 1
        return x


class FlatConvolution(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)


class SquareOnly(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(-1, -2) if x.ndim == 4 else super().forward(x)


class Detached(Centred):
    def mean(self, x: Tensor) -> Tensor:
        return super().mean(x).detach()


class DetachedParameter(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.bias.detach().view(self.shape))


class BatchInEvaluation(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(self.over, keepdim=True) + self.bias.view(self.shape)


class ChangesInEvaluation(Centred):
    def forward(self, x: Tensor) -> Tensor:
        self.mean(x)
        return super().forward(x)


class SinglePrecision(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class InPlace(Centred):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        x.detach().add_(1)
        return out


class OtherLayout(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).movedim(1, -1).contiguous().movedim(-1, 1)


class Infinite(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (0 if self.training else 1)


class RandomStart(Centred):
    def __init__(self, channels: int, dims: int) -> None:
        super().__init__(channels, dims)
        nn.init.normal_(self.bias)


class Idle(Centred):
    def __init__(self, channels: int, dims: int) -> None:
        super().__init__(channels, dims)
        self.spare = nn.Parameter(torch.zeros(channels))


class Raises(Centred):
    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError("broken\non purpose")


DECLARE = "If it treats what it detaches as constant on purpose, declare the trait stops_gradient."
BUFFERS = "keep everything that training changes in buffers (register_buffer)"
STREAM = "draw from bnlab.core.seeds.stream by seed, layer and a counter in a buffer, as bnlab.norms.base.Noise does"
BROKEN_NORMS: list[tuple[type[nn.Module], dict[str, str]]] = [
    (Centred, {}),
    (OwnNoise, {}),
    (
        PlainAttribute,
        {
            "state in buffers": f"a new one with its state_dict returns other values in training: {BUFFERS}",
            "unchanged by measuring": "a forward pass for measuring changes later training: it keeps state "
            "outside buffers",
        },
    ),
    (GlobalNoise, {"random numbers": f"draws from torch's global generator: {STREAM}"}),
    (FlatConvolution, {"shape and dtype": "convolution: returns [4, 36] for [4, 6, 3, 2] in training"}),
    (SquareOnly, {"shape and dtype": "convolution: returns [4, 6, 2, 3] for [4, 6, 3, 2] in training"}),
    (Detached, {"gradient": f"its gradient at its input is not the derivative in batch mode. {DECLARE}"}),
    (DetachedParameter, {"gradient": f"its gradient at bias is not the derivative in batch mode. {DECLARE}"}),
    (
        BatchInEvaluation,
        {"evaluation": "in evaluation, an example's output depends on the others in its batch, by ..."},
    ),
    (ChangesInEvaluation, {"evaluation": "in evaluation, the same batch gives other values the second time"}),
    (SinglePrecision, {"shape and dtype": "returns float32 for float64 in training"}),
    (InPlace, {"shape and dtype": "changes its input in place in training"}),
    (
        OtherLayout,
        {"shape and dtype": "convolution: returns another memory layout in training: end with .contiguous()"},
    ),
    (Infinite, {"shape and dtype": "returns values that are not finite in training"}),
    (RandomStart, {"start": "bias has other initial values each time: draw them from bnlab.core.seeds.stream"}),
    (Idle, {"gradients of parameters": "its parameter spare gets no gradient"}),
    (Raises, dict.fromkeys(set(norm_contract.CHECKS) - {"start"}, "ArithmeticError: broken on purpose")),
]


def _of_norm(norm: Any, *traits: str, only: Collection[str] = ()) -> dict[str, str]:
    """The lines of the checks of its layers, dense and convolutional: of all checks, or of these."""
    from bnlab.verify.contract import _on_each_kind

    NORMS.register("mine", traits=traits)(norm)
    checks = {
        name: _on_each_kind(check)
        for name, check in norm_contract.CHECKS.items()
        if name in (only or norm_contract.CHECKS)
    }
    layers = [Layer(name="mine", options={}, dims=dims) for dims in norm_contract.KINDS]
    return {found.check: found.why for found in findings("norm=mine", checks, layers) if found.why is not None}


@pytest.mark.parametrize(("norm", "lines"), BROKEN_NORMS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_norm_gets_its_line_and_a_good_one_none(norm: type[nn.Module], lines: dict[str, str]) -> None:
    found = _of_norm(norm, "batch_statistics", "cancels_bias", only=lines)
    gap = re.compile(r"by [\d.]+$")
    assert {check: gap.sub("by ...", line) for check, line in found.items()} == lines


def test_noise_that_no_checkpoint_keeps_is_not_resumed() -> None:
    state = np.random.get_state()
    found = _of_norm(NumpyNoise, only=("random numbers", "state in buffers"))
    np.random.set_state(state)
    assert found["random numbers"] == f"draws from numpy's global generator: {STREAM}"
    assert found["state in buffers"].startswith("a new one with its state_dict returns other values in training")


@pytest.mark.parametrize(
    ("norm", "traits", "lines"),
    [
        (Detached, ["batch_statistics", "cancels_bias", "stops_gradient"], {}),
        (
            Centred,
            ["batch_statistics", "cancels_bias", "stops_gradient"],
            {"gradient": "declares stops_gradient, but its gradient is the derivative"},
        ),
        (
            Centred,
            ["cancels_bias"],
            {"traits": "an example's output depends on its batch in training: declare the trait batch_statistics"},
        ),
        (
            Centred,
            ["batch_statistics"],
            {"traits": "a constant added to a channel has no effect in training: declare the trait cancels_bias"},
        ),
        (
            Centred,
            ["batch_statistic"],
            {
                "traits": "declares batch_statistic, which is not a trait; the traits are batch_statistics, "
                "cancels_bias, space_statistics, stops_gradient"
            },
        ),
        (
            lambda channels, dims: nn.Identity(),
            ["cancels_bias"],
            {"traits": "declares cancels_bias, but not: a constant added to a channel has no effect"},
        ),
        (lambda channels, dims: None, [], {}),
    ],
)
def test_traits_are_held_to_what_is_seen(norm: Any, traits: list[str], lines: dict[str, str]) -> None:
    assert _of_norm(norm, *traits, only=lines or ("gradient", "traits")) == lines


# -- probes ----------------------------------------------------------------------------------------


class Norms:
    """A good probe, which the others break: norms of weights, now and at the previous measurement."""

    needs: Any = frozenset()
    metrics: Any = {"weight_norm": "of each site's weight", "last.*": "the same, at the previous measurement"}  # noqa: RUF012

    def measure(self, snapshot: Any) -> Any:
        return {"norm": torch.stack([weight.norm() for weight in _weights(snapshot.net)])}

    def summarize(self, raw: Any, carry: Any) -> Any:
        return {"weight_norm": raw["norm"], "last.norm": carry.get("last", raw["norm"])}, {"last": raw["norm"]}


def _weights(net: Net) -> list[Tensor]:
    return [net.params[site.params[0]].detach() for site in net.sites]


class MovesBuffer(Norms):
    def measure(self, snapshot: Any) -> Any:
        snapshot.net.module(snapshot.batch.x)
        return super().measure(snapshot)


class MovesWeight(Norms):
    def measure(self, snapshot: Any) -> Any:
        _weights(snapshot.net)[1].mul_(1.0001)
        return super().measure(snapshot)


class LeavesHook(Norms):
    def measure(self, snapshot: Any) -> Any:
        snapshot.net.sites[0].affine.register_forward_hook(lambda *_: None)
        return super().measure(snapshot)


class LeavesEvalMode(Norms):
    def measure(self, snapshot: Any) -> Any:
        snapshot.net.sites[0].affine.eval()
        return super().measure(snapshot)


class Draws(Norms):
    """From torch's global generator: the observer restores it, so nothing is wrong."""

    def measure(self, snapshot: Any) -> Any:
        torch.randn(3)
        return super().measure(snapshot)


class Undeclared(Norms):
    metrics: Any = {"weight_norm": "of each site's weight", "last": "the same, at the previous measurement"}  # noqa: RUF012


class Aliases(Norms):
    def measure(self, snapshot: Any) -> Any:
        return super().measure(snapshot) | {"first": _weights(snapshot.net)[0]}


class Remembers(Norms):
    """Outside the carry."""

    count = 0.0

    def summarize(self, raw: Any, carry: Any) -> Any:
        self.count += 1
        return {"weight_norm": raw["norm"] * self.count}, carry


class Matrix(Norms):
    def summarize(self, raw: Any, carry: Any) -> Any:
        return {"weight_norm": raw["norm"][:, None]}, carry


class PlainFloat(Norms):
    def summarize(self, raw: Any, carry: Any) -> Any:
        return {"weight_norm": float(raw["norm"][0])}, carry


class PlainCarry(Norms):
    def summarize(self, raw: Any, carry: Any) -> Any:
        return {"weight_norm": raw["norm"]}, {"steps": 3}


class Silent(Norms):
    def summarize(self, raw: Any, carry: Any) -> Any:
        return {}, carry


class UnknownNeed(Norms):
    needs: Any = frozenset({"the_weather"})


class TakenName(Norms):
    metrics: Any = {**Norms.metrics, "grad_norm": "of each site's weight"}  # noqa: RUF012


class ClockName(Norms):
    metrics: Any = {**Norms.metrics, "norm_s": "of each site's weight"}  # noqa: RUF012


class ReadsAndPasses(Norms):
    only_reads = True

    def measure(self, snapshot: Any) -> Any:
        outputs_now(snapshot.net.module, snapshot.batch.x, "running")
        return super().measure(snapshot)


class ReadsAndNeeds(Norms):
    only_reads = True
    needs: Any = frozenset({"probe_sites"})


class Fails(Norms):
    def measure(self, snapshot: Any) -> Any:
        raise ArithmeticError("broken\non purpose")


COPY = "measure at a copy of its state (bnlab.core.state)"
BROKEN_PROBES: list[tuple[Any, str, str]] = [
    (MovesBuffer, "run, measured or not", f"measure changes L00_fc_norm.running_mean of the net: {COPY}"),
    (MovesWeight, "run, measured or not", f"measure changes L01_fc_affine.weight of the net: {COPY}"),
    (LeavesHook, "run, measured or not", "7 hooks are left on the net after the run"),
    (
        LeavesEvalMode,
        "run, measured or not",
        "measuring changes the run: its train mode (L00_fc_affine) differs after the run",
    ),
    (Undeclared, "measurements", "returns last.norm, which its metrics do not declare"),
    (Aliases, "copies", "first changed after it was measured: it shares the net's memory, return a copy (.clone())"),
    (
        Remembers,
        "run, resumed",
        "a resumed run differs from an uninterrupted one: weight_norm, in record 1. Keep the state of a probe "
        "in its carry",
    ),
    (Matrix, "measurements", "its metric weight_norm must be a number or a vector of numbers, and is float32 [3, 1]"),
    (PlainFloat, "measurements", "its metric weight_norm must be a numpy array, and is a float"),
    (PlainCarry, "measurements", "steps in its carry must be a numpy array, and is a int"),
    (Silent, "measurements", "measured nothing in runs of 7 steps"),
    (
        UnknownNeed,
        "declaration",
        "needs 'the_weather', which does not exist; there are training_sites, delta_norms, weights_before, before, "
        "halves, probe_sites, training_data, test_data",
    ),
    (TakenName, "declaration", "its metric grad_norm is already one of the probe gradients"),
    (ClockName, "declaration", "its metric norm_s ends in _s, which is reserved for clock readings in seconds"),
    (Fails, "measurements", "ArithmeticError: broken on purpose"),
    (
        ReadsAndPasses,
        "measurements",
        "says only_reads, and makes a pass through the net: leave that out",
    ),
    (
        ReadsAndNeeds,
        "declaration",
        "says only_reads, and needs probe_sites, which takes a pass: leave one of them out",
    ),
]


def _of_probe(probe: Any, spec: RunSpec, *only: str) -> list[Finding]:
    PROBES.register("mine")(probe)
    checks = {name: check for name, check in PROBE_CHECKS.items() if name in only or not only}
    return list(findings("probes=mine", checks, measured_by("mine", {}, [spec])))


@pytest.mark.parametrize("probe", [Norms, Draws])
def test_a_good_probe_passes_every_check(probe: Any, spec_of: SpecOf) -> None:
    found = _of_probe(probe, spec_of("norm=batch", "steps=7"))
    assert [one.why for one in found] == [None] * len(PROBE_CHECKS)


@pytest.mark.parametrize(("probe", "check", "line"), BROKEN_PROBES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_probe_gets_its_line(probe: Any, check: str, line: str, spec_of: SpecOf) -> None:
    assert [one.why for one in _of_probe(probe, spec_of("norm=batch", "steps=7"), check)] == [line]


# -- the command -----------------------------------------------------------------------------------


def _bnlab(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bnlab", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _commands(name: str) -> list[list[str]]:
    lines = [line.partition("  #")[0].strip() for line in DOCS.splitlines() if f"{name}.py" in line]
    return [line.split()[1:] for line in lines if line.startswith("bnlab ")]


@pytest.mark.parametrize("name", [name for name, _ in EXAMPLES])
def test_the_docs_show_how_to_check_and_to_use_each_kind(name: str) -> None:
    commands = [command[0] for command in _commands(name)]
    assert commands == COMMANDS.get(name, ["verify", "train", "train"][: len(commands)])


@pytest.mark.parametrize("name", ["my_norm", "my_probe", "my_net"])  # the others: tests/docs/test_plugin_examples.py
def test_what_the_docs_show_keeps_the_contract_and_trains(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(dict(EXAMPLES)[name])
    for command in _commands(name)[:2]:
        done = _bnlab(tmp_path, *command, *SHORT[command[0]])
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("checks hold" if command[0] == "verify" else "finished") in done.stdout
    journals = [file.read_text() for file in (tmp_path / "runs").rglob("journal.jsonl")]
    assert any('"turned":' in journal for journal in journals) == (name == "my_probe")


def test_the_docs_show_every_kind_of_entry_and_a_yaml_that_overrides_its_defaults(there: Path) -> None:
    assert [name for name, _ in EXAMPLES] == [
        "my_norm", "my_probe", "my_net", "my_data", "my_optimizer", "my_metric", "my_figure",
    ]  # fmt: skip
    (there / "my_norm.py").write_text(EXAMPLES[0][1])
    given = ["plugins=[my_norm.py]", "norm=my_norm"]
    assert config.load("deep_mlp", given).norm.options == {"eps": 1e-5, "momentum": 0.1}
    (there / "configs" / "norm").mkdir(parents=True)
    text = re.findall(r"```yaml\n(.*?)```", DOCS, re.S)[0]
    (there / "configs" / "norm" / "my_norm.yaml").write_text(text)
    spec = config.load("deep_mlp", [*given, "norm.momentum=0.5"])
    assert spec.norm.options == {"eps": 1e-3, "momentum": 0.5}
    assert spec.norm.layers == "all"


NORM = """
from bnlab.core.registry import NORMS
from torch import nn

@NORMS.register("mine")
def mine(channels: int, dims: int, *, {option}):
    return {result}
"""


def _shown(file: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    code = check_plugin(file, None, as_json=True)
    return code, json.loads(capsys.readouterr().out)["contract"]


@pytest.mark.parametrize(
    ("option", "result", "check", "line"),
    [
        (
            "scale: float",
            "nn.Identity()",
            "options",
            "norm.scale: missing. Give it a default in the constructor of mine, or a value in configs/norm/mine.yaml.",
        ),
        ("scale=1", "nn.Identity()", "built", "norm.scale: has no type. Annotate it in the constructor: `eps: float`."),
        ("scale: float = 'a'", "nn.Identity()", "built", "norm.scale: must be a number, got 'a'."),
        ("scale: float = 1.0", "3", "built", "dense: its constructor must return an nn.Module or None, got a int"),
        ("scale: float = 1.0", "nn.Identity(", "", ""),
        (
            "scale: float = 1.0",
            "undefined",
            "built",
            "norm=mine: its constructor fails: NameError in mine.py, line 7: name 'undefined' is not defined.",
        ),
        (
            "scale: object = nn.ReLU",
            "nn.Identity()",
            "options",
            "norm=mine: YAML cannot hold a default in its constructor.",
        ),
    ],
)
def test_a_net_that_cannot_be_built_gives_the_reason(
    option: str, result: str, check: str, line: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (there / "mine.py").write_text(NORM.format(option=option, result=result))
    if not check:
        with pytest.raises(UsageError, match=r"^plugins: SyntaxError in mine\.py: .* got 'mine\.py'\. Fix it\.$"):
            check_plugin("mine.py", None, as_json=True)
        return
    assert _shown("mine.py", capsys) == (3, [{"entry": "norm=mine", "check": check, "ok": False, "why": line}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"^plugins: no such file, got 'mine\.py'\. Give a path to a Python file\.$"),
        ("x = 1\n", r"^--plugin: registers nothing, got 'mine\.py'\. Put @NORMS\.register\('my_norm'\) above its"),
        ("import bnlab.norms.rms\n", r"^--plugin: registers nothing, got 'mine\.py'\."),
        ("1 / 0\n", r"^plugins: ZeroDivisionError in mine\.py: division by zero, got 'mine\.py'\. Fix it\.$"),
        ("raise SystemExit(0)\n", r"^plugins: SystemExit in mine\.py: 0, got 'mine\.py'\. Fix it\.$"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(text: str | None, message: str, there: Path) -> None:
    if text is not None:
        (there / "mine.py").write_text(text)
    with pytest.raises(UsageError, match=message):
        check_plugin("mine.py", None, as_json=True)


def test_a_broken_plugin_gives_one_line_and_the_command_exits_3(there: Path) -> None:
    body = EXAMPLES[0][1].replace("with torch.no_grad():", "if True:")
    (there / "my norm's.py").write_text(body)
    done = _bnlab(there, "verify", "--plugin", "my norm's.py")
    assert done.returncode == 3, done.stderr
    assert "BROKEN" in done.stdout
    line = "its buffer running_median keeps the graphs of all steps: update it under torch.no_grad()"
    assert done.stdout.splitlines()[-1] == f"norm=my_norm: {line}"
    assert done.stderr == ""


OTHERS = """
import torch
from bnlab.data.base import Dataset, Split
from bnlab.net.build import Builder
from bnlab.core.registry import DATA, MODELS, OPTIMIZERS

@DATA.register("line")
def line(*, size: int = 60):
    x = torch.linspace(-1, 1, size).reshape(-1, 1){noise}
    return Dataset(train=Split(x, 2 * x), test=Split(x, 2 * x), classes=None)

@MODELS.register("shallow")
def shallow(input_shape, outputs, model, norm, seed, *, width: int = 5):
    builder = Builder(model, norm, normalizable=1)
    builder.plain("flatten", torch.nn.Flatten())
    inputs = torch.Size(input_shape).numel()
    builder.hidden("fc", torch.nn.Linear(inputs, width, bias=builder.needs_bias()), width, dims=0)
    builder.head(torch.nn.Linear(width, outputs))
    return builder.build(seed)

class Descent(torch.optim.SGD):
    {attribute}
    def step(self):
        self.count = getattr(self, "count", 0) + 1
        for group in self.param_groups:
            group["lr"] /= {slower}
        super().step()

@OPTIMIZERS.register("descent")
def descent(params, lr: float, *, momentum: float = 0.5):
    return Descent(params, lr, momentum=momentum)
"""


def test_models_data_sets_and_optimizers_are_held_to_their_runs(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (there / "good.py").write_text(OTHERS.format(noise="", attribute="", slower="1"))
    code, rows = _shown("good.py", capsys)
    assert (code, [row["why"] for row in rows]) == (0, [None] * 14)
    assert {row["entry"] for row in rows} == {"data=line", "model=shallow", "optim=descent"}
    for registry, name in (("data", "line"), ("model", "shallow"), ("optim", "descent")):
        next(one for one in REGISTRIES if one.group == registry).forget(name)
    (there / "bad.py").write_text(
        OTHERS.format(noise=" + 0.1 * torch.rand(size, 1)", attribute="", slower="self.count")
    )
    code, rows = _shown("bad.py", capsys)
    why = {(row["entry"], row["check"]): row["why"] for row in rows if not row["ok"]}
    assert code == 3
    assert why["data=line", "start"] == "train differs each time: draw it from bnlab.core.seeds.stream"
    assert "its state_dict leaves out what its steps depend on" in why["optim=descent", "built"]
    assert not any(entry == "model=shallow" for entry, _ in why)
