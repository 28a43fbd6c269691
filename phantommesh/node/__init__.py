# SPDX-License-Identifier: GPL-3.0-or-later
"""The node without I/O: what it decides. `nursery/` runs it on sockets, disk and clock, the simulator on a
virtual clock."""
