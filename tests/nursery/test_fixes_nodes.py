# SPDX-License-Identifier: GPL-3.0-or-later
"""As tests/cli/test_fixes.py, for errors that take a running node: doing what the fix says mends it.

The nodes run on the loopback device, over a model of WireGuard.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import time

import pytest
import trio
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from phantommesh.cli import cli
from phantommesh.config.reading import load
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.api.server import serve_api
from phantommesh.nursery.members import enrolment
from phantommesh.nursery.node import Node
from phantommesh.nursery.overlay import taking_down
from phantommesh.state import directory
from phantommesh.state.start import load_node
from phantommesh.trust.certificates import Role
from phantommesh.trust.invites import Invite
from tests.support.fakenode import FakeNode
from tests.support.loopback import (
    free_port,
    invite_in_place,
    join,
    make_authority,
    make_invite,
    serving,
    settings,
    until,
)


def phantommesh(at: Path, *words: str, variables: dict[str, str] | None = None) -> Result:
    """Run a command of the machine in ``at``."""
    options = ["--state-dir", f"{at}/state", "--config", f"{at}/pm.toml", "--socket", f"{at}/api.sock"]
    return CliRunner().invoke(cli, [*options, *words], env=variables)


async def fix_of(work: Callable[[], Awaitable[object]], error: str) -> str:
    """The fix of an error that says this."""
    with pytest.raises(PhantomMeshError, match=error) as caught:
        await work()
    return caught.value.fix


def names(node: Node) -> set[str]:
    return {entry.member.name for entry in node.parts.keeper.roster}


def callable_(node: Node) -> bool:
    return bool(node.parts.caller.callable())


async def test_what_keeps_a_machine_from_joining_is_mended_by_the_fix(tmp_path: Path) -> None:
    state, b, c = make_authority(tmp_path / "a"), tmp_path / "b", tmp_path / "c"
    invite = make_invite(state)
    fix = await fix_of(partial(join, b, invite, "beta"), "no authority could be reached")
    assert "check that the inviting node is running" in fix
    async with serving(tmp_path / "a") as alpha:
        await join(b, invite, "beta")  # the same line: it is not spent
        fix = await fix_of(partial(join, c, invite, "gamma"), "did not accept the invite")
        assert "ask for a new invite" in fix
        await join(c, make_invite(state), "gamma")
        fix = await fix_of(partial(join, c, make_invite(state), "gamma"), "already holds a node's state")
        assert "another --state-dir and another --config" in fix
        # The machine lost its disk: the mesh still has a node of its name.
        shutil.rmtree(c / "state")
        again = make_invite(state)
        fix = await fix_of(partial(join, c, again, "gamma"), "is another configuration")
        assert f"move {c}/pm.toml away" in fix
        (c / "pm.toml").rename(c / "old.toml")
        fix = await fix_of(partial(join, c, again, "gamma"), "has a node named gamma already")
        assert "`phantommesh invite --replace gamma` on an authority" in fix
        (before,) = (e.member for e in alpha.parts.keeper.roster if e.member.name == "gamma")
        with capture_logs():
            after = await join(c, invite_in_place(alpha.parts.state, "gamma"), "gamma")
        assert (after.name, after.ip4) == (before.name, before.ip4)
        assert before.node_id in alpha.parts.state.revocations
        d = tmp_path / "d"
        named = make_invite(state, name="delta")
        fix = await fix_of(partial(join, d, named, "epsilon"), "for a node named delta")
        assert fix == "join with --name delta"
        await join(d, named, "delta")
        e, late = tmp_path / "e", make_invite(state, ttl=-5)
        assert "ask for a new invite" in await fix_of(partial(join, e, late, "epsilon"), "expired")
        e.mkdir(exist_ok=True)

        def by(*endpoints: str) -> Callable[[], Awaitable[object]]:
            return partial(
                enrolment.join, e / "state", e / "pm.toml", last.encode(), name="epsilon",
                endpoints=endpoints, config=settings(free_port()),
            )  # fmt: skip

        last = make_invite(state)
        assert "--endpoint 127.0.0.1" in str(await error_of(by("100.99.98.97")))
        await by("127.0.0.1")()
        assert names(alpha) == {"alpha", "beta", "gamma", "delta", "epsilon"}


async def error_of(work: Callable[[], Awaitable[object]]) -> PhantomMeshError:
    with pytest.raises(PhantomMeshError) as caught:
        await work()
    return caught.value


async def test_a_line_that_is_not_an_invite_or_of_another_mesh_is_mended(tmp_path: Path) -> None:
    state, b = make_authority(tmp_path / "a"), tmp_path / "b"
    b.mkdir()
    line = make_invite(state).encode()
    endpoint = ("--name", "beta", "--endpoint", f"127.0.0.1:{free_port()}")
    variables = {"PHANTOMMESH_CONTROL_PORT": str(free_port()), "PHANTOMMESH_DNS_MODE": "off"}

    def say(*words: str, **more: str) -> list[str]:
        done = phantommesh(b, "join", *endpoint, *words, variables={**variables, **more})
        assert done.exit_code in (0, 1), done.output
        return done.stderr.splitlines() if done.exit_code else []

    async with serving(tmp_path / "a"):
        for broken in (line[:-9], line[4:]):
            error, fix = await trio.to_thread.run_sync(say, broken)
            assert fix == "fix: paste the whole line that `phantommesh invite` printed"
            assert line[20:60] not in error
        error, fix = await trio.to_thread.run_sync(partial(say, line, PHANTOMMESH_NODE_MESH="other"))
        assert "is other, and the invite is of mesh pm" in error and "unset PHANTOMMESH_NODE_MESH" in fix
        assert await trio.to_thread.run_sync(say, line) == []
    assert load(b / "pm.toml", {}).control.port == int(variables["PHANTOMMESH_CONTROL_PORT"])


async def test_a_revoked_node_comes_back_by_either_way_that_its_status_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def clear(*_: object) -> taking_down.Down:
        """A host without anything of ours. The real one looks at, and changes, this machine."""
        return taking_down.Down(
            mesh=None, node="not-running", interfaces=[], prefixes=[], tables=[], marks=False, running=[]
        )

    monkeypatch.setattr(taking_down, "_clear", clear)
    state, b = make_authority(tmp_path / "a"), tmp_path / "b"
    async with serving(tmp_path / "a") as alpha:
        await join(b, make_invite(state), "beta")
        with capture_logs():
            async with serving(b) as beta:
                await until(partial(callable_, beta))
                await alpha.reporter.revoke("beta", force=False, dry_run=False)
                await until(lambda: beta.parts.keeper.revoked is not None)
                [fix] = [f.fix for f in beta.reporter.faults() if f.code == "node-revoked"]
                assert "`phantommesh revoke beta --undo` where the mesh's root key is" in fix
                await alpha.reporter.revoke("beta", force=False, dry_run=False, undo=True)
                await until(lambda: beta.parts.keeper.revoked is None)
                await alpha.reporter.revoke("beta", force=False, dry_run=False)
        assert "`phantommesh leave` here" in fix and "`phantommesh join` with a new invite" in fix
        left = await trio.to_thread.run_sync(phantommesh, b, "leave")
        assert left.exit_code == 0, left.output
        again = await join(b, make_invite(state), "beta")
        await until(lambda: any(e.member.node_id == again.node_id for e in alpha.parts.keeper.roster))


async def test_the_root_key_works_on_another_authority_once_it_lies_there(tmp_path: Path) -> None:
    state, b, c = make_authority(tmp_path / "a"), tmp_path / "b", tmp_path / "c"
    made = state.invites.create(
        root_hash=state.mesh.root_hash, authority=state.identity.node_id, mesh="pm",
        endpoints=state.roster.get(state.identity.node_id).record.control,  # type: ignore[union-attr]
        expires=int(time()) + 60, role=Role.AUTHORITY,
    )  # fmt: skip
    async with serving(tmp_path / "a"):
        await join(b, made, "beta")
    verb = ("invite", "--role", "authority")
    failed = phantommesh(b, *verb)
    assert failed.exit_code == 1 and "put its root.key back" in failed.stderr
    shutil.copyfile(tmp_path / "a" / "state" / directory.ROOT_KEY, b / "state" / directory.ROOT_KEY)
    (b / "state" / directory.ROOT_KEY).chmod(0o644)  # as scp leaves it
    failed = phantommesh(b, *verb)
    assert failed.exit_code == 1 and f"chmod 600 {b}/state/root.key" in failed.stderr
    (b / "state" / directory.ROOT_KEY).chmod(0o600)
    line = phantommesh(b, *verb)
    assert line.exit_code == 0, line.output
    async with serving(b):
        await join(c, Invite.parse_untrusted(line.stdout), "gamma")
    gamma = load_node(c / "state", time())
    assert gamma.authority is not None and gamma.member_at_issue().role is Role.AUTHORITY


async def test_what_a_member_may_not_do_is_done_where_the_fix_says(tmp_path: Path) -> None:
    state, b, c = make_authority(tmp_path / "a"), tmp_path / "b", tmp_path / "c"
    async with serving(tmp_path / "a") as alpha:
        for at, name in ((b, "beta"), (c, "gamma")):
            await join(at, make_invite(state), name)
    with capture_logs():
        async with serving(b) as beta:
            fix = await fix_of(
                partial(beta.reporter.rename, "other"), "no authority gives this node another name"
            )
            assert "start an authority" in fix
            async with serving(tmp_path / "a") as alpha:
                await until(partial(callable_, beta))
                assert (await beta.reporter.rename("other")).name == "other"
                revoke = partial(beta.reporter.revoke, force=False, dry_run=False)
                await until(lambda: "gamma" in names(beta))
                assert "ask one: alpha" in await fix_of(partial(revoke, "gamma"), "is not an authority")
                revoke = partial(alpha.reporter.revoke, force=False, dry_run=False)
                fix = await fix_of(partial(revoke, "gama"), "gama")
                assert "see `phantommesh peers`" in fix
                assert "gamma" in {peer.name for peer in alpha.reporter.peers()}
                assert (await revoke("gamma")).name == "gamma"
                fix = await fix_of(partial(revoke, "alpha"), "the authority that it is run on")
                assert "--force" in fix
                planned = await alpha.reporter.revoke("alpha", force=True, dry_run=True)
                assert planned.dry_run and planned.name == "alpha"


async def test_what_a_command_asks_of_a_node_is_mended_by_the_fix(tmp_path: Path) -> None:
    node, at = FakeNode(peers=3), tmp_path

    async def ask(*words: str) -> Result:
        return await trio.to_thread.run_sync(partial(phantommesh, at, *words))

    nothing = await ask("status")
    assert nothing.exit_code == 3 and "phantommesh init" in nothing.stderr and "join" in nothing.stderr
    (at / "pm.toml").touch()
    down = await ask("status")
    assert down.exit_code == 3 and "fix: start it with `phantommesh " in down.stderr
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_api, node, socket_path=at / "api.sock", group="no-such-group"))
        assert (await ask("status")).exit_code == 0
        unknown = await ask("rotate", "nobody")
        assert unknown.exit_code == 1 and "fix: see `phantommesh peers`" in unknown.stderr
        assert "pm-2" in (await ask("peers")).stdout and (await ask("rotate", "pm-2")).exit_code == 0
        node.twins = True
        twins = await ask("rotate", "pm-1")
        assert twins.exit_code == 1 and "fix: give one of id001, id002, id003" in twins.stderr
        assert (await ask("rotate", "id002")).exit_code == 0
        node.twins, node.result = False, "started"
        silent = await ask("rotate", "pm-3")
        assert silent.exit_code == 1 and "see that those nodes run" in silent.stderr
        node.result = "rotated"  # it runs
        assert (await ask("rotate", "pm-3")).exit_code == 0
        nothing = await ask("proofs", "--peer", "nobody")
        assert nothing.exit_code == 1 and "see `phantommesh proofs`" in nothing.stderr
        assert (await ask("proofs", "--peer", "pm-1")).exit_code == 0
        nursery.cancel_scope.cancel()
