"""Texts become 64-bit digests, and a compact set of them says which texts were there before."""

from __future__ import annotations

from array import array
from hashlib import blake2b


def text_digest(text: str, key: str = "") -> int:
    """64 bits of BLAKE2b, the same on every machine; another key gives independent bits.

    Two of a million texts share a digest with a probability of 3e-8.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8, key=key.encode()).digest(), "little")


class DigestSet:
    """A set of 64-bit digests in one array: 12 to 24 bytes each, where a Python set takes about 100.

    Open addressing with linear probing; the table doubles when it is two thirds full.
    """

    def __init__(self):
        self._slots = array("Q", [0]) * 1024
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, digest: int) -> bool:
        digest = digest or 1
        return self._slots[self._slot(digest)] == digest

    def add(self, digest: int) -> bool:
        """Whether it is new."""
        digest = digest or 1  # 0 marks a free slot; that 0 and 1 are taken for the same costs nothing
        slot = self._slot(digest)
        if self._slots[slot]:
            return False
        self._slots[slot] = digest
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            full = self._slots
            self._slots = array("Q", [0]) * (2 * len(full))
            for old in full:
                if old:
                    self._slots[self._slot(old)] = old
        return True

    def _slot(self, digest: int) -> int:
        """Where a digest is, or the free slot where it would go."""
        slots = self._slots
        mask = len(slots) - 1
        slot = digest & mask
        while slots[slot] and slots[slot] != digest:
            slot = (slot + 1) & mask
        return slot
