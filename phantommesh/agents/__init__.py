# SPDX-License-Identifier: GPL-3.0-or-later
"""The agents' policies, without I/O: what each sees, what it proposes, and how proposals are judged.

`base` has the shapes, `actions` all that an agent may do, `apex` the judgement, `council` all of it together.
No agent imports another.
"""
