# SPDX-License-Identifier: GPL-3.0-or-later
"""All that an operator is told of a node, and may ask of it: values and pure functions."""
