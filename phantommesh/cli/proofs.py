# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb proofs: what there is, as a file, and whether a file holds."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from click.core import ParameterSource

from phantommesh.cli.base import EXIT_TOO_LITTLE, CliError, Options, client_of, json_option
from phantommesh.cli.lists import PROOFS
from phantommesh.cli.output import emit, say, size
from phantommesh.cli.peering import PEER, node_of
from phantommesh.cli.tables import table
from phantommesh.errors import shortened

if TYPE_CHECKING:
    from phantommesh.management.views import ProofsView
    from phantommesh.proofs.archive import Archive
    from phantommesh.proofs.verdict import Demands
    from phantommesh.proofs.verify import Report

EXPORT_TIMEOUT_S = 60.0
_HASH_CHARACTERS = 64
MOST_ENTROPY = 2.807  # bits; log2(7), rounded down: no plan of seven dimensions has more


@click.command()
@click.option("--verify", type=click.Path(path_type=Path), metavar="FILE", help="Check a file of proofs.")
@click.option("--export", type=click.Path(path_type=Path), metavar="FILE", help="Write the proofs to a file.")
@click.option("--peer", type=PEER, help="Those with one PEER only; not with --verify.")
@click.option("--root", metavar="HASH", help="Its hash, in hex. [default: this machine's mesh's]")
@click.option(
    "--unpinned",
    is_flag=True,
    help="Believe the root in the file: not whose it is, then.",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(0, 100),
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="What may be lost, of each dimension and epoch.",
)
@click.option(
    "--min-coverage",
    type=click.FloatRange(0, 100),
    default=50.0,
    show_default=True,
    metavar="PERCENT",
    help="Of each link's time and bytes, what has to be proved.",
)
@click.option(
    "--min-entropy",
    type=click.FloatRange(0, MOST_ENTROPY),
    default=0.5,
    show_default=True,
    metavar="BITS",
    help="The least of each link's plans, and of its bytes as received.",
)
@json_option
@click.pass_obj
def proofs(
    options: Options,
    verify: Path | None,
    export: Path | None,
    peer: str | None,
    root: str | None,
    unpinned: bool,
    max_loss: float,
    min_coverage: float,
    min_entropy: float,
) -> None:
    """Show the scatter proofs of this node, export them, or check an exported file.

    --verify, to which the last five options belong, needs no running node. It exits 1 where a link fails or
    the file is not genuine, 4 where nothing is wrong but a link shows too little.
    """
    if verify is not None and export is not None:
        raise click.UsageError("give --verify or --export, not both")
    if unpinned and (root is not None or verify is None):
        raise click.UsageError("give --unpinned with --verify, and without --root")
    if verify is None:
        _refuse_without_verify("root", "max_loss", "min_coverage", "min_entropy")
    if verify is not None and peer is not None:
        raise click.UsageError("--peer has no meaning with --verify: a file is checked as a whole")
    if verify is not None:
        from phantommesh.proofs.verdict import Demands

        data = _read(verify)
        demands = Demands(max_loss / 100, min_coverage / 100, min_entropy)
        _verify(options, verify, data, None if unpinned else _pinned(options, root), demands)
    elif export is not None:
        _export(options, export, peer)
    else:
        _list(options, peer)


def _refuse_without_verify(*names: str) -> None:
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"give --{name.replace('_', '-')} with --verify only")


def _list(options: Options, peer: str | None) -> None:
    PROOFS.show(options, _of(PROOFS.fetch(options), _named(options, peer)))


def _named(options: Options, peer: str | None) -> str | None:
    return None if peer is None else node_of(client_of(options), peer)


def _of(views: list[ProofsView], peer: str | None) -> list[ProofsView]:
    from phantommesh.management.finding import find

    if peer is None:
        return views
    return [
        find(
            views,
            peer,
            lambda view: (view.peer, view.node_id),
            unknown="there are no scatter proofs with this peer",
            fix="see `phantommesh proofs` for who there is",
        )
    ]


def _export(options: Options, path: Path, peer: str | None) -> None:
    from urllib.parse import urlencode

    from phantommesh.proofs.archive import Archive
    from phantommesh.state.files import atomic_write
    from phantommesh.trust.certificates import describe_mesh, load_root

    peer = _named(options, peer)
    query = "" if peer is None else "?" + urlencode({"peer": peer})
    views = _of(PROOFS.fetch(options), peer)
    data = client_of(options, EXPORT_TIMEOUT_S).request("GET", f"/v1/proofs/export{query}")
    archive = Archive.decode_untrusted(data)
    left_out = _left_out(views, archive)
    mesh = describe_mesh(load_root(archive.root))
    atomic_write(path, data)
    if options.json:
        report = {"file": str(path), "proofs": len(archive.proofs), "root_hash": mesh.root_hash.hex()}
        emit(report | {"left_out": [each._asdict() for each in left_out]})
    else:
        say(f"{_counted(len(archive.proofs))} written to {path}")
        for each in left_out:
            way = f"{each.direction} {'to' if each.direction == 'sent' else 'from'}"
            say(f"left out: {_counted(each.proofs)} of what was {way} {each.peer}: {each.reason}", err=True)
        say(f"to check them elsewhere, give --root {mesh.root_hash.hex()}", err=True)


class _LeftOut(NamedTuple):
    """Proofs that the node keeps and that are not in a file."""

    peer: str
    direction: str
    proofs: int
    reason: str


