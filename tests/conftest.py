"""What the tests share: small specs, runs, comparisons bit by bit, small files in the formats of real data sets,
and a browser."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import io
import json
import shutil
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from bnlab import config
from bnlab.core.spec import RunSpec
from bnlab.files.sources import SOURCES, Source
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Record, read, without_clock
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import Status, train
from bnlab.verify.checks import bits

torch.set_num_threads(1)
settings.register_profile(
    "bnlab",
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("bnlab")

SMALL: dict[str, tuple[str, ...]] = {
    "mlp": ("deep_mlp", "model.depth=2", "model.width=6"),
    "cnn": ("cnn_digits", "model.channels=[3,4]", "model.strides=[1,2]"),
    "deep_linear": ("deep_linear", "model.depth=4", "model.width=5", "data.size=150", "data.test_size=50"),
    "resnet": ("cnn_digits", "model=resnet", "model.depth=8", "model.width=0.25", "model.shortcut=B"),
    "separable_cnn": (
        "cnn_digits",
        "model=separable_cnn",
        "model.stem=4",
        "model.channels=[4,6]",
        "model.strides=[1,2]",
    ),
    "vgg": ("cnn_digits", "model=vgg", "model.width=0.0625", "optim.lr=0.005"),
}
"""An experiment with each architecture, and what makes it small. One that is not listed is tried as it comes."""
NEEDED = {
    "norm=group": {"cnn": ("model.channels=[4,6]",), "deep_linear": ("model.width=6",)},
    "norm=instance": {"vgg": ("norm.layers=[0,1,2]",)},
}
"""What a norm needs there: layers that its groups divide, layers with more than one position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that has ended: its parts, its final status, its journal, its folder."""

    setup: Setup
    status: Status
    records: list[Record]
    folder: RunFolder

    @property
    def clockless(self) -> list[Record]:
        """The journal less its readings of the clock."""
        return [without_clock(record) for record in self.records]


@cache
def _loaded(experiment: str, overrides: tuple[str, ...]) -> RunSpec:
    return config.load(experiment, overrides)


def small_spec(*overrides: str, model: str = "mlp") -> RunSpec:
    """A run of 12 steps of 16 examples, measured at every step; `overrides` win over these."""
    experiment, *small = SMALL.get(model, ("mlp_digits", f"model={model}"))
    merged = {"steps": "12", "data.batch_size": "16", "probes.points": "100", "optim.lr": "0.05"}
    if experiment == "deep_linear":
        merged |= {"optim.lr": "1e-4"}
    needed = next((needs.get(model, ()) for norm, needs in NEEDED.items() if norm in overrides), ())
    for text in (*small, *needed, *overrides):
        key, _, value = text.partition("=")
        merged[key] = value
    return _loaded(experiment, tuple(f"{key}={value}" for key, value in merged.items()))


@pytest.fixture(scope="session")
def small() -> Callable[..., RunSpec]:
    """As `spec_of`, for fixtures of a wider scope."""
    return small_spec


@pytest.fixture
def spec_of() -> Callable[..., RunSpec]:
    """`spec_of("norm=none", model="cnn")`: see `small_spec`."""
    return small_spec


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ended]:
    """`run(spec, where="a")` trains it to its end in its own folder."""

    def run_it(spec: RunSpec, where: str = "run", **more: Any) -> Ended:
        folder = RunFolder(tmp_path / where)
        setup = assemble(spec)
        status = train(setup, folder, **more)
        return Ended(setup=setup, status=status, records=list(read(folder.journal_file)), folder=folder)

    return run_it


@pytest.fixture
def bits_of() -> Callable[[Any], Any]:
    """See `bnlab.verify.checks.bits`."""
    return bits


@pytest.fixture
def state_bits() -> Callable[[Setup], dict[str, Any]]:
    """Weights, buffers and the optimizer's state of a run, bit by bit."""

    def state(setup: Setup) -> dict[str, Any]:
        content = {"module": setup.net.module.state_dict(), "optimizer": setup.optimizer.state_dict()}
        found: dict[str, Any] = bits(content)
        return found

    return state


# -- small files in the formats of real data sets ---------------------------------------------------

REAL = ("mnist", "fashion_mnist", "cifar10")


def tiny_contents(name: str, seed: int = 0) -> dict[str, bytes]:
    """Content by file name: 200 training and 50 test images, the classes in turn; 40 and 40 a file for CIFAR-10."""
    random = np.random.default_rng([seed, *name.encode()])
    if name == "cifar10":
        table = random.integers(0, 256, (6, 40, 3073), dtype=np.uint8)
        table[:, :, 0] = np.arange(40) % 10
        names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
        return {file: records.tobytes() for file, records in zip(names, table, strict=True)}
    found = {}
    for split, count in (("train", 200), ("t10k", 50)):
        x = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        dimensions = np.array(x.shape, ">u4").tobytes()
        found[f"{split}-images-idx3-ubyte"] = b"\0\0\x08\x03" + dimensions + x.tobytes()
        found[f"{split}-labels-idx1-ubyte"] = b"\0\0\x08\x01" + dimensions[:4] + bytes(i % 10 for i in range(count))
    return found


