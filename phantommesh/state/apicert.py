# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificate that the node has made for its API, on disk: whom it is for, and when it is made anew."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from phantommesh.config.sections import ApiSection, Config
from phantommesh.endpoint import parse_endpoint
from phantommesh.management import servercert
from phantommesh.management.servercert import CertificateError, TlsFiles
from phantommesh.secret import Secret
from phantommesh.state.directory import API_CERT, API_KEY, StateDir
from phantommesh.state.files import StateError

# Tuning.
MOST_FORMER: Final = (
    32  # addresses that it keeps: a laptop comes back to a network under the same certificate
)


def names_of(config: Config, own: Iterable[str], interfaces: Iterable[str]) -> list[str]:
    """The names and addresses by which clients may call the API over TCP: ``own``, which are the node's in
    its mesh, those that the configuration has, and, where the API listens on all, those of the
    ``interfaces``. Addresses are in their one way of writing, names in lower case."""
    api = config.api
    listen = "" if api.listen is None else api.listen.rpartition(":")[0].strip("[]")
    endpoints = [parse_endpoint(text, config.control.port)[0] for text in config.node.endpoints]
    at = interfaces if _is_wildcard(listen) else [listen] if listen else []
    return list(dict.fromkeys(map(_plain, (*own, *api.hosts, *endpoints, *at))))


def files_of(api: ApiSection, state: StateDir) -> TlsFiles | None:
    """The files of the API's certificate: the configured ones, or those that `ensure` makes. None: the API
    has no TLS."""
    if api.listen is None or not api.encrypted:
        return None
    client_ca = Path(api.client_ca) if api.client_ca else None
    if api.certificate:
        return TlsFiles(Path(api.certificate), Path(api.key), client_ca)
    return TlsFiles(state.path / API_CERT, state.path / API_KEY, client_ca)


def ensure(state: StateDir, name: str, hosts: Collection[str], now: float) -> str:
    """Make the API's own certificate where it is not there, is damaged, has run out, or is for other hosts
    than these; say why, or nothing where it stays. The key stays wherever it can be used, so that clients
    that know the node by its key know it still. Raises StateError where they cannot be written.

    An address that the host has no more is no reason: it harms nobody, and may come back."""
    key = _usable_key(state)
    former: list[str] = []
    if not state.has(API_CERT) or key is None:
        why = "there was none"
    else:
        try:
            why, former = _wrong(state.read(API_CERT), key, hosts, now)
        except (CertificateError, StateError):
            why = "it was damaged"
    if not why:
        return ""
    made = servercert.make(name, [*hosts, *former], now, key)
    if key is None:
        state.write(API_KEY, made.key.reveal())
    state.write(API_CERT, made.certificate)
    return why


def _wrong(pem: bytes, key: Secret, hosts: Collection[str], now: float) -> tuple[str, list[str]]:
    """Why a certificate has to be made anew, or nothing; and its addresses that are no more. Raises
    CertificateError."""
    has = servercert.hosts_of(pem)
    former = [host for host in has if _is_address(host) and host not in hosts][:MOST_FORMER]
    if not servercert.belong(pem, key):
        return "it was for another key", former
    if now >= servercert.expires(pem):
        return "it has run out", former
    missing = [host for host in hosts if host not in has]
    over = [host for host in has if host not in hosts and not _is_address(host)]
    said = [f"{word} {', '.join(found)}" for word, found in (("not for", missing), ("for", over)) if found]
    return f"it was {' and '.join(said)}" if said else "", former


def _usable_key(state: StateDir) -> Secret | None:
    if not state.has(API_KEY):
        return None
    try:
        key = Secret(state.read(API_KEY))
        servercert.check_key(key)
    except (CertificateError, StateError):
        return None
    return key


def _plain(host: str) -> str:
    return str(ip_address(host)) if _is_address(host) else host.lower()


def _is_wildcard(host: str) -> bool:
    return _is_address(host) and ip_address(host).is_unspecified


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
