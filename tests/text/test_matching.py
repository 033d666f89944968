"""Random pairs that exclude each other by keys: valid, found whenever there are some, and random."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from hf_clsi.text.matching import match_items


def match(keys, groups=None, seed=0):
    return match_items(
        [frozenset(own) for own in keys], groups or [None] * len(keys), np.random.default_rng(seed)
    )


def is_possible(keys):
    """By trying everything."""

    def fit(*items):
        return all(not set(keys[a]) & set(keys[b]) for a, b in combinations(items, 2))

    def pairs_up(items):
        first, *others = items or [None]
        return not items or any(
            fit(first, other) and pairs_up([item for item in others if item != other]) for other in others
        )

    everyone = range(len(keys))
    cycles = combinations(everyone, 3) if len(keys) % 2 else [()]
    return any(fit(*cycle) and pairs_up([i for i in everyone if i not in cycle]) for cycle in cycles)


def test_two_swap_and_three_go_round():
    assert match(["a", "b"]) == [1, 0]
    assert match(["a", "b", "c"]) in ([1, 2, 0], [2, 0, 1])


def test_no_two_with_a_common_key():
    for seed in range(20):
        assert match(["a", "a", "b", "b"], seed=seed) in ([2, 3, 0, 1], [3, 2, 1, 0])
        assert match(["ax", "b", "xc", "d", "a", "xd"], seed=seed)[0] in (1, 3)


def test_found_whenever_there_is_one():
    """Keys so crowded that pairing at random often ends in a dead end."""
    draw, outcomes = np.random.default_rng(0), Counter()
    for trial in range(1500):
        size, kinds = int(draw.integers(2, 9)), int(draw.integers(2, 6))
        keys = [
            {f"{table}{draw.integers(most)}" for table, most in zip("tef", (kinds, 6, 8), strict=True)}
            for _ in range(size)
        ]
        try:
            donors = match(keys, draw.integers(3, size=size).tolist(), trial)
        except RuntimeError:
            donors = None
        assert (donors is not None) == is_possible(keys), keys
        outcomes[size % 2, donors is not None] += 1
        if donors:
            assert sorted(donors) == list(range(size))
            assert all(not keys[item] & keys[donor] for item, donor in enumerate(donors))
            moved = sum(donors[donors[item]] != item for item in range(size))
            assert moved == (3 if size % 2 else 0)
    assert min(outcomes.values()) > 100  # each of odd, even, possible, impossible was there


def test_groups_stay_together_as_far_as_they_can():
    groups = [0] * 6 + [1] * 5 + [2] * 3
    for seed in range(20):
        donors = match(["abcdefghijklmn"[item] for item in range(14)], groups, seed)
        mixed = [item for item in range(14) if groups[item] != groups[donors[item]]]
        assert len(mixed) == 2
        assert {groups[item] for item in mixed} == {1, 2}


def test_a_cycle_stays_in_its_group():
    for seed in range(20):
        donors = match(["abcdefg"[item] for item in range(7)], [0, 0, 0, 0, 1, 1, 1], seed)
        assert sorted(donors[4:]) == [4, 5, 6]


def test_every_matching_of_four_comes_about_equally_often():
    seen = Counter(tuple(match("abcd", seed=seed)) for seed in range(600))
    assert len(seen) == 3
    assert min(seen.values()) > 150


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(ValueError, match=r"1 item\(s\) cannot be put in pairs"):
        match(["a"])
    with pytest.raises(RuntimeError, match="3 of 5 items share a, more than half"):
        match(["a", "a", "a", "b", "c"])
    with pytest.raises(RuntimeError, match="at most 2 of 4 items"):
        match(["xy", "xz", "yz", "w"])  # the first three exclude each other without a key of them all
    with pytest.raises(RuntimeError, match="no cycle of three"):
        match(["ab", "bc", "cd", "de", "ea"])
