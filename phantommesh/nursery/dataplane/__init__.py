# SPDX-License-Identifier: GPL-3.0-or-later
"""What moves packets: interfaces as desired, scattering, measured paths, keys replaced."""
