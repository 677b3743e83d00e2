"""Tokens that must not be believed. Each gives no group and no role, and the reason says what is wrong with it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from airflow_team_authz.identities import tokens
from airflow_team_authz.model import KeysUnknownError
from tests.conftest import eventually
from tests.keycloak.conftest import subject, subject_of, user
from tests.support.keycloak import CLIENT, Realm, b64, public_pem

pytestmark = pytest.mark.timeout(400)

WANTED = ["alpha-engineers", "data-platform"]


class Forger(NamedTuple):
    """What somebody may have who forges: a genuine token, and here even a key that the realm publishes."""

    realm: Realm
    genuine: str
    key: rsa.RSAPrivateKey
    key_id: str

    @property
    def claims(self) -> dict[str, Any]:
        """The claims of the genuine token, with groups and roles that it does not have."""
        held: dict[str, Any] = jwt.decode(self.genuine, options={"verify_signature": False})
        return held | {"groups": WANTED, "realm_access": {"roles": ["Admin"]}}

    def sign(self, without: str = "", headers: dict[str, Any] | None = None, **changed: Any) -> str:
        """A token with the realm's own signature, whatever it says."""
        claims = self.claims | changed
        claims.pop(without, None)
        header = {"typ": "JWT", "kid": self.key_id} | (headers or {})
        # Not `jwt.encode`, which refuses some of what is tried here.
        return jwt.PyJWS().encode(json.dumps(claims).encode(), self.key, "RS256", header)

    def with_kid(self, kid: Any) -> str:
        header = b64(json.dumps({"alg": "RS256", "kid": kid}).encode())
        payload = b64(json.dumps(self.claims).encode())
        return f"{header}.{payload}.{self.genuine.rpartition('.')[2]}"


def changed_payload(forger: Forger) -> str:
    header, _, signature = forger.genuine.split(".")
    return f"{header}.{b64(json.dumps(forger.claims).encode())}.{signature}"


def unsigned(forger: Forger, algorithm: str = "none") -> str:
    header = b64(json.dumps({"alg": algorithm, "kid": forger.key_id}).encode())
    return f"{header}.{b64(json.dumps(forger.claims).encode())}."


def by_the_public_key(forger: Forger) -> str:
    """HMAC with what everybody may read. PyJWT refuses to make such a token, so it is put together here."""
    import hmac

    header = b64(json.dumps({"alg": "HS256", "kid": forger.key_id}).encode())
    signed = f"{header}.{b64(json.dumps(forger.claims).encode())}"
    return f"{signed}.{b64(hmac.digest(public_pem(forger.key), signed.encode(), 'sha256'))}"


def by_another_key(forger: Forger, **headers: Any) -> str:
    own = rsa.generate_private_key(65537, 2048)
    return jwt.encode(forger.claims, own, "RS256", {"kid": forger.key_id} | headers)


def bringing_its_key(forger: Forger) -> str:
    own = rsa.generate_private_key(65537, 2048)
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(own.public_key()))
    return jwt.encode(forger.claims, own, "RS256", {"kid": forger.key_id, "jwk": jwk, "jku": "http://127.0.0.1:1/"})


def of_another_realm(forger: Forger) -> str:
    other = Realm(forger.realm.keycloak, "elsewhere")
    other.add_client(CLIENT)
    other.add_groups(*WANTED)
    other.add_person("ann", groups=tuple(WANTED))
    return str(other.tokens("ann")["access_token"])


def for_another_client(forger: Forger) -> str:
    return str(forger.realm.tokens("pat", "other")["access_token"])


NOW = int(time.time())
YEAR = 365 * 86400
FORGED: dict[str, tuple[Callable[[Forger], str], str]] = {
    "changed payload": (changed_payload, "signature of the access token is wrong"),
    "alg none": (unsigned, "signed in another way"),
    "alg None": (lambda forger: unsigned(forger, "None"), "signed in another way"),
    "HS256 with the public key": (by_the_public_key, "signed in another way"),
    "another key": (by_another_key, "signature of the access token is wrong"),
    "a key in its header": (bringing_its_key, "signature of the access token is wrong"),
    "a critical extension": (lambda forger: forger.sign(headers={"crit": ["exp"], "exp": 1}), "cannot be read"),
    "another realm": (of_another_realm, "key that its issuer does not publish"),
    "another issuer": (lambda forger: forger.sign(iss=f"{forger.realm.url}/"), "issued by somebody else"),
    "issuers": (lambda forger: forger.sign(iss=[forger.realm.url]), "issued by somebody else"),
    "another client": (for_another_client, "issued for another application"),
    "another audience": (lambda forger: forger.sign(azp="other", aud=["other"]), "issued for another application"),
    "a part of the audience": (lambda forger: forger.sign(azp="", aud=f"not {CLIENT}"), "for another application"),
    "no audience": (lambda forger: forger.sign(azp=None, aud=None), "issued for another application"),
    "expired": (lambda forger: forger.sign(exp=NOW - 60), "has expired"),
    "not yet valid": (lambda forger: forger.sign(nbf=NOW + YEAR), "not valid yet"),
    "issued in the future": (lambda forger: forger.sign(iat=NOW + YEAR), "not valid yet"),
    "no end": (lambda forger: forger.sign(without="exp"), "lacks a claim"),
    "no issuer": (lambda forger: forger.sign(without="iss"), "lacks a claim"),
    "an end that is no number": (lambda forger: forger.sign(exp="never"), "cannot be read"),
    "an end beyond numbers": (lambda forger: forger.sign(exp=float("inf")), "cannot be read"),
    "somebody else's": (lambda forger: str(forger.realm.tokens("pat")["access_token"]), "issued to somebody else"),
    "an identity token": (lambda forger: str(forger.realm.tokens("pat")["id_token"]), "some other kind of token"),
    "a refresh token": (lambda forger: str(forger.realm.tokens("pat")["refresh_token"]), "does not publish"),
    "an unknown key id": (lambda forger: forger.with_kid("unknown"), "does not publish"),
    "a path as key id": (lambda forger: forger.with_kid("../../../../dev/null"), "does not publish"),
    "an address as key id": (lambda forger: forger.with_kid("http://127.0.0.1:1/key"), "does not publish"),
    "SQL as key id": (lambda forger: forger.with_kid("x' UNION SELECT 'key"), "does not publish"),
    "a long key id": (lambda forger: forger.with_kid("k" * 10_000), "does not publish"),
    "no text as key id": (lambda forger: forger.with_kid({"kid": 1}), "cannot be read"),
    "no key id": (lambda forger: forger.with_kid(None), "cannot be read"),
    "1 MB": (lambda forger: forger.sign(groups=WANTED * 40_000), "too long"),
    "nonsense": (lambda _: "a.b.c", "cannot be read"),
    "no token": (lambda _: "", "cannot be read"),
    "half a character": (lambda forger: forger.genuine + "\ud800", "cannot be read"),
    "deep": (lambda _: f"{b64(b'[' * 10_000)}.e30.", "cannot be read"),
}


