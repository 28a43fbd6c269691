# SPDX-License-Identifier: GPL-3.0-or-later
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest

from phantommesh.config.sections import WireguardSection
from phantommesh.dimensions import DIMENSIONS, interface_names, master_name
from phantommesh.nursery.host.fake import apply
from phantommesh.routable import EXITS, collapse, overlap
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Member, Role
from phantommesh.wireguard.desired import MASTER_METRIC, Desired, MeshPeer, OwnSide, read_peer
from phantommesh.wireguard.device import DeviceConfig, DeviceState, Endpoint
from phantommesh.wireguard.diff import diff
from tests.support.makemesh import identity

ME = Member(
    identity("a").node_id, "a", Role.NODE, IPv4Address("100.64.0.1"), IPv6Address("fd00::1"),
    identity("a").public_key, 0.0, 1.0,
)  # fmt: skip
NETWORKS = (IPv4Network("100.64.0.0/10"), IPv6Network("fd00::/48"))
PRIVATE = tuple(Secret(bytes([i + 1]) * 32) for i in range(DIMENSIONS))
PSKS = tuple(Secret(bytes([i + 101]) * 32) for i in range(DIMENSIONS))
PEER = MeshPeer(
    identity("b").node_id, IPv4Network("100.64.0.2/32"), IPv6Network("fd00::2/128"),
    tuple(bytes([i + 51]) * 32 for i in range(DIMENSIONS)), tuple(range(40000, 40000 + DIMENSIONS)),
    ("192.0.2.1", "198.51.100.1", "2001:db8::1"), PSKS, 0x7F,
)  # fmt: skip
NAMES = interface_names("pm")


def devices(*peers: MeshPeer, prefix: str = "pm") -> dict[str, DeviceConfig]:
    settings = WireguardSection(prefix=prefix, mtu=1400, keepalive=7)
    desired = Desired(settings)
    desired.replace(OwnSide(PRIVATE, tuple(range(50000, 50007)), ME, NETWORKS), peers)
    return desired.devices()


def test_seven_devices_with_keys_and_ports_of_their_own() -> None:
    made = devices(PEER, prefix="zz")
    assert list(made) == [f"zz{i}" for i in range(7)]
    assert [device.name for device in made.values()] == list(made)
    assert [device.private_key for device in made.values()] == list(PRIVATE)
    assert [device.listen_port for device in made.values()] == list(range(50000, 50007))
    assert {device.mtu for device in made.values()} == {1400}


def test_every_device_has_this_nodes_addresses_and_the_first_carries_the_traffic() -> None:
    made = devices()
    addresses = {IPv4Interface("100.64.0.1/32"), IPv6Interface("fd00::1/128")}
    assert all(device.addresses == addresses for device in made.values())
    metrics = []
    for device in made.values():
        assert {route.network for route in device.routes} == set(NETWORKS)
        (metric,) = {route.metric for route in device.routes}
        metrics.append(metric)
    assert metrics == sorted(set(metrics)) and metrics[0] > MASTER_METRIC


def test_the_interface_that_scatters_is_none_of_the_seven() -> None:
    for prefix in ("pm", "pm1", "a-2", "z9"):
        assert master_name(prefix) not in interface_names(prefix)
    assert master_name("pm") == master_name("pm12") == "pm"


def test_a_peer_has_its_own_key_psk_port_and_uplink_on_each_device() -> None:
    found = [device.peers[PEER.wg_keys[i]] for i, device in enumerate(devices(PEER).values())]
    assert [peer.psk for peer in found] == list(PSKS)
    hosts = ["192.0.2.1", "198.51.100.1", "2001:db8::1"]
    assert [peer.endpoint for peer in found] == [Endpoint(hosts[i % 3], 40000 + i) for i in range(7)]
    assert {peer.allowed_ips for peer in found} == {frozenset({PEER.ip4, PEER.ip6})}
    assert {peer.keepalive for peer in found} == {7}


