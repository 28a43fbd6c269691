# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake backend does what the real ones do: the suite that tests/lab/test_backends.py runs over those."""

from collections.abc import Awaitable, Callable

import pytest

from phantommesh.nursery.host.backend import Backend
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.fake import FakeBackend, FakeHost
from phantommesh.secret import Secret
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff
from tests.lab import backend_scenarios


@pytest.mark.parametrize("scenario", backend_scenarios.ANYWHERE, ids=lambda scenario: scenario.__name__)
async def test_fake(scenario: Callable[[str], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_scenarios, "HOST", FakeHost())
    await scenario("fake")


async def test_a_name_that_someone_else_has_is_refused_and_left() -> None:
    host = FakeHost(others={"pm1"})
    backend: Backend = FakeBackend(host)
    desired = backend_scenarios.make_desired(backend)
    reconciler = backend_scenarios.make_reconciler(backend, desired)
    actual = await reconciler.converge()
    backend_scenarios.check(actual, {name: config for name, config in desired.items() if name != "pm1"})
    assert reconciler.failures == 1
    with pytest.raises(BackendError, match="pm1") as refused:
        await backend.create("pm1", 1400)
    assert "prefix" in refused.value.fix
    await backend.close(remove=desired)
    assert not host.devices
    assert host.others == {"pm1"}


async def test_a_partial_change_makes_no_peer_and_a_change_makes_no_device() -> None:
    backend = FakeBackend()
    change = DeviceDiff("pm0", peers=(PeerDiff(b"a" * 32, psk=Secret(b"p" * 32)),))
    with pytest.raises(AssertionError, match="not created"):
        await backend.apply([change])
    await backend.create("pm0", 1400)
    with pytest.raises(AssertionError, match="without a PSK"):
        await backend.apply([change])
    assert (await backend.devices(["pm0"]))["pm0"].peers == {}
