# SPDX-License-Identifier: GPL-3.0-or-later
"""The API over TLS: who may connect, which certificate, HTTP/2, clients that hang."""

import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from phantommesh.config.sections import ApiSection, Config, NodeSection
from phantommesh.errors import PhantomMeshError
from phantommesh.management import servercert
from phantommesh.management.scopes import Scope
from phantommesh.management.servercert import TlsFiles
from phantommesh.nursery.api import server, tls
from phantommesh.nursery.api.problems import MAX_BODY_BYTES
from phantommesh.nursery.api.server import serve_api
from phantommesh.nursery.api.sockets import ApiSocketError, listen_tcp
from phantommesh.state import apicert
from phantommesh.state.directory import API_CERT, API_KEY, StateDir
from tests.support.fakenode import FakeNode


def certificate(at: Path, name: str = "pm-1") -> TlsFiles:
    made = servercert.make(name, ["localhost", "127.0.0.1"], time.time())
    files = TlsFiles(at / "api.pem", at / "api.key")
    files.certificate.write_bytes(made.certificate)
    files.key.write_bytes(made.key.reveal())
    return files


def clients_of(at: Path, name: str) -> tuple[Path, TlsFiles]:
    """An authority's certificate, and a client's that it has signed."""
    now = datetime.now(UTC)

    def signed(subject: str, key: Any, issuer: str, by: Any, *, ca: bool) -> x509.Certificate:
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (subject, issuer)]
        made = x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
        dated = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        return dated.add_extension(x509.BasicConstraints(ca, None), True).sign(by, hashes.SHA256())

    authority, client = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    files = TlsFiles(at / f"{name}.pem", at / f"{name}.key")
    files.certificate.write_bytes(
        signed("client", client, name, authority, ca=False).public_bytes(Encoding.PEM)
    )
    files.key.write_bytes(client.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (at / f"{name}-ca.pem").write_bytes(
        signed(name, authority, name, authority, ca=True).public_bytes(Encoding.PEM)
    )
    return at / f"{name}-ca.pem", files


@dataclass
class Served:
    node: FakeNode
    port: int
    files: TlsFiles

    async def connect(self, *, alpn: str = "http/1.1", chain: TlsFiles | None = None) -> trio.SSLStream:  # type: ignore[type-arg]
        context = ssl.create_default_context(cafile=str(self.files.certificate))
        context.set_alpn_protocols([alpn])
        if chain is not None:
            context.load_cert_chain(chain.certificate, chain.key)
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", self.port, ssl_context=context, https_compatible=True
        )
        try:
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def get(self, path: str, *headers: str, chain: TlsFiles | None = None) -> bytes:
        stream = await self.connect(chain=chain)
        async with stream:
            head = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
            await stream.send_all("\r\n".join(head).encode())
            with trio.fail_after(20):
                return b"".join([part async for part in stream])


@asynccontextmanager
async def served(tmp_path: Path, files: TlsFiles | None = None) -> AsyncIterator[Served]:
    node, used = FakeNode(), files or certificate(tmp_path)
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve_api(
                node, socket_path=tmp_path / "api.sock", listen="127.0.0.1:0", tls=used, group="no-such",
                task_status=task_status,
            )  # fmt: skip

        addresses = await nursery.start(serve)
        assert addresses[1].startswith("https://127.0.0.1:")
        yield Served(node, int(addresses[1].rsplit(":", 1)[1]), used)
        nursery.cancel_scope.cancel()


def bearer(text: str) -> str:
    return f"Authorization: Bearer {text}"


