"""An OPA server that answers as a test tells it to, and every answer that OPA must not give."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import (
    DeadlineExceededError,
    EngineError,
    Evaluations,
    MalformedError,
    PolicyBrokenError,
    Resource,
    Subject,
    UndefinedError,
    UnreachableError,
)

# Bytes to send, or what to do with the connection.
Said = bytes | Callable[[socket.socket], object]
# A decision point over ``OpaServer`` with these arguments.
Connect = Callable[..., DecisionPoint]

QUESTION = Evaluations(Subject("user", "ann", ("alpha",), ("op",)), "read", [Resource("connection", "alpha", "pg")])
LIST = Evaluations(QUESTION.subject, "read", [Resource("connection", "alpha", name) for name in ("a", "b", "c")])
ALLOW = b'{"result":[{"allow":true,"reasons":["op in team alpha"],"layer":"baseline"}]}'
# What a bad answer may take here before it counts as hanging; it is never what a test waits for.
DEADLINE_MS = 1_500


def allow(decisions: DecisionPoint, question: Evaluations = QUESTION) -> bool:
    return decisions.decide(question).decisions[0].allow


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


GOOD = answer(ALLOW)
DENY = answer(b'{"result":[{"allow":false,"reasons":["no"],"layer":"default"}]}')


class FakeOpa:
    """Answers each question with the next of ``answers``: bytes, or what to do with the connection; then with GOOD.

    It is in good health, and does not count who asks for that, unless ``health`` says something else.
    """

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.answers: list[Said] = []
        self.questions: list[bytes] = []
        self.health: Said = answer(b"{}")
        self.connections = 0
        self.failures: list[Exception] = []
        self._tls = tls
        self._listener = listener
        name = listener.getsockname()
        plain = f"unix://{name}" if isinstance(name, str) else f"http://127.0.0.1:{name[1]}"
        self.url = plain if tls is None else plain.replace("http:", "https:")
        listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            connection = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
            with connection:
                while (question := self._read(connection)) is not None:
                    if question.startswith(b"GET "):
                        self.connections -= 1
                        said = self.health
                    else:
                        self.questions.append(question)
                        said = self.answers.pop(0) if self.answers else GOOD
                    if callable(said):
                        said(connection)
                    else:
                        connection.sendall(said)
        except OSError as error:
            self.failures.append(error)

    @staticmethod
    def _read(connection: socket.socket) -> bytes | None:
        received = b""
        while b"\r\n\r\n" not in received:
            data = connection.recv(65536)
            if not data:
                return None
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body


def close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def reset(connection: socket.socket, said: bytes = b"") -> None:
    connection.sendall(said)
    # Closing with something unread resets; over a unix socket the peer then gets ECONNRESET.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def drip(connection: socket.socket) -> None:
    """Sends a good answer, one byte at a time: no single pause is long, the whole would take half a minute."""
    with contextlib.suppress(OSError):
        for byte in GOOD:
            connection.sendall(bytes([byte]))
            time.sleep(0.2)


def never(connection: socket.socket) -> None:
    """Waits until the other side gives up, as OPA notices that a client has gone."""
    connection.recv(1)


def begin(said: bytes, then: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """Sends a part of an answer, and then does what comes after it."""

    def begin(connection: socket.socket) -> None:
        connection.sendall(said)
        then(connection)

    return begin


def result(value: str) -> bytes:
    return answer(b'{"result":' + value.encode() + b"}")


def evaluation_error(detail: str) -> bytes:
    body = {
        "code": "internal_error",
        "message": "error(s) occurred while evaluating query",
        "errors": [{"code": "eval_conflict_error", "message": detail}],
    }
    return answer(json.dumps(body).encode(), "500 Internal Server Error")


ONE = '{"allow":true,"reasons":[],"layer":"team"}'

BAD_ANSWERS: dict[str, tuple[Said, type[EngineError]]] = {
    "undefined": (answer(b"{}"), UndefinedError),
    "undefined with warning": (answer(b'{"warning":{"code":"api_usage_warning","message":"m"}}'), UndefinedError),
    "true": (result("true"), MalformedError),
    "yes": (result('"yes"'), MalformedError),
    "null": (result("null"), MalformedError),
    "number": (result("1"), MalformedError),
    "object": (result(ONE), MalformedError),
    "empty list": (result("[]"), MalformedError),
    "two of one": (result(f"[{ONE},{ONE}]"), MalformedError),
    "list in list": (result(f"[[{ONE}]]"), MalformedError),
    "null for a decision": (result("[null]"), MalformedError),
    "allow is text": (result(ONE.replace("true", '"true"').join("[]")), MalformedError),
    "allow is 1": (result(ONE.replace("true", "1").join("[]")), MalformedError),
    "allow is null": (result(ONE.replace("true", "null").join("[]")), MalformedError),
    "allow is an object": (result(ONE.replace("true", "{}").join("[]")), MalformedError),
    "allow is missing": (result('[{"reasons":[],"layer":"team"}]'), MalformedError),
    "reasons is text": (result('[{"allow":true,"reasons":"r","layer":"team"}]'), MalformedError),
    "reasons of numbers": (result('[{"allow":true,"reasons":[1],"layer":"team"}]'), MalformedError),
    "reasons is missing": (result('[{"allow":true,"layer":"team"}]'), MalformedError),
    "layer is unknown": (result('[{"allow":true,"reasons":[],"layer":"root"}]'), MalformedError),
    "layer is null": (result('[{"allow":true,"reasons":[],"layer":null}]'), MalformedError),
    "layer is missing": (result('[{"allow":true,"reasons":[]}]'), MalformedError),
    "no UTF-8": (answer(b'{"result":[{"allow":true,"reasons":["\xff"],"layer":"team"}]}'), MalformedError),
    "nested without end": (answer(b'{"result":' + b"[" * 200_000), MalformedError),
    "provenance of another kind": (answer(ALLOW[:-1] + b',"provenance":{"bundles":[1]}}'), MalformedError),
    "200 without a body": (answer(b""), MalformedError),
    "200 with half a JSON": (answer(ALLOW[:-1]), MalformedError),
    "200 with two JSONs": (answer(ALLOW + ALLOW), MalformedError),
    "200 with HTML": (answer(b"<html>Welcome</html>"), MalformedError),
    "200 with a list": (answer(b"[" + ALLOW + b"]"), MalformedError),
    "201": (answer(ALLOW, "201 Created"), MalformedError),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", MalformedError),
    "302": (answer(b"", "302 Found", "Location: /elsewhere"), MalformedError),
    "400": (answer(b'{"code":"invalid_parameter","message":"bad"}', "400 Bad Request"), MalformedError),
    "401": (answer(b'{"code":"unauthorized","message":"no"}', "401 Unauthorized"), UnreachableError),
    "403": (answer(ALLOW, "403 Forbidden"), UnreachableError),
    "404 of another server": (answer(b"404 page not found", "404 Not Found"), MalformedError),
    "500 with an evaluation error": (evaluation_error("complete rules must not conflict"), PolicyBrokenError),
    "500 with HTML": (answer(b"<html>", "500 Internal Server Error"), MalformedError),
    "500 with an allow": (answer(ALLOW, "500 Internal Server Error"), PolicyBrokenError),
    "500 nested without end": (answer(b'{"errors":' + b"[" * 200_000, "500 Internal Server Error"), MalformedError),
    "503 of a proxy": (answer(b"upstream", "503 Service Unavailable"), MalformedError),
    "drip": (drip, DeadlineExceededError),
    "never": (never, DeadlineExceededError),
    "no body": (begin(GOOD[:-5], never), DeadlineExceededError),
    "closed": (close, UnreachableError),
    "reset": (reset, UnreachableError),
    "reset in the header": (lambda connection: reset(connection, GOOD[:20]), MalformedError),
    "reset in the body": (lambda connection: reset(connection, GOOD[:-5]), MalformedError),
    "closed in the body": (begin(GOOD[:-5], close), MalformedError),
    "truncated chunk": (begin(chunked(ALLOW)[:-9], close), MalformedError),
    "no last chunk": (begin(chunked(ALLOW)[:-5], close), MalformedError),
    "chunk longer than it says": (chunked(ALLOW).replace(b"\r\n4", b"\r\n3", 1), MalformedError),
    "chunk of no length": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n" + ALLOW, MalformedError),
    "negative chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", MalformedError),
    "oversized chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", MalformedError),
    "oversized": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", MalformedError),
    "negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + ALLOW, MalformedError),
    "length is no number": (b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789", MalformedError),
    "no length": (b"HTTP/1.1 200 OK\r\n\r\n" + ALLOW, MalformedError),
    "other encoding": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + ALLOW, MalformedError),
    "header without an end": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, MalformedError),
    "endless chunk length": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 200_000, MalformedError),
    "HTTP/1.0": (GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), MalformedError),
    "no HTTP": (b"220 mail.example ESMTP\r\n\r\n", MalformedError),
    "status is no number": (GOOD.replace(b"200 OK", b"2x0 OK"), MalformedError),
    "an empty line": (b"\r\n\r\n", MalformedError),
    "two answers": (GOOD + GOOD, MalformedError),
    "a blank more than it says": (GOOD + b"\n", MalformedError),
    "two chunked answers": (chunked(ALLOW) + chunked(ALLOW), MalformedError),
    "100 before the answer": (b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD, MalformedError),
}  # fmt: skip
