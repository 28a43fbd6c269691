# SPDX-License-Identifier: GPL-3.0-or-later
"""The overlay's addresses: which prefixes they are, and the rules that hold them."""
