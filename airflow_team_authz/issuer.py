"""An OpenID Connect issuer's public keys: cached, renewed, and fetched by a thread of their own.

OpenID Connect Discovery 1.0 (https://openid.net/specs/openid-connect-discovery-1_0.html), RFC 7517 for the keys.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import requests
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from airflow_team_authz import forks
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import KeysUnknownError

log = logger(__name__)

# Only what a public key can verify: with HS256 anybody could sign with the key that is published.
ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)  # fmt: skip
RENEW_SECONDS = 300.0
# Keys that nobody has tried to renew for so long, as in a process without requests, are not used before that.
OVERDUE_SECONDS = 330.0
# Whoever makes up key ids must not make us ask the issuer for each.
PAUSE_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
_MAX_DOCUMENT_BYTES = 1024 * 1024


class Keys(NamedTuple):
    """The published data of an issuer: its name as tokens carry it, and its keys by id."""

    issuer: str
    by_id: Mapping[str, PyJWK]


class Issuer:
    """The keys of the issuer at ``discovery`` (an address that ends in ``/.well-known/openid-configuration``).

    The keys are at ``keys_url``; without it, where the issuer's own document says (``jwks_uri``). Nothing here waits
    for the network but the thread that fetches: at most one at a time, at most one fetch a second. When the issuer is
    gone, the keys that are known stay; ``unanswered_seconds`` tells how old they are.
    """

    def __init__(self, discovery: str, keys_url: str | None = None) -> None:
        self._discovery = discovery
        self._keys_url = keys_url
        self._keys: Keys | None = None
        self._published: object = None
        self._asked = -RENEW_SECONDS
        self._failure = "nobody has asked yet"
        self._tried = self._answered = -math.inf
        self._lock = threading.Lock()
        self._fetching: Future[bool] | None = None
        forks.after_fork(self._after_fork)

    def _after_fork(self) -> None:
        # What the parent knows may be hours old, and the thread that would renew it is not there.
        self._tried, self._lock, self._fetching = -math.inf, threading.Lock(), None

    @property
    def keys(self) -> Keys | None:
        """The keys that are known, renewed from time to time: the same object as long as the same are published."""
        if time.monotonic() - self._asked > RENEW_SECONDS:
            self.fetch()
        return self._keys

    @property
    def is_overdue(self) -> bool:
        """Whether this process has not tried to renew the keys for long: who can wait for that is to do so."""
        return self.untried_seconds > OVERDUE_SECONDS

    @property
    def untried_seconds(self) -> float:
        """The time since the last try to get the keys ended; without end where there was none in this process."""
        return time.monotonic() - self._tried

    @property
    def unanswered_seconds(self) -> float:
        """The time since the issuer told its keys last; without end where it never did."""
        return time.monotonic() - self._answered

    def required_keys(self) -> Keys:
        """``keys``, or ``KeysUnknownError`` with what went wrong."""
        keys = self.keys
        if keys is None:
            raise KeysUnknownError(
                f"The keys of {self._discovery} are not known ({self._failure}), so no login of it can be verified: "
                "is it running, and is the address right?"
            )
        return keys

    def fetch(self) -> Future[bool]:
        """Ask for the keys anew, or join who does already: whether the issuer has answered."""
        with self._lock:
            if self._fetching is None:
                done: Future[bool] = Future()
                # Whoever waits may be gone before it is over; the others must not be told that it was given up.
                done.set_running_or_notify_cancel()
                threading.Thread(target=self._fetch, args=(done,), name="team-authz-keys", daemon=True).start()
                self._fetching = done
            return self._fetching

    def _fetch(self, done: Future[bool]) -> None:
        failure = "it was interrupted"
        try:
            time.sleep(max(0.0, self._asked + PAUSE_SECONDS - time.monotonic()))
            self._asked = time.monotonic()
            document = _get(self._discovery)
            issuer, published = document.get("issuer"), _get(self._keys_url or _text(document.get("jwks_uri")))
            if not isinstance(issuer, str) or not issuer:
                raise ValueError(f"{self._discovery} names no issuer")
            if (issuer, published) != self._published:
                self._keys = Keys(issuer, _usable(published))
                self._published = (issuer, published)
                log.info("%d keys of %s are known", len(self._keys.by_id), issuer)
            elif self._failure:
                log.info("%s answers again", issuer)
            failure, self._answered = "", time.monotonic()
        except Exception as error:  # of the network, of TLS, of whatever the answer holds
            failure = f"{type(error).__name__}: {error}"[:300]
            if failure != self._failure:
                log.warning("the keys of %s cannot be fetched: %s", self._discovery, failure)
        finally:
            self._failure, self._tried = failure, time.monotonic()
            with self._lock:
                self._fetching = None
            done.set_result(not failure)


def _text(address: object) -> str:
    if not isinstance(address, str):
        raise ValueError("the issuer's document names no place of its keys (jwks_uri)")
    return address


def _usable(published: Mapping[str, Any]) -> dict[str, PyJWK]:
    """The keys that may sign a token; ``ValueError`` if there is none."""
    listed = published.get("keys")
    usable: dict[str, PyJWK] = {}
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or not isinstance(entry.get("kid"), str):
            continue
        try:
            key = PyJWK(entry)
        except (PyJWTError, ValueError, TypeError):
            continue  # of a kind that we cannot use
        if key.algorithm_name in ALGORITHMS:
            usable[entry["kid"]] = key
    if not usable:
        raise ValueError("there is no key among them that can verify a signature")
    return usable


def _get(url: str) -> dict[str, Any]:
    """A JSON object over HTTP, in bounded time and of bounded size; redirections are not followed."""
    until = time.monotonic() + _TIMEOUT_SECONDS
    # The login manager talks to the issuer by requests too, so proxies and certificates are set for both at once.
    with requests.get(url, timeout=_TIMEOUT_SECONDS, allow_redirects=False, stream=True) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{url} answers HTTP {answer.status_code}")
        content = bytearray()
        for piece in answer.iter_content(16 * 1024):
            content += piece
            if len(content) > _MAX_DOCUMENT_BYTES or time.monotonic() > until:
                raise ValueError(f"{url} answers too much or too slowly")
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ValueError(f"{url} answers something else than JSON")
    return document
