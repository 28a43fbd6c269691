# SPDX-License-Identifier: GPL-3.0-or-later
"""MNEMONIC, the agents' memory of threat patterns, and the hints about them that nodes give each other.

`memory` recalls patterns, `file` is its form on disk, `hints` weighs what other members say.
"""
