# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a node is asked: at its Unix socket, or over the network with a token."""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from phantommesh.errors import PhantomMeshError
from phantommesh.secret import Secret

MOST_TOKEN: Final = 256  # bytes of a file that has a token
_TOKEN: Final = re.compile(rb"pmt_[A-Za-z0-9_-]{1,200}")


class PlaceError(PhantomMeshError):
    """A node cannot be asked where the operator says."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A node's API over TCP. ``authority``: a file of certificates to trust in place of the system's;
    ``pin``: the SHA-256 of the node's own certificate in lower-case hexadecimal, which then counts alone, its
    names and dates too."""

    host: str
    port: int
    encrypted: bool
    token: Secret | None = None
    authority: Path | None = None
    pin: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.encrypted else ''}://{host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What every request has. The token is in it."""
        host = str(self).partition("://")[2]
        bearer = {} if self.token is None else {"Authorization": f"Bearer {self.token.reveal().decode()}"}
        return {"Host": host, **bearer}

    def connect(self, timeout: float | None) -> socket.socket:
        """Return a connection on which nothing was said yet. Raises OSError, PlaceError where the certificate
        is not the one that is pinned."""
        raw = socket.create_connection((self.host, self.port), timeout)
        if not self.encrypted:
            return raw
        try:
            wrapped = self._context().wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise
        found = hashlib.sha256(wrapped.getpeercert(binary_form=True) or b"").hexdigest()
        if self.pin is not None and not hmac.compare_digest(found, self.pin):
            wrapped.close()
            raise PlaceError(
                f"the certificate at {self} is another: its SHA-256 is {found}",
                fix="make sure that this is your node (its log has the SHA-256 at `API listens`), then give "
                "the new one by --fingerprint",
            )
        return wrapped

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.authority and str(self.authority))
        except (OSError, ssl.SSLError) as error:
            raise PlaceError(
                f"{self.authority} has no usable certificates: {error}", fix="give a PEM file by --ca"
            ) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self.pin is not None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


Place: TypeAlias = Path | Remote
"""The path of a node's Unix socket, or an API over TCP."""


def remote(
    url: str, *, token: Secret | None, authority: Path | None = None, pin: str | None = None
) -> Remote:
    """Read where the operator wants a node asked. Raises PlaceError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("https", "http") or not host or not plain:
        raise PlaceError(
            f"{url[:80]!r} is no URL of a node's API", fix="give one such as https://vpn.example.net:8480"
        )
    encrypted = parts.scheme == "https"
    if not encrypted and not _is_loopback(host):
        raise PlaceError(
            f"{url[:80]} is in clear, and the token would be read on the way", fix="give an https:// URL"
        )
    if token is None:
        raise PlaceError(
            "a node is asked over the network with a token, and none is given",
            fix="run `phantommesh token create` on the node, then give it by --token-file FILE",
        )
    pinned = None if pin is None else _pin(pin)
    return Remote(host, port or (443 if encrypted else 80), encrypted, token, authority, pinned)


def token_of(file: Path | None, environment: Mapping[str, str]) -> Secret | None:
    """The token in a file, else in ``PHANTOMMESH_TOKEN``; None for neither. Raises PlaceError, which never
    has the text."""
    if file is None:
        text = environment.get("PHANTOMMESH_TOKEN", "").encode()
        where = "PHANTOMMESH_TOKEN"
        if not text:
            return None
    else:
        where = str(file)
        try:
            with file.open("rb") as opened:
                text = opened.read(MOST_TOKEN + 1)
        except OSError as error:
            raise PlaceError(
                f"cannot read {file}: {error.strerror}", fix="give the file of a token by --token-file"
            ) from None
    text = text.strip()
    if not _TOKEN.fullmatch(text):
        raise PlaceError(f"{where} has no API token", fix="put the one line in it that begins with pmt_")
    return Secret(text)


def _pin(text: str) -> str:
    digits = text.replace(":", "").lower().removeprefix("sha256-").removeprefix("sha256/")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise PlaceError(
            "--fingerprint is no SHA-256 of a certificate",
            fix="give the 64 hexadecimal digits that the node's log has at `API listens`",
        )
    return digits


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
