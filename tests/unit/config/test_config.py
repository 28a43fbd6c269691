# SPDX-License-Identifier: GPL-3.0-or-later
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import msgspec
import pytest

from phantommesh.config.reading import load, parse, refuse_overlay
from phantommesh.config.sections import Config, ConfigError, GossipSection, NodeSection
from phantommesh.config.writing import redacted, render
from phantommesh.endpoint import format_endpoint, parse_endpoint
from phantommesh.secret import starred

BASE = '[node]\nname = "alpha"\nmesh = "pm"\n'


def test_the_least_configuration_has_the_documented_defaults() -> None:
    config = parse(BASE)
    assert config == Config(NodeSection("alpha", "pm"))
    assert (config.control.port, config.wireguard.base_port, config.wireguard.mtu) == (51800, 51820, 1420)
    assert (config.link.rotate_seconds, config.link.stale_random_seconds) == (90.0, 300.0)
    assert config.api.socket == "/run/phantommesh/api.sock"


def test_render_reads_back_equal() -> None:
    text = BASE + (
        'endpoints = ["192.0.2.1", "[2001:db8::1]:7"]\nregion = "eu"\n[control]\nport = 4\ntcp = false\n'
        '[wireguard]\nprefix = "wg-x_1"\nreconcile_seconds = 3\n[overlay]\ncidr4 = "10.0.0.0/8"\n'
        '[api]\nsocket = "/tmp/a \\"b\\\\.sock"\nlisten = "[::1]:8480"\n[log]\nformat = "json"\n'
        '[scatter.peers]\ndb = "order"\n0-a = "private"\n'
    )
    config = parse(text)
    assert config.node.region == "eu" and parse(BASE).node.region == ""
    assert config.scatter.peers == {"db": "order", "0-a": "private"}
    assert config.api.listen == "[::1]:8480"
    assert parse(render(config)) == config
    assert parse(render(parse(BASE))) == parse(BASE)


