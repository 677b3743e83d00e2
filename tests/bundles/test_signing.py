"""Signatures: who has signed what for whom; here, and by a real OPA."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from airflow_team_authz.bundles.signing import SIGNATURES, SigningKey, TrustedKeys
from airflow_team_authz.model import UnfitKeyError
from airflow_team_authz.opa.archive import BundleRefusedError, canonical, load_json, pack
from airflow_team_authz.opa.compile import find_opa

TEXT = '"ä\u2028\u2029<&>\\u0007\\b\\f\\n\\r\\t\\"\\\\/🚀\\u007f"'
DATA = f'{{"b": [{TEXT}, 1e3, 1.10, -0, 123456789012345678901], "a": {{"": null}}}}'
FILES = {
    ".manifest": canonical({"roots": [""], "revision": "1"}),
    "data.json": canonical(load_json(DATA.encode())),
    "teams/a/größe.rego": "package teams.a\n\n# größe\n".encode(),
}
OTHER = SigningKey.new()


def signed(key: SigningKey, scope: str = "alpha") -> dict[str, bytes]:
    return key.sign(FILES, scope)


def resigned(
    key: SigningKey, change: Callable[[dict[str, object]], object], algorithm: str = "ES256"
) -> dict[str, bytes]:
    """As signed, with another payload or algorithm, by the same key."""
    (token,) = json.loads(signed(key)[SIGNATURES])["signatures"]
    payload = jwt.decode(token, options={"verify_signature": False})
    change(payload)
    secret = key.pem() if algorithm == "ES256" else key.public.pem().decode().replace("PUBLIC", "X")
    token = jwt.encode(payload, secret if algorithm != "none" else None, algorithm, headers={"kid": key.public.id})
    return FILES | {SIGNATURES: canonical({"signatures": [token]})}


def odd(key: SigningKey) -> str:
    return str(jwt.api_jws.encode(b"[]", key.pem(), "ES256", headers={"kid": key.public.id}))


def test_signing_is_the_same_each_time_and_verified(key: SigningKey) -> None:
    assert signed(key) == signed(key)
    assert TrustedKeys.of([OTHER.public, key.public]).verify(signed(key), "alpha") == (key.public.id, None)
    assert key.sign(signed(key), "alpha") == signed(key)


BAD: dict[str, tuple[Callable[[SigningKey], dict[str, bytes]], str]] = {
    "unsigned": (lambda _: FILES, "not signed"),
    "another scope": (lambda key: signed(key, "beta"), "signed for 'beta', not for 'alpha'"),
    "no scope": (lambda key: resigned(key, lambda said: said.pop("scope")), "signed for None"),
    "another key": (lambda _: signed(OTHER), "not trusted here"),
    "changed": (lambda key: signed(key) | {"data.json": b"{}"}, "data.json is not what was signed"),
    "more": (lambda key: signed(key) | {"x.rego": b""}, "x.rego is not covered by its signature"),
    "less": (lambda key: {n: c for n, c in signed(key).items() if n != "data.json"}, "data.json is missing"),
    "weak hash": (
        lambda key: resigned(key, lambda said: [file.update(algorithm="MD5") for file in said["files"]]),  # type: ignore[attr-defined]
        "not covered by its signature",
    ),
    "alg none": (lambda key: resigned(key, lambda _: None, "none"), "signature is wrong"),
    "HS256 with the public key": (lambda key: resigned(key, lambda _: None, "HS256"), "signature is wrong"),
    "payload no object": (lambda key: FILES | {SIGNATURES: canonical({"signatures": [odd(key)]})}, "is wrong"),
    "two signatures": (lambda key: signed(key) | {SIGNATURES: canonical({"signatures": ["a", "b"]})}, "cannot be read"),
    "no signatures": (lambda key: signed(key) | {SIGNATURES: canonical({"signatures": []})}, "cannot be read"),
    "nonsense": (lambda key: signed(key) | {SIGNATURES: b"nonsense"}, "cannot be read"),
    "no JWT": (lambda key: signed(key) | {SIGNATURES: canonical({"signatures": ["x.y.z"]})}, "cannot be read"),
    "a number": (lambda key: signed(key) | {SIGNATURES: b"7"}, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_signed_so_is_refused(case: str, key: SigningKey) -> None:
    make, told = BAD[case]
    with pytest.raises(BundleRefusedError, match=told):
        TrustedKeys.of([key.public]).verify(make(key), "alpha")


def test_two_keys_are_valid_while_one_is_replaced(key: SigningKey) -> None:
    both = TrustedKeys.load(key.public.pem() + OTHER.public.pem(), "x")
    assert [both.verify(signed(signer), "alpha").key_id for signer in (key, OTHER)] == [key.public.id, OTHER.public.id]
    assert TrustedKeys.load(both.pem(), "x").keys() == both.keys()


def opa_verifies(key: SigningKey, files: dict[str, bytes], place: Path, scope: str = "alpha") -> bool:
    (place / "bundle.tar.gz").write_bytes(pack(files))
    (place / "key.pem").write_bytes(key.public.pem())
    verified = ["--verification-key", "key.pem", "--verification-key-id", key.public.id, "--signing-alg", "ES256"]
    command = [find_opa(), "build", "--bundle", "bundle.tar.gz", *verified, "--scope", scope, "--output", "out.tar.gz"]
    return subprocess.run(command, cwd=place, capture_output=True, check=False).returncode == 0


def test_opa_agrees(key: SigningKey, tmp_path: Path) -> None:
    assert opa_verifies(key, signed(key), tmp_path)
    assert not opa_verifies(key, signed(key), tmp_path, "beta")
    assert not opa_verifies(OTHER, signed(key), tmp_path)
    assert not opa_verifies(key, signed(key) | {"data.json": b"{}"}, tmp_path)
    assert not opa_verifies(key, signed(key) | {"x.rego": b"package x"}, tmp_path)


def pem(key: object) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


UNFIT = {
    "empty": b"",
    "nonsense": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    "RSA": pem(rsa.generate_private_key(65537, 2048)),
    "Ed25519": pem(ed25519.Ed25519PrivateKey.generate()),
    "P-384": pem(ec.generate_private_key(ec.SECP384R1())),
    "with a password": ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_keys_are_told_and_not_shown(case: str) -> None:
    with pytest.raises(UnfitKeyError, match=r"^my\.pem holds") as raised:
        SigningKey.load(UNFIT[case], "my.pem")
    assert "BEGIN" not in str(raised.value)
    with pytest.raises(UnfitKeyError, match=r"my\.pem"):
        TrustedKeys.load(UNFIT[case].replace(b"PRIVATE", b"PUBLIC"), "my.pem")
    with pytest.raises(UnfitKeyError, match="cannot be read"):
        TrustedKeys.read(Path("/nowhere"))
