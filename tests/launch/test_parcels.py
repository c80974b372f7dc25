"""What goes to another machine: specs, folders and plugins as plain text, and no other code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.core.errors import UsageError
from bnlab.core.registry import READ, read_plugin
from bnlab.core.spec import RunSpec
from bnlab.grids.ask import Question, Questions, ask_isolated
from bnlab.grids.task import Group, Task, train_isolated
from bnlab.launch.base import from_text, to_text
from bnlab.record.folder import RunFolder

PLUGIN = "from bnlab import NORMS\n"


@pytest.fixture
def group(spec_of: Callable[..., RunSpec], tmp_path: Path) -> Group:
    file = tmp_path / "my_norm.py"
    file.write_text(PLUGIN)
    specs = [spec_of(f"seed={seed}", f"plugins=[{file}]") for seed in (0, 1)]
    read_plugin(str(file))
    tasks = [
        Task(
            spec=spec,
            folder=RunFolder(tmp_path / spec.folder),
            fresh=False,
            plugins=dict(READ),
            provenance={"axes": ["seed"]},
            profile="light",
        )
        for spec in specs
    ]
    return Group(tuple(tasks))


def test_a_group_arrives_as_it_was_sent(group: Group) -> None:
    assert from_text(to_text(train_isolated, group)) == (train_isolated, group)


def test_questions_arrive_as_they_were_sent(group: Group) -> None:
    each = [Question(folder=task.folder, specs=(task.spec,) * 2, plugins=task.plugins) for task in group.tasks]
    questions = Questions(tuple(each))
    assert from_text(to_text(ask_isolated, questions)) == (ask_isolated, questions)


def test_the_text_has_the_content_of_a_plugin_and_not_its_file(group: Group, tmp_path: Path) -> None:
    text = to_text(train_isolated, group)
    (tmp_path / "my_norm.py").unlink()
    READ.clear()
    _, arrived = from_text(text)
    assert isinstance(arrived, Group)
    READ.update(arrived.tasks[0].plugins)
    assert read_plugin(str(tmp_path / "my_norm.py")).files == {"my_norm.py": PLUGIN.encode()}


def test_folders_can_be_others(group: Group, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    moved = group.moved(folders)
    assert (moved.folders, [task.spec for task in moved.tasks]) == (folders, [task.spec for task in group.tasks])


def changed(text: str, **keys: Any) -> str:
    return json.dumps(json.loads(text) | keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"bnlab": "0.0.7"},
            r"launch: the sweep has bnlab 0\.0\.7, and this machine another, got '.*'\. Install ",
        ),
        ({"function": "os:system"}, r"launch: not a part of bnlab, got 'os:system'"),
        ({"function": "bnlab.run.host:subprocess.run"}, r"launch: not a part of bnlab, got 'bnlab\.run\.host:subpro"),
    ],
)
def test_what_is_not_bnlab_of_this_version_is_refused(keys: dict[str, str], said: str, group: Group) -> None:
    with pytest.raises(UsageError, match=said):
        from_text(changed(to_text(train_isolated, group), **keys))


def test_a_changed_plugin_is_refused(group: Group) -> None:
    job = json.loads(to_text(train_isolated, group))
    (plugin,) = job["tree"]["plugins"].values()
    plugin["files"]["my_norm.py"] = "aW1wb3J0IG9z"
    with pytest.raises(UsageError, match=r"plugins: my_norm\.py has another content than when it was sent, got '"):
        from_text(json.dumps(job))