def tiny_source(name: str, seed: int = 0) -> Source:
    """The source of that data set as it would be if its files were `tiny_contents`, and on no site."""
    contents = tiny_contents(name, seed)
    files = [
        replace(file, size=len(contents[file.name]), sha256=hashlib.sha256(contents[file.name]).hexdigest())
        for file in PUBLISHED[name].files
    ]
    return replace(PUBLISHED[name], files=tuple(files), urls=())


for _name in REAL:
    importlib.import_module(f"bnlab.data.{_name}")
PUBLISHED = dict(SOURCES)
"""The sources as bnlab has them."""


@pytest.fixture(autouse=True, scope="session")
def _small_data_sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every data set that must be downloaded is small and there; nothing of the user's is looked at."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BNLAB_DATA", str(root))
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        for name in REAL:
            patch.setitem(SOURCES, name, tiny_source(name))
            folder = root / SOURCES[name].folders[0]
            folder.mkdir(parents=True)
            for file, content in tiny_contents(name).items():
                (folder / f"{file}.gz").write_bytes(gzip.compress(content, 1))
        yield


@pytest.fixture
def tiny() -> Callable[..., dict[str, bytes]]:
    """See `tiny_contents`."""
    return tiny_contents


@pytest.fixture
def published() -> dict[str, Source]:
    """The sources as bnlab has them; everywhere else in the tests they are small."""
    return PUBLISHED


# -- a TensorBoard server --------------------------------------------------------------------------

START_S = 120


class Asked:
    """A server that has started, at the address that a link leads to."""

    def __init__(self, link: str) -> None:
        parts = urllib.parse.urlsplit(link)
        self.base = f"{parts.scheme}://{parts.netloc}"

    def text(self, path: str = "", body: Any = None) -> str:
        """The answer to a question, which is posted if it has a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: str = answer.read().decode()
            return found

    def get(self, path: str, body: Any = None) -> Any:
        """What the answer says."""
        return json.loads(self.text(path, body))

    def poll(self, path: str, wanted: Callable[[Any], bool], body: Any = None) -> Any:
        """The same, once it is as wanted: a server reads runs as it goes."""
        limit = time.monotonic() + START_S
        while not wanted(found := self.get(path, body)):
            assert time.monotonic() < limit, str(found)[:2000]
            time.sleep(0.1)
        return found


@pytest.fixture(scope="session")
def asked() -> Callable[[str], Asked]:
    """`asked(link)`"""
    return Asked


# -- a browser -------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless browser: the system's, or playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the [browser] extra")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with api.sync_playwright() as playwright:
        try:
            launched = playwright.chromium.launch(executable_path=path, args=QUIET.split())
        except Exception as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield launched
        launched.close()


@dataclass(frozen=True, slots=True)
class Opened:
    """A page, and what went wrong on it."""

    page: Any
    errors: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    """The hosts that it sent requests to."""


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Opens an address in a new page."""
    pages = []

    def open_it(address: str, *, width: int = 1500, height: int = 1000, **more: Any) -> Opened:
        page = browser.new_page(viewport={"width": width, "height": height}, **more)
        pages.append(page)
        found = Opened(page)
        page.on("console", lambda message: found.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: found.asked.add(urllib.parse.urlsplit(request.url).netloc))
        page.goto(address)
        return found

    yield open_it
    for page in pages:
        page.close()


@pytest.fixture
def traces_of() -> Callable[[Path], dict[str, Any]]:
    """See `traces`."""
    return traces


def traces(root: Path) -> dict[str, Any]:
    """Every run below `root` by its folder: status, journal and checkpoint, without readings of the clock, and
    without how many nets shared them."""
    found: dict[str, Any] = {}
    for file in sorted(root.rglob("status.json")):
        status = json.loads(file.read_text())
        status.pop("timing", None)
        journal = [without_clock(record) for record in read(file.with_name("journal.jsonl"))]
        checkpoint = file.with_name("checkpoint.pt")
        content = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {}
        progress = content.pop("progress", {})
        content.pop("journal_crc", None)  # of a journal with readings of the clock
        kept = {key: value for key, value in progress.items() if not key.endswith(("_s", "_bytes", "nets"))}
        found[str(file.parent.relative_to(root))] = (status, journal, kept, _bits(content))
    return found


def _bits(value: Any) -> Any:
    """Tensors as their bytes: NaN is NaN, -0.0 is not 0.0."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Said]]:
    """Runs `bnlab` with these words in this process and an empty folder. An exception that leaves it is a traceback. A
    sweep makes no report."""
    from bnlab.cli import main
    from bnlab.cli import sweep as sweeping

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping, "_reported", lambda *_: None)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    def run(*words: str | Path) -> Said:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as ended,
        ):
            main([str(word) for word in words])
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Said(code, out.getvalue(), err.getvalue())

    yield run
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """`wait_for(found, what)` calls `found` until it returns a true value, and returns that."""

    def wait(found: Callable[[], Any], what: str, seconds: float = 200) -> Any:
        limit = time.monotonic() + seconds
        while not (answer := found()):
            assert time.monotonic() < limit, f"no {what} in {seconds} s"
            time.sleep(0.01)
        return answer

    return wait
