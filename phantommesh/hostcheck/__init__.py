# SPDX-License-Identifier: GPL-3.0-or-later
"""What is unsafe about a host and a node's configuration, without I/O: rules over a snapshot (`seen`).

`scan` goes through all rules; `finding` has the shapes of a rule and of what it finds. docs/hardening.md has
a section for each rule; a test holds the two against each other.
"""
