# SPDX-License-Identifier: GPL-3.0-or-later
"""Which keys a running node takes over, and which wait for its next start."""

from __future__ import annotations

from operator import attrgetter

import pytest
from msgspec import structs

from phantommesh.config.changes import AT_ONCE, change, with_section
from phantommesh.config.sections import SECTIONS, Config, IntentSection, NodeSection, ScatterSection, keys

CONFIG = Config(NodeSection("alpha", "pm"))
KEYS = [(section, key) for section in SECTIONS for key in keys(section)]


def with_another(section: str, key: str) -> Config:
    """The configuration with a value that is not the present one. Nothing here looks at what it is."""
    return with_section(CONFIG, section, structs.replace(attrgetter(section)(CONFIG), **{key: "another"}))


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_each_key_is_taken_at_once_or_waits_and_is_named(section: str, key: str) -> None:
    name, wanted = f"{section}.{key}", with_another(section, key)
    done = change(CONFIG, wanted)
    if name in AT_ONCE:
        assert (done.config, done.taken, done.waiting) == (wanted, (name,), ())
    else:
        assert (done.config, done.taken, done.waiting) == (CONFIG, (), (name,))


def test_the_keys_that_a_node_follows_are_there() -> None:
    assert {f"{section}.{key}" for section, key in KEYS} >= AT_ONCE


def test_the_same_configuration_is_no_change() -> None:
    assert change(CONFIG, structs.replace(CONFIG)) == change(CONFIG, CONFIG)
    assert not change(CONFIG, CONFIG).taken and not change(CONFIG, CONFIG).waiting


def test_constraints_wait_for_the_hook_that_holds_them() -> None:
    """What is not scattered goes by dimension 0, whoever passes that on."""
    running = structs.replace(CONFIG, scatter=ScatterSection(hook="off"))
    free, bound = (IntentSection("ssh", "order", ports=(22,), direct_only=direct) for direct in (False, True))
    done = change(running, structs.replace(CONFIG, intent=(bound,)))
    assert done.config == running and set(done.waiting) == {"scatter.hook", "intent"}
    done = change(running, structs.replace(CONFIG, intent=(free,)))
    assert done.config.intent == (free,) and done.taken == ("intent",)
