# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS of the API over TCP: the certificate from files, read again when they change."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import structlog
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.management import servercert
from phantommesh.management.servercert import CertificateError, TlsFiles
from phantommesh.nursery.api.sockets import ApiSocketError

# Tuning.
LOOK: Final = 5.0  # s between looks at whether the files have changed

log = structlog.get_logger("phantommesh.api")

Told: TypeAlias = Callable[[PhantomMeshError | None], None]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files have: a context for new connections, and the certificate's SHA-256."""

    context: ssl.SSLContext
    fingerprint: str


def load(files: TlsFiles) -> Loaded:
    """Read the files. Raises ApiSocketError. Blocks: call it in a thread."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        fingerprint = servercert.fingerprint(files.certificate.read_bytes())
        for path in (files.key, files.client_ca):  # of what OpenSSL cannot open it does not say the name
            if path is not None:
                path.open("rb").close()
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise ApiSocketError(
            f"{files.certificate} and {files.key} cannot be used: {error.reason or 'they are no PEM files'}",
            fix="give a PEM certificate in api.certificate, its key without a password in api.key, and PEM "
            "certificates in api.client_ca, if any",
        ) from None
    except (CertificateError, UnicodeDecodeError) as error:
        raise ApiSocketError(
            f"{files.certificate} cannot be used: {error}", fix="give a PEM certificate in api.certificate"
        ) from None
    except OSError as error:
        raise ApiSocketError(
            f"cannot read {error.filename or files.certificate}, of the API's certificate: "
            f"{error.strerror or error}",
            fix="correct api.certificate, api.key and api.client_ca, or leave all three out",
        ) from None
    return Loaded(context, fingerprint)


def _no_password() -> str:
    # Else OpenSSL would ask for it on the terminal.
    return ""


_Seen: TypeAlias = list[tuple[int, ...] | None]


def _look(files: TlsFiles) -> _Seen:
    """What shows that a file is another, or has changed, or that somebody else may read it."""
    found: _Seen = []
    for path in (files.certificate, files.key, files.client_ca):
        try:
            status = None if path is None else path.stat()
        except OSError:
            status = None
        found.append(
            None
            if status is None
            else (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        )
    return found


class Tls:
    """The context that new connections have. A file that cannot be used leaves the one before in place;
    ``told`` is told why, and None once the files can be used."""

    def __init__(self, files: TlsFiles, loaded: Loaded, seen: _Seen, told: Told) -> None:
        self.loaded = loaded
        self._files, self._seen, self._told = files, seen, told
        self._problem: PhantomMeshError | None = None

    @classmethod
    async def of(cls, files: TlsFiles, told: Told = lambda _problem: None) -> Tls:
        """Read the files. Raises ApiSocketError."""
        seen = await trio.to_thread.run_sync(_look, files)
        loaded = await trio.to_thread.run_sync(load, files)
        told(None)
        return cls(files, loaded, seen, told)

    def context(self) -> ssl.SSLContext:
        """What the next connection has."""
        return self.loaded.context

    async def watch(self) -> None:
        """Read the files again whenever they have changed, and at each look while they cannot be used: why is
        not always to be seen of the files. Until cancelled."""
        while True:
            await trio.sleep(LOOK)
            seen = await trio.to_thread.run_sync(_look, self._files)
            if seen == self._seen and self._problem is None:
                continue
            self._seen, before = seen, self._problem
            try:
                self.loaded = await trio.to_thread.run_sync(load, self._files)
            except PhantomMeshError as error:
                self._problem = error
                if str(error) != str(before):
                    log.warning("the API goes on with its old certificate", error=str(error), fix=error.fix)
            else:
                self._problem = None
                log.info("the API has a new certificate", sha256=self.loaded.fingerprint)
            self._told(self._problem)
