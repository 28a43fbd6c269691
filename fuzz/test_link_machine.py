# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes, seven interfaces, and everything that can happen to them, in any order.

The invariants after each step: no PSK is all zero; no end calls a link fresh that it has not agreed anew for
180 s, nor one whose PSKs its kernel has not held for 10 s; state is bounded. And whenever the network has
been whole for 60 s with both nodes up, both kernels hold the same PSKs and both ends say fresh.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fuzz.conftest import TIMES
from phantommesh.dimensions import DIMENSIONS
from phantommesh.link.admission import SHARES, Standing
from phantommesh.link.psk import INSTALL_GRACE, PskPhase
from phantommesh.link.wire import Kind
from tests.simulation.pair import Network, Node, Simulation

which = st.integers(0, 1)
#: Where a node may crash: sending, asking for a signature, receiving, before and after installing.
EVENTS = ["Send", "Sign", "Install", "Opened", "signed", "install", "installed", "datagram"]


class LinkMachine(RuleBasedStateMachine):
    """The rules."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation()
        self.kernel_wrong: list[float | None] = [None, None]

    @initialize(seed=st.integers(0, 1000), offset=st.sampled_from([0.0, -900.0, 1e9]))
    def begin(self, seed: int, offset: float) -> None:
        self.sim = Simulation(seed=seed, offsets=(offset, 0.0))
        self.sim.run(0.0)

    # --- time ---

    @rule(seconds=st.sampled_from([0.002, 0.01, 0.03, 0.2, 1.0, 5.0, 8.0]))
    def a_moment_passes(self, seconds: float) -> None:
        self._run(seconds)

    @rule(seconds=st.sampled_from([30.0, 95.0, 125.0, 185.0, 310.0]))
    def time_passes(self, seconds: float) -> None:
        self._run(seconds)

    @rule(index=which, seconds=st.sampled_from([0.5, 4.0, 12.5, 100.0, 181.0, 301.0, 5000.0]))
    def a_clock_jumps(self, index: int, seconds: float) -> None:
        """A machine was asleep: its clock went on and it did not."""
        self.sim.nodes[index].offset += seconds
        self._run(0.0)

    # --- the network ---

    @rule(
        loss=st.sampled_from([0.0, 0.3, 0.7]),
        duplicate=st.sampled_from([0.0, 0.5]),
        delay=st.sampled_from([0.005, 0.1, 0.6]),
    )
    def the_network_is(self, loss: float, duplicate: float, delay: float) -> None:
        self.sim.network = Network(loss=loss, duplicate=duplicate, delay=(0.001, delay))

    @rule(kinds=st.sets(st.sampled_from(Kind), min_size=1, max_size=3))
    def some_kinds_are_lost(self, kinds: set[Kind]) -> None:
        self.sim.network.block = set(kinds)

    @rule()
    def everything_is_lost(self) -> None:
        self.sim.network.block = set(Kind)

    # --- the nodes ---

    @rule(index=which)
    def crash(self, index: int) -> None:
        self.sim.nodes[index].crash()

    @rule(index=which, event=st.sampled_from(EVENTS), skip=st.integers(0, 6))
    def crash_at(self, index: int, event: str, skip: int) -> None:
        left = skip

        def listen(name: str, node: Node) -> None:
            nonlocal left
            if name == event and node is self.sim.nodes[index]:
                left -= 1
                if left < 0:
                    node.crash()
                    self.sim.on_event = None

        self.sim.on_event = listen

    @precondition(lambda self: any(n.links is None for n in self.sim.nodes))
    @rule()
    def restart(self) -> None:
        for node in self.sim.nodes:
            if node.links is None:
                self.sim.restart(node)

    @rule(index=which)
    def rotate(self, index: int) -> None:
        node = self.sim.nodes[index]
        if node.links is not None:
            node.links.rotate(None, node.clock)
            self.sim.carry_out(node, node.links.tick(node.clock))

    @rule(index=which, dimension=st.integers(0, DIMENSIONS - 1))
    def replaces_a_wireguard_key(self, index: int, dimension: int) -> None:
        self.sim.nodes[index].replace_key(dimension)

    @rule(index=which)
    def hears_of_the_others_keys(self, index: int) -> None:
        self.sim.tell(self.sim.nodes[index], self.sim.nodes[1 - index])

    @rule(index=which, works=st.booleans())
    def installs(self, index: int, works: bool) -> None:
        self.sim.nodes[index].install_works = works

    @rule(index=which, dimension=st.integers(0, DIMENSIONS - 1), value=st.binary(min_size=32, max_size=32))
    def rival_sets_a_psk(self, index: int, dimension: int, value: bytes) -> None:
        node, other = self.sim.nodes[index], self.sim.nodes[1 - index]
        if value != bytes(32):
            node.kernel.psks[other.identity.node_id][dimension] = value

    # --- what must hold ---

    @rule()
    def whole_again(self) -> None:
        """A minute without faults is enough, whatever came before."""
        self.sim.network, self.sim.on_event = Network(), None
        for node in self.sim.nodes:
            node.install_works = True
            if node.links is None:
                self.sim.restart(node)
        self.hears_of_the_others_keys(0)
        self.hears_of_the_others_keys(1)
        self._run(60.0)
        assert self.sim.agree(), (self.sim.state(0, 1), self.sim.state(1, 0))
        assert self.sim.state(0, 1).phase is self.sim.state(1, 0).phase is PskPhase.FRESH
        for node in self.sim.nodes:
            for alarm in node.alarms:
                assert alarm.kind in {"stale", "random", "failed", "chain-reset", "chain-forked"}

    def _run(self, seconds: float) -> None:
        """Run a second at a time: what must hold, must hold in between too."""
        end = self.sim.now + seconds
        while True:
            self.sim.run(min(1.0, end - self.sim.now))
            self._watch()
            if self.sim.now >= end:
                return

    def _watch(self) -> None:
        for index, node in enumerate(self.sim.nodes):
            other = self.sim.nodes[1 - index].identity.node_id
            psks = node.kernel.psks[other]
            assert bytes(32) not in psks
            if node.links is None:
                self.kernel_wrong[index] = None
                continue
            state = self.sim.state(index, 1 - index)
            right = psks == [psk.reveal() for psk in node.links.psks(other)]
            if right or self.kernel_wrong[index] is None:
                self.kernel_wrong[index] = None if right else node.clock
            if state.phase is PskPhase.FRESH:
                assert state.age is not None and state.age < 180.0
                since = self.kernel_wrong[index]
                assert since is None or node.clock - since <= INSTALL_GRACE + 2.0
            if state.age is not None and state.age >= 301.0 and state.phase is not PskPhase.UNSURE:
                assert state.phase is PskPhase.RANDOM
                assert [a.kind for a in node.alarms if a.kind in ("stale", "random")][-1] == "random"
            held, half_open = node.links.held
            places = SHARES[Standing.PROVEN].of_name + SHARES[Standing.KNOWN].of_name
            assert held <= 64 * 1024 and half_open <= places

    @invariant()
    def holds(self) -> None:
        self._watch()

    def teardown(self) -> None:
        self.whole_again()


TestLinkMachine = LinkMachine.TestCase
TestLinkMachine.settings = settings(max_examples=60 * max(TIMES, 1), stateful_step_count=25)
