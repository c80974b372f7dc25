"""Named streams: the same for the same name, unrelated for another, on every machine."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch

from bnlab.core.seeds import STREAMS, stream


def _draws(*key: object, count: int = 4096) -> torch.Tensor:
    return torch.randn(count, generator=stream(*key), dtype=torch.float64)  # type: ignore[arg-type]


def test_a_stream_is_seeded_by_the_sha256_of_its_name() -> None:
    digest = hashlib.sha256(b"3/init/L00_fc_affine.weight").digest()
    expected = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    found = stream(3, "init", "L00_fc_affine.weight")
    assert torch.equal(torch.rand(9, generator=found), torch.rand(9, generator=expected))


def test_a_stream_keeps_its_numbers_from_version_to_version() -> None:
    assert stream(0, "order", 0).initial_seed() == 3991725939186754870
    assert torch.randperm(6, generator=stream(0, "order", 0)).tolist() == [5, 0, 3, 2, 1, 4]


def test_streams_that_differ_in_seed_name_or_key_are_uncorrelated() -> None:
    keys = [(seed, name, key) for seed in (0, 1) for name in STREAMS for key in (0, 1, "weight")]
    draws = torch.stack([_draws(*key) for key in keys])
    correlation = torch.corrcoef(draws)
    off = correlation - torch.eye(len(keys), dtype=torch.float64)
    # 630 pairs of independent draws: the largest |correlation| is about 3.2 / sqrt(4096) = 0.05.
    assert off.abs().max() < 5 / 4096**0.5
    seeds = {stream(*key).initial_seed() for key in keys}
    assert len(seeds) == len(keys)


def test_a_key_is_not_confused_with_its_neighbours() -> None:
    pairs = itertools.combinations([(1, "init", 11), (11, "init", 1), (1, "init", 1, 1), (1, "init", "1")], 2)
    same = [(a, b) for a, b in pairs if torch.equal(_draws(*a), _draws(*b))]
    assert same == []


def test_drawing_from_one_stream_moves_neither_another_nor_the_global_state() -> None:
    before = torch.get_rng_state()
    first = stream(0, "order", 5)
    expected = torch.rand(4, generator=stream(0, "noise"))
    torch.rand(1000, generator=first)
    assert torch.equal(torch.rand(4, generator=stream(0, "noise")), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_stream_is_a_mistake_of_the_program() -> None:
    with pytest.raises(AssertionError, match="no stream 'orders'"):
        stream(0, "orders")
