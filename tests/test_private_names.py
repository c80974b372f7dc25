"""Private names of other libraries: each is used in one place, and a test here says what breaks without it."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bnlab
from bnlab.core.state import copy_each, for_lists, norm_each, subtract_each
from bnlab.net.wrap import saved_moments, version_of

ROOT = Path(bnlab.__file__).parent
PLACES = {
    ("core/state.py", "_foreach_norm"): "probes measure norms tensor by tensor, several times as slowly",
    ("core/state.py", "_foreach_sub"): "the same, of differences",
    ("core/state.py", "_foreach_copy_"): "the same, of copies of weights and buffers",
    ("core/state.py", "_buffers"): "buffers cannot be restored after a forward pass made for measuring",
    ("net/wrap.py", "_saved_result1"): "batch_moments computes every mean and variance itself",
    ("net/wrap.py", "_saved_result2"): "the same",
    ("net/wrap.py", "_version"): "a module that changes tensors in place is measured wrongly, and not refused",
    ("grids/preload.py", "_dynamo"): "every run of a sweep imports it, which takes a second",
    ("config/overrides.py", "_value"): "quoted strings and sweeps on the command line cannot be read",
    ("launch/ray.py", "_worker_logs_enabled"): "complaints of Ray's nodes stand between the lines of a sweep",
    ("report/build.py", "_repr_png_"): "a notebook prints a figure's name in the place of its picture",
    ("board/serve/page.py", "_exit"): "TensorBoard outlives a bnlab that is killed",
    ("loop/twin.py", "_orig_mod"): "a net in torch.compile is refused by a loop's watch, not measured in its copy",
    ("loop/twin.py", "_compiled_call_impl"): "a net that is compiled in its place is tapped, and nothing is seen in it",
    ("verify/checks.py", "_backward_hooks"): "hooks that a probe leaves on a parameter are not found",
    ("verify/checks.py", "_forward_hooks"): "hooks that a probe leaves on a module are not found",
    ("verify/checks.py", "_forward_pre_hooks"): "the same",
    ("verify/checks.py", "_backward_pre_hooks"): "the same",
    ("verify/checks.py", "_state_dict_hooks"): "the same",
    ("verify/checks.py", "_load_state_dict_pre_hooks"): "the same",
}
"""File and private name -> what happens in its place, should a version of the library not have it."""
READ_BY_NAME = {name for _, name in PLACES}


def _used(file: Path) -> Iterator[str]:
    """Private names of other objects in a file: attributes, imports, and those that are read by their name."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_own(node.value)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_own(node.value):
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split(".") if _is_private(part))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from {node.value, node.value.rpartition(".")[2]} & (READ_BY_NAME - own)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_own(node: ast.expr) -> bool:
    """`self`, `cls`, `super()`, or a registry of bnlab."""
    return ast.unparse(node) in ("self", "cls", "super()", "registry")


def test_every_private_name_has_its_one_place() -> None:
    found = {(file.relative_to(ROOT).as_posix(), name) for file in ROOT.rglob("*.py") for name in _used(file)}
    assert found == set(PLACES)
    assert len(READ_BY_NAME) == len(PLACES)


@pytest.mark.parametrize("name", ["_foreach_norm", "_foreach_sub", "_foreach_copy_", "_dynamo"])
def test_torch_has_the_private_name(name: str) -> None:
    importlib.import_module(f"torch.{name}") if name == "_dynamo" else getattr(torch, name)


def test_torch_has_the_private_names_of_compiled_modules() -> None:
    net = nn.Linear(2, 2)
    assert torch.compile(net, backend="eager")._orig_mod is net
    assert net._compiled_call_impl is None
    net.compile(backend="eager")
    assert net._compiled_call_impl is not None


def _tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((3,), (4, 5), (2, 3, 3, 3), ())]


def test_one_tensor_after_another_gives_the_bits_of_one_call_for_all() -> None:
    one, other = _tensors(0), _tensors(1)
    none = "_there_is_no_such_function"
    pairs = (
        (norm_each(one), for_lists(none, torch.linalg.vector_norm)(one)),
        (subtract_each(one, other), for_lists(none, torch.sub)(one, other)),
    )
    for together, singly in pairs:
        assert all(torch.equal(a, b) for a, b in zip(together, singly, strict=True))
    for copy in (copy_each, for_lists(none, Tensor.copy_)):
        into = [torch.empty_like(x) for x in one]
        copy(into, one)
        assert all(torch.equal(a, b) for a, b in zip(into, one, strict=True))


def test_torch_s_batch_norm_keeps_its_moments_for_the_backward_pass() -> None:
    norm, x = nn.BatchNorm1d(3), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    saved = saved_moments(norm, norm(x))
    assert saved is not None
    torch.testing.assert_close(saved.mean, x.mean(dim=0))
    torch.testing.assert_close(saved.inverse_sd, (x.var(dim=0, correction=0) + norm.eps).rsqrt())


def test_a_tensor_counts_its_changes_in_place() -> None:
    x = torch.zeros(2)
    before = version_of(x)
    x.add_(1)
    assert version_of(x) == before + 1


def test_a_module_keeps_its_buffers_by_name() -> None:
    norm = nn.BatchNorm1d(3)
    assert norm._buffers["running_mean"] is norm.running_mean
