"""Chooses the engine that the settings name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from airflow_team_authz.engines import Engine


class EngineSettings(Protocol):
    """The settings that matter here; ``airflow_team_authz.settings.Settings`` has them."""

    @property
    def opa_url(self) -> str | None: ...
    @property
    def policy(self) -> Path | str | None: ...
    @property
    def policy_keys_file(self) -> Path | None: ...
    @property
    def policy_max_age_hours(self) -> int | None: ...
    @property
    def policy_token_file(self) -> Path | None: ...
    @property
    def state(self) -> Path | None: ...
    @property
    def opa(self) -> str | None: ...
    @property
    def strict_policy(self) -> bool: ...
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


def open_engine(settings: EngineSettings, standing: str = "in force") -> Engine:
    """The configured engine: an OPA server if it has an address, else the policy in this process.

    ``standing``: where the policy is, for the log.
    """
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

    state = settings.state or default_state()
    kept_code = state / "compiled"
    if settings.policy_keys_file is None:
        source = Path(settings.policy or packaged_baseline())
        return InProcess(source, settings.opa, strict=settings.strict_policy, kept_code=kept_code, standing=standing)
    from airflow_team_authz.bundles.verifying import Trust
    from airflow_team_authz.engines.downloads import Downloaded, bundle_name, shared_place

    policy = settings.policy or packaged_baseline()
    url = policy if isinstance(policy, str) else f"file://{policy.absolute()}"
    place = shared_place(state, url)
    trust = Trust(settings.policy_keys_file, bundle_name(url), settings.policy_max_age_hours)
    return Downloaded(url, place, trust, settings.policy_token_file, settings.strict_policy, kept_code)


def open_shadow(policy: Path, settings: EngineSettings) -> Engine:
    """A policy directory or a bundle file that decides nothing, so nobody has to have signed it."""
    from airflow_team_authz.engines.in_process import InProcess

    state = settings.state or default_state()
    return InProcess(policy, settings.opa, kept_code=state / "compiled", standing="in the shadow")


def default_state() -> Path:
    """Where an Airflow keeps what this package has to remember, unless the settings say otherwise."""
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "team_authz"


def packaged_baseline() -> Path:
    """The bundle of the shipped policy, made when the wheel is built."""
    return Path(__file__).resolve().parents[1] / "baseline.tar.gz"
