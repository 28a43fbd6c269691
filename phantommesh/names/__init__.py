# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's names: its DNS zone, and a marked block in a hosts file."""
