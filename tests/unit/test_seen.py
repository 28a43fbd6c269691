# SPDX-License-Identifier: GPL-3.0-or-later
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.seen import BITS, MOST, Seen

TAGS = st.lists(st.binary(min_size=16, max_size=16), max_size=60)


@given(TAGS, st.integers(1, 20))
def test_the_latest_are_always_known_again(tags: list[bytes], most: int) -> None:
    seen = Seen(1 << 10, most)
    for i, tag in enumerate(tags):
        seen.add(tag)
        assert all(latest in seen for latest in tags[max(0, i + 1 - most) : i + 1])


def test_few_are_mistaken() -> None:
    """At the same share of bits as in a full filter: a hundredth of the size."""
    rng, seen = Random(1), Seen(BITS >> 7, MOST >> 7)
    for _ in range(2 * (MOST >> 7)):  # both halves are full
        seen.add(rng.randbytes(16))
    mistaken = sum(rng.randbytes(16) in seen for _ in range(50_000))
    assert mistaken < 50_000 / 500
