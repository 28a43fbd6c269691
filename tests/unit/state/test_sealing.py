# SPDX-License-Identifier: GPL-3.0-or-later
"""A sealed file opens whole, with its passphrase, or not at all."""

import io
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.secret import Secret
from phantommesh.state.sealing import CHUNK, HEADER, LOG_N, MAGIC, TAG, SealError, seal, unseal

WORD = Secret(b"correct horse battery")
CHEAP = 4  # log2 N: the tests are about the format


def sealed(content: bytes, word: Secret = WORD, log_n: int = CHEAP) -> bytes:
    out = io.BytesIO()
    seal(iter([content[:10], content[10:]]), word, out, log_n=log_n)
    return out.getvalue()


def opened(data: bytes, word: Secret = WORD) -> bytes:
    return b"".join(unseal(io.BytesIO(data), word))


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_what_was_sealed_comes_back(size: int) -> None:
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    data = sealed(content)
    assert opened(data) == content
    assert len(data) == HEADER + size + TAG * max(1, -(-size // CHUNK))


def test_the_same_content_is_sealed_differently_each_time() -> None:
    first, second = sealed(b"x" * 100), sealed(b"x" * 100)
    assert first[HEADER:] != second[HEADER:]
    assert b"x" * 8 not in first


def test_another_passphrase_opens_nothing() -> None:
    with pytest.raises(SealError, match="passphrase"):
        opened(sealed(b"content"), Secret(b"correct horse batterz"))


DATA = sealed(bytes(2 * CHUNK + 100))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_no_changed_byte_passes(at: int, change: int) -> None:
    bad = bytearray(DATA)
    bad[at] ^= change
    # A header that asks for more work than is bounded here is refused by another test.
    if at in (len(MAGIC), len(MAGIC) + 1, len(MAGIC) + 2):
        bad[at] = 21
    with pytest.raises(SealError):
        opened(bytes(bad))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(DATA) - 1))
def test_a_file_that_was_cut_off_does_not_open_whole(at: int) -> None:
    with pytest.raises(SealError):
        opened(DATA[:at])


def test_chunks_that_are_swapped_repeated_or_added_are_seen() -> None:
    head, first, second, last = (
        DATA[:HEADER], DATA[HEADER : HEADER + CHUNK + TAG],
        DATA[HEADER + CHUNK + TAG : HEADER + 2 * (CHUNK + TAG)], DATA[HEADER + 2 * (CHUNK + TAG) :],
    )  # fmt: skip
    for bad in (
        head + second + first + last,
        head + first + first + second + last,
        head + first + last,
        DATA + last,
    ):
        with pytest.raises(SealError):
            opened(bad)


@pytest.mark.parametrize("params", [(0, 8, 1), (21, 8, 1), (17, 9, 1), (17, 8, 5), (17, 0, 1), (17, 8, 0)])
def test_work_that_a_header_asks_for_is_bounded(params: tuple[int, ...]) -> None:
    with pytest.raises(SealError, match="header"):
        opened(MAGIC + bytes(params) + bytes(100))


@pytest.mark.parametrize(
    "data", [b"", b"PK", MAGIC, b"phantommesh backup 2\n\0" + bytes(99), b"phantommesh proofs\n"]
)
def test_what_is_no_backup_is_refused_before_the_key_is_derived(data: bytes) -> None:
    with pytest.raises(SealError) as refused:
        opened(data)
    assert refused.value.fix


def test_the_default_costs_what_owasp_asks_for() -> None:
    assert LOG_N >= 17


def test_content_is_sealed_as_it_comes() -> None:
    """No more than a chunk is held."""
    drawn = 0

    def parts() -> Iterator[bytes]:
        nonlocal drawn
        for _ in range(100):
            drawn += 1
            yield bytes(CHUNK)

    class Out(io.BytesIO):
        behind = 0

        def write(self, data: object) -> int:
            done = super().write(data)  # type: ignore[arg-type]
            self.behind = max(self.behind, drawn * CHUNK - self.tell())
            return done

    out = Out()
    seal(parts(), WORD, out, log_n=CHEAP)
    assert out.behind <= 2 * CHUNK
