"""The journal of a run: readers get what was written, complete lines only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnlab.record.journal import Journal, read, without_clock

RECORDS: list[dict[str, Any]] = [
    {"step": 0, "train_loss": 2.5, "vector": [1.0, 2.0], "wall_s": 1.5},
    {"step": 10, "train_loss": 0.1, "vector": [0.1, -3e-9], "wall_s": 2.5},
    {"step": 20, "train_loss": 1e300, "vector": [], "wall_s": 3.5},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    for record in RECORDS:
        journal.append(record)
    journal.close()
    return file


def test_what_was_appended_is_read_back_in_order(path: Path) -> None:
    assert list(read(path)) == RECORDS
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS


@given(
    single=st.floats(width=32, allow_nan=False, allow_infinity=False),
    double=st.floats(allow_nan=False, allow_infinity=False),
    vector=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5),
)
def test_numbers_survive_bit_for_bit_in_their_own_precision(
    tmp_path_factory: pytest.TempPathFactory, single: float, double: float, vector: list[float]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path)
    row = {"a": np.float32(single), "b": np.float64(double), "v": np.array(vector, dtype=np.float32), "n": np.int64(7)}
    journal.append(row)
    journal.close()
    [found] = read(path)
    assert np.float32(found["a"]) == np.float32(single)
    assert found["b"] == double
    np.testing.assert_array_equal(np.array(found["v"], dtype=np.float32), row["v"])
    assert found["n"] == 7


def test_what_was_not_finite_is_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(
        {
            "step": 1,
            "nan": float("nan"),
            "inf": float("inf"),
            "minus": np.float32("-inf"),
            "vector": np.array([1.0, np.nan, np.inf], dtype=np.float32),
        }
    )
    journal.close()
    assert list(read(tmp_path / "j")) == [
        {"step": 1, "nan": None, "inf": None, "minus": None, "vector": [1.0, None, None]}
    ]
    assert "NaN" not in (tmp_path / "j").read_text()


def test_a_last_line_cut_anywhere_is_not_a_record(path: Path) -> None:
    data = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        assert list(read(path)) == RECORDS[: sum(end <= cut for end in ends)]


def test_a_journal_is_cut_to_its_checkpoint_and_continued_from_there(path: Path) -> None:
    data = path.read_bytes()
    kept = data.index(b"\n") + 1
    path.write_bytes(data + b'{"step": 30, "tr')
    journal = Journal(path, keep_bytes=kept)
    journal.append(RECORDS[1])
    assert journal.sync() == len(path.read_bytes())
    journal.close()
    assert list(read(path)) == RECORDS[:2]


def test_only_the_first_bytes_are_read_on_request(path: Path) -> None:
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    assert list(read(path, keep_bytes=first)) == RECORDS[:1]
    assert list(read(path, keep_bytes=first + 3)) == RECORDS[:1]
    assert list(read(path, keep_bytes=0)) == []
    assert list(read(path, keep_bytes=len(data))) == RECORDS


def test_lines_are_there_for_others_to_read_after_a_flush_and_counted_by_sync(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for count, record in enumerate(RECORDS, start=1):
        journal.append(record)
        journal.flush()
        assert list(read(tmp_path / "j")) == RECORDS[:count]
        assert journal.sync() == (tmp_path / "j").stat().st_size
    journal.close()


def test_readings_of_the_clock_stand_under_keys_that_end_in_s() -> None:
    assert without_clock({"step": 1, "wall_s": 2.0, "run_s": 1.0, "loss": 3.0, "s": 4}) == {
        "step": 1,
        "loss": 3.0,
        "s": 4,
    }