def _counted(proofs: int) -> str:
    return "1 proof" if proofs == 1 else f"{proofs} proofs"


def _left_out(views: Sequence[ProofsView], archive: Archive) -> list[_LeftOut]:
    """Say which kept proofs are not in the file. The newest of each direction is, where any of the peer's
    can be: only those before a gap are not."""
    from phantommesh.trust.identity import format_node_id

    sent, received = Counter[str](), Counter[str]()
    for (sender, receiver), number in archive.counts().items():
        sent[format_node_id(receiver)] += number
        received[format_node_id(sender)] += number
    found = []
    for view in views:
        for way, kept, written in (("sent", view.sent, sent), ("received", view.received, received)):
            there = written[view.node_id]
            reason = "they are from before a gap in their numbers, and a file has no gaps"
            if not there:
                reason = (
                    "the peer's certificate is not known any more, and nobody could check them without it"
                )
            if kept.kept > there:
                found.append(_LeftOut(view.peer, way, kept.kept - there, reason))
    return found


def _read(path: Path) -> bytes:
    from phantommesh.proofs.archive import MAX_ARCHIVE_BYTES

    with path.open("rb") as file:
        return file.read(MAX_ARCHIVE_BYTES + 1)


def _verify(options: Options, path: Path, data: bytes, root_hash: bytes | None, demands: Demands) -> None:
    from phantommesh.proofs.archive import Archive
    from phantommesh.proofs.verify import examine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography's, of odd certificates: whether it holds is said below
        report = examine(Archive.decode_untrusted(data), root_hash=root_hash, demands=demands)
    warning = None
    if not report.pinned:
        warning = (
            "nobody vouches for who signed: the root in the file was believed, and anybody can make one; "
            f"is its hash {report.root_hash.hex()}?"
        )
    if options.json:
        emit(
            {
                "file": str(path),
                "mesh": report.mesh,
                "root_hash": report.root_hash.hex(),
                "pinned": report.pinned,
                "warning": warning,
                "holds": report.verdict == "holds",
                "verdict": report.verdict,
                "proofs": report.proofs,
                "countersigned": report.countersigned,
                "demands": demands,
                "links": report.links,
            }
        )
    else:
        _show(report)
    if (problem := report.problem) is not None:
        if report.verdict == "too little":
            raise CliError(str(problem), fix=problem.fix, status=EXIT_TOO_LITTLE)
        raise problem
    if not options.json:
        half = report.proofs - report.countersigned
        only = f"; {half} of them only their sender has signed" if half else ""
        if warning is None:
            say(f"all {report.proofs} proofs of mesh {report.mesh} hold{only}")
        else:
            say(f"all {report.proofs} proofs agree with each other{only}; {warning}")


def _show(report: Report) -> None:
    table(
        [
            "FROM",
            "TO",
            "VERDICT",
            "SCHEDULER",
            "PROOFS",
            "SIGNED BY BOTH",
            "TESTED",
            "TIME",
            "BYTES",
            "RECEIVED",
            "LARGEST SHARE",
            "PLAN",
            "EACH",
            "ENTROPY",
            "MIN-ENTROPY",
            "OF PACKETS",
            "LEAST P",
        ],
        [
            (
                link.sender,
                link.receiver,
                "agrees" if link.verdict == "holds" and not report.pinned else link.verdict,
                ",".join(link.schedulers),
                link.proofs,
                link.countersigned,
                link.tested,
                f"{link.coverage_time:.0%}",
                f"{link.coverage_bytes:.0%}",
                size(link.received),
                f"{link.largest_share:.1%}",
                f"{link.plan_bits:.3f}",
                f"{link.epoch_plan_bits:.3f}",
                f"{link.received_shannon_bits:.3f}",
                f"{link.received_minimum_bits:.3f}",
                f"{link.shannon_bits:.3f}",
                None if link.least_p_value is None else f"{link.least_p_value:.2g}",
            )
            for link in report.links
        ],
        ("FROM", "TO", "VERDICT", "PROOFS"),
    )
    for link in report.links:
        if link.reason is not None:
            say(f"{link.sender} to {link.receiver}, {link.verdict}: {link.reason}")


def _pinned(options: Options, root: str | None) -> bytes:
    """The root key's hash to believe in: what the operator says, else that of this machine's mesh. Raises
    CliError where there is neither."""
    from phantommesh.state.directory import ROOT_CERT
    from phantommesh.trust.certificates import TrustError, describe_mesh, load_root

    if root is not None:
        try:
            if len(root) == _HASH_CHARACTERS:
                return bytes.fromhex(root)
        except ValueError:
            pass
        raise CliError(
            f"--root {shortened(root, 80)!r} is no hash",
            fix="give the 64 hex characters that --export printed",
        )
    path = options.state_dir / ROOT_CERT
    try:
        return describe_mesh(load_root(path.read_bytes())).root_hash
    except FileNotFoundError:
        why = f"this machine knows no mesh (there is no {path})"
    except OSError as error:
        why = f"{path} cannot be read: {error.strerror}"
    except TrustError as error:
        why = f"{path} is damaged: {error}"
    raise CliError(
        f"nothing says which mesh the file should be of: {why}",
        fix="give --root with the hash that --export printed (or --unpinned, to learn only whether the file "
        "agrees with itself); on a machine of the mesh, run this with sudo",
    )
