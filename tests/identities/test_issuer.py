"""An issuer that answers badly, slowly, differently or not at all; a real one is in tests/keycloak."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

jwt = pytest.importorskip("jwt", reason="PyJWT is not installed")
pytest.importorskip("requests", reason="requests is not installed")

from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: E402

from airflow_team_authz import issuer as module  # noqa: E402
from airflow_team_authz.identities.tokens import NotVerifiedError, Tokens  # noqa: E402
from airflow_team_authz.issuer import Issuer  # noqa: E402
from airflow_team_authz.model import KeysUnknownError  # noqa: E402
from tests.conftest import eventually, forked  # noqa: E402

KEY = rsa.generate_private_key(65537, 2048)
PUBLIC = {
    **jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True),
    "kid": "one",
    "use": "sig",
    "alg": "RS256",
}
Answer = bytes | Callable[[BaseHTTPRequestHandler], None]


class FakeIssuer:
    """Answers as it is told, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.asked.append(self.path)
                answer = fake.answers[self.path]
                if callable(answer):
                    answer(self)
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.answers: dict[str, Answer] = {"/discovery": json.dumps({"issuer": "us"}).encode()}
        self.publish(PUBLIC)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def publish(self, *keys: Any) -> None:
        self.answers["/keys"] = json.dumps({"keys": keys}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def issuer(self) -> Issuer:
        return Issuer(f"{self.url}/discovery", f"{self.url}/keys")

    def tokens(self) -> Tokens[Any]:
        return Tokens(self.issuer(), "airflow", lambda claims: claims["groups"])


@pytest.fixture
def fake() -> Iterator[FakeIssuer]:
    made = FakeIssuer()
    yield made
    made.close()


def token(kid: str = "one", key: Any = KEY, **changed: Any) -> str:
    now = int(time.time())
    claims = {"iss": "us", "sub": "ann", "azp": "airflow", "typ": "Bearer", "iat": now, "exp": now + 300}
    return str(jwt.encode(claims | {"groups": ["g"]} | changed, key, "RS256", {"kid": kid}))


def read(tokens: Tokens[Any], text: str) -> Any:
    asyncio.run(tokens.prepare(text))
    return tokens.content(text, "ann")


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(10_000):
            handler.wfile.write(b" " * 10_000)
    except OSError:
        pass


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


BAD: dict[str, tuple[str, Answer, str]] = {
    "no JSON": ("/keys", b"<html>", "answers something else than JSON"),
    "a list": ("/keys", b"[]", "answers something else than JSON"),
    "no text": ("/keys", b"\xff\xfe\x00", "answers something else than JSON"),
    "deep": ("/keys", b"[" * 100_000, "recursion"),
    "no keys": ("/keys", b"{}", "no key among them"),
    "keys that are none": ("/keys", b'{"keys": [1, null, {"kid": "x"}, {"kty": "RSA", "kid": "y"}]}', "no key among"),
    "keys for encryption": ("/keys", json.dumps({"keys": [PUBLIC | {"use": "enc"}]}).encode(), "no key among them"),
    "a shared secret": ("/keys", b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "one"}]}', "no key among them"),
    "a key without an id": ("/keys", json.dumps({"keys": [PUBLIC | {"kid": None}]}).encode(), "no key among them"),
    "not there": ("/keys", status(404), "answers HTTP 404"),
    "broken": ("/keys", status(500), "answers HTTP 500"),
    "somewhere else": ("/keys", status(302, Location="/discovery"), "answers HTTP 302"),
    "without end": ("/keys", endless, "too much or too slowly"),
    "cut off": ("/keys", drop, "ConnectionError"),
    "no issuer": ("/discovery", b"{}", "names no issuer"),
    "an issuer that is no text": ("/discovery", b'{"issuer": ["us"]}', "names no issuer"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer_is_an_error_and_no_denial(fake: FakeIssuer, kind: str) -> None:
    path, answer, why = BAD[kind]
    fake.answers[path] = answer
    with pytest.raises(KeysUnknownError, match="(?i)" + why.replace("[", r"\[")):
        read(fake.tokens(), token())


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer_leaves_the_keys_that_are_known(
    fake: FakeIssuer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    tokens, text = fake.tokens(), token()
    assert read(tokens, text) == ["g"]
    # So that what follows joins none that has had the good answer.
    tokens._issuer.fetch().result(30)
    path, answer, _ = BAD[kind]
    fake.answers[path] = answer
    assert tokens._issuer.fetch().result(30) is False
    assert tokens.content(text, "ann") == ["g"]
    assert read(tokens, token(groups=["h"])) == ["h"]
    with pytest.raises(KeysUnknownError):
        read(tokens, token(kid="two"))


def test_without_an_address_the_issuers_document_says_where_its_keys_are(fake: FakeIssuer) -> None:
    issuer = Issuer(f"{fake.url}/discovery")
    fake.answers["/discovery"] = json.dumps({"issuer": "us", "jwks_uri": f"{fake.url}/keys"}).encode()
    assert issuer.fetch().result(30) is True
    assert set(issuer.required_keys().by_id) == {"one"}


@pytest.mark.parametrize("place", [None, 1, ["x"], "ftp://x", "", "file:///etc/passwd"])
def test_a_document_that_names_no_place_of_keys_is_an_error(fake: FakeIssuer, place: object) -> None:
    issuer = Issuer(f"{fake.url}/discovery")
    fake.answers["/discovery"] = json.dumps({"issuer": "us", "jwks_uri": place}).encode()
    assert issuer.fetch().result(30) is False
    with pytest.raises(KeysUnknownError):
        issuer.required_keys()


def test_a_slow_issuer_holds_up_nobody_whose_key_is_known(fake: FakeIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 60)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.0)
    tokens, text, go = fake.tokens(), token(), threading.Event()
    assert read(tokens, text) == ["g"]
    fake.answers["/keys"] = lambda _: go.wait(60)
    keys = tokens._issuer.fetch()
    assert read(tokens, text) == ["g"]
    assert read(tokens, token(groups=["h"])) == ["h"]
    assert not keys.done()
    go.set()


def test_keys_are_asked_for_once_for_all_who_wait(fake: FakeIssuer) -> None:
    tokens = fake.tokens()

    async def many() -> None:
        await asyncio.gather(*(tokens.prepare(token()) for _ in range(50)))

    asyncio.run(many())
    assert fake.asked == ["/discovery", "/keys"]
    assert tokens.content(token(), "ann") == ["g"]


def test_one_who_gives_up_waiting_does_not_stop_the_others(fake: FakeIssuer) -> None:
    """A browser that closes its connection takes the request along that was waiting."""
    tokens = fake.tokens()
    asked, go_on = threading.Event(), threading.Event()
    discovery = fake.answers["/discovery"]

    def slow(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        go_on.wait(20)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(discovery)  # type: ignore[arg-type]

    fake.answers["/discovery"] = slow

    async def two() -> None:
        gone, stays = (asyncio.create_task(tokens.prepare(token())) for _ in range(2))
        await asyncio.to_thread(asked.wait, 20)
        gone.cancel()
        await asyncio.sleep(0.1)
        go_on.set()
        await stays

    asyncio.run(two())
    assert tokens.content(token(), "ann") == ["g"]


def test_a_failure_that_nobody_has_thought_of_is_an_error_and_no_denial(
    fake: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    tokens = fake.tokens()
    assert read(tokens, token()) == ["g"]
    monkeypatch.setattr(module, "_get", lambda _: {}["unthought of"])
    with pytest.raises(KeysUnknownError):
        read(tokens, token(kid="two"))


def test_made_up_key_ids_ask_the_issuer_once_a_second_at_most(
    fake: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.5)
    tokens = fake.tokens()
    began = time.monotonic()

    async def many() -> None:
        await asyncio.gather(*(tokens.prepare(token(kid=f"made up {i}")) for i in range(50)))

    asyncio.run(many())
    assert fake.asked.count("/keys") <= 1 + (time.monotonic() - began) / 0.5
    for i in range(50):
        with pytest.raises(NotVerifiedError, match="does not publish"):
            tokens.content(token(kid=f"made up {i}"), "ann")


def test_a_key_that_nobody_has_waited_for_is_an_error_and_found_soon(
    fake: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that Airflow renews on 3.2 is first seen where nothing can be waited for."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    tokens = fake.tokens()
    assert read(tokens, token()) == ["g"]
    other = rsa.generate_private_key(65537, 2048)
    two = {**jwt.algorithms.RSAAlgorithm.to_jwk(other.public_key(), as_dict=True), "kid": "two", "alg": "RS256"}
    fake.publish(PUBLIC, two)
    with pytest.raises(KeysUnknownError, match="try again"):
        tokens.content(token("two", other), "ann")
    eventually(lambda: "two" in tokens._issuer.required_keys().by_id)
    assert tokens.content(token("two", other), "ann") == ["g"]


def test_a_withdrawn_key_takes_its_verdicts_along(fake: FakeIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    tokens, text = fake.tokens(), token()
    assert read(tokens, text) == ["g"]
    other = rsa.generate_private_key(65537, 2048)
    two = {**jwt.algorithms.RSAAlgorithm.to_jwk(other.public_key(), as_dict=True), "kid": "two", "alg": "RS256"}
    fake.publish(two)
    assert tokens._issuer.fetch().result(30) is True
    with pytest.raises(NotVerifiedError, match="does not publish"):
        read(tokens, text)


def test_keys_that_stay_the_same_keep_their_verdicts(fake: FakeIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    tokens, text = fake.tokens(), token()
    read(tokens, text)
    before = tokens._issuer.required_keys()
    assert tokens._issuer.fetch().result(30) is True
    assert tokens._issuer.required_keys() is before


def test_a_forked_child_asks_for_itself(fake: FakeIssuer) -> None:
    """The thread that was asking when it was forked does not exist in it."""
    issuer = fake.issuer()
    hold = threading.Event()
    fake.answers["/discovery"] = lambda _: hold.wait(10) and None
    issuer.fetch()
    child = os.fork()
    if child == 0:
        fake.answers["/discovery"] = b""
        os._exit(0 if issuer.fetch().result(20) is False else 1)
    _, code = os.waitpid(child, 0)
    hold.set()
    assert os.waitstatus_to_exitcode(code) == 0


def test_who_forked_or_has_long_asked_nobody_believes_no_withdrawn_key(
    fake: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    tokens, text = fake.tokens(), token()
    assert read(tokens, text) == ["g"]
    with forked(lambda: read(tokens, text)) as ask:
        other = rsa.generate_private_key(65537, 2048)
        fake.publish({**PUBLIC, **jwt.algorithms.RSAAlgorithm.to_jwk(other.public_key(), as_dict=True), "kid": "two"})
        assert isinstance(ask(), NotVerifiedError)
    assert read(tokens, text) == ["g"]
    monkeypatch.setattr(module, "OVERDUE_SECONDS", 0.0)
    with pytest.raises(NotVerifiedError):
        read(tokens, text)


def test_what_is_known_before_a_fork_counts_while_the_issuer_is_gone(fake: FakeIssuer) -> None:
    tokens, text = fake.tokens(), token()
    assert read(tokens, text) == ["g"]
    with forked(lambda: read(tokens, text)) as ask:
        fake.answers["/discovery"] = status(503)
        assert ask() == ["g"]


def test_tokens_are_not_kept(fake: FakeIssuer) -> None:
    tokens, text = fake.tokens(), token()
    read(tokens, text)
    assert text not in repr(vars(tokens))
    assert len(tokens._verified) == 1


def test_what_is_kept_is_bounded(fake: FakeIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_team_authz.identities import tokens as verifying

    monkeypatch.setattr(verifying, "_MAX_VERIFIED", 5)
    tokens = fake.tokens()
    for i in range(12):
        assert read(tokens, token(jti=str(i))) == ["g"]
        assert len(tokens._verified) <= 5
