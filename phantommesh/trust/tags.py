# SPDX-License-Identifier: GPL-3.0-or-later
"""Tags of members: words that an authority has put into a certificate, for access rules to go by.

A tag is a further URI of the certificate, behind the routes': ``phantommesh:tag:web``. Certificates of
earlier versions have none. Nobody but an authority gives a tag: no member gets into a rule by its own word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from phantommesh.errors import PhantomMeshError, shortened

MAX_TAGS: Final = 16
PREFIX: Final = "phantommesh:tag:"
_TAG: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label in lower case


class TagError(PhantomMeshError):
    """A tag that no member may have, or a list of tags that is none."""


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as a certificate has them: each once, sorted. Raises TagError."""
    found = tuple(sorted(set(tags)))
    for tag in found:
        if not _TAG.fullmatch(tag):
            raise TagError(
                f"the tag {shortened(ascii(tag), 80)} is not usable",
                fix="use 1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end",
            )
    if len(found) > MAX_TAGS:
        raise TagError(f"a member has {MAX_TAGS} tags at most", fix="leave some out")
    return found


def uris_of(tags: Iterable[str]) -> list[str]:
    """Tags as they stand in a certificate. Raises TagError."""
    return [PREFIX + tag for tag in check_tags(tags)]


def parse_uris(uris: Sequence[str]) -> tuple[str, ...]:
    """Read the tags of a certificate, which stand there once each, sorted. Raises TagError."""
    tags = tuple(uri.removeprefix(PREFIX) for uri in uris)
    if check_tags(tags) != tags:
        raise TagError("tags that are not sorted, or there twice")
    return tags
