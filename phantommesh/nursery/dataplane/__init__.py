# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts that move packets: interfaces as desired, scattering, measured paths, keys replaced."""
