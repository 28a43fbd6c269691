# SPDX-License-Identifier: GPL-3.0-or-later
"""The reconciler over a model of WireGuard that can be made to fail."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from ipaddress import ip_interface, ip_network
from time import time

import pytest
import structlog
import trio
from structlog.testing import capture_logs

from phantommesh.nursery.dataplane.reconciler import Reconciler
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.fake import FakeBackend
from phantommesh.secret import Secret
from phantommesh.wireguard.device import DeviceConfig, DeviceState, Endpoint, PeerConfig, Route, peers_by_key
from phantommesh.wireguard.diff import LAPSED_SECONDS

KEY = b"\x01" * 32


def make_device(name: str, psk: int = 1, endpoint: int = 1) -> DeviceConfig:
    peer = PeerConfig(
        KEY,
        Secret(bytes([psk]) * 32),
        Endpoint("192.0.2.1", endpoint),
        frozenset({ip_network("10.0.0.1/32")}),
    )
    return DeviceConfig(
        name,
        Secret(b"k" * 32),
        51820,
        1420,
        frozenset({ip_interface("100.64.0.1/32"), ip_interface("fd00::1/128")}),
        frozenset({Route(ip_network("fd00::/48"), 100)}),
        peers_by_key([peer]),
    )


def make_desired(**changes: int) -> dict[str, DeviceConfig]:
    return {name: make_device(name, **changes) for name in ("pm0", "pm1")}


def make_reconciler(backend: FakeBackend, seen: list[Mapping[str, DeviceState]] | None = None) -> Reconciler:
    report = seen.append if seen is not None else lambda actual: None
    return Reconciler(backend, interval=1.0, on_actual=report, log=structlog.get_logger())


async def test_a_new_address_of_this_host_reaches_wireguard() -> None:
    backend = FakeBackend()
    reconciler = make_reconciler(backend)
    reconciler.follow(make_desired)
    await reconciler.converge()
    await reconciler.resend()
    assert [set(devices) for devices in backend.resent] == [{"pm0", "pm1"}]
    backend.broken.add("pm0")
    with capture_logs() as logs:
        await reconciler.resend()
    assert "old address" in logs[0]["event"]


async def test_converge_applies_and_returns_what_is_read_back() -> None:
    backend, seen = FakeBackend(), list[Mapping[str, DeviceState]]()
    reconciler = make_reconciler(backend, seen)
    reconciler.follow(make_desired)
    actual = await reconciler.converge()
    assert actual["pm0"].peers[KEY].psk == Secret(b"\x01" * 32)
    assert seen == [{}, actual]
    await reconciler.converge()
    assert len(seen) == 3
    assert backend.batches == {"pm0": 1, "pm1": 1}


async def test_what_leaves_the_desired_state_is_removed_and_strangers_stay() -> None:
    backend = FakeBackend()
    reconciler = make_reconciler(backend)
    reconciler.follow(make_desired)
    await reconciler.converge()
    backend.state["wg0"] = replace(backend.state["pm0"], name="wg0")
    reconciler.follow(lambda: {"pm0": make_device("pm0")})
    assert (await reconciler.converge()).keys() == {"pm0"}
    assert backend.state.keys() == {"pm0", "wg0"}


async def test_one_broken_interface_does_not_hold_up_the_others() -> None:
    backend = FakeBackend()
    reconciler = make_reconciler(backend)
    reconciler.follow(make_desired)
    backend.broken = {"pm0"}
    with capture_logs() as logs:
        assert (await reconciler.converge()).keys() == {"pm1"}
        await reconciler.converge()
        problem = reconciler.problems["pm0"]
        assert (problem.error.fix, problem.times) == ("mend it", 2) and "pm1" not in reconciler.problems
        backend.broken = set()
        assert (await reconciler.converge()).keys() == {"pm0", "pm1"}
        assert not reconciler.problems
    assert reconciler.failures == 2
    told = [(entry["event"], entry.get("fix")) for entry in logs if entry["log_level"] != "debug"]
    assert told == [("interface not as desired", "mend it"), ("interface is well again", None)]


async def test_a_psk_that_could_not_be_set_shows_in_what_is_read_back() -> None:
    backend = FakeBackend()
    reconciler = make_reconciler(backend)
    reconciler.follow(make_desired)
    await reconciler.converge()
    backend.broken = {"pm0"}
    reconciler.follow(partial(make_desired, psk=2))
    actual = await reconciler.converge()
    assert actual["pm0"].peers[KEY].psk == Secret(b"\x01" * 32)
    assert actual["pm1"].peers[KEY].psk == Secret(b"\x02" * 32)


async def test_peers_without_a_session_are_made_anew_after_a_sleep_once_with_their_next_psk() -> None:
    backend = FakeBackend()
    reconciler = make_reconciler(backend)
    reconciler.follow(make_desired)
    await reconciler.converge()

    def shake_hands(name: str, age: float) -> None:
        device = backend.state[name]
        peer = replace(device.peers[KEY], last_handshake=time() - age)
        backend.state[name] = replace(device, peers={KEY: peer})

    def handshakes() -> dict[str, bool]:
        return {name: device.peers[KEY].last_handshake > 0 for name, device in backend.state.items()}

    shake_hands("pm0", LAPSED_SECONDS + 1)
    shake_hands("pm1", LAPSED_SECONDS - 60)
    reconciler.overslept()
    await reconciler.converge()
    assert handshakes() == {"pm0": True, "pm1": True}  # the old PSKs: nothing to begin anew with
    reconciler.follow(partial(make_desired, psk=2))
    await reconciler.converge()
    assert handshakes() == {"pm0": False, "pm1": True}
    shake_hands("pm0", LAPSED_SECONDS + 1)
    reconciler.follow(partial(make_desired, psk=3))
    actual = await reconciler.converge()
    assert handshakes() == {"pm0": True, "pm1": True}
    assert [device.peers[KEY].psk for device in actual.values()] == [Secret(b"\x03" * 32)] * 2


async def test_converge_raises_when_nothing_can_be_read() -> None:
    backend = FakeBackend()
    backend.unreadable = True
    reconciler = make_reconciler(backend)
    with pytest.raises(BackendError):
        await reconciler.converge()
    assert reconciler.failures == 1


async def test_a_new_endpoint_is_set_once_and_then_left_to_roam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.nursery.dataplane.reconciler.time", lambda: 1000.0)
    backend = FakeBackend()
    reconciler = make_reconciler(backend)
    reconciler.follow(make_desired)
    await reconciler.converge()

    def roam(port: int) -> None:
        for name, state in backend.state.items():
            peer = replace(state.peers[KEY], endpoint=Endpoint("198.51.100.1", port), last_handshake=999.0)
            backend.state[name] = replace(state, peers={KEY: peer})

    def endpoints() -> set[Endpoint | None]:
        return {state.peers[KEY].endpoint for state in backend.state.values()}

    roam(7)
    await reconciler.converge()
    assert endpoints() == {Endpoint("198.51.100.1", 7)}
    backend.broken = {"pm0"}  # an endpoint that was not set is still new afterwards
    reconciler.follow(partial(make_desired, endpoint=2))
    await reconciler.converge()
    backend.broken = set()
    await reconciler.converge()
    assert endpoints() == {Endpoint("192.0.2.1", 2)}
    roam(8)
    await reconciler.converge()
    assert endpoints() == {Endpoint("198.51.100.1", 8)}


async def test_a_host_without_ipv6_gets_no_ipv6_addresses() -> None:
    backend = FakeBackend(ipv6=False)
    reconciler = make_reconciler(backend)
    reconciler.follow(make_desired)
    actual = await reconciler.converge()
    assert {address.version for address in actual["pm0"].addresses} == {4}
    assert not actual["pm0"].routes


async def test_run_survives_failures_backs_off_and_is_woken(autojump_clock: object) -> None:
    backend = FakeBackend()
    backend.unreadable = True
    reconciler = make_reconciler(backend)
    reconciler.follow(make_desired)
    async with trio.open_nursery() as nursery:
        await nursery.start(reconciler.run)
        await trio.sleep(600)
        assert 15 < backend.reads < 40  # every second would be 600
        backend.unreadable = False
        reconciler.kick()
        await trio.sleep(0.5)
        assert backend.state.keys() == {"pm0", "pm1"}
        del backend.state["pm0"]
        await trio.sleep(1.5)
        assert backend.state.keys() == {"pm0", "pm1"}
        reconciler.follow(partial(make_desired, psk=9))
        await trio.sleep(0.1)
        assert backend.state["pm0"].peers[KEY].psk == Secret(b"\x09" * 32)
        nursery.cancel_scope.cancel()


async def test_what_has_to_be_closed_first_is_closed_before_anything_is_changed() -> None:
    """A class of traffic that may not go by a relay leaves the dimension before WireGuard is sent there."""
    backend, before = FakeBackend(), list[int]()

    async def close() -> None:
        await trio.lowlevel.checkpoint()
        before.append(sum(backend.batches.values()))

    reconciler = Reconciler(
        backend, interval=1.0, on_actual=lambda actual: None, log=structlog.get_logger(), first=close
    )
    reconciler.follow(make_desired)
    await reconciler.converge()
    reconciler.follow(partial(make_desired, endpoint=2))
    await reconciler.converge()
    assert before == [0, 2] and backend.batches == {"pm0": 2, "pm1": 2}
