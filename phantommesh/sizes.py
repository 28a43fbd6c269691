# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers that parts which do not import each other must agree on."""

from typing import Final

DIMENSIONS: Final = 7  # WireGuard interfaces a node, pm0 to pm6

# FIPS 203, table 3: ML-KEM-1024.
EK_SIZE: Final = 1568
CT_SIZE: Final = 1568
