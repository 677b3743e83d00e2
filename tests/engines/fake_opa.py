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
    DeadlineExceeded,
    EngineError,
    Evaluations,
    Malformed,
    PolicyBroken,
    Resource,
    Subject,
    Undefined,
    Unreachable,
)

# Bytes to send, or what to do with the connection.
Said = bytes | Callable[[socket.socket], object]
# A decision point over ``OpaServer`` with these arguments.
Connect = Callable[..., DecisionPoint]

QUESTION = Evaluations(Subject("user", "ann", ("alpha",), ("op",)), "read", [Resource("connection", "alpha", "pg")])
LIST = Evaluations(QUESTION.subject, "read", [Resource("connection", "alpha", name) for name in ("a", "b", "c")])
ALLOW = b'{"result":[{"allow":true,"reasons":["op in team alpha"],"layer":"baseline"}]}'
# What a bad answer may take here before it counts as hanging; it is never what a test waits for.
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
    """Answers each question with the next of ``answers``: bytes, or what to do with the connection; then with GOOD."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.answers: list[Said] = []
        self.questions: list[bytes] = []
        self.connections = 0
        self.failures: list[Exception] = []
        self._tls = tls
        self._listener = listener
        name = listener.getsockname()
        plain = f"unix://{name}" if isinstance(name, str) else f"http://127.0.0.1:{name[1]}"
        self.url = plain if tls is None else plain.replace("http:", "https:")
        listener.listen(16)
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
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
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
    "undefined": (answer(b"{}"), Undefined),
    "undefined with warning": (answer(b'{"warning":{"code":"api_usage_warning","message":"m"}}'), Undefined),
    "true": (result("true"), Malformed),
    "yes": (result('"yes"'), Malformed),
    "null": (result("null"), Malformed),
    "number": (result("1"), Malformed),
    "object": (result(ONE), Malformed),
    "empty list": (result("[]"), Malformed),
    "two of one": (result(f"[{ONE},{ONE}]"), Malformed),
    "list in list": (result(f"[[{ONE}]]"), Malformed),
    "null for a decision": (result("[null]"), Malformed),
    "allow is text": (result(ONE.replace("true", '"true"').join("[]")), Malformed),
    "allow is 1": (result(ONE.replace("true", "1").join("[]")), Malformed),
    "allow is null": (result(ONE.replace("true", "null").join("[]")), Malformed),
    "allow is an object": (result(ONE.replace("true", "{}").join("[]")), Malformed),
    "allow is missing": (result('[{"reasons":[],"layer":"team"}]'), Malformed),
    "reasons is text": (result('[{"allow":true,"reasons":"r","layer":"team"}]'), Malformed),
    "reasons of numbers": (result('[{"allow":true,"reasons":[1],"layer":"team"}]'), Malformed),
    "reasons is missing": (result('[{"allow":true,"layer":"team"}]'), Malformed),
    "layer is unknown": (result('[{"allow":true,"reasons":[],"layer":"root"}]'), Malformed),
    "layer is null": (result('[{"allow":true,"reasons":[],"layer":null}]'), Malformed),
    "layer is missing": (result('[{"allow":true,"reasons":[]}]'), Malformed),
    "no UTF-8": (answer(b'{"result":[{"allow":true,"reasons":["\xff"],"layer":"team"}]}'), Malformed),
    "nested without end": (answer(b'{"result":' + b"[" * 200_000), Malformed),
    "provenance of another kind": (answer(ALLOW[:-1] + b',"provenance":{"bundles":[1]}}'), Malformed),
    "200 without a body": (answer(b""), Malformed),
    "200 with half a JSON": (answer(ALLOW[:-1]), Malformed),
    "200 with two JSONs": (answer(ALLOW + ALLOW), Malformed),
    "200 with HTML": (answer(b"<html>Welcome</html>"), Malformed),
    "200 with a list": (answer(b"[" + ALLOW + b"]"), Malformed),
    "201": (answer(ALLOW, "201 Created"), Malformed),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", Malformed),
    "302": (answer(b"", "302 Found", "Location: /elsewhere"), Malformed),
    "400": (answer(b'{"code":"invalid_parameter","message":"bad"}', "400 Bad Request"), Malformed),
    "401": (answer(b'{"code":"unauthorized","message":"no"}', "401 Unauthorized"), Unreachable),
    "403": (answer(ALLOW, "403 Forbidden"), Unreachable),
    "404 of another server": (answer(b"404 page not found", "404 Not Found"), Malformed),
    "500 with an evaluation error": (evaluation_error("complete rules must not conflict"), PolicyBroken),
    "500 with HTML": (answer(b"<html>", "500 Internal Server Error"), Malformed),
    "500 with an allow": (answer(ALLOW, "500 Internal Server Error"), PolicyBroken),
    "500 nested without end": (answer(b'{"errors":' + b"[" * 200_000, "500 Internal Server Error"), Malformed),
    "503 of a proxy": (answer(b"upstream", "503 Service Unavailable"), Malformed),
    "drip": (drip, DeadlineExceeded),
    "never": (never, DeadlineExceeded),
    "no body": (begin(GOOD[:-5], never), DeadlineExceeded),
    "closed": (close, Unreachable),
    "reset": (reset, Unreachable),
    "reset in the header": (lambda connection: reset(connection, GOOD[:20]), Malformed),
    "reset in the body": (lambda connection: reset(connection, GOOD[:-5]), Malformed),
    "closed in the body": (begin(GOOD[:-5], close), Malformed),
    "truncated chunk": (begin(chunked(ALLOW)[:-9], close), Malformed),
    "no last chunk": (begin(chunked(ALLOW)[:-5], close), Malformed),
    "chunk longer than it says": (chunked(ALLOW).replace(b"\r\n4", b"\r\n3", 1), Malformed),
    "chunk of no length": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n" + ALLOW, Malformed),
    "negative chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", Malformed),
    "oversized chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", Malformed),
    "oversized": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", Malformed),
    "negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + ALLOW, Malformed),
    "length is no number": (b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789", Malformed),
    "no length": (b"HTTP/1.1 200 OK\r\n\r\n" + ALLOW, Malformed),
    "other encoding": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + ALLOW, Malformed),
    "header without an end": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, Malformed),
    "endless chunk length": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 200_000, Malformed),
    "HTTP/1.0": (GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), Malformed),
    "no HTTP": (b"220 mail.example ESMTP\r\n\r\n", Malformed),
    "status is no number": (GOOD.replace(b"200 OK", b"2x0 OK"), Malformed),
    "an empty line": (b"\r\n\r\n", Malformed),
    "two answers": (GOOD + GOOD, Malformed),
    "a blank more than it says": (GOOD + b"\n", Malformed),
    "two chunked answers": (chunked(ALLOW) + chunked(ALLOW), Malformed),
    "100 before the answer": (b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD, Malformed),
}  # fmt: skip
