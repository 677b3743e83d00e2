"""Access tokens with groups and roles of a person. They are verified before anything reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Generic, NamedTuple, TypeVar

import jwt
from jwt import exceptions as failures

from airflow_team_authz.issuer import Issuer, Keys
from airflow_team_authz.model import KeysUnknownError

MAX_TOKEN_CHARACTERS = 32 * 1024
# Clocks differ.
LEEWAY_SECONDS = 10
_MAX_VERIFIED = 10_000
_MAX_NOT_PUBLISHED = 1_000

T = TypeVar("T")


class NotVerifiedError(Exception):
    """A token is not to be believed; the message says why, and holds nothing of the token."""


class _Verified(NamedTuple):
    keys: Keys
    expires: float
    subject: str
    content: Any


class Tokens(Generic[T]):
    """Verifies the access tokens that an issuer has made for a client; each once, then it is known by its hash.

    ``read`` makes of the claims of a good token what is wanted; it is kept as long as the token lives and the issuer's
    keys stay the same.
    """

    def __init__(self, issuer: Issuer, client_id: str, read: Callable[[Mapping[str, Any]], T]) -> None:
        self._issuer = issuer
        self._client_id = client_id
        self._read = read
        self._verified: dict[bytes, _Verified] = {}
        self._not_published: set[str] = set()

    async def prepare(self, token: str) -> None:
        """Have at hand what verifying takes: waits, beside the event loop, for a key that is not known yet, and for the
        present keys where nobody has asked for long, as in a process that was forked.
        """
        key_id = _key_id(token)
        # Twice: one that was under way already may have begun before the key was published.
        for _ in range(2):
            if not key_id or (self._is_known(key_id) and not self._issuer.is_overdue):
                return
            answered = await asyncio.wrap_future(self._issuer.fetch())
            self._note(key_id, answered)

    def _is_known(self, key_id: str) -> bool:
        keys = self._issuer.keys
        return keys is not None and key_id in keys.by_id

    def _note(self, key_id: str, answered: bool) -> None:
        """Remember that the issuer has been asked for a key and does not have it."""
        if answered and not self._is_known(key_id):
            if len(self._not_published) >= _MAX_NOT_PUBLISHED:
                self._not_published.clear()
            self._not_published.add(key_id)
        else:
            self._not_published.discard(key_id)

    def content(self, token: str, subject: str) -> T:
        """The result of ``read`` for a token that was issued to ``subject``.

        Raises ``NotVerifiedError`` if the token is not valid, and ``KeysUnknownError`` if the keys are unknown. Asks
        nobody, and never waits.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise NotVerifiedError("the access token is too long")
        digest = sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(digest)
        if known is None or known.keys is not self._issuer.keys:
            known = self._verify(token)
            if len(self._verified) >= _MAX_VERIFIED:
                self._verified.clear()
            self._verified[digest] = known
        if time.time() >= known.expires:
            raise NotVerifiedError(_EXPIRED)
        if known.subject != subject:
            raise NotVerifiedError("the access token was issued to somebody else")
        content: T = known.content
        return content

    def _verify(self, token: str) -> _Verified:
        key_id = _key_id(token)
        if not key_id:
            raise NotVerifiedError(_UNREADABLE)
        keys = self._issuer.required_keys()
        key = keys.by_id.get(key_id)
        if key is None and key_id in self._not_published:
            raise NotVerifiedError("the access token is signed with a key that its issuer does not publish")
        if key is None:
            # Nobody has waited in `prepare`, or the issuer has not answered. Who asks again may find it.
            asked = self._issuer.fetch()
            asked.add_done_callback(lambda done: self._note(key_id, done.result()))
            raise KeysUnknownError(
                "An access token is signed with a new key, which its issuer is being asked for: try again"
            )
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[str(key.algorithm_name)],
                issuer=keys.issuer,
                leeway=LEEWAY_SECONDS,
                # Who it is for is looked at below: Keycloak says so in one of two claims.
                options={"require": ["exp", "iat", "iss", "sub"], "verify_aud": False},
            )
        except failures.PyJWTError as error:
            raise NotVerifiedError(_reason(error)) from None
        except (ValueError, TypeError, RecursionError, OverflowError):
            raise NotVerifiedError(_UNREADABLE) from None
        if claims.get("typ") != "Bearer":
            raise NotVerifiedError("it is some other kind of token than an access token")
        audience = claims.get("aud")
        if claims.get("azp") != self._client_id and self._client_id not in (
            audience if isinstance(audience, list) else [audience]
        ):
            raise NotVerifiedError("the access token was issued for another application")
        return _Verified(keys, float(claims["exp"]) + LEEWAY_SECONDS, claims["sub"], self._read(claims))


_EXPIRED = "the access token has expired: log in again"
_UNREADABLE = "the access token cannot be read"
# The first that fits, so the more special ones go before.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (failures.ExpiredSignatureError, _EXPIRED),
    (failures.ImmatureSignatureError, "the access token is not valid yet: do the clocks agree?"),
    (failures.InvalidIssuerError, "the access token was issued by somebody else than who logs people in here"),
    (failures.InvalidSignatureError, "the signature of the access token is wrong"),
    (failures.InvalidAlgorithmError, "the access token is signed in another way than its key is for"),
    (failures.MissingRequiredClaimError, "the access token lacks a claim that it must have"),
)


def _reason(error: Exception) -> str:
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), _UNREADABLE)


def _key_id(token: str) -> str:
    """The key id that a token names; only ever compared. Empty if there is none."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        return ""
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
    except (failures.PyJWTError, ValueError, TypeError, RecursionError):
        return ""
    return key_id if isinstance(key_id, str) else ""
