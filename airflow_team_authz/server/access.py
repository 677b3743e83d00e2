"""The rights of a caller, by tokens of this server or of an OpenID Connect issuer."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import jwt
from jwt import PyJWK
from jwt.exceptions import InvalidKeyError, PyJWTError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from airflow_team_authz.issuer import ALGORITHMS, RENEW_SECONDS, Issuer
from airflow_team_authz.server import ServerError
from airflow_team_authz.server.database import Token

PLATFORM, TEAM, READER = "platform", "team", "reader"
# Longer names of callers are cut off.
LONGEST_NAME = 200
_PREFIX = "taz"
_TOKEN = "token "  # noqa: S105 - the first word of a caller's name
# A revoked token counts as long as this at most.
_REMEMBERED_SECONDS = 1.0
# Whoever asks in vain, or for a key that there is not, keeps the issuer from being asked for this time.
_PAUSE_SECONDS = 10.0
# The longest time that a caller waits for the issuer.
_TURN_SECONDS = 1.0


class UnknownClientError(ServerError):
    """The token is none, is over or was revoked."""


class IssuerUnreachableError(ServerError):
    """The issuer's keys cannot be had, so its tokens cannot be checked."""


class Caller(NamedTuple):
    """A caller. The platform may do everything, a team manages its own package, a reader fetches one bundle, or all.

    ``origin`` is who may have the token, as far as that is known: tokens that one caller made are all of that caller's.
    """

    name: str
    kind: str
    team_ids: tuple[str, ...] = ()
    bundle: str | None = None
    origin: str = ""

    @property
    def person(self) -> str:
        """Who is not somebody else than anybody of the same name."""
        return self.origin or self.name

    def owns(self, team_id: str) -> bool:
        """Whether the team's package is the caller's to change."""
        return self.kind == PLATFORM or (self.kind == TEAM and team_id in self.team_ids)

    def reads(self, bundle: str) -> bool:
        """Whether the caller may fetch a bundle."""
        return self.kind == PLATFORM or (self.kind == READER and self.bundle in {None, bundle})


class _Seen(NamedTuple):
    """A token that was good when it was looked up."""

    caller: Caller
    expires_at: datetime
    fresh_until: float


class Oidc(NamedTuple):
    """An issuer whose bearer tokens count: which claim names the teams, and which one with which value the platform."""

    issuer: str
    audience: str
    team_claim: str = "team_id"
    platform_claim: tuple[str, str] | None = None


class Issued(NamedTuple):
    """A new token; ``secret`` is shown this once."""

    id: str
    secret: str
    expires_at: datetime


def issue(
    session: Session, kind: str, days: int, team_id: str | None = None, bundle: str | None = None, made_by: str = ""
) -> Issued:
    """Make a token. ``made_by``: the person who asks the server for it."""
    # Bundles may be asked for by either name.
    bundle = bundle and bundle.removesuffix(".tar.gz")
    id_, secret, now = secrets.token_hex(6), secrets.token_urlsafe(32), datetime.now(UTC)
    expires = now + timedelta(days=days)
    session.add(
        Token(
            id=id_, hash=_hash(secret), kind=kind, team_id=team_id, bundle=bundle, made_by=made_by, created_at=now,
            expires_at=expires,
        )
    )  # fmt: skip
    return Issued(id_, f"{_PREFIX}_{id_}_{secret}", expires)


def token_name(id_: str) -> str:
    """The name of the caller who has the token with this id."""
    return f"{_TOKEN}{id_}"


def issued_name(sub: object, issuer: str) -> str:
    """The name of the caller whom an issuer's token is about."""
    return f"{sub} of {issuer}"[:LONGEST_NAME]


def is_usable(session: Session, name: str, or_over: bool = False) -> bool:
    """Whether the token of a caller with this name is neither revoked nor over (``or_over``: that does not matter).

    An issuer's tokens cannot be revoked here.
    """
    if not name.startswith(_TOKEN) or " of " in name:
        return True
    found = session.get(Token, name.removeprefix(_TOKEN), populate_existing=True)
    if found is None or found.revoked_at is not None:
        return False
    return or_over or found.expires_at > datetime.now(UTC)


def can_be_platform(session: Session, name: str) -> bool:
    """Whether a caller with this name can do what the platform may: by a usable token of this kind, or an issuer's."""
    if not name.startswith(_TOKEN) or " of " in name:
        return True
    found = session.get(Token, name.removeprefix(_TOKEN))
    return found is not None and found.kind == PLATFORM and is_usable(session, name)