def test_an_exit_has_all_but_the_overlay_and_what_others_carry() -> None:
    """WireGuard takes the longest match, and a revoked member's address is nobody's."""
    gate = replace(PEER, routes=frozenset(EXITS))
    router = replace(
        PEER, node_id=identity("c").node_id, ip4=IPv4Network("100.64.0.3/32"), ip6=IPv6Network("fd00::3/128"),
        wg_keys=tuple(bytes([i + 151]) * 32 for i in range(DIMENSIONS)),
        routes=frozenset({IPv4Network("101.0.0.0/8")}),
    )  # fmt: skip
    for device in devices(gate, router).values():
        keys = [next(key for key in device.peers if key in one.wg_keys) for one in (gate, router)]
        has, others = (device.peers[key].allowed_ips for key in keys)
        assert not has & others and {gate.ip4, gate.ip6} < has and not has & set(EXITS)
        left = has - {gate.ip4, gate.ip6}
        assert not any(overlap(one, network) for one in left for network in NETWORKS)
        everything = collapse([*left, *NETWORKS, IPv4Network("101.0.0.0/8")])
        assert tuple(everything) == EXITS


@pytest.mark.parametrize("change", [{"dials": 0}, {"hosts": ()}], ids=["closed", "no-host"])
def test_without_a_place_to_send_to_there_is_no_endpoint(change: dict[str, object]) -> None:
    peer = replace(PEER, **change)  # type: ignore[arg-type]
    found = [device.peers[PEER.wg_keys[i]] for i, device in enumerate(devices(peer).values())]
    assert [one.endpoint for one in found] == [None] * 7
    assert {one.keepalive for one in found} == ({0} if not peer.dials else {7})
    assert [one.psk for one in found] == list(PSKS)


def test_a_closed_dimension_has_no_endpoint_and_the_others_keep_theirs() -> None:
    (before, after) = (devices(replace(PEER, dials=dials)) for dials in (0x7F, 0x7B))
    for i, (one, other) in enumerate(zip(before.values(), after.values(), strict=True)):
        (peer,) = other.peers.values()
        assert (peer.endpoint, peer.keepalive) == (None, 0) if i == 2 else one == other


def actual(*peers: MeshPeer) -> dict[str, DeviceState]:
    return apply({}, diff({}, devices(*peers), now=0.0))


def test_what_is_installed_is_read_back() -> None:
    state = actual(PEER)
    reading = read_peer(state, NAMES, PEER.wg_keys, PSKS)
    assert reading.bitmap == reading.located == 0b1111111
    assert reading.counters == ((0, 0),) * 7
    assert read_peer(actual(replace(PEER, dials=0b11)), NAMES, PEER.wg_keys, PSKS).located == 0b11
    assert reading.handshakes == (None,) * 7


def test_a_missing_device_peer_or_psk_is_not_read_back() -> None:
    wrong = replace(PEER, psks=(*PSKS[:4], Secret(b"x" * 32), *PSKS[5:]))
    state = actual(wrong)
    del state["pm0"]
    state["pm2"] = replace(state["pm2"], peers={})
    peer = state["pm6"].peers[PEER.wg_keys[6]]
    state["pm6"] = replace(state["pm6"], peers={PEER.wg_keys[6]: replace(peer, last_handshake=12.0)})
    reading = read_peer(state, NAMES, PEER.wg_keys, PSKS)
    assert reading.bitmap == 0b1101010
    assert reading.handshakes == (None, None, None, None, None, None, 12.0)


LAN = IPv4Network("10.1.0.0/16")
TWIN = replace(
    PEER, node_id=identity("c").node_id, ip4=IPv4Network("100.64.0.3/32"), ip6=IPv6Network("fd00::3/128"),
    wg_keys=tuple(bytes([i + 71]) * 32 for i in range(DIMENSIONS)),
)  # fmt: skip


def test_a_prefix_stands_at_the_peer_that_carries_it_on_all_seven() -> None:
    for i, device in enumerate(devices(replace(PEER, routes=frozenset({LAN})), TWIN).values()):
        assert LAN in device.peers[PEER.wg_keys[i]].allowed_ips
        assert LAN not in device.peers[TWIN.wg_keys[i]].allowed_ips


def test_a_prefix_leaves_one_peer_before_it_comes_to_another() -> None:
    """WireGuard would move it silently, and give it to whoever is named last."""
    for first, second in ((PEER, TWIN), (TWIN, PEER)):
        before = devices(replace(first, routes=frozenset({LAN})), second)
        after = devices(first, replace(second, routes=frozenset({LAN})))
        changes = diff(apply({}, diff({}, before, now=0.0)), after, now=0.0)
        assert len(changes) == DIMENSIONS
        for i, change in enumerate(changes):
            loses, gains = change.peers
            assert (loses.public_key, gains.public_key) == (first.wg_keys[i], second.wg_keys[i])
            assert loses.replace_allowed_ips and LAN not in (loses.allowed_ips or ())
            assert gains.allowed_ips == frozenset({LAN}) and not gains.replace_allowed_ips
