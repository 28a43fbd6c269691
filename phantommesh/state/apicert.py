# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificate that the node has made for its API, on disk."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from phantommesh.config.sections import ApiSection
from phantommesh.management import servercert
from phantommesh.management.servercert import CertificateError, TlsFiles
from phantommesh.state.directory import API_CERT, API_KEY, StateDir
from phantommesh.state.files import StateError


def files_of(
    api: ApiSection, state: StateDir, name: str, hosts: Collection[str], now: float
) -> TlsFiles | None:
    """The files of the API's certificate, which is made where none is configured; None: the API has no TLS.
    ``name`` is the node's, ``hosts`` are names and addresses that the certificate has. Raises StateError."""
    if api.listen is None or not api.encrypted:
        return None
    client_ca = Path(api.client_ca) if api.client_ca else None
    if api.certificate:
        return TlsFiles(Path(api.certificate), Path(api.key), client_ca)
    ensure(state, name, hosts, now)
    return TlsFiles(state.path / API_CERT, state.path / API_KEY, client_ca)


def ensure(state: StateDir, name: str, hosts: Collection[str], now: float) -> None:
    """Make the API's own certificate and key where they are not there, are damaged or have run out. Raises
    StateError where they cannot be written."""
    if state.has(API_CERT) and state.has(API_KEY):
        try:
            if now < servercert.expires(state.read(API_CERT)):
                return
        except (CertificateError, StateError):
            pass
    made = servercert.make(name, hosts, now)
    state.write(API_KEY, made.key.reveal())
    state.write(API_CERT, made.certificate)
