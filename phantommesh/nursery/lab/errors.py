# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's one kind of error."""

from phantommesh.errors import PhantomMeshError


class LabError(PhantomMeshError):
    """The lab could not be built, used or taken down."""
