# SPDX-License-Identifier: GPL-3.0-or-later
"""Which name servers a host asks, and which of them no exit leads to."""

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.names.resolvers import MAX_SERVERS, name_servers, out_of_reach
from phantommesh.overlay.exits import NOT_THE_INTERNET

OVERLAY = ip_network("100.64.0.0/10")


def test_name_servers_are_read_as_the_c_library_reads_them() -> None:
    text = "# nameserver 1.1.1.1\nsearch lan\nnameserver 192.168.1.1 # home\n nameserver\tfe80::1%eth0\n"
    assert name_servers(text) == (ip_address("192.168.1.1"), ip_address("fe80::1"))
    assert name_servers("nameserver here\nnameserver\n") == ()
    assert len(name_servers("nameserver 9.9.9.9\n" * 9)) == MAX_SERVERS


def test_a_server_on_the_hosts_own_network_is_out_of_reach() -> None:
    servers = [ip_address(text) for text in ("192.168.1.1", "9.9.9.9", "127.0.0.53", "fe80::1", "100.64.3.4")]
    assert out_of_reach(servers, [OVERLAY], NOT_THE_INTERNET) == [servers[0], servers[3]]
    assert out_of_reach(servers[:1], [ip_network("192.168.1.0/24")], NOT_THE_INTERNET) == []


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert len(name_servers(text)) <= MAX_SERVERS
