# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages about pacts with other meshes: between members of one mesh, and between the two meshes."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from phantommesh.records.record import MAX_RECORD_BYTES
from phantommesh.trust.certificates import MAX_CERTIFICATE_BYTES
from phantommesh.trust.federation import MAX_HALF_BYTES, PACT_ID_BYTES
from phantommesh.trust.pacts import MAX_BUNDLE_BYTES, MAX_PACTS, SECRET_BYTES

MAX_TOLD: Final = 64  # members of one mesh that a member of the other is told of by one pact

PactId = Annotated[bytes, msgspec.Meta(min_length=PACT_ID_BYTES, max_length=PACT_ID_BYTES)]
_Half = Annotated[bytes, msgspec.Meta(max_length=MAX_HALF_BYTES)]
_Root = Annotated[bytes, msgspec.Meta(max_length=MAX_CERTIFICATE_BYTES)]
_Digest = Annotated[bytes, msgspec.Meta(max_length=32)]
_Record = Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)]


class AskPacts(msgspec.Struct, frozen=True, tag="ask-pacts"):
    """Ask a member of one's own mesh what it knows of pacts. The answer is `PactsAre`."""


class PactsAre(msgspec.Struct, frozen=True, tag="pacts"):
    """`Pacts.bundles`."""

    bundles: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_BUNDLE_BYTES)], ...],
        msgspec.Meta(max_length=MAX_PACTS),
    ]

    def __repr__(self) -> str:
        return "PactsAre(***)"


class MakePact(msgspec.Struct, frozen=True, tag="make-pact"):
    """The answer to the line of `federation invite`, from an authority of the other mesh: that mesh's root
    certificate and half, and the secret that it has chosen for the members of both. The answer is
    `PactMade`."""

    root: _Root
    half: _Half
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]

    def __repr__(self) -> str:
        return "MakePact(***)"


class PactMade(msgspec.Struct, frozen=True, tag="pact-made"):
    """The root certificate and the half of the mesh that gave out the line."""

    root: _Root
    half: _Half


class AskPact(msgspec.Struct, frozen=True, tag="ask-pact"):
    """Ask a gateway of the other mesh about a pact. ``record`` is the asker's own; ``seen`` the digest of the
    last answer, empty for none. The answer is `PactIs`, as soon as it differs from that; or `Done`, after
    some seconds in which it did not."""

    pact: PactId
    record: _Record
    seen: _Digest = b""


class PactIs(msgspec.Struct, frozen=True, tag="pact-is"):
    """The newest half of the answerer's mesh; signed records, encoded, of those of its members that may link
    with the asker; the digest of the revocations; and that of this answer."""

    half: _Half
    records: Annotated[tuple[_Record, ...], msgspec.Meta(max_length=MAX_TOLD)]
    revoked: _Digest
    digest: _Digest
