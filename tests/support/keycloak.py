"""A real Keycloak, and a realm in it as a company has one; Airflow's client, its people, teams and keys."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from base64 import b64encode
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from demo.airflow import free_port
from demo.process import Process, environment
from tests.conftest import REPOSITORY

HOME = REPOSITORY / ".venv" / "keycloak"
REALM = "company"
CLIENT = "airflow"
PASSWORD = "only-for-this-test"  # noqa: S105 - of people who live as long as the test
_START_SECONDS = 180
# A realm takes half a minute where others keep the processors busy.
PATIENT_SECONDS = 120


def what_is_missing() -> str:
    """Why there can be no Keycloak here; empty if there can."""
    java = shutil.which("java")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr if java else ""
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < 17:
        return "Keycloak needs Java 17 or newer, which is not on this machine: apt-get install openjdk-17-jre-headless"
    if not HOME.exists():
        return "Keycloak is not in .venv/keycloak: apt-get install maven, then make keycloak"
    return ""


class Keycloak:
    """A server of its own on loopback. Its database is a file, so that it comes up again as it was."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        env = environment(
            HOME=str(directory),
            JAVA_OPTS_KC_HEAP="-Xms64m -Xmx700m",
            # It runs for minutes: what Java compiles for speed would take longer than it saves.
            JAVA_OPTS_APPEND="-XX:TieredStopAtLevel=1",
            KC_BOOTSTRAP_ADMIN_USERNAME="admin",
            KC_BOOTSTRAP_ADMIN_PASSWORD=PASSWORD,
            KC_DB_URL=f"jdbc:h2:file:{directory}/keycloak;NON_KEYWORDS=VALUE",
        )
        if "JAVA_HOME" in os.environ:
            env["JAVA_HOME"] = os.environ["JAVA_HOME"]
        command = [str(HOME / "bin" / "kc.sh"), "start-dev", "--http-host", "127.0.0.1", "--http-port", str(port)]
        directory.mkdir(parents=True, exist_ok=True)
        self._process = Process("Keycloak", command, directory / "keycloak.log", env)

    def start(self) -> None:
        self._process.start(self._answers, _START_SECONDS)

    def stop(self) -> None:
        self._process.stop()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/realms/master", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False


class Realm:
    """A realm, made and changed through Keycloak's admin API."""

    def __init__(self, keycloak: Keycloak, name: str = REALM) -> None:
        self.keycloak = keycloak
        self.name = name
        self.url = f"{keycloak.url}/realms/{name}"
        self.secrets: dict[str, str] = {}
        self._rotations = count(1_000)
        self.admin("POST", "", {"realm": name, "enabled": True, "sslRequired": "none"}, of_realm=False)

    def admin(self, method: str, path: str, body: Any = None, of_realm: bool = True) -> Any:
        """Call the admin API; returns what it answers, or the id of what was made."""
        form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": PASSWORD}
        with httpx.Client(trust_env=False, timeout=PATIENT_SECONDS) as client:
            token = client.post(f"{self.keycloak.url}/realms/master/protocol/openid-connect/token", data=form).json()
            root = f"{self.keycloak.url}/admin/realms" + (f"/{self.name}" if of_realm else "")
            headers = {"Authorization": f"Bearer {token['access_token']}"}
            answer = client.request(method, f"{root}{path}", json=body, headers=headers)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        if answer.status_code == 201:
            return answer.headers.get("location", "").rpartition("/")[2]
        return answer.json() if answer.content else None

    def add_client(self, client_id: str, **more: Any) -> str:
        """A confidential client that may do all flows, with groups in its access tokens; returns its own id."""
        mapper = {
            "name": "groups",
            "protocol": "openid-connect",
            "protocolMapper": "oidc-group-membership-mapper",
            "config": {
                "claim.name": "groups",
                "full.path": "false",
                "access.token.claim": "true",
                "userinfo.token.claim": "true",
            },
        }
        self.secrets[client_id] = f"secret of {client_id}"
        described = {
            "clientId": client_id,
            "secret": self.secrets[client_id],
            "redirectUris": ["*"],
            "attributes": {"post.logout.redirect.uris": "*"},
            "directAccessGrantsEnabled": True,
            "serviceAccountsEnabled": True,
            "authorizationServicesEnabled": True,
            "protocolMappers": [mapper],
        }
        return str(self.admin("POST", "/clients", described | more))

    def add_roles(self, *names: str) -> None:
        for name in names:
            self.admin("POST", "/roles", {"name": name})

    def add_groups(self, *names: str) -> None:
        for name in names:
            self.admin("POST", "/groups", {"name": name})

    def add_person(self, name: str, roles: tuple[str, ...] = (), groups: tuple[str, ...] = (), **more: Any) -> str:
        """Somebody who can log in; returns the id."""
        described = {
            "username": name,
            "enabled": True,
            "emailVerified": True,
            "email": f"{name}@example.org",
            "firstName": name,
            "lastName": name,
            "groups": [f"/{group}" for group in groups],
            "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
        }
        id_ = str(self.admin("POST", "/users", described | more))
        if roles:
            known = {role["name"]: role for role in self.admin("GET", "/roles")}
            self.admin("POST", f"/users/{id_}/role-mappings/realm", [known[role] for role in roles])
        return id_

    def tokens(self, name: str | None, client_id: str = CLIENT) -> dict[str, Any]:
        """What the token endpoint gives to a person, or to the client itself if there is no name."""
        form = {"client_id": client_id, "client_secret": self.secrets[client_id], "scope": "openid"}
        form |= {"grant_type": "client_credentials"} if name is None else {"grant_type": "password"}
        form |= {} if name is None else {"username": name, "password": PASSWORD}
        answer = httpx.post(
            f"{self.url}/protocol/openid-connect/token", data=form, trust_env=False, timeout=PATIENT_SECONDS
        )
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def add_key(self, priority: int = 50) -> tuple[rsa.RSAPrivateKey, str]:
        """A key that the realm publishes and that we know the private part of; with its id."""
        before = set(self.key_ids())
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        config = {"privateKey": [pem.decode()], "priority": [str(priority)], "enabled": ["true"], "active": ["true"]}
        self._add_key_provider(f"ours {priority}", "rsa", config)
        (id_,) = set(self.key_ids()) - before
        return key, id_

    def rotate(self) -> str:
        """A new key that new tokens are signed with; the old ones stay published. Returns its provider's name."""
        name = f"rotation {(priority := next(self._rotations))}"
        config = {"priority": [str(priority)], "enabled": ["true"], "active": ["true"]}
        self._add_key_provider(name, "rsa-generated", config)
        return name

    def withdraw_keys(self, name: str) -> None:
        """Take the provider of this name away, and with it its keys."""
        for component in self.admin("GET", "/components?type=org.keycloak.keys.KeyProvider"):
            if component["name"] == name:
                self.admin("DELETE", f"/components/{component['id']}")

    def key_ids(self) -> list[str]:
        """The ids of the published keys that signatures are verified with."""
        published = httpx.get(f"{self.url}/protocol/openid-connect/certs", trust_env=False).json()["keys"]
        return [key["kid"] for key in published if key["use"] == "sig"]

    def _add_key_provider(self, name: str, provider: str, config: dict[str, list[str]]) -> None:
        kind = "org.keycloak.keys.KeyProvider"
        described = {"name": name, "providerId": provider, "providerType": kind, "config": config}
        self.admin("POST", "/components", described)


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    """The public part of a key, as a file that everybody may have."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip


def b64(data: bytes) -> str:
    """As the parts of a JWT are encoded."""
    return b64encode(data, b"-_").rstrip(b"=").decode()
