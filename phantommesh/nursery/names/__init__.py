# SPDX-License-Identifier: GPL-3.0-or-later
"""Names: the mesh's, served and told to this machine; and those of endpoints, looked up."""
