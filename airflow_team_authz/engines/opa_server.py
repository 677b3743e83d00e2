"""An OPA server beside Airflow, over its Data API.

Own code, because a decision is in every request's path: a general client costs two to eight times as much, none has a
deadline for the whole exchange, and most obey ``HTTP_PROXY`` even for loopback.
https://www.openpolicyagent.org/docs/rest-api#get-a-document-with-input
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from airflow_team_authz.engines import NOT_JSON, Reply
from airflow_team_authz.engines.breaker import Breaker
from airflow_team_authz.files import UnfitTokenError, check_token
from airflow_team_authz.model import (
    DeadlineExceededError,
    EngineError,
    MalformedError,
    PolicyBrokenError,
    UndefinedError,
    UnreachableError,
)
from airflow_team_authz.opa.compile import fingerprint
from airflow_team_authz.opa.errors import problems

_QUERY = "?strict-builtin-errors=true&provenance=true"
_MAX_HEADER = 64 * 1024
_MAX_BODY = 64 * 1024 * 1024
_RECEIVE = 256 * 1024
# What one more resource of a list adds to the deadline; OPA takes about a third of it.
_SECONDS_PER_RESOURCE = 0.0001
_ABOUT_NOTHING = b'{"resources":[]}'
# What a proxy says of a server that does not answer.
_GATEWAY_TIMEOUT = 504

T = TypeVar("T")


class _Bundle(msgspec.Struct, frozen=True):
    revision: str = ""


class _Provenance(msgspec.Struct, frozen=True):
    version: str = ""
    revision: str = ""
    bundles: dict[str, _Bundle] = {}


class _Body(msgspec.Struct):
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    provenance: _Provenance = _Provenance()
    decision_id: str = ""


class _ErrorDetail(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    code: str = ""
    message: str = ""
    errors: list[_ErrorDetail] = []


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode


class _Address(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str


class _Tls(NamedTuple):
    state: list[str]
    context: ssl.SSLContext


class _StaleError(Exception):
    """A kept connection turned out to be closed before anything was answered: worth one new try."""


class OpaServer:
    """An ``Engine`` over an OPA server: one connection per thread, one retry, and only of a stale connection.

    ``url`` is ``unix:///path/to/socket``, ``http://host:port`` or ``https://host:port``; ``ValueError`` if it is not.
    ``deadline_ms`` bounds the whole exchange about one resource; each further one of a list adds 0.1 ms. When it is
    over the connection closes, which cancels the evaluation inside OPA. The files with the token, the certificates and
    the key are looked at for each new connection, so that they can be rotated. While the server answers nothing at all,
    questions are errors at once: ``breaker`` knows.
    """

    def __init__(
        self,
        url: str,
        deadline_ms: int = 250,
        ca_file: Path | None = None,
        client_cert_file: Path | None = None,
        client_key_file: Path | None = None,
        token_file: Path | None = None,
    ) -> None:
        self._url = url
        self._address = parse_url(url)
        self._deadline = deadline_ms / 1000
        self._token_file = token_file
        self._local = threading.local()
        self._ca_file, self._client_cert = ca_file, (client_cert_file, client_key_file)
        self._made: _Tls | None = None
        self.breaker = Breaker(url, self._deadline, self._answers)
        if self._address.scheme == "https":
            self._tls()

    def query(
        self,
        entrypoint: str,
        question: bytes,
        size: int,
        teams: int = 1,  # noqa: ARG002 - it keeps compiled patterns
        pace: float | None = None,  # noqa: ARG002 - how busy it is tells more than a rule does
    ) -> Reply:
        """See ``Engine``. Answers only from HTTP 200 with a ``result``."""
        self.breaker.check()
        allowance = self._deadline + (size - 1) * _SECONDS_PER_RESOURCE
        answer = self._ask(entrypoint, question, allowance)
        if answer.result is msgspec.UNSET:
            raise UndefinedError(
                f"OPA at {self._url} has no data.airflow.authz.{entrypoint}: "
                "the platform's policy bundle is not loaded there, see its log and /v1/status"
            )
        return Reply(answer.result, _revision(answer.provenance), answer.decision_id)

    def check(self) -> None:
        """See ``Engine``."""
        self.breaker.check()

    def version(self) -> str:
        """Version of the OPA that answers, even if no policy is loaded there; empty if it does not tell."""
        return self._ask("decisions", _ABOUT_NOTHING, self._deadline).provenance.version

    def close(self) -> None:
        """Close the connection of this thread; those of others close with their threads."""
        self.breaker.close()
        connection: _Connection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()

    def _ask(self, entrypoint: str, question: bytes, allowance: float) -> _Body:
        status, body = self._exchange(entrypoint, question, _Wait(allowance, self.breaker))
        if status != 200:
            raise self._refused(status, body)
        try:
            return _decode_body(body)
        except NOT_JSON as error:
            raise MalformedError(f"what answers at {self._url} does not speak OPA's Data API: {error}") from None

    def _answers(self, seconds: float, health: bool = True) -> bool:
        """Whether anything but silence comes of ``GET /health``, or of a question about nothing; see ``Breaker``.

        https://www.openpolicyagent.org/docs/rest-api#health-api
        """
        wait = _Wait(seconds)
        connection: _Connection | None = None
        try:
            connection = self._connect(wait)
            status = connection.health(wait) if health else connection.post("decisions", _ABOUT_NOTHING, wait)[0]
            return status != _GATEWAY_TIMEOUT
        except (TimeoutError, BlockingIOError):
            # Blocking would be connecting to a unix socket on which too many others wait already.
            return False
        except (OSError, UnicodeError, EngineError):
            return True
        finally:
            if connection is not None:
                connection.close()

    def _exchange(self, entrypoint: str, question: bytes, wait: _Wait) -> tuple[int, bytes]:
        # Not kept while in use: whatever interrupts an exchange (a task's timeout, an interrupt from the keyboard), its
        # answer must not be there to be read as the answer to the next question.
        connection: _Connection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        try:
            while True:
                if connection is None:
                    connection = self._connect(wait)
                try:
                    answer = connection.post(entrypoint, question, wait)
                    break
                except _StaleError:
                    connection.close()
                    connection = None
            self.breaker.heard_at = time.monotonic()
            # After a refusal a new one, which reads the token anew.
            if answer[0] == 200 and not connection.closing:
                self._local.connection = connection
            return answer
        except TimeoutError:
            self.breaker.silent()
            raise DeadlineExceededError(
                f"OPA at {self._url} did not answer within {self._deadline * 1000:.0f} ms: "
                "look at its load, or raise [team_authz] deadline_ms"
            ) from None
        except (OSError, UnicodeError) as error:  # what is no host name to DNS is a UnicodeError
            raise UnreachableError(f"OPA at {self._url} cannot be reached ({error}): is it running?") from None
        finally:
            if connection is not None and self._local.connection is not connection:
                connection.close()

    def _connect(self, wait: _Wait) -> _Connection:
        address = self._address
        head = f"Host: {address.host or 'localhost'}\r\nContent-Type: application/json\r\n{self._authorization()}"
        unix = address.scheme == "unix"
        plain = _connected(socket.AF_UNIX, address.path, wait) if unix else _open(address.host, address.port, wait)
        try:
            if not unix:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.scheme == "https":
                plain = over_tls = self._tls().wrap_socket(
                    plain, server_hostname=address.host, do_handshake_on_connect=False
                )
                wait.until_done(over_tls, over_tls.do_handshake)
        except BaseException:
            plain.close()
            raise
        return _Connection(plain, head, address.path if address.scheme != "unix" else "")

    def _tls(self) -> ssl.SSLContext:
        """Made anew when one of its files is another one."""
        files = [self._ca_file, *self._client_cert]
        state = [fingerprint(file) for file in files if file is not None]
        made = self._made
        if made is None or made.state != state:
            context = ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file else None)
            certificate, key = self._client_cert
            if certificate is not None:
                context.load_cert_chain(certificate, key)
            self._made = made = _Tls(state, context)
        return made.context

    def _authorization(self) -> str:
        """The header line of the token, empty without one."""
        if self._token_file is None:
            return ""
        try:
            token = check_token(self._token_file.read_bytes(), f"{self._token_file} ([team_authz] opa_token_file)")
        except UnfitTokenError as error:
            raise UnreachableError(str(error)) from None
        return f"Authorization: Bearer {token}\r\n"

    def _refused(self, status: int, body: bytes) -> EngineError:
        if status in {401, 403}:
            return UnreachableError(
                f"OPA at {self._url} does not let us in (HTTP {status}): see [team_authz] opa_token_file"
            )
        try:
            told = _decode_error(body)
        except NOT_JSON:
            return MalformedError(f"what answers at {self._url} is no OPA: HTTP {status}")
        where = problems(body.decode(errors="replace"))
        detail = "; ".join(error.message for error in told.errors) or told.message or "no reason given"
        detail = "; ".join(map(str, where)) or detail
        if status == 500:
            return PolicyBrokenError(f"the policy in OPA at {self._url} fails while it is evaluated: {detail}")
        return MalformedError(f"OPA at {self._url} refuses the question: HTTP {status}, {detail}")


class _Wait:
    """The time that an exchange has, and what looks at the server meanwhile."""

    __slots__ = ("_breaker", "_since", "_until")

    def __init__(self, seconds: float, breaker: Breaker | None = None) -> None:
        self._since = time.monotonic()
        self._until = self._since + seconds
        self._breaker = breaker

    def seconds(self) -> float:
        """How long to wait at once, above 0; ``TimeoutError`` if the time is over."""
        remaining = self._until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining if self._breaker is None else min(remaining, self._breaker.slice)

    def silent(self) -> None:
        """Nothing came so far: ``NotAnsweringError`` if it is of no use to wait on."""
        if self._breaker is not None:
            self._breaker.silent(self._since)

    def until_done(self, plain: socket.socket, operation: Callable[..., T], *arguments: Any) -> T:
        """Do what may be done again after it has waited."""
        while True:
            plain.settimeout(self.seconds())
            try:
                return operation(*arguments)
            except TimeoutError:
                self.silent()


class _Connection:
    """HTTP/1.1 over one socket, just as much of it as the Data API takes."""

    def __init__(self, plain: socket.socket, head: str, prefix: str) -> None:
        self.pid = os.getpid()
        self.closing = False
        self._socket = plain
        self._head = head
        self._prefix = prefix
        self._used = False
        self._unasked = select.poll()
        self._unasked.register(plain, select.POLLIN)

    def health(self, wait: _Wait) -> int:
        """Status of ``GET /health``; for a connection of its own."""
        head = f"GET {self._prefix}/health HTTP/1.1\r\n{self._head}\r\n"
        return self._exchange(head.encode("ascii"), wait)[0]

    def post(self, entrypoint: str, question: bytes, wait: _Wait) -> tuple[int, bytes]:
        """Status and body. ``_StaleError`` if a kept connection is of no use, ``TimeoutError`` when time is over.

        Of no use: copied by a fork, so that it belongs to the parent; broken before anything was answered; or with
        something to read in it already, which is the end of the connection or an answer to nobody's question.
        """
        if self._used and (self.pid != os.getpid() or self._unasked.poll(0)):
            raise _StaleError
        head = (
            f"POST {self._prefix}/v1/data/airflow/authz/{entrypoint}{_QUERY} HTTP/1.1\r\n"
            f"{self._head}Content-Length: {len(question) + 10}\r\n\r\n"
        )
        return self._exchange(b'%s{"input":%s}' % (head.encode("ascii"), question), wait)

    def _exchange(self, message: bytes, wait: _Wait) -> tuple[int, bytes]:
        kept, self._used = self._used, True
        received = bytearray()
        try:
            self._send(message, wait)
            self._receive(received, wait)
        except (ConnectionError, ssl.SSLError, EOFError) as error:
            if kept and not received:
                raise _StaleError from error
            raise ConnectionResetError(f"the connection broke: {error}") from error
        try:
            return self._read(received, wait)
        except EOFError:
            raise MalformedError("OPA's answer ends in the middle") from None
        except (ValueError, IndexError) as error:
            raise MalformedError(f"OPA's answer is not HTTP/1.1: {error}") from None

    def _read(self, received: bytearray, wait: _Wait) -> tuple[int, bytes]:
        while (end := received.find(b"\r\n\r\n")) < 0:
            if len(received) > _MAX_HEADER:
                raise ValueError("its header is too long")
            self._receive(received, wait)
        status_line, *lines = bytes(received[:end]).decode("latin-1").split("\r\n")
        version, status, *_ = status_line.split(" ")
        if version != "HTTP/1.1" or len(status) != 3:
            raise ValueError(f"it begins with {status_line[:40]!r}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.closing = headers.get("connection", "").lower() == "close"
        del received[: end + 4]
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return int(status), self._read_chunks(received, wait)
        told = headers.get("content-length", "")
        if not (told.isascii() and told.isdigit()) or (length := int(told)) > _MAX_BODY:
            raise ValueError("it does not tell its length, or is too long")
        while len(received) < length:
            self._receive(received, wait)
        if len(received) > length:
            raise ValueError("it is longer than it says")
        return int(status), bytes(received)

    def _read_chunks(self, received: bytearray, wait: _Wait) -> bytes:
        body = bytearray()
        while True:
            while (end := received.find(b"\r\n")) < 0:
                if len(received) > _MAX_HEADER:
                    raise ValueError("a chunk does not tell its length")
                self._receive(received, wait)
            size = int(bytes(received[:end]).partition(b";")[0], 16)
            if size < 0 or len(body) + size > _MAX_BODY:
                raise ValueError("it is too long")
            start, stop = end + 2, end + 2 + size
            while len(received) < stop + 2:
                self._receive(received, wait)
            if received[stop : stop + 2] != b"\r\n":
                raise ValueError("a chunk is longer than it says")
            body += received[start:stop]
            del received[: stop + 2]
            if size == 0:
                if received:
                    raise ValueError("it is longer than it says")
                return bytes(body)

    def _send(self, message: bytes, wait: _Wait) -> None:
        # Not `sendall`, which over TLS allows the whole time again for each piece.
        rest = memoryview(message)
        while rest:
            rest = rest[wait.until_done(self._socket, self._socket.send, rest) :]

    def _receive(self, received: bytearray, wait: _Wait) -> None:
        data = wait.until_done(self._socket, self._socket.recv, _RECEIVE)
        if not data:
            raise EOFError("closed by OPA")
        received += data

    def close(self) -> None:
        self._socket.close()


def _open(host: str, port: int, wait: _Wait) -> socket.socket:
    """A connection to the first address of the host that takes one; all of them together have the time of one."""
    failed: OSError = OSError(f"{host} has no address")
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return _connected(family, address, wait)
        except TimeoutError:
            raise
        except OSError as error:
            failed = error
    wait.seconds()
    raise failed


def _connected(family: int, address: Any, wait: _Wait) -> socket.socket:
    plain = socket.socket(family, socket.SOCK_STREAM)
    try:
        plain.setblocking(False)
        failed = plain.connect_ex(address)
        if failed == errno.EINPROGRESS:
            done = select.poll()
            done.register(plain, select.POLLOUT)
            while not done.poll(1_000 * wait.seconds()):
                wait.silent()
            failed = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
    except BaseException:
        plain.close()
        raise
    return plain


def _revision(provenance: _Provenance) -> str:
    bundles = provenance.bundles
    if len(bundles) <= 1:
        return next((bundle.revision for bundle in bundles.values()), provenance.revision)
    return ",".join(f"{name}={bundle.revision}" for name, bundle in sorted(bundles.items()))


def parse_url(url: str) -> _Address:
    """Where to connect to; ``ValueError`` for what is not an address of an OPA server."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return _Address("unix", "", 0, unquote(parts.path))
    plain = url.isascii() and url.isprintable() and " " not in url and "@" not in parts.netloc
    # Credentials and a query would be left out, and shown in messages: they belong into a token file.
    if parts.scheme in {"http", "https"} and parts.hostname and not (parts.query or parts.fragment) and plain:
        return _Address(parts.scheme, parts.hostname, parts.port or 8181, parts.path.rstrip("/"))
    raise ValueError("opa_url is unix:///path/to/socket, http://host:port or https://host:port")
