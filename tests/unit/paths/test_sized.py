# SPDX-License-Identifier: GPL-3.0-or-later
"""Sized probes as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.errors import DecodeError
from phantommesh.paths.probe import Probe, decode_probe_untrusted
from phantommesh.paths.sized import (
    HEADERS,
    LARGEST,
    LEAST,
    SizedProbe,
    decode_sized_untrusted,
    is_sized,
)

PROBES = st.builds(
    SizedProbe,
    st.booleans(),
    st.integers(0, 6),
    st.integers(0, 2**32 - 1),
    st.integers(LEAST, LARGEST),
    st.integers(0, 65535),
)


@given(PROBES)
def test_a_ping_is_as_long_as_it_says_and_its_answer_is_short(probe: SizedProbe) -> None:
    encoded = probe.encode()
    assert len(encoded) == (12 if probe.pong else probe.size - HEADERS)
    assert is_sized(encoded) and decode_sized_untrusted(encoded) == probe


@given(PROBES, st.integers(-3, 3).filter(bool))
def test_a_ping_of_another_length_than_it_says_is_none(probe: SizedProbe, more: int) -> None:
    encoded = probe.encode()
    with pytest.raises(DecodeError):
        decode_sized_untrusted(encoded + bytes(more) if more > 0 else encoded[:more])


@given(st.binary(max_size=64))
def test_whatever_comes_raises_the_decoders_error_alone(datagram: bytes) -> None:
    try:
        decode_sized_untrusted(datagram)
    except DecodeError:
        pass


def test_the_two_kinds_of_probe_are_not_taken_for_each_other() -> None:
    small, sized = Probe(False, 1, 2).encode(), SizedProbe(True, 1, 2, 1200).encode()
    assert not is_sized(small)
    with pytest.raises(DecodeError):
        decode_sized_untrusted(small)
    with pytest.raises(DecodeError):
        decode_probe_untrusted(sized)


def test_a_version_that_knows_no_sized_probes_says_so_by_saying_nothing() -> None:
    assert decode_probe_untrusted(Probe(False, 1, 2).encode()).sizes
    assert not decode_probe_untrusted(Probe(False, 1, 2, sizes=False).encode()).sizes
