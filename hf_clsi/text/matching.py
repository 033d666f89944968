"""Who may be with whom becomes who is with whom: a random matching, exact where a random one would fail.

Items exclude each other where they share a key. All are put in pairs, and three in a cycle where their number
is odd; within a pair and along the cycle everybody gives to the next, so the result is a permutation.

First pairs at random within each group, then those left over across groups; what is still alone is resolved
by Edmonds' augmenting paths (Edmonds 1965), so that a matching is found whenever there is one, with as many
pairs within groups as the groups alone allow. About linear in the number of items where few exclude each
other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import combinations, islice

import numpy as np

_ALONE = -1
_MAX_CYCLES = 20_000  # all cycles of three of up to 50 items


def match_items(
    keys: Sequence[frozenset[Hashable]], groups: Sequence[Hashable], rng: np.random.Generator
) -> list[int]:
    """For every item the one that it receives from: a fixed-point-free permutation of pairs.

    Args:
        keys: items that share one are never put together.
        groups: items of one group are put together as far as possible.

    Raises:
        ValueError: fewer than two items.
        RuntimeError: there is no such permutation, for instance since more than half share a key.

    >>> match_items([frozenset("a"), frozenset("a"), frozenset("b"), frozenset("c")], "xxxx",
    ...             np.random.default_rng(0))
    [2, 3, 0, 1]
    """
    if len(keys) < 2:
        raise ValueError(f"{len(keys)} item(s) cannot be put in pairs; at least two are needed.")
    counts = Counter(key for own in keys for key in own)
    for key, number in counts.items():
        if number > len(keys) // 2:
            raise RuntimeError(f"{number} of {len(keys)} items share {key}, more than half")
    order = rng.permutation(len(keys)).tolist()
    partner = _Matching(keys)
    by_group: dict[Hashable, list[int]] = {}
    for item in order:
        by_group.setdefault(groups[item], []).append(item)
    for members in by_group.values():
        partner.match(members)
    partner.match(order)
    alone = [item for item in order if partner.of[item] == _ALONE]
    if len(alone) > len(keys) % 2:
        raise RuntimeError(f"at most {len(keys) - len(alone)} of {len(keys)} items can be put in pairs")
    donors = list(partner.of)
    if alone:
        cycle = _join_cycle(alone[0], order, partner, groups) or _find_cycle(order, partner)
        if cycle is None:
            raise RuntimeError(f"the {len(keys)} items, an odd number, have no cycle of three")
        donors = list(partner.of)
        for item, donor in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            donors[item] = donor
    return donors


class _Matching:
    """`of[i]` is the partner of item i, or -1."""

    def __init__(self, keys: Sequence[frozenset[Hashable]]):
        self.keys = keys
        self.of = [_ALONE] * len(keys)

    def fit(self, one: int, other: int) -> bool:
        return self.keys[one].isdisjoint(self.keys[other])

    def match(self, members: Sequence[int]) -> None:
        """Put as many of the members together as possible: at random, then by augmenting paths."""
        pool = [item for item in reversed(members) if self.of[item] == _ALONE]
        alone = []
        while pool:
            item = pool.pop()
            for place in range(len(pool) - 1, -1, -1):
                if self.fit(item, pool[place]):
                    other = pool.pop(place)
                    self.of[item], self.of[other] = other, item
                    break
            else:
                alone.append(item)
        missing = len(alone)
        for item in alone:
            if missing <= len(members) % 2:
                return
            if self.of[item] == _ALONE and self._augment(item, members):
                missing -= 2

    def _augment(self, root: int, members: Sequence[int]) -> bool:
        """Find a path from `root` to another single member on which every second edge is a pair, and swap
        pairs and non-pairs along it; odd cycles on the way (blossoms) are shrunk to their base."""
        parent: dict[int, int] = {}
        base = {item: item for item in members}
        queue, queued = [root], {root}

        def common_base(one: int, other: int) -> int:
            passed = set()
            while True:
                one = base[one]
                passed.add(one)
                if self.of[one] == _ALONE:
                    break
                one = parent[self.of[one]]
            while base[other] not in passed:
                other = parent[self.of[base[other]]]
            return base[other]

        def shrink(item: int, stem: int, child: int, blossom: set[int]) -> None:
            while base[item] != stem:
                blossom |= {base[item], base[self.of[item]]}
                parent[item] = child
                child = self.of[item]
                item = parent[child]

        for item in queue:
            for other in members:
                if base[item] == base[other] or self.of[item] == other or not self.fit(item, other):
                    continue
                if other == root or (self.of[other] != _ALONE and self.of[other] in parent):
                    stem, blossom = common_base(item, other), set()
                    shrink(item, stem, other, blossom)
                    shrink(other, stem, item, blossom)
                    for member in members:
                        if base[member] in blossom:
                            base[member] = stem
                            if member not in queued:
                                queued.add(member)
                                queue.append(member)
                elif other not in parent:
                    parent[other] = item
                    if self.of[other] == _ALONE:
                        while other != _ALONE:
                            before = parent[other]
                            following = self.of[before]
                            self.of[other], self.of[before] = before, other
                            other = following
                        return True
                    queued.add(self.of[other])
                    queue.append(self.of[other])
        return False


def _join_cycle(
    alone: int, order: Sequence[int], partner: _Matching, groups: Sequence[Hashable]
) -> list[int] | None:
    """The single item and a pair that it may join, of its own group if there is one."""
    found = None
    for item in order:
        other = partner.of[item]
        if item != alone and partner.fit(alone, item) and partner.fit(alone, other):
            if groups[item] == groups[other] == groups[alone]:
                return [alone, item, other]
            found = found or [alone, item, other]
    return found


def _find_cycle(order: Sequence[int], partner: _Matching) -> list[int] | None:
    """Three items that fit each other and leave the others a full matching, which `partner` then is."""
    for cycle in islice(combinations(order, 3), _MAX_CYCLES):
        if all(partner.fit(one, other) for one, other in combinations(cycle, 2)):
            partner.of = [_ALONE] * len(order)
            rest = [item for item in order if item not in cycle]
            partner.match(rest)
            if all(partner.of[item] != _ALONE for item in rest):
                return list(cycle)
    return None