class Access:
    """Tells callers by their tokens. Thread-safe."""

    def __init__(self, engine: Engine, oidc: Oidc | None = None) -> None:
        self._engine = engine
        self._oidc = oidc
        self._issuer = Issuer(f"{oidc.issuer.rstrip('/')}/.well-known/openid-configuration") if oidc else None
        self._seen: dict[str, _Seen] = {}

    def remembered(self, token: str) -> Caller | None:
        """The caller of a token that was looked up a moment ago, without waiting for the database."""
        seen = self._seen.get(_hash(token))
        return seen.caller if seen and seen.fresh_until > time.monotonic() else None

    def caller(self, token: str) -> Caller:
        """The caller of a token; ``UnknownClientError``, ``IssuerUnreachableError``, and errors of the database."""
        try:
            caller, expires = self._own(token) if token.startswith(f"{_PREFIX}_") else self._issuers(token)
        except UnknownClientError:
            self._seen.pop(_hash(token), None)
            raise
        if len(self._seen) > 10_000:
            now = datetime.now(UTC)
            self._seen = {hashed: seen for hashed, seen in list(self._seen.items()) if seen.expires_at > now}
        self._seen[_hash(token)] = _Seen(caller, expires, time.monotonic() + _REMEMBERED_SECONDS)
        return caller

    def reader(self, token: str) -> Caller:
        """The caller that fetches bundles. While the database is gone, a token that was valid before is valid."""
        try:
            return self.remembered(token) or self.caller(token)
        except SQLAlchemyError:
            if known := self.known_before(token):
                return known
            raise

    def known_before(self, token: str) -> Caller | None:
        """The caller of a token that was valid at its last look-up, and has not expired."""
        seen = self._seen.get(_hash(token))
        return seen.caller if seen and seen.expires_at > datetime.now(UTC) else None

    def _own(self, token: str) -> tuple[Caller, datetime]:
        _, id_, secret = [*token.split("_", 2), "", ""][:3]
        if not id_.isalnum():
            raise UnknownClientError("the token is not known")
        with Session(self._engine) as session:
            found = session.get(Token, id_)
            expected = found.hash if found else "0" * 64
            given = _hash(secret)
            # Compared also where there is none, so that it takes the same time.
            same = hmac.compare_digest(expected, given)
            if found is None or not same:
                raise UnknownClientError("the token is not known")
            if found.revoked_at is not None:
                raise UnknownClientError(f"the token {id_} was revoked")
            if found.expires_at <= datetime.now(UTC):
                raise UnknownClientError(
                    f"the token {id_} is over since {found.expires_at:%Y-%m-%d}: ask for a new one"
                )
            teams = (found.team_id,) if found.team_id else ()
            return Caller(token_name(id_), found.kind, teams, found.bundle, found.made_by), found.expires_at

    def _issuers(self, token: str) -> tuple[Caller, datetime]:
        if self._oidc is None or self._issuer is None:
            raise UnknownClientError("the token is none of this server's")
        try:
            # Of whom it says to be is looked at first: the issuer is not asked because of just any text.
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
            if unverified["payload"].get("iss") != self._oidc.issuer:
                raise UnknownClientError("the token is none of this server's, nor of its issuer")
            claims = jwt.decode(
                token,
                _key(self._issuer, self._oidc.issuer, unverified["header"].get("kid")),
                algorithms=sorted(ALGORITHMS),
                audience=self._oidc.audience,
                issuer=self._oidc.issuer,
                leeway=10,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (PyJWTError, ValueError, KeyError, TypeError) as error:
            raise UnknownClientError(f"the token is refused: {error}") from None
        return self._from_claims(claims, self._oidc), datetime.fromtimestamp(claims["exp"], UTC)

    @staticmethod
    def _from_claims(claims: dict[str, Any], oidc: Oidc) -> Caller:
        name = issued_name(claims.get("sub") or "somebody", oidc.issuer)
        if oidc.platform_claim is not None:
            said = claims.get(oidc.platform_claim[0])
            if oidc.platform_claim[1] in (said if isinstance(said, list) else [said]):
                return Caller(name, PLATFORM)
        teams = claims.get(oidc.team_claim)
        named = [team for team in (teams if isinstance(teams, list) else [teams]) if isinstance(team, str) and team]
        if not named:
            raise UnknownClientError(f"the token's claim {oidc.team_claim} names no team")
        return Caller(name, TEAM, tuple(named))


def _key(issuer: Issuer, name: str, id_: object) -> PyJWK:
    """One key of an issuer; ``InvalidKeyError`` if it has no such key, and ``IssuerUnreachableError``."""
    keys = issuer.keys
    is_good = keys is not None and id_ in keys.by_id and issuer.unanswered_seconds < RENEW_SECONDS
    if not is_good and issuer.untried_seconds > _PAUSE_SECONDS:
        with suppress(TimeoutError):
            issuer.fetch().result(_TURN_SECONDS)
    keys = issuer.keys
    if keys is None or issuer.unanswered_seconds > RENEW_SECONDS + _PAUSE_SECONDS:
        # Not why: the issuer's answer may quote where it sends us.
        raise IssuerUnreachableError(f"the keys of {name} cannot be had")
    if not isinstance(id_, str) or id_ not in keys.by_id:
        raise InvalidKeyError("its issuer has no such key")
    return keys.by_id[id_]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
