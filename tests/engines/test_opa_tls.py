"""Who is spoken to and who speaks: TLS, client certificates and tokens."""

from __future__ import annotations

import contextlib
import datetime
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.model import (
    DeadlineExceededError,
    EngineError,
    Evaluations,
    MalformedError,
    NotAnsweringError,
    Resource,
    UnreachableError,
)
from tests.conftest import PATIENT_MS, forked
from tests.support.fake_opa import ALLOW, BAD_ANSWERS, DEADLINE_MS, GOOD, QUESTION, Connect, FakeOpa, allow, answer


class Certificates:
    """A certificate authority of the test's own, as PEM files."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca = directory / f"{name}.pem"
        self.ca.write_bytes(self._sign(self._name, self._key, True).public_bytes(serialization.Encoding.PEM))

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        alternatives = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(alternatives, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.KeyUsage(True, False, False, False, False, authority, authority, False, False), True)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate_file, key_file = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        certificate_file.write_bytes(self._sign(subject, key, False).public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_file, key_file


@pytest.fixture
def ours(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path, "ours")


@contextlib.contextmanager
def tls_server(ours: Certificates, client_ca: Path | None = None) -> Iterator[tuple[FakeOpa, str]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ours.issue("server"))
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake = FakeOpa(listener, context)
        yield fake, fake.url


def test_tls_is_checked_against_the_own_authority(connect: Connect, ours: Certificates, tmp_path: Path) -> None:
    with tls_server(ours) as (fake, url):
        decisions = connect(url, DEADLINE_MS, ours.ca)
        for _ in range(3):
            assert allow(decisions) is True
        assert fake.connections == 1
        for ca in (None, Certificates(tmp_path, "theirs").ca):
            with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
                connect(url, DEADLINE_MS, ca).decide(QUESTION)
        with pytest.raises(UnreachableError, match="localhost"):
            connect(url.replace("127.0.0.1", "localhost"), DEADLINE_MS, ours.ca).decide(QUESTION)
        assert len(fake.questions) == 3


def test_another_authority_counts_from_the_next_connection_on(
    connect: Connect, ours: Certificates, tmp_path: Path
) -> None:
    file = tmp_path / "trusted.pem"
    file.write_bytes(ours.ca.read_bytes())
    with tls_server(ours) as (fake, url):
        decisions = connect(url, DEADLINE_MS, file)
        assert allow(decisions) is True
        file.write_bytes(Certificates(tmp_path, "theirs").ca.read_bytes())
        with forked(lambda: allow(decisions)) as ask:
            assert "CERTIFICATE_VERIFY_FAILED" in str(ask())
        fake.answers = [answer(ALLOW, "200 OK", "Connection: close")]
        decisions.decide(QUESTION)
        with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            decisions.decide(QUESTION)


def test_a_client_certificate_is_shown(connect: Connect, ours: Certificates, tmp_path: Path) -> None:
    clients = Certificates(tmp_path, "clients")
    with tls_server(ours, clients.ca) as (fake, url):
        with pytest.raises((UnreachableError, MalformedError)):
            connect(url, DEADLINE_MS, ours.ca).decide(QUESTION)
        foreign = Certificates(tmp_path, "foreign").issue("mallory")
        with pytest.raises((UnreachableError, MalformedError)):
            connect(url, DEADLINE_MS, ours.ca, *foreign).decide(QUESTION)
        assert fake.questions == []
        decisions = connect(url, DEADLINE_MS, ours.ca, *clients.issue("airflow"))
        assert allow(decisions) is True


def test_no_tls_where_tls_is_wanted(connect: Connect, ours: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak_plainly() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                connection.sendall(GOOD)

        threading.Thread(target=speak_plainly, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UnreachableError):
            connect(url, DEADLINE_MS, ours.ca).decide(QUESTION)


def test_the_deadline_holds_when_a_tls_server_reads_slowly(connect: Connect, ours: Certificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ours.issue("server"))
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def sip() -> None:
            with contextlib.suppress(OSError):
                connection = context.wrap_socket(listener.accept()[0], server_side=True)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                while not gone.wait(0.1) and connection.recv(65536):
                    pass

        threading.Thread(target=sip, daemon=True).start()
        decisions = connect(f"https://127.0.0.1:{listener.getsockname()[1]}", 500, ours.ca)
        question = Evaluations(QUESTION.subject, "read", [Resource("dag", None, "x" * 20_000_000)])
        began = time.monotonic()
        try:
            # It takes no second connection, so it does not answer for its health.
            with pytest.raises((DeadlineExceededError, NotAnsweringError)):
                decisions.decide(question)
            # Each part that is sent would have a deadline of its own: half a minute in all.
            assert time.monotonic() - began < 15
        finally:
            gone.set()


def test_the_token_is_sent_and_told_nowhere(
    connect: Connect, fake: FakeOpa, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = tmp_path / "token"
    token.write_text("s3cr3t-t0ken\n")
    decisions = connect(fake.url, 300, token_file=token)
    decisions.decide(QUESTION)
    assert b"\r\nAuthorization: Bearer s3cr3t-t0ken\r\n" in fake.questions[0]
    told = []
    for bad, _ in BAD_ANSWERS.values():
        fake.answers = [bad]
        with pytest.raises(EngineError) as raised:
            decisions.decide(QUESTION)
        told += [str(raised.value), repr(raised.value), repr(raised.value.__cause__), repr(raised.value.__context__)]
    # The answer to a bad token may even hold it.
    fake.answers = [answer(b'{"code":"unauthorized","message":"bad token s3cr3t-t0ken"}', "401 Unauthorized")]
    with pytest.raises(UnreachableError) as refused:
        decisions.decide(QUESTION)
    assert "s3cr3t-t0ken" not in caplog.text + "".join(told) + str(refused.value)


def test_the_token_can_be_rotated(connect: Connect, fake: FakeOpa, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    decisions = connect(fake.url, DEADLINE_MS, token_file=token)
    fake.answers = [answer(b"{}", "401 Unauthorized")]
    with pytest.raises(UnreachableError, match="opa_token_file"):
        decisions.decide(QUESTION)
    token.write_text("second")
    assert allow(decisions) is True
    assert b"Bearer second" in fake.questions[1]


@pytest.mark.parametrize("content", [b"", b" \n", b"tok en", b"a\r\nX-Forged: 1", b"t\xffken", "tökén".encode()])
def test_what_is_no_token_is_not_sent(connect: Connect, content: bytes, fake: FakeOpa, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_bytes(content)
    with pytest.raises(UnreachableError, match="token") as raised:
        connect(fake.url, token_file=token).decide(QUESTION)
    assert fake.questions == []
    assert "Forged" not in str(raised.value)
    token.unlink()
    with pytest.raises(UnreachableError, match="No such file"):
        connect(fake.url, token_file=token).decide(QUESTION)


def test_a_slow_tls_server_is_waited_for_at_each_step(ours: Certificates) -> None:
    """It is looked at again and again meanwhile, which must lose nothing of what is under way."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ours.issue("server"))
    question = Evaluations(QUESTION.subject, "read", [Resource("connection", None, "x" * 4_000_000)])
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            time.sleep(0.05)
            with context.wrap_socket(plain, server_side=True) as connection:
                while not b"".join(received[-2:]).endswith(b"}}"):
                    time.sleep(0.002 if received else 0.05)
                    received.append(connection.recv(65536))
                for part in (GOOD[:20], GOOD[20:]):
                    time.sleep(0.05)
                    connection.sendall(part)

        threading.Thread(target=serve, daemon=True).start()
        engine = OpaServer(f"https://127.0.0.1:{listener.getsockname()[1]}", PATIENT_MS, ours.ca)
        engine.breaker.slice = 0.005
        assert allow(DecisionPoint(engine), question) is True
    assert b"".join(received).count(b"x" * 4_000_000) == 1
