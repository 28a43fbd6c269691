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
        writing = endpoint.method in ("POST", "PUT")
        if endpoint.method == "DELETE":  # done twice, it is done once: no body, and no Idempotency-Key
            assert endpoint.scope in (Scope.OPERATE, Scope.ADMIN) and endpoint.body is None
            continue
        if endpoint.name in ("tokens", "audit", "config"):  # who may do what, who did, and all keys
            assert endpoint.scope is Scope.ADMIN
        else:
            assert (endpoint.scope in (Scope.OPERATE, Scope.ADMIN)) == writing, endpoint.name
        assert (endpoint.body is not None) == writing, endpoint.name
        some = endpoint.root_for is not None  # only some bodies have no way back
        assert endpoint.root is None or some or endpoint.scope is Scope.ADMIN, endpoint.name
        assert bool(endpoint.example) == writing, endpoint.name


SECRETS = ("line", "token", "secret", "passphrase", "password", "key")


def test_no_record_has_what_is_secret_in_a_body() -> None:
    for endpoint in ENDPOINTS:
        fields = set() if endpoint.body is None else set(endpoint.body.__struct_fields__)
        assert endpoint.secret <= fields, endpoint.name
        assert {name for name in fields if name in SECRETS} == endpoint.secret, endpoint.name
