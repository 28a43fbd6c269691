# SPDX-License-Identifier: GPL-3.0-or-later
"""Types of settings that several modules of sections have. A description completes the sentence "set KEY to
..."."""

from typing import Annotated

from msgspec import Meta

Port = Annotated[int, Meta(ge=1, le=65535, description="a port from 1 to 65535")]
Switch = Annotated[bool, Meta(description="true or false")]
