# SPDX-License-Identifier: GPL-3.0-or-later
"""The diff of WireGuard devices, against a model of what applying it does."""

from dataclasses import replace
from ipaddress import IPv4Network, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.nursery.host.fake import apply
from phantommesh.secret import Secret
from phantommesh.wireguard.device import (
    NO_KEY,
    DeviceConfig,
    DeviceState,
    Endpoint,
    Network,
    PeerConfig,
    PeerState,
    Route,
    peers_by_key,
    public_key_of,
    without_ipv6,
)
from phantommesh.wireguard.diff import LAPSED_SECONDS, ROAM_SECONDS, PeerDiff, diff

NOW = 1_000_000.0
KEYS = [bytes([number]) * 32 for number in range(1, 6)]
PRIVATE_KEYS = [Secret(bytes([64 + number]) * 32) for number in range(3)]
NETWORKS = [
    ip_network(text) for text in ("10.0.0.1/32", "10.0.0.2/32", "10.1.0.0/16", "fd00::1/128", "fd00::/64")
]
ENDPOINTS = [Endpoint("192.0.2.1", 1), Endpoint("192.0.2.1", 2), Endpoint("2001:db8::1", 1)]
ADDRESSES = [ip_interface(text) for text in ("100.64.0.1/32", "100.64.0.2/32", "fd00::9/128")]
ROUTES = [Route(ip_network("100.64.0.0/10"), 100), Route(ip_network("100.64.0.0/10"), 101)]
PSKS = st.sampled_from([bytes([200 + number]) * 32 for number in range(3)]).map(Secret)
NAMES = ("pm0", "pm1")


