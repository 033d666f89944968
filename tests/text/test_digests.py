"""Digests that every machine agrees on, and the compact set of them."""

import random
import sys

from hf_clsi.text.digests import DigestSet, text_digest


def test_a_digest_is_the_same_everywhere():
    assert text_digest("été") == 0xD8205061B72151BC
    assert text_digest("été", key="split 0") != text_digest("été")


def test_a_set_agrees_with_pythons_own():
    draw = random.Random(0)
    # Few different low bits, so that most digests meet others on the way to their slot.
    digests = [draw.randrange(64) + (draw.randrange(20) << 40) for _ in range(3000)]
    compact, plain = DigestSet(), {1}
    compact.add(1)
    for digest in digests:
        expected = (digest or 1) not in plain
        assert (digest in compact) is not expected
        assert compact.add(digest) is expected
        plain.add(digest or 1)
    assert len(compact) == len(plain)
    assert all(digest in compact for digest in plain)
    assert not any((digest << 33) + 77 in compact for digest in range(1, 1000))


def test_a_digest_takes_at_most_24_bytes():
    draw, digests = random.Random(1), DigestSet()
    for number in range(1, 50_001):
        digests.add(draw.getrandbits(64))
        if number > 1000:
            assert sys.getsizeof(digests._slots) <= 24 * number + 100
