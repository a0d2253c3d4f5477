"""Shards of a range: disjoint, complete, even."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probekit.runtime.ranks import Ranks, current, shard_range


@given(count=st.integers(0, 200), world=st.integers(1, 17))
def test_ranges_are_disjoint_complete_and_even(count, world):
    shares = [shard_range(count, Ranks(rank, world)) for rank in range(world)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_rank_is_torchruns_or_the_only_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert current() == Ranks(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert current() == Ranks(2, 3)


def test_a_rank_beyond_the_world_is_refused():
    with pytest.raises(ValueError, match="Rank 3 of 3"):
        Ranks(3, 3)