@pytest.fixture(scope="session")
def forger(realm: Realm) -> Forger:
    key, key_id = realm.add_key(priority=-1)
    return Forger(realm, str(realm.tokens("nil")["access_token"]), key, key_id)


@pytest.fixture(scope="session")
def nil(forger: Forger) -> str:
    """The id of somebody who has no group and no role."""
    return subject_of(forger.genuine)


def test_what_the_forger_starts_from_is_believed(manager: Any, forger: Forger) -> None:
    """Otherwise the tests below would show nothing."""
    somebody = user(forger.sign(), "nil")
    found = subject(manager, somebody)
    assert (found.groups, "Admin" in found.roles, found.unverified) == (tuple(WANTED), True, UNSET)
    assert manager.is_authorized_configuration(method="DELETE", user=somebody)


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_token_gives_no_group_and_no_role(manager: Any, forger: Forger, nil: str, kind: str) -> None:
    forge, reason = FORGED[kind]
    somebody = user(forger.genuine, "nil", access_token=forge(forger))
    found = subject(manager, somebody)
    assert (found.id, found.roles, found.groups, found.team_ids) == ("nil", (), (), ())
    assert isinstance(found.unverified, str)
    assert reason in found.unverified
    assert somebody.user_id == nil


@pytest.mark.parametrize("kind", ["changed payload", "expired", "another client"])
def test_the_refusal_says_why(manager: Any, forger: Forger, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    forge, reason = FORGED[kind]
    token = forge(forger)
    somebody = user(forger.genuine, "nil", access_token=token)
    subject(manager, somebody)
    with caplog.at_level("DEBUG"):
        assert not manager.is_authorized_configuration(user=somebody, method="GET")
        eventually(lambda: "groups and roles of this login do not count" in caplog.text)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("airflow_team_authz")]
    assert any("groups and roles of this login do not count" in line and reason in line for line in said)
    assert not any(part in caplog.text for part in token.split("."))


def test_a_token_is_no_longer_believed_when_its_time_is_over(
    manager: Any, forger: Forger, monkeypatch: pytest.MonkeyPatch
) -> None:
    somebody = user(forger.sign(exp=int(time.time()) + 100), "nil")
    assert subject(manager, somebody).groups == tuple(WANTED)
    monkeypatch.setattr(tokens.time, "time", lambda now=time.time: now() + 111)
    assert subject(manager, somebody).groups == ()


def test_a_verified_token_is_worth_nothing_to_somebody_else(manager: Any, forger: Forger) -> None:
    token = forger.sign()
    assert subject(manager, user(token, "nil")).groups == tuple(WANTED)
    found = subject(manager, user(token, "eve", user_id="another"))
    assert (found.groups, found.roles) == ((), ())


def test_the_audience_may_name_airflow_where_the_client_is_another(manager: Any, forger: Forger) -> None:
    token = forger.sign(azp="workload", aud=["account", CLIENT])
    assert subject(manager, user(token, "nil")).groups == tuple(WANTED)


def test_what_is_no_text_in_a_good_token_is_left_out(manager: Any, forger: Forger) -> None:
    token = forger.sign(groups=["a", 1, None, ["b"], {"c": 1}], realm_access=["Admin"], resource_access={CLIENT: 1})
    found = subject(manager, user(token, "nil"))
    assert (found.groups, found.roles) == (("a",), ())


def test_a_role_of_another_client_is_not_ours(manager: Any, forger: Forger) -> None:
    access = {"other": {"roles": ["Admin"]}, CLIENT: {"roles": ["Op"]}}
    found = subject(manager, user(forger.sign(realm_access={}, resource_access=access), "nil"))
    assert found.roles == ("Op",)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_no_change_of_a_token_is_believed(manager: Any, forger: Forger, nil: str, data: st.DataObject) -> None:
    """Whatever is changed in the text: it says what the genuine one says, or it is not believed."""
    genuine = subject(manager, user(forger.genuine, "nil"))
    at = data.draw(st.integers(0, len(forger.genuine) - 1))
    piece = data.draw(st.text(st.characters(min_codepoint=1), max_size=3))
    changed = forger.genuine[:at] + piece + forger.genuine[at + data.draw(st.integers(0, 3)) :]
    try:
        found = manager.subject(user(changed, "nil", user_id=nil))
    except KeysUnknownError:  # it names another key, and nobody has waited for that
        return
    assert found == genuine or (found.roles, found.groups) == ((), ())
