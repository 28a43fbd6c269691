# SPDX-License-Identifier: GPL-3.0-or-later
"""Port mapping: a gateway is asked to open the node's ports (PCP, NAT-PMP; UPnP by a library). Sans-I/O."""
