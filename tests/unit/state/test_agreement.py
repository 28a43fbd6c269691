# SPDX-License-Identifier: GPL-3.0-or-later
"""A configuration beside the state: what agrees, and what is made of the state where the configuration is
lost."""

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from phantommesh.config.reading import load, parse
from phantommesh.config.sections import Config, ConfigError, ControlSection, NodeSection, WireguardSection
from phantommesh.config.writing import render
from phantommesh.records.roster import is_settled_name
from phantommesh.state.agreement import check_agreement, load_config, remake_config
from phantommesh.state.making import init_mesh
from phantommesh.state.start import NodeState, load_node
from phantommesh.trust.identity import format_node_id
from tests.support.makemesh import NOW


def made(at: Path, config: Config | None = None) -> NodeState:
    init_mesh(
        at / "state", at / "pm.toml", mesh="pm", name="alpha", endpoints=("192.0.2.1", "vpn.example.net"),
        now=NOW, config=config,
    )  # fmt: skip
    return load_node(at / "state", NOW)


def test_a_lost_configuration_is_made_anew_with_its_ports(tmp_path: Path) -> None:
    given = Config(
        node=NodeSection("x", "y"),
        control=ControlSection(port=4000),
        wireguard=WireguardSection(base_port=4100),
    )
    node = made(tmp_path, given)
    lost, remade = load(tmp_path / "pm.toml", {}), remake_config(node)
    assert parse(render(remade)) == remade
    assert (remade.node.name, remade.node.mesh) == ("alpha", "pm")
    assert remade.node.endpoints == ("192.0.2.1:4000", "vpn.example.net:4000")
    assert structs.replace(remade, node=lost.node) == lost
    (tmp_path / "pm.toml").unlink()
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "pm.toml", tmp_path / "state")
    assert caught.value.fix.endswith(f"--state-dir {tmp_path}/state --config {tmp_path}/pm.toml config write")
    with pytest.raises(ConfigError, match="there is no configuration") as elsewhere:
        load_config(tmp_path / "pm.toml", tmp_path / "nothing")
    assert "phantommesh init" in elsewhere.value.fix


def test_a_node_that_lost_its_name_in_a_dispute_starts_with_its_old_configuration(tmp_path: Path) -> None:
    node = made(tmp_path)
    config, member = load(tmp_path / "pm.toml", {}), node.member_at_issue()
    check_agreement(config, node.mesh, member)
    mark = format_node_id(member.node_id)
    for length in (4, 26):
        settled = replace(member, name=f"alpha-{mark[:length]}")
        assert is_settled_name(settled, "alpha")
        check_agreement(config, node.mesh, settled)
    for other in ("alpha-", f"alpha-{mark[:3]}", f"alpha-{mark[::-1][:5]}", f"beta-{mark[:4]}"):
        renamed = replace(member, name=other)
        with pytest.raises(ConfigError) as caught:
            check_agreement(config, node.mesh, renamed)
        assert f'set node.name to "{other}" again' in caught.value.fix


def test_another_meshs_configuration_is_refused(tmp_path: Path) -> None:
    node = made(tmp_path)
    config = load(tmp_path / "pm.toml", {})
    other = structs.replace(config, node=structs.replace(config.node, mesh="other"))
    with pytest.raises(ConfigError, match=r'node\.mesh = "other", and this node is in the mesh "pm"'):
        check_agreement(other, node.mesh, node.member_at_issue())
