# SPDX-License-Identifier: GPL-3.0-or-later
"""PCP and NAT-PMP as bytes: what is sent, and any bytes that come."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.portmap import natpmp, pcp
from phantommesh.portmap.values import PortMapError, Protocol

NONCE = bytes(range(12))


def test_a_pcp_request_is_as_the_rfc_draws_it() -> None:
    """RFC 6887, figures 2 and 9."""
    sent = pcp.MapRequest(NONCE, IPv4Address("192.168.1.5"), Protocol.UDP, 51800, 40000, 1800).encode()
    assert sent.hex() == (
        "020100000000070800000000000000000000ffffc0a80105"
        "000102030405060708090a0b11000000ca589c4000000000000000000000ffff00000000"
    )  # fmt: skip


def test_a_pcp_answer_is_read() -> None:
    answer = bytes.fromhex(
        "028100000000038400000064000000000000000000000000"
        "000102030405060708090a0b11000000ca589c4100000000000000000000ffffcb007107"
    )  # fmt: skip
    assert pcp.decode_untrusted(answer) == pcp.MapAnswer(
        0, 900, 100, NONCE, 17, 51800, 40001, IPv4Address("203.0.113.7")
    )
    assert pcp.decode_untrusted(answer + bytes(40)).external == 40001  # an option behind it
    assert not pcp.other_version(answer)


def test_a_gateway_of_nat_pmp_says_that_it_does_not_speak_pcp() -> None:
    assert pcp.other_version(bytes.fromhex("0081000100000064"))  # in NAT-PMP's form
    assert pcp.other_version(bytes.fromhex("01810001") + bytes(56))  # a later PCP's
    assert not pcp.other_version(bytes.fromhex("02010000"))  # a request


def test_nat_pmp_is_as_the_rfc_draws_it() -> None:
    """RFC 6886, sections 3.2 and 3.3."""
    assert natpmp.ASK_ADDRESS.hex() == "0000"
    assert natpmp.ask(Protocol.UDP, 51800, 40000, 1800).hex() == "00010000ca589c4000000708"
    assert natpmp.ask(Protocol.TCP, 51800, 0, 0).hex() == "00020000ca58000000000000"
    assert natpmp.decode_untrusted(bytes.fromhex("0080000000000064cb007107")) == natpmp.AddressAnswer(
        0, 100, IPv4Address("203.0.113.7")
    )
    said = bytes.fromhex("0082000000000064ca589c4100000384")
    assert natpmp.decode_untrusted(said) == natpmp.MapAnswer(0, 100, Protocol.TCP, 51800, 40001, 900)
    refused = natpmp.decode_untrusted(bytes.fromhex("0081000200000064"))
    assert isinstance(refused, natpmp.MapAnswer) and refused.result == 2


@given(st.binary(max_size=1200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for decode in (pcp.decode_untrusted, natpmp.decode_untrusted):
        try:
            decode(data)
        except PortMapError:
            pass
    pcp.other_version(data)


@pytest.mark.parametrize("size", [0, 3, 59, 1101])
def test_an_answer_of_another_size_is_none(size: int) -> None:
    with pytest.raises(PortMapError):
        pcp.decode_untrusted(b"\x02\x81" + bytes(size))
