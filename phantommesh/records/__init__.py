# SPDX-License-Identifier: GPL-3.0-or-later
"""What nodes say of themselves, signed; the roster of all of it; and which of it two rosters do not share."""
