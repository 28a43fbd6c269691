# SPDX-License-Identifier: GPL-3.0-or-later
"""PhantomMesh: a mesh VPN node. The kernel's WireGuard moves packets; supervised trio tasks decide how."""

__version__ = "0.1.0"
