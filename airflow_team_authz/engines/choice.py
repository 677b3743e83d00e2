"""Which engine: the one line a new engine adds."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from airflow_team_authz.engines import Engine


class EngineSettings(Protocol):
    """The settings that matter here; ``airflow_team_authz.settings.Settings`` has them."""

    @property
    def opa_url(self) -> str | None: ...
    @property
    def policy(self) -> Path | None: ...
    @property
    def opa(self) -> str | None: ...
    @property
    def deadline_ms(self) -> int: ...
    @property
    def opa_ca_file(self) -> Path | None: ...
    @property
    def opa_client_cert_file(self) -> Path | None: ...
    @property
    def opa_client_key_file(self) -> Path | None: ...
    @property
    def opa_token_file(self) -> Path | None: ...


def open_engine(settings: EngineSettings) -> Engine:
    """The configured engine: an OPA server if it has an address, else the policy in this process."""
    if settings.opa_url:
        from airflow_team_authz.engines.opa_server import OpaServer

        return OpaServer(
            settings.opa_url,
            settings.deadline_ms,
            settings.opa_ca_file,
            settings.opa_client_cert_file,
            settings.opa_client_key_file,
            settings.opa_token_file,
        )
    from airflow_team_authz.engines.in_process import InProcess

    return InProcess(settings.policy or packaged_baseline(), settings.opa)


def packaged_baseline() -> Path:
    """The bundle of the shipped policy, made when the wheel is built."""
    return Path(__file__).resolve().parents[1] / "baseline.tar.gz"