async def test_a_token_opens_what_its_scope_has(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        token = api.node.tokens.grant(Scope.READ)
        assert (await api.get("/v1/status")).startswith(b"HTTP/1.1 401 ")
        answer = await api.get("/v1/status", bearer(token))
        assert answer.startswith(b"HTTP/1.1 200 ") and b'"node":"pm-0"' in answer
        assert (await api.get("/v1/audit", bearer(token))).startswith(b"HTTP/1.1 403 ")


async def test_http_2_by_alpn(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        token = api.node.tokens.grant(Scope.READ)
        stream = await api.connect(alpn="h2")
        assert stream.selected_alpn_protocol() == "h2"
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        client.initiate_connection()
        client.send_headers(
            1,
            [(":method", "GET"), (":path", "/v1/status"), (":scheme", "https"), (":authority", "localhost"),
             ("authorization", f"Bearer {token}")],
            end_stream=True,
        )  # fmt: skip
        await stream.send_all(client.data_to_send())
        status, ended = "", False
        with trio.fail_after(20):
            while not ended:
                for event in client.receive_data(bytes(await stream.receive_some(65536))):
                    if isinstance(event, h2.events.ResponseReceived):
                        status = dict(event.headers)[b":status"].decode()
                    ended = ended or isinstance(event, h2.events.StreamEnded)
        assert status == "200"
        await trio.aclose_forcefully(stream)


async def test_nothing_older_than_tls_1_3(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        context = ssl.create_default_context(cafile=str(api.files.certificate))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", api.port, ssl_context=context)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
        assert (await api.get("/healthz")).startswith(b"HTTP/1.1 200 ")


async def test_who_still_sends_a_body_that_is_too_large_hears_so(tmp_path: Path) -> None:
    """A socket that is closed with something unread is reset, and what was answered is lost with it."""
    async with served(tmp_path) as api:
        token = api.node.tokens.grant(Scope.ADMIN)
        size = 8 * MAX_BODY_BYTES
        head = (
            f"POST /v1/rotations HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
        )
        stream = await api.connect()
        async with stream:
            with trio.fail_after(20):
                await stream.send_all(head.encode())
                for _ in range(size // 4096):
                    await stream.send_all(b" " * 4096)
                answer = b"".join([part async for part in stream])
        assert answer.startswith(b"HTTP/1.1 413 ") and answer.count(b"HTTP/1.1 ") == 1
        assert b"\r\nconnection: close\r\n" in answer.lower()


async def test_who_sends_without_end_is_cut(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        token = api.node.tokens.grant(Scope.ADMIN)
        head = (
            f"POST /v1/rotations HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: 1000000000000\r\n\r\n"
        )
        stream = await api.connect()
        sent = 0
        with trio.fail_after(20):
            try:
                await stream.send_all(head.encode())
                while sent < 1 << 30:
                    await stream.send_all(b" " * 65536)
                    sent += 65536
            except trio.BrokenResourceError:
                pass
        await trio.aclose_forcefully(stream)
        assert sent < server.LINGER_BYTES + 8_000_000  # and what the kernel holds on both sides


async def test_clear_text_to_the_encrypted_port_is_no_request(tmp_path: Path) -> None:
    async with served(tmp_path) as api, await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with trio.fail_after(20):
            try:
                answer = b"".join([part async for part in stream])
            except trio.BrokenResourceError:
                answer = b""
        assert b"HTTP" not in answer


async def test_a_changed_certificate_is_taken_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK", 0.01)
    files = certificate(tmp_path)
    first = servercert.fingerprint(files.certificate.read_bytes())
    loaded = await tls.Tls.of(files)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loaded.watch)
        files.certificate.write_bytes(b"nonsense")
        await trio.sleep(0.2)
        assert loaded.loaded.fingerprint == first
        certificate(tmp_path, "another")
        with trio.fail_after(20):
            while loaded.loaded.fingerprint == first:
                await trio.sleep(0.01)
        assert loaded.loaded.fingerprint == servercert.fingerprint(files.certificate.read_bytes())
        nursery.cancel_scope.cancel()


async def test_a_file_that_could_not_be_read_is_taken_as_soon_as_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kept it from being read, and though the file itself does not change any more."""
    monkeypatch.setattr(tls, "LOOK", 0.01)
    files, told, tries = certificate(tmp_path), list[PhantomMeshError | None](), 0
    loaded = await tls.Tls.of(files, told.append)
    first, load = loaded.loaded.fingerprint, tls.load

    def failing(files: TlsFiles) -> tls.Loaded:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise ApiSocketError("not yet")
        return load(files)

    monkeypatch.setattr(tls, "load", failing)
    certificate(tmp_path, "another")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loaded.watch)
        with trio.fail_after(20):
            while loaded.loaded.fingerprint == first:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert [str(problem) for problem in told] == ["None", *["not yet"] * 3, "None"]


def test_other_rights_to_a_file_are_a_change(tmp_path: Path) -> None:
    files = certificate(tmp_path)
    before = tls._look(files)
    files.key.chmod(0o640)
    assert tls._look(files) != before


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    files = certificate(tmp_path)
    files.key.unlink()
    with pytest.raises(
        ApiSocketError, match=r"cannot read .*api\.key, of the API's certificate: No such file"
    ):
        tls.load(files)


async def test_mtls_lets_in_whose_certificate_an_authority_has_signed(tmp_path: Path) -> None:
    authority, client = clients_of(tmp_path, "authority")
    _, other = clients_of(tmp_path, "other")
    own = certificate(tmp_path)
    async with served(tmp_path, TlsFiles(own.certificate, own.key, authority)) as api:
        assert (await api.get("/healthz", chain=client)).startswith(b"HTTP/1.1 200 ")
        # A certificate does not stand for a token.
        assert (await api.get("/v1/status", chain=client)).startswith(b"HTTP/1.1 401 ")
        for chain in (None, other):
            # TLS 1.3 tells a client of a certificate that is refused only after its own handshake.
            try:
                answer = await api.get("/healthz", chain=chain)
            except (trio.BrokenResourceError, ssl.SSLError):
                answer = b""
            assert answer == b""


@pytest.mark.parametrize("wrong", ["certificate", "key", "missing", "mixed"])
def test_files_that_cannot_be_used_are_named(tmp_path: Path, wrong: str) -> None:
    files = certificate(tmp_path)
    (tmp_path / "more").mkdir()
    match wrong:
        case "certificate":
            files.certificate.write_bytes(b"\xff" * 100)
        case "key":
            files.key.write_bytes(b"nonsense")
        case "missing":
            files.key.unlink()
        case "mixed":
            files.key.write_bytes(certificate(tmp_path / "more").key.read_bytes())
    with pytest.raises(ApiSocketError) as error:
        tls.load(files)
    assert error.value.fix and "Traceback" not in str(error.value)


async def test_a_client_that_does_not_shake_hands_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 0.2)
    async with served(tmp_path) as api, await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
        with trio.fail_after(20):
            try:
                assert await stream.receive_some(1) == b""
            except trio.BrokenResourceError:
                pass


async def test_one_block_does_not_take_all_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_OF_BLOCK", 3)
    async with served(tmp_path) as api:
        held = [await trio.open_tcp_stream("127.0.0.1", api.port) for _ in range(3)]
        await trio.sleep(0.1)
        with trio.fail_after(20), pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
            await api.get("/healthz")
        # The socket of this machine is not theirs to fill.
        async with await trio.open_unix_socket(tmp_path / "api.sock") as local:
            await local.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with trio.fail_after(20):
                assert (await local.receive_some(1000)).startswith(b"HTTP/1.1 200 ")
        for stream in held:
            await stream.aclose()


def key_of(pem: bytes) -> bytes:
    public = x509.load_pem_x509_certificate(pem).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_the_node_makes_a_certificate_and_keeps_it(tmp_path: Path) -> None:
    state, api = StateDir(tmp_path), ApiSection(listen="0.0.0.0:8480")
    now, hosts = time.time(), ["pm-1", "pm-1.lab.internal", "192.0.2.7"]
    files = apicert.files_of(api, state)
    assert files is not None and files.certificate == tmp_path / API_CERT
    assert apicert.ensure(state, "pm-1", hosts, now)
    first = tls.load(files).fingerprint
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in (API_CERT, API_KEY)] == [0o600, 0o600]
    # An address less is no reason for another one.
    assert not apicert.ensure(state, "pm-1", hosts[:2], now + 3000 * 86_400)
    assert tls.load(files).fingerprint == first
    # It is made anew once it has run out, or is damaged, or is for another key.
    key = key_of(files.certificate.read_bytes())
    assert "run out" in apicert.ensure(state, "pm-1", hosts, now + 3651 * 86_400)
    second = tls.load(files).fingerprint
    files.certificate.write_bytes(b"nonsense")
    assert "damaged" in apicert.ensure(state, "pm-1", hosts, now)
    assert len({first, second, tls.load(files).fingerprint}) == 3
    assert key_of(files.certificate.read_bytes()) == key
    files.key.write_bytes(servercert.make("pm-1", hosts, now).key.reveal())
    assert "another key" in apicert.ensure(state, "pm-1", hosts, now)
    tls.load(files)
    files.key.write_bytes(b"nonsense")
    assert apicert.ensure(state, "pm-1", hosts, now)
    tls.load(files)
    assert apicert.files_of(ApiSection(listen="127.0.0.1:8480"), state) is None


def test_a_certificate_is_made_anew_for_the_names_that_it_should_have(tmp_path: Path) -> None:
    state, now = StateDir(tmp_path), time.time()
    apicert.ensure(state, "nas", ["nas", "192.0.2.7"], now)
    before = state.read(API_CERT)
    assert "vpn.example.net" in apicert.ensure(state, "nas", ["nas", "192.0.2.7", "vpn.example.net"], now)
    after = state.read(API_CERT)
    assert key_of(after) == key_of(before) and after != before
    # A new name replaces the old one; an address that the host had stays, so that it may come back.
    why = apicert.ensure(state, "cellar", ["cellar", "vpn.example.net", "192.0.2.8"], now)
    assert why == "it was not for cellar, 192.0.2.8 and for nas"
    renamed = state.read(API_CERT)
    assert set(servercert.hosts_of(renamed)) == {"cellar", "vpn.example.net", "192.0.2.8", "192.0.2.7"}
    assert key_of(renamed) == key_of(before)
    assert not apicert.ensure(state, "cellar", ["cellar", "vpn.example.net", "192.0.2.7"], now)
    assert "vpn.example.net" in apicert.ensure(state, "cellar", ["cellar"], now)


@pytest.mark.parametrize(
    ("listen", "at"),
    [
        ("192.0.2.1:8480", {"192.0.2.1"}),
        ("[2001:DB8::1]:8480", {"2001:db8::1"}),
        ("localhost:8480", {"localhost"}),
        ("0.0.0.0:8480", {"198.51.100.4", "2001:db8::4"}),
        ("[::]:8480", {"198.51.100.4", "2001:db8::4"}),
    ],
)
def test_clients_may_call_the_node_by_where_it_is(listen: str, at: set[str]) -> None:
    config = Config(
        NodeSection("nas", "lab", endpoints=("203.0.113.9:51800", "Vpn.example.net")),
        api=ApiSection(listen=listen, hosts=("API.example.net", "2001:db8:0::7")),
    )
    names = apicert.names_of(config, ["nas", "nas.lab.internal"], ["198.51.100.4", "2001:db8::4"])
    always = {"nas", "nas.lab.internal", "203.0.113.9", "vpn.example.net", "api.example.net", "2001:db8::7"}
    assert set(names) == always | at


def test_a_certificate_keeps_few_addresses_of_before(tmp_path: Path) -> None:
    state, now = StateDir(tmp_path), time.time()
    for number in range(apicert.MOST_FORMER + 20):
        apicert.ensure(state, "nas", ["nas", f"192.0.2.{number}"], now)
    assert len(servercert.hosts_of(state.read(API_CERT))) == apicert.MOST_FORMER + 2


def test_dual_stack_whatever_the_host_says() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this host has no IPv6")
    with listen_tcp("[::]:0", encrypted=True) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 5).close()
