# SPDX-License-Identifier: GPL-3.0-or-later
"""The signed records of nodes, the roster of all records, and the records that two rosters do not share."""