@pytest.mark.parametrize(
    ("text", "key_and_value", "fix"),
    [
        ("[control]\nport = 99999", "control.port = 99999", "set control.port to a port from 1 to 65535"),
        ("[control]\nport = 0", "control.port = 0", "a port from 1 to 65535"),
        ("[control]\nport = true", "control.port = true", "a port from 1 to 65535"),
        ('[control]\ntcp = "yes"', 'control.tcp = "yes"', "set control.tcp to true or false"),
        ("[control]\nprt = 3", "unknown key control.prt = 3", "did you mean control.port?"),
        ("[controls]\nport = 3", "unknown key controls", "did you mean control?"),
        ("zzz = 1", "unknown key zzz = 1", "the keys here are node, control"),
        ('[wireguard]\nbackend = "kernl"', 'wireguard.backend = "kernl"', '"auto", "kernel" or "userspace"'),
        ('[scatter]\nscheduler = "decks"', 'scatter.scheduler = "decks"', '"deck", "flow" or "flowlet"'),
        ('[scatter]\ngoal = "fast"', 'scatter.goal = "fast"', '"order", "latency" or "private"'),
        ('[scatter]\nintent = "order"', "scatter.intent is called scatter.goal now", "to scatter.goal"),
        ('[scatter]\nmode = "off"', "scatter.mode is called scatter.hook now", "to scatter.hook"),
        ('[scatter]\ngoal = "speed"', 'this goal is called "throughput" now', 'to "throughput"'),
        ('[scatter.peers]\ndb = "speed"', 'scatter.peers = "speed"', 'db in scatter.peers to "throughput"'),
        ('[scatter]\nintent = "order"\ngoal = "order"', "scatter.intent is called", "take scatter.intent"),
        ('[scatter.peers]\ndb = "privat"', 'scatter.peers = {"db": "privat"}', "a table of names"),
        ('[scatter]\npeers = "db"', 'scatter.peers = "db"', '"order", "latency" or "private"'),
        ('[scatter.peers]\n"d b" = "order"', 'scatter.peers: "d b" is no name', "phantommesh peers"),
        ("[scatter]\nepoch_seconds = 0.01", "scatter.epoch_seconds = 0.01", "from 0.05 to 3600"),
        ("[scatter]\nbatch = 1", "scatter.batch = 1", "from 2 to 32"),
        ("[wireguard]\nmtu = 100", "wireguard.mtu = 100", "1280 to 9000"),
        ("[wireguard]\nbase_port = 65530", "wireguard.base_port = 65530", "1 to 65529"),
        ('[wireguard]\nprefix = "way-too-long-prefix"', "wireguard.prefix", "up to 14 characters"),
        ('[wireguard]\nprefix = "../x"', "wireguard.prefix", "up to 14 characters"),
        ("[link]\nrotate_seconds = nan", "link.rotate_seconds = NaN", "seconds from 1 to 120"),
        ("[link]\nrotate_seconds = 5\njitter_seconds = 9", "link.jitter_seconds = 9", "lower"),
        ("[link]\nstale_alarm_seconds = 400", "link.stale_alarm_seconds = 400", "raise"),
        ('[overlay]\ncidr4 = "10.0.0.1/8"', 'overlay.cidr4 = "10.0.0.1/8"', "an IPv4 network"),
        ('[overlay]\ncidr4 = "0.0.0.0/0"', "overlay.cidr4", "/8 to /30"),
        ('[overlay]\ncidr4 = "127.9.0.0/16"', "holds loopback addresses", "10.99.0.0/16"),
        ('[overlay]\ncidr4 = "169.254.0.0/17"', "holds link-local addresses", "a private range"),
        ('[overlay]\ncidr4 = "239.0.0.0/8"', "holds multicast and reserved addresses", "a private range"),
        ('[api]\nlisten = "0.0.0.0:80"\ntls = "off"', 'api.listen = "0.0.0.0:80"', "api.tls"),
        ('[api]\nlisten = "example.net:80"', "api.listen", "an address of this host"),
        ('[api]\nlisten = "0.0.0.0:80"\nkey = "/a.key"', "api.certificate is not", "set api.certificate"),
        ('[api]\nlisten = "127.0.0.1:80"\nclient_ca = "/a.pem"', "does not use TLS", "api.tls"),
        ('[api]\ncertificate = "a.pem"\nkey = "/a.key"', "api.certificate", "an absolute path"),
        ('[api]\nhosts = ["a b"]', "api.hosts", "DNS names"),
        ('[api]\nsocket = "relative"', 'api.socket = "relative"', "an absolute path"),
        ("[control]\nport = 51826", "control.port = 51826", "another port"),
        ("[dns]\nport = 51800", "dns.port = 51800", "set dns.port to 53"),
        ("[dns]\nport = 51826", "dns.port = 51826", "set dns.port to 53"),
        ('[dns]\nmode = "on"', 'dns.mode = "on"', '"auto", "resolved", "hosts" or "off"'),
        ('[dns]\nmode = "resolved"\nserve = false', 'dns.mode = "resolved"', 'dns.mode to "hosts"'),
        ('[dns]\nhosts = "etc/hosts"', 'dns.hosts = "etc/hosts"', "an absolute path"),
        ('[relay]\noffer = "maybe"', 'relay.offer = "maybe"', 'set relay.offer to true, false or "auto"'),
        ("[relay]\nport = 51800", "relay.port = 51800", "set relay.port to another port"),
        ("[relay]\nport = 51825", "relay.port = 51825", "set relay.port to another port"),
        ("[routes]\nport = 51801", "routes.port = 51801", "set routes.port to another port"),
        ('[routes]\nprobe = { "10.1.0.0/16" = "10.2.0.1" }', "10.2.0.1 is not in 10.1.0.0/16", "name a host"),
        *(
            (f'[routes]\nadvertise = ["10.77.1.0/24"]\nsites = {{ "{prefix}" = "{site}" }}', said, fix)
            for prefix, site, said, fix in (
                (
                    "10.77.2.0/24",
                    "192.168.1.0/24",
                    "not in routes.advertise",
                    "add it there",
                ),
                ("10.77.1.0/24", "192.168.1.1/24", "write 192.168.1.0/24", '"192.168.1.0/24"'),
                ("10.77.1.0/24", "192.168.0.0/16", "are not of one size", "IPv4 with /24"),
                ("10.77.1.0/24", "fd00::/24", "are not of one size", "IPv4 with /24"),
                ("10.77.1.0/24", "10.77.1.0/24", "by its own addresses", "take it out"),
                ("10.77.1.0/24", "127.0.0.0/24", "has loopback addresses", "really there"),
            )
        ),
        (
            (
                '[routes]\nadvertise = ["10.77.1.0/24"]\n'
                'sites = { "10.77.1.0/24" = "192.168.1.0/24" }\nprobe = { "10.77.1.0/24" = "10.77.1.9" }'
            ),
            "10.77.1.9 is not in 192.168.1.0/24",
            "name a host in 192.168.1.0/24",
        ),
        ('[routes]\nprobe = { "10.1.0.0/16" = "gateway" }', "routes.probe", "an address in it"),
        ('[routes]\nprobe = { "10.1.0.1/16" = "10.1.0.9" }', "routes.probe", "an address in it"),
        ("[relay]\nquota = 0", "relay.quota = 0", "a number of bytes above 1000000"),
        ('[relay]\nmembers = ["d b"]', 'relay.members: "d b" is no name', "phantommesh peers"),
        ('[routes]\nadvertise = ["10.1.0.1/16"]', 'routes.advertise: "10.1.0.1/16"', '"10.1.0.0/16"'),
        ('[routes]\nadvertise = ["10.1.0.0"]', "write 10.1.0.0/32", '"10.1.0.0/16"'),
        ('[routes]\nadvertise = ["somewhere"]', "it is no prefix", '"10.1.0.0/16"'),
        ('[routes]\nadvertise = ["127.0.0.0/8"]', '"127.0.0.0/8" has loopback addresses', "take it out"),
        ('[routes]\nadvertise = ["2000::/3"]', '"2000::/3" is too short', "take it out"),
        ('[routes]\nadvertise = ["fd00::/8", "fd00::/8"]', "names a prefix twice", "take one out"),
        (
            '[routes]\nadvertise = ["::/0"]\nmasquerade = false',
            'masquerade = false with "::/0" in routes.advertise',
            "set routes.masquerade to true",
        ),
        ('[routes]\naccept = ["0.0.0.0/0"]', 'accept: "0.0.0.0/0" is a default route', "in routes.exit"),
        ('[routes]\nexit = ["a"]\nadvertise = ["fd00::/8"]', "routes.exit and routes.advertise", "take one"),
        ('[routes]\nexit = ["a", "a"]', "routes.exit names a member twice", "take one out"),
        ('[routes]\nexit = ["A b"]', 'routes.exit: "A b" is no name', "phantommesh peers"),
        ('[routes]\nexit = ["a"]\n[relay]\noffer = true', "routes.exit and relay.offer", "take relay.offer"),
        (
            '[routes]\nadvertise = ["::/0"]\nprobe = { "::/0" = "1.1.1.1" }',
            "1.1.1.1 is not in ::/0",
            "that answers pings",
        ),
        ('[routes]\naccept = ["all", "10.0.0.0/8"]', 'routes.accept has "all"', 'routes.accept to ["all"]'),
        (
            "[routes]\nport = 51810",
            "routes.port = 51810 is taken by this node already (relay.port)",
            "another",
        ),
        ("[routes]\nport = 51825", "already (wireguard.base_port)", "set routes.port to another port"),
        (
            '[routes]\nadvertise = ["10.1.0.0/16"]\nprobe = { "10.1.0.0/24" = "10.1.0.1" }',
            "routes.probe: 10.1.0.0/24 is no prefix of routes.advertise",
            "as routes.advertise has it",
        ),
        ('[relay]\nonly = ["a", "b"]\nnever = ["b"]', 'relay.only allows "b"', "or of relay.never"),
        (
            '[relay]\nregions = ["x"]\nnever_regions = ["x"]',
            "relay.never_regions forbids it",
            "take it out of",
        ),
        ("[routes]\nport = 1\n[routes]\nport = 2", "('routes',) twice", "the file has [routes] further up"),
        (
            "[routes]\nport = 1\nport = 2",
            "not TOML: Cannot overwrite a value",
            "take one of the two lines out",
        ),
        ('[routes]\naccept = "all"', 'routes.accept = "all"', '["all"]'),
        (
            "[agents.phantom]\nhop_hours = 0.001",
            "hop_hours = 0.001 is neither 0 nor at least 1.2",
            "or to 1.2",
        ),
        ("[agents.phantom]\ncover_bytes_per_second = 50", "= 50 is neither 0 nor at least 1000", "to 0, or"),
        ("log = 3", "log = 3 is not a section", "[log]"),
        ('[log]\nlevel = "loud"', 'log.level = "loud"', '"debug"'),
    ],
)
def test_an_error_names_key_value_and_fix(text: str, key_and_value: str, fix: str) -> None:
    # a bare key must stand before the first section
    whole = f"{text}\n{BASE}" if not text.startswith("[") else f"{BASE}{text}\n"
    with pytest.raises(ConfigError) as caught:
        parse(whole)
    assert key_and_value in str(caught.value)
    assert fix in caught.value.fix
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "node.name is missing"),
        ('[node]\nname = "alpha"', "node.mesh is missing"),
        ('[node]\nname = "Alpha"\nmesh = "pm"', 'node.name = "Alpha"'),
        ('[node]\nname = ""\nmesh = "pm"', 'node.name = ""'),
        (BASE + 'endpoints = ["a:b:c"]', 'node.endpoints: "a:b:c"'),
        (BASE + 'endpoints = "one"', 'node.endpoints = "one"'),
        (BASE + "endpoints = [" + '"a",' * 9 + "]", "node.endpoints"),
        ("[node", "not TOML"),
        ("a = " + "[" * 50_000, "not TOML"),
        ("a = " + "9" * 5_000, "not TOML"),
        (BASE + BASE, "not TOML"),
    ],
)
def test_other_errors_say_what(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("region", ["7", '"EU"', '"-eu"', f'"{"a" * 33}"', '["eu"]'])
def test_a_region_that_is_no_label_is_refused_with_its_fix(region: str) -> None:
    with pytest.raises(ConfigError, match=r"node\.region = ") as caught:
        parse(f"{BASE}region = {region}\n")
    assert "up to 32 characters of a-z" in caught.value.fix


def test_a_file_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pm.toml"
    for content in (None, b"\xff\xfe", b"[control]\nport = 0"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=str(path)):
            load(path)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load(tmp_path)
    path.write_text(BASE)
    assert load(path) == parse(BASE)


def test_a_pasted_token_does_not_show() -> None:
    token = "pm1_" + "Zm9vYmFy" * 10
    for text in (
        BASE.replace("alpha", token),
        BASE + f'[api]\nlisten = "{token}"',
        BASE + f'[log]\ntoken = "{token}"',
        BASE + f'[log]\n{token} = "x"',
        BASE + f'endpoints = ["{token}"]',
    ):
        with pytest.raises(ConfigError) as caught:
            parse(text)
        assert "Zm9v" not in str(caught.value) + caught.value.fix
        assert "pm1_***" in str(caught.value)
    assert starred(f"a {token}, pmt_abc-_1.") == "a pm1_***, pmt_***."
    odd = msgspec.structs.replace(parse(BASE), node=NodeSection("alpha", "pm", (token,)))
    assert redacted(odd)["node"]["endpoints"] == ["pm1_***"]


def test_redacted_is_the_whole_configuration() -> None:
    assert redacted(parse(BASE)) == msgspec.json.decode(msgspec.json.encode(parse(BASE)))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("192.0.2.1:5", ("192.0.2.1", 5)),
        ("[2001:DB8:0::1]:5", ("2001:db8::1", 5)),
        ("vpn.example.net:65535", ("vpn.example.net", 65535)),
        ("host", ("host", 51800)),
        ("[::1]", ("::1", 51800)),
    ],
)
def test_endpoints(text: str, parts: tuple[str, int]) -> None:
    assert parse_endpoint(text, 51800) == parts
    assert parse_endpoint(format_endpoint(*parts)) == parts


