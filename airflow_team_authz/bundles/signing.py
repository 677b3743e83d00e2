"""Signatures of bundles, as OPA makes and checks them: ES256 over the hash of every file.

https://www.openpolicyagent.org/docs/management-bundles#signing. Here stricter than there: the signature of a bundle
covers its files to the last one, and the scope has to be named. A key's id is a hash of it, so it cannot be mistaken.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm
from jwt.exceptions import PyJWTError
from jwt.utils import der_to_raw_signature

from airflow_team_authz.model import UnfitKeyError
from airflow_team_authz.opa.archive import BundleRefusedError, canonical

SIGNATURES = ".signatures.json"
ALGORITHM = "ES256"
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class Signature(NamedTuple):
    """A signature that counts: the id of its key, and when it was made, in seconds since 1970, if it tells that."""

    key_id: str
    issued_at: int | None


class SigningKey:
    """A private key on the curve P-256."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def new(cls) -> SigningKey:
        """A fresh key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, pem: bytes, name: str) -> SigningKey:
        """From PEM without a password; ``name`` is what a ``UnfitKeyError`` calls it."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise UnfitKeyError(
                f"{name} holds no private key in PEM without a password: `team-authz keys new` makes one"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise UnfitKeyError(f"{name} holds another kind of key than ES256 takes: `team-authz keys new` makes one")
        return cls(key)

    def pem(self) -> bytes:
        """The key itself, unencrypted: for a file that only its owner can read."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, files: Mapping[str, bytes], scope: str, issued_at: int | None = None) -> dict[str, bytes]:
        """The files, with a signature of them all among them. The same files make the same signature (RFC 6979).

        ``issued_at`` is the claim ``iat``, which OPA knows and does not look at.
        """
        signed = {name: content for name, content in files.items() if name != SIGNATURES}
        listed = [
            {"name": name, "hash": hashlib.sha256(content).hexdigest(), "algorithm": "SHA-256"}
            for name, content in sorted(signed.items())
        ]
        claims = {"files": listed, "scope": scope} | ({} if issued_at is None else {"iat": issued_at})
        token = _jws.encode(canonical(claims), self._key, ALGORITHM, headers={"kid": self.public.id})
        return signed | {SIGNATURES: canonical({"signatures": [token]})}


class PublicKey:
    """Verifies the signatures of a ``SigningKey``. ``id`` is 16 hexadecimal digits."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self.key = key
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.id = hashlib.sha256(der).hexdigest()[:16]

    def pem(self) -> bytes:
        """The key in PEM."""
        return self.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


class TrustedKeys(dict[str, PublicKey]):
    """The keys that count at present, by id: while one is replaced, the old and the new one."""

    @classmethod
    def of(cls, keys: Iterable[PublicKey]) -> TrustedKeys:
        """From keys."""
        return cls({key.id: key for key in keys})

    @classmethod
    def load(cls, pem: bytes, name: str) -> TrustedKeys:
        """From one or several public keys in PEM; ``name`` is what a ``UnfitKeyError`` calls it."""
        found = []
        for block in _PEM.findall(pem):
            try:
                key = serialization.load_pem_public_key(block)
            except (ValueError, UnsupportedAlgorithm):
                raise UnfitKeyError(f"a public key in {name} cannot be read") from None
            if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
                raise UnfitKeyError(f"{name} holds another kind of key than ES256 takes")
            found.append(PublicKey(key))
        if not found:
            raise UnfitKeyError(
                f"{name} holds no public key in PEM: it is the .pub file that `team-authz keys new` writes"
            )
        return cls.of(found)

    @classmethod
    def read(cls, path: Path) -> TrustedKeys:
        """From a file."""
        try:
            return cls.load(path.read_bytes(), str(path))
        except OSError as error:
            raise UnfitKeyError(f"{path} cannot be read: {error.strerror}") from None

    def pem(self) -> bytes:
        """All of them in PEM."""
        return b"".join(key.pem() for key in self.values())

    def verify(self, files: Mapping[str, bytes], scope: str) -> Signature:
        """The signature of the files for this scope; ``BundleRefusedError`` if none of these keys has made one."""
        try:
            (token,) = json.loads(files[SIGNATURES])["signatures"]
            key_id = _jws.get_unverified_header(token).get("kid")
        except KeyError:
            raise BundleRefusedError("it is not signed") from None
        except (ValueError, TypeError, AttributeError, RecursionError, PyJWTError) as error:
            raise BundleRefusedError(f"its signature cannot be read: {error}") from None
        if not isinstance(key_id, str) or (key := self.get(key_id)) is None:
            raise BundleRefusedError(f"it is signed by the key {key_id!r:.40}, which is not trusted here (any more)")
        try:
            payload = json.loads(_jws.decode(token, key.key, algorithms=[ALGORITHM]))
            said = {file["name"]: file["hash"] for file in payload["files"] if file["algorithm"] == "SHA-256"}
            signed_for, issued_at = payload.get("scope"), payload.get("iat")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, PyJWTError) as error:
            raise BundleRefusedError(f"its signature is wrong: {error}") from None
        if signed_for != scope:
            raise BundleRefusedError(f"it is signed for {signed_for!r:.60}, not for {scope!r}")
        present = {name: content for name, content in files.items() if name != SIGNATURES}
        for name in sorted(said.keys() ^ present.keys()):
            raise BundleRefusedError(f"{name} is {'missing' if name in said else 'not covered by its signature'}")
        for name, content in present.items():
            if not hmac.compare_digest(hashlib.sha256(content).hexdigest().encode(), str(said[name]).encode()):
                raise BundleRefusedError(f"{name} is not what was signed")
        return Signature(key_id, issued_at if type(issued_at) is int else None)


class _Deterministic(ECAlgorithm):
    """ES256 whose signature is the same for the same text and key, so that a build can be repeated (RFC 6979)."""

    def sign(self, msg: bytes, key: Any) -> bytes:
        der = key.sign(msg, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        return der_to_raw_signature(der, key.curve)


_jws = PyJWS(algorithms=[])
_jws.register_algorithm(ALGORITHM, _Deterministic(hashes.SHA256, ec.SECP256R1))
