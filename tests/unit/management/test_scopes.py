# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from phantommesh.management.endpoints import ENDPOINTS
from phantommesh.management.scopes import Scope, allows


@pytest.mark.parametrize("needed", [None, *Scope])
@pytest.mark.parametrize("granted", [None, *Scope])
def test_a_greater_scope_includes_the_lesser(granted: Scope | None, needed: Scope | None) -> None:
    ranks = {None: 0, Scope.READ: 1, Scope.OPERATE: 2, Scope.ADMIN: 3}
    assert allows(granted, needed) == (ranks[granted] >= ranks[needed])


def test_what_writes_needs_more_than_reading_and_what_has_no_way_back_needs_all() -> None:
    for endpoint in ENDPOINTS:
        writing = endpoint.method == "POST"
        if endpoint.method == "DELETE":  # done twice, it is done once: no body, and no Idempotency-Key
            assert endpoint.scope is Scope.OPERATE and endpoint.body is None
            continue
        assert (endpoint.scope in (Scope.OPERATE, Scope.ADMIN)) == writing, endpoint.name
        assert (endpoint.body is not None) == writing, endpoint.name
        some = endpoint.root_for is not None  # only some bodies have no way back
        assert endpoint.root is None or some or endpoint.scope is Scope.ADMIN, endpoint.name
        assert bool(endpoint.example) == writing, endpoint.name