@pytest.mark.parametrize(
    "text",
    ["", ":1", "h:", "h:0", "h:65536", "h:-1", "h:1x", "h:١", "::1:5", "[::1:5", "[::1]5", "[x]:5", "1.2.3:5",
     "1.2.3.256:5", "a..b:5", "-a:5", "a b:5", "h" * 256 + ":1", "[fe80::1%eth0\n]:5", "h:1\n"],
)  # fmt: skip
def test_bad_endpoints(text: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(text)
    with pytest.raises(ValueError):
        parse_endpoint(text or "h:", 51800) if text != "h:" else parse_endpoint(text, 51800)


@pytest.mark.parametrize(
    ("key", "endpoint", "said"),
    [
        ("node.endpoints", "169.254.169.254", "link-local"),
        ("node.endpoints", "[ff02::1]:51800", "multicast"),
        ("node.endpoints", "0.0.0.0", "address of no host"),
        ("node.endpoints", "[::ffff:224.0.0.1]:51800", "multicast"),
        ("gossip.seeds", "255.255.255.255", "reserved"),
        ("gossip.seeds", "[fe80::1]:51800", "link-local"),
    ],
)
def test_an_endpoint_that_no_other_machine_reaches_is_refused(key: str, endpoint: str, said: str) -> None:
    section, name = key.split(".")
    lines = {"node": ['name = "a"', 'mesh = "m"'], "gossip": []}
    lines[section].append(f'{name} = ["192.0.2.1", "{endpoint}"]')
    text = "\n".join(f"[{part}]\n" + "\n".join(keys) for part, keys in lines.items())
    with pytest.raises(ConfigError, match=rf"{key}: .*{said}") as caught:
        parse(text)
    assert caught.value.fix


def test_loopback_endpoints_are_for_meshes_within_one_machine() -> None:
    def node(endpoints: str) -> str:
        return f'[node]\nname = "a"\nmesh = "m"\nendpoints = [{endpoints}]'

    assert parse(node('"127.0.0.1:1", "[::1]:1"')).node.endpoints
    with pytest.raises(ConfigError, match="loopback"):
        parse(node('"192.0.2.1", "127.0.0.1"'))


@pytest.mark.parametrize("endpoint", ["100.64.0.9", "[fd5a:1::9]:51800", "[::ffff:100.64.0.9]:1"])
def test_an_endpoint_in_the_overlay_is_refused_by_whoever_knows_it(endpoint: str) -> None:
    networks = (IPv4Network("100.64.0.0/10"), IPv6Network("fd5a:1::/48"))
    base = parse('[node]\nname = "a"\nmesh = "m"\nendpoints = ["192.0.2.1", "vpn.example"]')
    refuse_overlay(base, networks)
    seeds = msgspec.structs.replace(base, gossip=GossipSection(seeds=(endpoint,)))
    own = msgspec.structs.replace(base, node=NodeSection(name="a", mesh="m", endpoints=(endpoint,)))
    for config, key in ((own, "node.endpoints"), (seeds, "gossip.seeds")):
        with pytest.raises(ConfigError, match=rf"{key}: .*overlay") as caught:
            refuse_overlay(config, networks)
        assert caught.value.fix


def test_a_site_lies_not_in_the_overlay_and_its_probe_in_the_site() -> None:
    text = (
        '[node]\nname = "a"\nmesh = "m"\n[routes]\nadvertise = ["10.77.1.0/24"]\n'
        'sites = { "10.77.1.0/24" = "100.64.1.0/24" }\nprobe = { "10.77.1.0/24" = "100.64.1.9" }'
    )
    config = parse(text)
    refuse_overlay(config, [IPv4Network("10.99.0.0/16")])
    with pytest.raises(ConfigError, match="overlaps the overlay"):
        refuse_overlay(config, [IPv4Network("100.64.0.0/10")])


@pytest.mark.parametrize(
    ("key", "prefix", "said"),
    [
        ("advertise", "100.64.0.0/12", "overlaps the overlay 100.64.0.0/10"),
        ("advertise", "100.0.0.0/8", "overlaps the overlay 100.64.0.0/10"),
        ("advertise", "fd5a:1:0:7::/64", "overlaps the overlay fd5a:1::/48"),
        ("accept", "100.96.0.0/16", "overlay addresses alone"),
        ("accept", "fd5a:1::/48", "overlay addresses alone"),
    ],
)
def test_a_route_into_the_overlay_is_refused_by_whoever_knows_it(key: str, prefix: str, said: str) -> None:
    networks = (IPv4Network("100.64.0.0/10"), IPv6Network("fd5a:1::/48"))
    for fine in ('["all"]', '["100.0.0.0/8", "10.1.0.0/16"]'):
        refuse_overlay(parse(f"{BASE}[routes]\naccept = {fine}"), networks)
    with pytest.raises(ConfigError, match=f"routes.{key}: .*{said}") as caught:
        refuse_overlay(parse(f'{BASE}[routes]\n{key} = ["10.1.0.0/16", "{prefix}"]'), networks)
    assert caught.value.fix.startswith("take it out")
