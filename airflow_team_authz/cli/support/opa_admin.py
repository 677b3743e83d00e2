"""The state of an OPA server: its version, and whether its bundles are in force."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_team_authz.cli.support.checks import Check
from airflow_team_authz.engines.opa_server import OpaServer, parse_url
from airflow_team_authz.model import EngineError
from airflow_team_authz.opa.compile import MINIMUM_OPA

if TYPE_CHECKING:
    from airflow_team_authz.engines.choice import EngineSettings

_WHY_NEWER = (
    "older ones accept bundles that nobody signed (before 1.21.3), lose a deny (1.21.0 to 1.22.0) or corrupt memory "
    "in Wasm (before 1.20.0)"
)


def server_checks(settings: EngineSettings, server: OpaServer) -> Iterator[Check]:
    """The health of the server and its version.

    Asked by opa-python-client, the extra ``opa``, which cannot speak to a unix socket; the engine itself can tell
    the version as well, so without the client only the health stays unknown.
    """
    told = ""
    if parse_url(settings.opa_url or "").scheme != "unix":
        healthy, told = _ask_client(settings)
        yield _health(healthy)
    try:
        yield version_check(told or server.version())
    except EngineError as error:
        yield Check("opa version", False, str(error))


def version_check(version: str) -> Check:
    """Whether an OPA of this version may be trusted with decisions."""
    minimum = ".".join(map(str, MINIMUM_OPA))
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return Check("opa version", False, "the server does not report its version", "check that it is an OPA")
    if tuple(map(int, match.groups())) < MINIMUM_OPA:
        return Check("opa version", False, f"OPA {version}: {_WHY_NEWER}", f"install OPA {minimum} or newer")
    return Check("opa version", True, f"OPA {version}")


def _health(healthy: bool | None) -> Check:
    if healthy is None:
        missing = "not checked, because opa-python-client is not installed"
        return Check("opa health", True, missing, "pip install 'airflow-team-authz[opa]'")
    if healthy:
        return Check("opa health", True, "running, its bundles are in force")
    return Check(
        "opa health",
        False,
        "GET /health?bundles does not answer 200",
        "see the server's log: it does not run, has not loaded a bundle yet, or refuses this client",
    )


def _ask_client(settings: EngineSettings) -> tuple[bool | None, str]:
    """Health, ``None`` if there is no client, and version, empty if it is not told."""
    try:
        from opa_client.opa import OpaClient
    except ImportError:
        return None, ""
    healthy = False
    # Besides its own errors the client lets those of requests through, and of whatever it did not expect. What
    # is wrong, the engine tells next.
    with _without_proxies(), OpaClient(**_client_arguments(settings)) as client, suppress(Exception):
        healthy = client.check_health({"bundles": "true"})
        return healthy, str(client.get_data("system/version")["result"]["version"])
    return healthy, ""


def _client_arguments(settings: EngineSettings) -> dict[str, Any]:
    address = parse_url(settings.opa_url or "")
    certificate, key = settings.opa_client_cert_file, settings.opa_client_key_file
    return {
        "host": f"[{address.host}]" if ":" in address.host else address.host,
        "port": address.port,
        "version": f"{address.path}/v1".lstrip("/"),
        "ssl": (str(settings.opa_ca_file) if settings.opa_ca_file else True) if address.scheme == "https" else False,
        "cert": (str(certificate), str(key)) if certificate and key else (str(certificate) if certificate else None),
        "token": _token(settings.opa_token_file),
        # A refused connection is told at once: asking again takes longer than everything else here.
        "retries": 0,
    }


def _token(file: Path | None) -> str | None:
    try:
        return file.read_text(errors="replace").strip() if file else None
    except OSError:
        return None


@contextmanager
def _without_proxies() -> Iterator[None]:
    """The client would send questions to ``HTTP_PROXY``, even those to this machine; the engine does not."""
    before = os.environ.get("NO_PROXY")
    os.environ["NO_PROXY"] = "*"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NO_PROXY"]
        else:
            os.environ["NO_PROXY"] = before
