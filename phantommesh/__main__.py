# SPDX-License-Identifier: GPL-3.0-or-later
from phantommesh.cli import main

main()