@st.composite
def peer_networks(draw: st.DrawFn) -> dict[bytes, frozenset[Network]]:
    """Give each of some peers networks that no other has, as WireGuard does."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True))
    owners = draw(st.lists(st.sampled_from([None, *keys]), min_size=len(NETWORKS), max_size=len(NETWORKS)))
    return {
        key: frozenset(network for network, owner in zip(NETWORKS, owners, strict=True) if owner == key)
        for key in keys
    }


@st.composite
def device_configs(draw: st.DrawFn, name: str) -> DeviceConfig:
    peers = [
        PeerConfig(
            key,
            draw(PSKS),
            draw(st.none() | st.sampled_from(ENDPOINTS)),
            networks,
            draw(st.sampled_from([0, 25])),
            draw(st.booleans()),
        )
        for key, networks in draw(peer_networks()).items()
    ]
    return DeviceConfig(
        name,
        private_key=draw(st.sampled_from(PRIVATE_KEYS)),
        listen_port=draw(st.sampled_from([51820, 51821])),
        mtu=draw(st.sampled_from([1400, 1420])),
        addresses=frozenset(draw(st.sets(st.sampled_from(ADDRESSES)))),
        routes=frozenset(draw(st.sets(st.sampled_from(ROUTES)))),
        peers=peers_by_key(peers),
        fwmark=draw(st.sampled_from([0, 7])),
    )


@st.composite
def device_states(draw: st.DrawFn, name: str) -> DeviceState:
    peers = {
        key: PeerState(
            key,
            draw(PSKS | st.just(Secret(NO_KEY))),
            draw(st.none() | st.sampled_from(ENDPOINTS)),
            networks,
            draw(st.sampled_from([0, 25])),
            last_handshake=draw(st.sampled_from([0.0, NOW - ROAM_SECONDS - 1, NOW - 1])),
        )
        for key, networks in draw(peer_networks()).items()
    }
    return DeviceState(
        name,
        index=9,
        up=draw(st.booleans()),
        public_key=draw(st.sampled_from([None, *map(public_key_of, PRIVATE_KEYS)])),
        listen_port=draw(st.sampled_from([51820, 51821])),
        mtu=draw(st.sampled_from([1400, 1420])),
        addresses=frozenset(draw(st.sets(st.sampled_from(ADDRESSES)))),
        routes=frozenset(draw(st.sets(st.sampled_from(ROUTES)))),
        peers=peers,
        fwmark=draw(st.sampled_from([0, 7])),
        loose_rp=draw(st.booleans()),
    )


CONFIGS = st.fixed_dictionaries({}, optional={name: device_configs(name) for name in NAMES})
STATES = st.fixed_dictionaries({}, optional={name: device_states(name) for name in NAMES})


@given(STATES, CONFIGS, CONFIGS, st.booleans())
def test_applying_the_diff_gives_what_is_desired(
    actual: dict[str, DeviceState],
    desired: dict[str, DeviceConfig],
    applied: dict[str, DeviceConfig],
    renewed: bool,
) -> None:
    changes = diff(actual, desired, now=NOW, applied=applied, renews=lambda device, peer: renewed)
    result = apply(actual, changes)
    assert result.keys() == desired.keys()
    for name, want in desired.items():
        have = result[name]
        assert have.up and have.loose_rp
        assert have.public_key == public_key_of(want.private_key)
        assert (have.listen_port, have.mtu, have.fwmark) == (want.listen_port, want.mtu, want.fwmark)
        assert (have.addresses, have.routes) == (want.addresses, want.routes)
        assert have.peers.keys() == want.peers.keys()
        for key, peer in want.peers.items():
            read = have.peers[key]
            assert (read.psk, read.allowed_ips, read.keepalive) == (
                peer.psk,
                peer.allowed_ips,
                peer.keepalive,
            )
            roamed = NOW - read.last_handshake <= ROAM_SECONDS
            assert peer.endpoint is None or roamed or read.endpoint == peer.endpoint
    assert diff(result, desired, now=NOW) == []


@given(STATES, CONFIGS)
def test_a_peer_that_is_right_is_never_mentioned(
    actual: dict[str, DeviceState], desired: dict[str, DeviceConfig]
) -> None:
    for change in diff(actual, desired, now=NOW):
        before = actual[change.name].peers if change.name in actual else {}
        for peer in change.peers:
            have = before.get(peer.public_key)
            want = desired[change.name].peers.get(peer.public_key)
            if have is None or want is None:
                continue
            assert peer.psk is None or have.psk != want.psk
            assert peer.keepalive is None or have.keepalive != want.keepalive
            assert peer.endpoint is None or have.endpoint != want.endpoint
            assert peer.allowed_ips is None or have.allowed_ips != want.allowed_ips
            assert any(
                value is not None for value in (peer.psk, peer.keepalive, peer.endpoint, peer.allowed_ips)
            )


@given(STATES, CONFIGS)
def test_only_new_peers_are_created_and_always_with_a_psk(
    actual: dict[str, DeviceState], desired: dict[str, DeviceConfig]
) -> None:
    for change in diff(actual, desired, now=NOW):
        for peer in change.peers:
            assert not peer.create or (peer.psk is not None and peer.psk != Secret(NO_KEY))


def make_peer(**changes: object) -> PeerConfig:
    peer = PeerConfig(KEYS[0], Secret(b"p" * 32), ENDPOINTS[0], frozenset({NETWORKS[0]}), 25)
    return replace(peer, **changes)  # type: ignore[arg-type]


def make_device(*peers: PeerConfig, **changes: object) -> DeviceConfig:
    device = DeviceConfig(
        "pm0", PRIVATE_KEYS[0], 51820, 1420, frozenset(ADDRESSES), frozenset(ROUTES), peers_by_key(peers)
    )
    return replace(device, **changes)  # type: ignore[arg-type]


def state_of(config: DeviceConfig, **changes: object) -> DeviceState:
    """Return the state that a device has once it is as desired; ``changes`` go into every peer."""
    created = apply({}, diff({}, {config.name: config}, now=NOW))[config.name]
    peers = {key: replace(peer, **changes) for key, peer in created.peers.items()}  # type: ignore[arg-type]
    return replace(created, peers=peers)


@pytest.mark.parametrize("age", [0.0, ROAM_SECONDS])
def test_roaming_is_left_alone_while_the_handshake_is_fresh(age: float) -> None:
    config = make_device(make_peer())
    actual = {"pm0": state_of(config, endpoint=ENDPOINTS[1], last_handshake=NOW - age)}
    assert diff(actual, {"pm0": config}, now=NOW) == []
    assert diff(actual, {"pm0": config}, now=NOW, applied={"pm0": config}) == []


def test_the_endpoint_is_set_again_when_the_handshake_is_old() -> None:
    config = make_device(make_peer())
    actual = {"pm0": state_of(config, endpoint=ENDPOINTS[1], last_handshake=NOW - ROAM_SECONDS - 1)}
    [change] = diff(actual, {"pm0": config}, now=NOW)
    assert change.peers == (PeerDiff(KEYS[0], endpoint=ENDPOINTS[0], config=make_peer()),)


def test_what_roamed_to_where_it_may_not_is_put_back_or_forgotten() -> None:
    """WireGuard follows a peer anywhere: a packet through the tunnel, from an overlay address, is enough."""

    def forbids(endpoint: Endpoint) -> bool:
        return endpoint == ENDPOINTS[1]

    config = make_device(make_peer())
    actual = {"pm0": state_of(config, endpoint=ENDPOINTS[1], last_handshake=NOW)}
    [change] = diff(actual, {"pm0": config}, now=NOW, forbids=forbids)
    assert change.peers == (PeerDiff(KEYS[0], endpoint=ENDPOINTS[0], config=make_peer()),)
    nowhere = make_device(make_peer(endpoint=None))
    [change] = diff(actual, {"pm0": nowhere}, now=NOW, forbids=forbids)
    assert change.peers == (PeerDiff(KEYS[0], remove=True),)
    [change] = diff(apply(actual, [change]), {"pm0": nowhere}, now=NOW, forbids=forbids)
    assert [(peer.create, peer.endpoint) for peer in change.peers] == [(True, None)]


def tried_in_vain(age: float = LAPSED_SECONDS + 1, **before: object) -> tuple[PeerDiff, ...]:
    """What is done to a peer that gets a PSK after it had a random one."""
    random = make_device(make_peer(endpoint=None, keyed=False))
    keyed = make_device(make_peer(psk=Secret(b"q" * 32)))
    changes: dict[str, object] = {"endpoint": ENDPOINTS[1], "last_handshake": NOW - age}
    actual = {"pm0": state_of(random, **changes | before)}
    assert diff(actual, {"pm0": random}, now=NOW, applied={"pm0": random}) == []
    [change] = diff(actual, {"pm0": keyed}, now=NOW, applied={"pm0": random})
    assert apply(actual, [change])["pm0"].peers[KEYS[0]].psk == Secret(b"q" * 32)
    return change.peers


def test_a_peer_whose_handshakes_had_to_fail_is_made_anew() -> None:
    """WireGuard repeats a handshake that failed after 5 s only."""
    for peers in (tried_in_vain(), tried_in_vain(last_handshake=0.0)):
        assert [(peer.remove, peer.create, peer.endpoint) for peer in peers] == [
            (True, False, None),
            (False, True, ENDPOINTS[0]),
        ]


def test_a_peer_with_a_session_or_one_that_could_not_be_called_gets_its_psk_in_place() -> None:
    for peers in (tried_in_vain(LAPSED_SECONDS), tried_in_vain(endpoint=None)):
        assert [(peer.remove, peer.create, peer.psk is None) for peer in peers] == [(False, False, False)]


def test_a_peer_that_is_to_be_renewed_is_made_anew_with_its_next_psk() -> None:
    before, after = make_device(make_peer()), make_device(make_peer(psk=Secret(b"q" * 32)))
    actual = {"pm0": state_of(before, last_handshake=NOW - LAPSED_SECONDS - 1)}
    assert diff(actual, {"pm0": before}, now=NOW, renews=lambda *which: True) == []
    for which in ({("pm0", KEYS[0])}, {("pm1", KEYS[0]), ("pm0", KEYS[1])}):
        [change] = diff(actual, {"pm0": after}, now=NOW, renews=lambda *one, which=which: one in which)
        assert [peer.create for peer in change.peers] == (
            [False, True] if ("pm0", KEYS[0]) in which else [False]
        )


def test_an_endpoint_that_is_desired_anew_is_set_at_once() -> None:
    before, after = make_device(make_peer()), make_device(make_peer(endpoint=ENDPOINTS[2]))
    actual = {"pm0": state_of(before, last_handshake=NOW - 1)}
    [change] = diff(actual, {"pm0": after}, now=NOW, applied={"pm0": before})
    assert [peer.endpoint for peer in change.peers] == [ENDPOINTS[2]]


def test_a_missing_endpoint_is_set_and_an_unknown_one_is_kept() -> None:
    config = make_device(make_peer())
    actual = {"pm0": state_of(config, endpoint=None, last_handshake=NOW - 1)}
    [change] = diff(actual, {"pm0": config}, now=NOW)
    assert [peer.endpoint for peer in change.peers] == [ENDPOINTS[0]]
    actual = {"pm0": state_of(config, last_handshake=0.0)}
    assert diff(actual, {"pm0": make_device(make_peer(endpoint=None))}, now=NOW) == []


def test_a_network_is_added_without_taking_the_others_away() -> None:
    before, after = make_device(make_peer()), make_device(make_peer(allowed_ips=frozenset(NETWORKS[:2])))
    [change] = diff({"pm0": state_of(before)}, {"pm0": after}, now=NOW)
    assert change.peers[0].allowed_ips == frozenset({NETWORKS[1]})
    assert not change.peers[0].replace_allowed_ips


def test_a_device_without_peers_to_change_leaves_wireguard_alone() -> None:
    config = make_device(make_peer())
    [change] = diff({"pm0": replace(state_of(config), up=False)}, {"pm0": config}, now=NOW)
    assert change.changes_link and not change.changes_wireguard


@pytest.mark.parametrize(
    "changes",
    [
        {"psk": Secret(NO_KEY)},
        {"psk": Secret(b"short")},
        {"public_key": NO_KEY},
        {"public_key": b"short"},
        {"keepalive": 65536},
        {"keepalive": -1},
    ],
)
def test_a_bad_peer_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"key|keepalive"):
        make_peer(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "sixteen-letters-"},
        {"name": "a/b"},
        {"name": ".."},
        {"name": "a b"},
        {"private_key": Secret(NO_KEY)},
        {"private_key": Secret(b"short")},
        {"listen_port": 0},
        {"listen_port": 65536},
        {"mtu": 1279},
        {"fwmark": 1 << 32},
        {"peers": {KEYS[1]: make_peer()}},
        {"peers": peers_by_key([make_peer(), make_peer(public_key=KEYS[1])])},
    ],
)
def test_a_bad_device_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"name|key|port|MTU|fwmark|claim"):
        make_device(**changes)


@pytest.mark.parametrize("metric", [0, 1 << 32])
def test_a_route_without_a_metric_is_refused(metric: int) -> None:
    with pytest.raises(ValueError, match="metric"):
        Route(IPv4Network("100.64.0.0/10"), metric)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_endpoints_are_canonical_and_parse_back(address: object, port: int) -> None:
    endpoint = Endpoint(str(address), port)
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text", ["", "1.2.3.4", "::1:80", "[1.2.3.4]:80", "host:80", "1.2.3.4:0", "1.2.3.4:x"]
)
def test_a_bad_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Endpoint.parse(text)


def test_two_ways_to_write_an_address_are_one_endpoint() -> None:
    assert Endpoint("2001:DB8:0::1", 1) == Endpoint("2001:db8::1", 1)


def test_without_ipv6_keeps_what_needs_none() -> None:
    config = make_device(make_peer(allowed_ips=frozenset({NETWORKS[3]})))
    bare = without_ipv6(config)
    assert {address.version for address in bare.addresses} == {4}
    assert bare.peers == config.peers


def test_no_key_shows_in_a_repr() -> None:
    config = make_device(make_peer())
    shown = repr(config) + repr(diff({}, {"pm0": config}, now=NOW))
    assert repr(b"p" * 32) not in shown and (b"p" * 32).hex() not in shown
    assert repr(PRIVATE_KEYS[0].reveal()) not in shown
