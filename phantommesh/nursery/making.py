# SPDX-License-Identifier: GPL-3.0-or-later
"""How the parts of a node are made, each after the parts that it needs. Nothing runs yet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from random import Random
from time import monotonic, time

import structlog
import trio

from phantommesh import __version__
from phantommesh.agents.everyone import make_council, phase_of
from phantommesh.config.sections import Config
from phantommesh.control.sessions import Sessions
from phantommesh.dimensions import all_names, interface_names, master_name
from phantommesh.endpoint import Address
from phantommesh.link.copies import Copies
from phantommesh.link.machine import Links
from phantommesh.management.events import EventLog
from phantommesh.management.metrics import Metrics
from phantommesh.membership.presets import PRESETS
from phantommesh.node.access import situation
from phantommesh.node.carrying import Carrier
from phantommesh.node.draining import Work
from phantommesh.node.peers import Peers, generation_of
from phantommesh.node.policy import policy
from phantommesh.node.regions import nearness
from phantommesh.node.routes import really_there
from phantommesh.node.wiring import Wiring
from phantommesh.nursery.dataplane.access import Access
from phantommesh.nursery.dataplane.banning import Banning
from phantommesh.nursery.dataplane.beyond import BeyondMesh
from phantommesh.nursery.dataplane.calm import Calm
from phantommesh.nursery.dataplane.cgroups import CgroupMarks
from phantommesh.nursery.dataplane.covering import CoverTraffic, Place
from phantommesh.nursery.dataplane.draining import Drainer
from phantommesh.nursery.dataplane.flows import FlowCounts
from phantommesh.nursery.dataplane.framed import Framed
from phantommesh.nursery.dataplane.gateway import GatewayDriver
from phantommesh.nursery.dataplane.paths import PathDriver
from phantommesh.nursery.dataplane.reconciler import Reconciler
from phantommesh.nursery.dataplane.rekeying import KeyReplacer
from phantommesh.nursery.dataplane.relays import make_bridging, make_relays
from phantommesh.nursery.dataplane.routetalk import RouteTalk
from phantommesh.nursery.dataplane.scattering import Scattering
from phantommesh.nursery.dataplane.shielding import Shielding
from phantommesh.nursery.dataplane.splitting import Splitter
from phantommesh.nursery.dataplane.tuning import Tuning
from phantommesh.nursery.host import traffic
from phantommesh.nursery.host.backend import Backend
from phantommesh.nursery.host.changes import Changes
from phantommesh.nursery.host.users import numbers_of
from phantommesh.nursery.host.vitals import VitalSigns
from phantommesh.nursery.keeping.audit import Audit
from phantommesh.nursery.keeping.configfile import ConfigFile
from phantommesh.nursery.keeping.decisions import Decisions
from phantommesh.nursery.keeping.groupkeys import GroupKeys
from phantommesh.nursery.keeping.memory import MemoryKeeper
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.keeping.tokens import TokenKeeper
from phantommesh.nursery.members.attending import Attending
from phantommesh.nursery.members.authority import AuthorityDesk
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.carrying import Carrying
from phantommesh.nursery.members.checking import TcpChecks
from phantommesh.nursery.members.federating import Federating
from phantommesh.nursery.members.finding import Finding
from phantommesh.nursery.members.gossip import GossipDriver
from phantommesh.nursery.members.hinting import Hinting, hinter_of, named_by
from phantommesh.nursery.members.lifetimes import make_lifetimes
from phantommesh.nursery.members.linking import make_enrolment, make_links
from phantommesh.nursery.members.links import LinkDriver
from phantommesh.nursery.members.mapping import Mapping
from phantommesh.nursery.members.own import OwnRecord
from phantommesh.nursery.members.places import Places
from phantommesh.nursery.members.policing import Policing
from phantommesh.nursery.members.proving import Proving
from phantommesh.nursery.members.punching import PunchDriver
from phantommesh.nursery.members.runs import RunWatch
from phantommesh.nursery.members.seeing import seen_at, sight
from phantommesh.nursery.members.serving import ControlServer
from phantommesh.nursery.members.succession import Succession
from phantommesh.nursery.members.surveying import make_surveying
from phantommesh.nursery.members.taking import Taking
from phantommesh.nursery.names.naming import Naming
from phantommesh.nursery.names.resolve import Resolver
from phantommesh.nursery.news import (
    CarriersChanged,
    CopyFound,
    CopyGone,
    EpochOver,
    Installed,
    KeysReplaced,
    PeersChanged,
    ReadBack,
    Rerouted,
    RoutesChanged,
    SecretsChanged,
    Tell,
    WayChanged,
)
from phantommesh.nursery.overlay.guarding import make_guarding
from phantommesh.nursery.overlay.holding import Overlay
from phantommesh.nursery.parts import Parts, Settings
from phantommesh.nursery.sockets.furtherports import FurtherPorts
from phantommesh.nursery.sockets.lent import Lent
from phantommesh.nursery.sockets.tcp import TcpPort
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.nursery.supervisor import Services
from phantommesh.paths import probe
from phantommesh.paths.fitting import Fitting
from phantommesh.paths.machine import Paths
from phantommesh.proofs.shelf import Shelf
from phantommesh.records.runs import NOBODY, Run
from phantommesh.routable import EXITS
from phantommesh.routing.constraints import constraints_of
from phantommesh.routing.failover import Failover
from phantommesh.routing.ways import Ways
from phantommesh.scatter.cover import DISCARD
from phantommesh.scatter.intents import Intents, named_users
from phantommesh.state import directory
from phantommesh.state.start import NodeState, keep_generation
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.insisting import Insisting


def make_parts(
    config: Config, state: NodeState, backend: Backend, udp: UdpPort, overlay: Overlay, *,
    generation: int, tell: Tell, above: Run = NOBODY,
) -> Parts:  # fmt: skip
    """Make the parts of a node; nothing runs yet. Each part is made after the parts that it needs.

    ``generation`` is greater than at any start before: `start.next_generation`. ``overlay`` has begun: the
    overlay's range is closed. ``above`` is the run that this process stepped aside for before.
    """
    wireguard, names = config.wireguard, interface_names(config.wireguard.prefix)
    master = master_name(wireguard.prefix)
    metrics = Metrics(version=__version__, clock=monotonic)
    events = EventLog(run=os.urandom(4).hex(), clock=time)
    council = make_council(config.agents, lambda: os.urandom(8).hex(), trio.current_time())
    intents = Intents(config.intent, numbers_of(named_users(config.intent)))
    settings = Settings(config, intents)
    peers_changed = partial(tell, PeersChanged())
    overlay.on_change = partial(tell, Rerouted())
    resolver = Resolver(peers_changed)
    places = Places(config, overlay.routed, resolver.lookup)
    udp.forbids = places.forbids
    keys = GroupKeys(state, partial(tell, SecretsChanged()))
    keeper = RosterKeeper(state, peers_changed)
    own = OwnRecord(config, state, keeper, keys.merge)
    sessions, copies, where, lent = Sessions(), Copies(), partial(_where, keeper, places), Lent()
    caller = Caller(state, keeper, sessions, where, lent)
    attending = Attending(caller)
    desk = AuthorityDesk(state, keeper, keys)
    policing = Policing(state, changed=lambda: access.kick())
    federating = Federating(
        state, keeper, own=lambda: own.member, may=places.may, changed=peers_changed,
        guarded=lambda: guarding.others,
    )  # fmt: skip
    enrolment = make_enrolment(state, desk, where, federating.secret_of)
    links = make_links(config, state, own, federating.enrolment(enrolment))
    driver = LinkDriver(
        links,
        state.identity,
        udp,
        install=lambda changed: tell(Installed(tuple(changed))),
        opened=tell,
        alarmed=tell,
    )
    ways = Ways()
    peers = Peers(
        state.identity.node_id, links, wireguard, config.scatter, intents=intents,
        where=places.of, uplinks=places.uplinks, ways=ways, keepalive=lambda host: lifetimes.keepalive(host),
    )  # fmt: skip
    finding = Finding(
        config, all_names(wireguard.prefix), caller,
        refresh=places.refresh, reach=lambda: places.reach, home=places.live_at,
        authorities=lambda: {entry.member.node_id for entry in peers.authorities},
        publish=own.publish, woken=lambda: look(), overslept=lambda: overslept(), rehomed=lambda: rouse(),
    )  # fmt: skip
    mapping = Mapping(
        on=finding.on and config.nat.portmap == "auto",
        ports=lambda: (config.control.port, own.ports),
        changed=lambda: finding.mapped(mapping.mapped()),
    )
    own.found = lambda: finding.found
    places.public = finding.public

    def look() -> None:
        reconciler.hear()
        scattering.hear()
        beyond.kick()

    def overslept() -> None:
        reconciler.overslept()
        driver.anew()

    async def rouse() -> None:
        borrower.moved()
        await reconciler.resend()
        paths.rouse()
        gossip.rouse()
        mapping.moved()

    def moved() -> None:
        finding.moved()
        paths.uplinks_changed()
        lending.moved()
        beyond.kick()
        gateway.moved()
        taking.kick()

    changes = Changes((*names, master), look, moved)
    probe_bytes = probe.ON_WIRE if backend.name == "kernel" else probe.INSIDE  # as each device counts them
    over = probe.OVER if backend.name == "kernel" else 0
    calm = Calm(
        wireguard.reconcile_seconds,
        told=lambda: changes.told,
        sent=partial(traffic.sent, frozenset(names)),
        probed=lambda: paths.sent * probe_bytes + paths.sized_bytes + paths.sized * over,
        peers=lambda: len(peers.entries),
        woken=look,
    )
    reconciler = Reconciler(
        backend,
        interval=wireguard.reconcile_seconds,
        on_actual=lambda actual: tell(ReadBack(actual)),
        log=structlog.get_logger("phantommesh.node"),
        forbids=lambda endpoint: places.forbids(endpoint.host) and not framed.owns(endpoint),
        calm=calm,
        insisting=Insisting(ways.proved),
        first=lambda: scattering.confine(),
    )
    reconciler.follow(lambda: peers.devices)
    scattering = Scattering(
        config.scatter,
        device=master,
        names=names,
        kind="wireguard" if backend.name == "kernel" else "tun",
        mtu=wireguard.mtu,
        ipv6=lambda: backend.ipv6,
        me=state.identity.node_id,
        addresses=own.addresses,
        routed=overlay.prefixes,
        interval=wireguard.reconcile_seconds,
        calm=calm,
        fits=lambda: peers.fits,
        closes=lambda: peers.confining,
        beyond=lambda: beyond.sizes(),
        on_epoch=lambda peer, ended: tell(EpochOver(peer, ended)),
    )
    failover = Failover()

    def closed() -> None:
        guarding.kick()
        scattering.kick()

    beyond = BeyondMesh(
        master, names, carried=lambda: failover.carried, fits=lambda: fits_by_node(peers), mtu=wireguard.mtu,
        allows=lambda network: taking.routes.allows(network), changed=closed, ipv6=lambda: backend.ipv6,
        own=really_there(config.routes), gates=EXITS if config.routes.exit else (),
        lan=config.routes.lan, overlay=overlay.networks,
    )  # fmt: skip
    gateway = GatewayDriver(
        config.routes, (master, *names), networks=lambda: overlay.networks, changed=lambda: guarding.kick()
    )
    talk = RouteTalk(
        failover, config.routes.port,
        address=own.ip4, works=gateway.asked, moved=partial(tell, CarriersChanged()),
    )  # fmt: skip
    guarding = make_guarding(
        config, own.addresses, lambda: own.ports, overlay, lambda: peers.fits,
        beyond=lambda: beyond.closed, beside=lambda: beyond.beside,
        carriers=lambda: beyond.carriers(peers.entries), routes=own.routed, around=lambda: gateway.around,
        settings=lambda: gateway.settings, visited=federating.visited, flushed=scattering.kick,
        joined=peers_changed, quarantined=lambda: peers.quarantined,
    )  # fmt: skip
    chance = Random(os.urandom(16))  # noqa: S311  # spreads timers, keys nothing
    measured = Paths(random=chance, interval=config.paths.probe_seconds)

    def refitted() -> None:
        if peers.refit(paths.fitting.fit):
            scattering.kick()
            reconciler.kick()
            beyond.kick()
            if config.guard.forward or own.routed():
                guarding.kick()  # it has the segments to peers whose routes cannot say them

    paths = PathDriver(
        measured,
        scattering,
        port=config.paths.port,
        names=names,
        address=own.ip4,
        fitting=Fitting(measured, random=chance, largest=wireguard.mtu),
        turned=tell,
        refitted=refitted,
        way=ways.chosen,
    )
    gossip = GossipDriver(
        state, keeper, keys, caller, udp,
        generation=generation, params=PRESETS[config.gossip.preset], seeds=partial(_seeds, places, peers),
        where=where, may=places.may, changed=tell, learned=metrics.gossip_convergence_seconds.observe,
        look=reconciler.kick, agree=own.agree, near=nearness(config.node.region, keeper.roster.get),
        further=lambda address: tcp.callable.get(address, ()), federating=federating,
        policing=policing,
    )  # fmt: skip
    gossip.hinted = finding.hinted
    runs = RunWatch(
        state.identity, keeper, copies, gossip.membership, caller, places.of,
        generation=generation, above=above, publish=own.publish, copy_gone=partial(tell, CopyGone()),
        copy_found=partial(tell, CopyFound()),
        begin_anew=gossip.begin_anew, keep_start=partial(keep_generation, state.state),
    )  # fmt: skip
    links.look_elsewhere(gossip.heard_at)
    framed = Framed(
        state.identity.node_id, ways=ways, peers=peers, links=links, paths=paths, caller=caller,
        gossip=gossip, tell=tell, ports=lambda: own.ports, homes=lambda: carrying.homes,
        constraints=constraints_of(config.relay),
    )  # fmt: skip
    gossip.follow(framed.way_of, framed.send, framed.udp_heard)
    proving = Proving(
        state,
        Shelf(state.state.path / directory.PROOFS, config.proofs.keep),
        keeper.roster,
        epoch_seconds=config.scatter.epoch_seconds,
        batch=config.scatter.batch,
        keep=config.proofs.keep,
        call=caller.call,
        read=reconciler.converge,
        scattered=scattering.under_way,
        delay=paths.paths.delay,
        count=metrics.count_proof,
        attend=attending.wanted,
    )
    carrying = Carrying(
        state.identity.node_id,
        Carrier(state.identity.node_id, lambda: peers.standing, trio.current_time()),
        caller, attending, lent,
        deliver=driver.receive, serve=lambda *asked: server.serve(*asked), entries=lambda: peers.entries,
        usable=partial(_usable, sessions, gossip), homes_changed=lambda: _homes_changed(links, driver),
    )  # fmt: skip
    driver.by_way = carrying.send
    links.carry_by(lambda peer: () if peer in peers.visitors else carrying.ways(peer))
    wgports = WireguardPorts(places.forbids)
    lending, borrower = make_relays(
        config, state, keeper, peers, places, caller, links, ways, paths, gossip.membership, own, wgports,
        changed=lambda peer: tell(WayChanged(peer)),
    )  # fmt: skip
    punching = PunchDriver(
        state.identity.node_id, wgports, ways, peers, places, lambda: measured, caller, tell
    )
    taking = Taking(
        config.routes, config.node.region, overlay.networks, (*names, master), lambda: peers.entries,
        state.revocations,
    )  # fmt: skip
    taking.carried = lambda: failover.carried
    taking.changed = partial(tell, RoutesChanged())
    surveying = make_surveying(state, keeper, caller, peers, gossip.membership, measured, ways)
    lifetimes = make_lifetimes(
        config, state, wgports, caller, peers, places, finding, gossip, ways, lambda: measured, names,
        lambda: reconciler.actual, changed=peers_changed,
    )  # fmt: skip
    memory = MemoryKeeper(
        config.memory, state.state, state.identity.node_id, hinter_of(keeper),
        metrics.memory_recall_seconds.observe,
    )  # fmt: skip
    hinting = Hinting(state.identity, memory, caller, on=config.memory.hints, named=named_by(keeper))
    server = ControlServer(
        state, keeper, keys, desk,
        sync_answer=gossip.sync_answer, sync_finish=gossip.sync_finish, proving=proving,
        sight=partial(sight, names, finding, gossip, peers, lambda: reconciler.actual), carry=carrying.answer,
        check=TcpChecks(sessions, partial(seen_at, finding, gossip), places.may).check,
        meet=punching.meet, echo=lifetimes.answer, relay=lending.relay, offered=borrower.offered,
        bridged=framed.prompted, neighbours=surveying.answer, approved=own.routes_approved,
        hinted=hinting.take,
        federal=federating.answer, pacts=federating.federation.pacts.digest, policies=state.policies,
    )  # fmt: skip
    bridging = make_bridging(config, state.identity.node_id, peers, caller, lending)

    def work() -> Work:
        if drainer.on:
            gateway.kick()  # it counts seldom where nobody asks
        return Work(gateway.passed, lending.forwarding, bridging.bridges.joined)

    drainer = Drainer(
        state.identity.node_id, config.node.region, state.state,
        entries=lambda: peers.entries, work=work, publish=own.publish,
    )  # fmt: skip
    drainer.policy, own.condition = policy(config), drainer.condition
    further = FurtherPorts(config.control.tcp_ports, own.publish)
    own.tcp_ports = lambda: further.open
    tcp = TcpPort(
        config.control.port,
        sessions=sessions,
        dispatch=driver.receive,
        serve=server.serve,
        standing=keeper.answer_standing,
        records=gossip.answer_records,
        runs=runs.answer,
        lent=lent,
        carry=framed.take,
        further=further,
        join=bridging.join,
    )
    shielding = Shielding(
        config, own, places, finding, gossip,
        entries=lambda: peers.entries, actual=lambda: reconciler.actual, overlay=lambda: overlay.networks,
    )  # fmt: skip
    banning = Banning(shielding, state.state)
    shielding.offended = banning.offended
    access = Access(
        lambda: situation(
            settings.config.acl, own.member, keeper.roster, time(), (config.paths.port, config.routes.port),
            policing.current(),
        ),
        master, names,
    )  # fmt: skip
    memory.shields = banning.shields
    links.blame_by(banning.blame)
    gossip.gossip.blame = partial(banning.blame, proved=False)
    tcp.blame = banning.blame_stream
    return Parts(
        settings=settings,
        state=state,
        backend=backend,
        udp=udp,
        overlay=overlay,
        names=names,
        started=trio.current_time(),
        metrics=metrics,
        events=events,
        sessions=sessions,
        keys=keys,
        keeper=keeper,
        resolver=resolver,
        places=places,
        own=own,
        caller=caller,
        attending=attending,
        carrying=carrying,
        bridging=bridging,
        naming=Naming(
            config.dns,
            state.mesh,
            link=names[0],
            me=own.me,
            answered=metrics.count_query,
            blame=banning.blame_query,
        ),
        copies=copies,
        federating=federating,
        policing=policing,
        enrolment=enrolment,
        links=links,
        driver=driver,
        wgports=wgports,
        lending=lending,
        drainer=drainer,
        borrower=borrower,
        punching=punching,
        lifetimes=lifetimes,
        ways=ways,
        peers=peers,
        finding=finding,
        mapping=mapping,
        changes=changes,
        calm=calm,
        wiring=Wiring(
            keeper,
            peers,
            links,
            copies,
            sessions,
            partial(generation_of, gossip.membership),
            lives=gossip.lives,
        ),
        reconciler=reconciler,
        scattering=scattering,
        cgroups=CgroupMarks(master, lambda: peers.cgroups),
        splitter=Splitter(
            paths, scattering, asks=lambda: phase_of(settings.config.agents, "velocity") != "paused"
        ),
        flows=FlowCounts(
            master, names, (config.paths.port, DISCARD), lambda: settings.config.agents.stream.most_flows
        ),
        cover=CoverTraffic(
            master,
            names,
            own=own.addresses,
            place=partial(_cover_place, peers, paths),
            budget=lambda: settings.config.agents.phantom.cover_bytes_per_second,
            spent=measured.covered,
            random=Random(os.urandom(16)),  # noqa: S311  # a shape, no key
        ),
        tuning=Tuning(state.state, measured, config.paths.probe_seconds),
        guarding=guarding,
        banning=banning,
        access=access,
        failover=failover,
        beyond=beyond,
        gateway=gateway,
        talk=talk,
        paths=paths,
        framed=framed,
        rekeying=KeyReplacer(wireguard, own, paths, partial(tell, KeysReplaced())),
        desk=desk,
        taking=taking,
        gossip=gossip,
        runs=runs,
        proving=proving,
        succession=Succession(config, state, caller, name=own.name, revoked=keeper.is_revoked),
        surveying=surveying,
        memory=memory,
        hinting=hinting,
        council=council,
        decisions=Decisions(council, metrics, events, state.state.path / directory.DECISIONS),
        audit=Audit(state.state.path / directory.AUDIT, events),
        tokens=TokenKeeper(state.state),
        services=Services(),
        configfile=ConfigFile(state.state.path),
        vitals=VitalSigns(state.state.path, metrics.loop_lag_seconds.observe),
        server=server,
        tcp=tcp,
    )


def fits_by_node(peers: Peers) -> dict[bytes, int]:
    """The largest packet in bytes that each peer may be sent, by node id."""
    sizes = {fit.ip4: fit.mtu for fit in peers.fits}
    return {e.member.node_id: sizes[e.member.ip4] for e in peers.entries if e.member.ip4 in sizes}


def _cover_place(peers: Peers, paths: PathDriver, node_id: bytes) -> Place | None:
    """Where cover for a peer goes; None for a peer that is not there."""
    entry = peers.get(node_id)
    return None if entry is None else (entry.member.ip4, paths.fitting.fit(entry.member.node_id))


def _where(keeper: RosterKeeper, places: Places, node_id: NodeId) -> Sequence[Address]:
    """The addresses of a member's control port, as its record names them and as far as they resolve and may
    be used."""
    entry = keeper.roster.get(node_id)
    return () if entry is None else places.of(entry)


def _usable(sessions: Sessions, gossip: GossipDriver, member: NodeId) -> bool:
    """Whether a member may be called: there is a link, and the member is not known to be gone."""
    return sessions.newest(member) is not None and not gossip.membership.gone(member)


def _homes_changed(links: Links, driver: LinkDriver) -> None:
    """Other members carry for this node than before."""
    links.carriers_changed(trio.current_time())
    driver.wake()


def _seeds(places: Places, peers: Peers) -> Sequence[Address]:
    """The addresses at which to find the mesh again: the configured seeds, and the authorities."""
    return (*places.seeds(), *peers.seeds())
