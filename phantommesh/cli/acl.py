# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs on access rules: `acl show`, `acl check`, `acl set-policy`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import EXIT_FAULTY, CliError, Options, client_of, json_option
from phantommesh.cli.output import emit, field, say
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.aclview import AclCheckView, AclRuleView, AclView


@click.group()
def acl() -> None:
    """What may reach what: the access rules of this node.

    They stand as [[acl.rule]] in the configuration. The first that matches decides; acl.default is for the
    rest. Example: phantommesh acl check laptop db 5432
    """


@acl.command()
@json_option
@click.pass_obj
def show(options: Options) -> None:
    """Show the rules in order, and how many packets each has decided on.

    Answers to what this node began are not counted. Example: phantommesh acl show
    """
    found = client_of(options).acl()
    if options.json:
        emit(found)
        return
    if not found.held:
        say("warning: the kernel has other rules than these: see `phantommesh status`", err=True)
    field("default", found.default)
    field("denied", "not known" if found.denied is None else f"{found.denied} packets")
    if (policy := found.policy) is not None:
        field("policy", f"the mesh's, number {policy.number}, signed by {_name(found, policy.signed_by)}")
    if not found.filtered:
        field("filter", "none: no rule denies anything")
    say("")
    table(
        ("NAME", "ACTION", "FROM", "TO", "SERVICE", "PACKETS", "SET BY"),
        [
            (
                one.name, one.action, ", ".join(one.source), ", ".join(one.target), _service(one),
                one.packets, "built in" if one.builtin else one.whose,
            )
            for one in found.rules
        ],
        ("NAME", "ACTION", "FROM", "TO", "SERVICE", "PACKETS"),
    )  # fmt: skip
    for one in found.rules:
        if one.nobody:
            say(f"note: the rule {one.name} names {', '.join(one.nobody)}, and no member is that", err=True)


@acl.command("set-policy")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Run the policy's tests, and sign nothing.")
@json_option
@click.pass_obj
def set_policy(options: Options, file: Path, dry_run: bool) -> None:
    """Sign the access policy in FILE for the whole mesh; on an authority.

    FILE is TOML with default, [[rule]] and [[test]], and has to pass its tests. A node's own rules only deny
    more. Example: phantommesh acl set-policy policy.toml
    """
    try:
        text = file.read_text()
    except UnicodeDecodeError:
        raise CliError(f"{file} is no text", fix="give a policy as TOML") from None
    done = client_of(options).set_policy(text, dry_run=dry_run, idempotency_key=str(uuid.uuid4()))
    if options.json:
        emit(done)
        return
    said = "the policy would be signed" if done.dry_run else f"policy {done.number} is signed"
    say(f"{said}: {done.rules} rule{_s(done.rules)}, {done.tests} test{_s(done.tests)} passed")
    if not done.tests:
        say("note: no [[test]] in it says what must stay allowed or denied", err=True)


def _name(view: AclView, node_id: str) -> str:
    return next((one.name for one in view.members if one.node_id == node_id), node_id)


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _service(rule: AclRuleView) -> str:
    ports = ", ".join(rule.ports)
    if not ports:
        return rule.protocol or "any"
    return f"{rule.protocol} {ports}"


@acl.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.argument("port", metavar="PORT[/udp]")
@click.option("-6", "ipv6", is_flag=True, help="Ask about the IPv6 addresses of members.")
@click.option("--exit-code", is_flag=True, help="Exit with 4 where it is denied.")
@json_option
@click.pass_context
def check(ctx: click.Context, source: str, target: str, port: str, ipv6: bool, exit_code: bool) -> None:
    """Say whether FROM may reach TO at PORT, and by which rule.

    FROM and TO are names, node ids or addresses. PORT is one of TCP, or 53/udp, or icmp.
    Example: phantommesh acl check laptop db 5432
    """
    options: Options = ctx.obj
    found = client_of(options).acl_check(source, target, port, family=6 if ipv6 else 4)
    if options.json:
        emit(found)
    else:
        _say(found)
    if exit_code and not found.allowed:
        ctx.exit(EXIT_FAULTY)


def _say(found: AclCheckView) -> None:
    service = found.protocol if found.port is None else f"{found.port}/{found.protocol}"
    verdict = "allowed" if found.allowed else "denied"
    say(f"{verdict}: {found.source} to {found.target}, {service}: {found.why}")
    field("rule", found.rule)
    field("from", found.source_address)
    field("to", found.target_address)
    if not found.here:
        say(f"note: {found.target} decides by its own rules; this is what the rules here say", err=True)
