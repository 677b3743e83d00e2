"""The keys that an OpenID Connect issuer publishes."""

from __future__ import annotations

import threading
import time

import httpx
from jwt import PyJWK, PyJWKSet
from jwt.exceptions import InvalidKeyError, PyJWTError

from airflow_team_authz.server import ServerError

_TIMEOUT_SECONDS = 5.0
# Whoever asks in vain, or for a key that there is not, keeps the issuer from being asked for this time.
_PAUSE_SECONDS = 10.0
_FRESH_SECONDS = 300.0
_TURN_SECONDS = 1.0


class IssuerUnreachableError(ServerError):
    """The issuer's keys cannot be had, so its tokens cannot be checked."""


class IssuerKeys:
    """Thread-safe. Nobody's tokens can make it ask the issuer all the time, or have all threads wait for it."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer
        self._keys: dict[str | None, PyJWK] = {}
        self._asked = self._answered = float("-inf")
        self._asking = threading.Lock()

    def key(self, id_: str | None) -> PyJWK:
        """One key; raises ``InvalidKeyError`` or ``IssuerUnreachableError``."""
        if not self._fresh(id_) and self._asking.acquire(timeout=_TURN_SECONDS):
            try:
                if not self._fresh(id_) and time.monotonic() - self._asked > _PAUSE_SECONDS:
                    self._ask()
            finally:
                self._asking.release()
        if time.monotonic() - self._answered > _FRESH_SECONDS + _PAUSE_SECONDS:
            raise IssuerUnreachableError(f"the keys of {self._issuer} cannot be had")
        if id_ not in self._keys:
            raise InvalidKeyError("its issuer has no such key")
        return self._keys[id_]

    def _fresh(self, id_: str | None) -> bool:
        return id_ in self._keys and time.monotonic() - self._answered < _FRESH_SECONDS

    def _ask(self) -> None:
        try:
            told = self._document(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            found = PyJWKSet.from_dict(self._document(told["jwks_uri"]))
            self._keys = {key.key_id: key for key in found.keys if key.public_key_use in {"sig", None}}
            self._answered = time.monotonic()
        except (httpx.HTTPError, httpx.InvalidURL, PyJWTError, ValueError, KeyError, TypeError, AttributeError):
            # Not why: it may quote where the issuer sends us. Keys that it told before count for a while.
            pass
        finally:
            self._asked = time.monotonic()

    @staticmethod
    def _document(address: str) -> dict[str, str]:
        answer = httpx.get(address, timeout=_TIMEOUT_SECONDS, follow_redirects=False)
        answer.raise_for_status()
        document: dict[str, str] = answer.json()
        return document
