"""Thinning: a slow twin by lists, and what must hold of any series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnlab.board.thin import TagValues, Template, Thinner

Point = tuple[int, float]
TAGS = ("a", "b", "c")
KINDS = [("a", "b", "c"), ("a", "b"), ("b",), ("a", "c"), ()]
"""Tags that a record may have."""


def series_of(kept: Sequence[tuple[TagValues, Any]]) -> dict[str, list[Point]]:
    """The points of every tag, in the order in which they are written."""
    found: dict[str, list[Point]] = {tag: [] for tag in TAGS}
    for row, mask in kept:
        for tag, value, taken in zip(row.template.tags, row.values.tolist(), mask.tolist(), strict=True):
            if taken:
                found[tag].append((row.step, value))
    return found


def rows_of(records: Sequence[dict[str, float]]) -> list[TagValues]:
    templates = {kind: Template([(tag, tag, -1) for tag in kind], 1) for kind in {tuple(record) for record in records}}
    return [
        TagValues(
            step=step, wall_s=0.0, template=templates[tuple(record)], values=np.array([*record.values()], np.float32)
        )
        for step, record in enumerate(records)
    ]


def thinned(records: Sequence[dict[str, float]], limit: int, planned: int | None = None) -> dict[str, list[Point]]:
    thinner = Thinner(limit=limit, records=len(records) if planned is None else planned)
    kept = [one for row in rows_of(records) for one in thinner.add(row)]
    return series_of([*kept, *thinner.end()])


def twin(records: Sequence[dict[str, float]], limit: int) -> dict[str, list[Point]]:
    """The same, one tag after the other, from all its points at once."""
    found: dict[str, list[Point]] = {}
    count = (limit - 2) // 3
    size = 1 if len(records) <= limit else -(-len(records) // count)
    for tag in TAGS:
        points = [(step, float(np.float32(record[tag]))) for step, record in enumerate(records) if tag in record]
        kept: set[Point] = set(points[:1] + points[-1:])
        for bucket in range(0, len(records), size):
            here = [point for point in points if bucket <= point[0] < bucket + size]
            finite = [point for point in here if math.isfinite(point[1])]
            chosen = {point for point in here if not math.isfinite(point[1]) and point == next_bad(here)}
            if finite:
                chosen |= {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
            for other in here[-1:] + here[:1]:
                if len(chosen) < 3:
                    chosen.add(other)
            kept |= chosen
        found[tag] = sorted(kept, key=lambda point: point[0])
    return found


def next_bad(points: Sequence[Point]) -> Point | None:
    return next((point for point in points if not math.isfinite(point[1])), None)


def same(one: dict[str, list[Point]], other: dict[str, list[Point]]) -> bool:
    """Equal, and NaN equals NaN."""
    return repr(one) == repr(other)


values = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.just(math.nan) | st.sampled_from([0.0, 1.0])


@st.composite
def recorded(draw: st.DrawFn) -> list[dict[str, float]]:
    kinds = draw(st.lists(st.sampled_from(KINDS), max_size=60))
    return [{tag: draw(values) for tag in kind} for kind in kinds]


@given(recorded(), st.integers(5, 30))
def test_it_keeps_what_the_slow_twin_keeps(records: list[dict[str, float]], limit: int) -> None:
    assert same(thinned(records, limit), twin(records, limit))


@given(recorded(), st.integers(5, 30))
def test_no_spike_and_no_end_is_lost_and_the_points_are_at_most_the_limit(
    records: list[dict[str, float]], limit: int
) -> None:
    found = thinned(records, limit)
    for tag in TAGS:
        whole = [(step, float(np.float32(record[tag]))) for step, record in enumerate(records) if tag in record]
        kept = found[tag]
        assert len(kept) <= limit
        assert [step for step, _ in kept] == sorted({step for step, _ in kept})
        assert {repr(point) for point in kept} <= {repr(point) for point in whole}
        if len(records) <= limit:
            assert repr(kept) == repr(whole)
        if whole:
            assert (repr(kept[0]), repr(kept[-1])) == (repr(whole[0]), repr(whole[-1]))
        if finite := [value for _, value in whole if math.isfinite(value)]:
            left = [value for _, value in kept if math.isfinite(value)]
            assert (min(left), max(left)) == (min(finite), max(finite))
        assert any(math.isnan(value) for _, value in kept) == any(math.isnan(value) for _, value in whole)


@pytest.mark.parametrize("at", [0, 1, 777, 1998, 1999])
@pytest.mark.parametrize("spike", [1e6, -1e6, math.nan])
def test_a_spike_of_one_step_is_seen_wherever_it_is(at: int, spike: float) -> None:
    records = [{"a": math.sin(step / 50)} for step in range(2000)]
    records[at] = {"a": spike}
    found = thinned(records, 500)["a"]
    assert len(found) <= 500
    assert repr((at, spike)) in {repr(point) for point in found}


def test_five_hundred_records_are_all_kept_and_one_more_is_thinned() -> None:
    records = [{"a": float(step)} for step in range(501)]
    assert thinned(records[:500], 500)["a"] == [(step, float(step)) for step in range(500)]
    assert len(thinned(records, 500)["a"]) < 501


def test_a_tag_that_is_there_rarely_keeps_all_it_has() -> None:
    """Buckets are of 13 records, so none has more than two of it."""
    records = [{"a": 1.0, "b": 2.0} if step % 7 == 0 else {"a": 1.0} for step in range(2000)]
    assert len(thinned(records, 500)["b"]) == 286


@given(recorded(), st.integers(5, 12), st.integers(0, 60))
def test_what_is_written_before_the_end_does_not_depend_on_what_comes_after(
    records: list[dict[str, float]], limit: int, cut: int
) -> None:
    """So a file that is written on and one made anew from a longer journal agree."""
    whole, part = Thinner(limit=limit, records=60), Thinner(limit=limit, records=60)
    rows = rows_of(records)
    first = [[(row.step, mask.tolist()) for row, mask in part.add(row)] for row in rows[:cut]]
    all_ = [[(row.step, mask.tolist()) for row, mask in whole.add(row)] for row in rows]
    assert first == all_[:cut]
