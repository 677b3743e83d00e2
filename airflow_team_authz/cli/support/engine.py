"""The engine that a command asks: that of its options, or the one that Airflow's configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from airflow_team_authz.cli.support.console import UserError, talking_to_stderr

if TYPE_CHECKING:
    from airflow_team_authz.engines import Engine
    from airflow_team_authz.engines.choice import EngineSettings
    from airflow_team_authz.settings import Settings

PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="PATH", help="Ask this bundle file or policy directory instead of the configured engine."
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--opa-url",
        metavar="URL",
        help="Ask the OPA server at this address (unix:///path, http://host:port) instead of the configured engine.",
    ),
]


class BadSettingsError(UserError):
    """A setting of ``[team_authz]`` is misspelt or has a bad value."""


class Named(NamedTuple):
    """The engine that the command line names; the settings that go with it have their defaults."""

    policy: Path | None = None
    policy_keys_file: Path | None = None
    policy_max_age_hours: int | None = None
    policy_token_file: Path | None = None
    state: Path | None = None
    opa_url: str | None = None
    opa: str | None = None
    strict_policy: bool = False
    deadline_ms: int = 250
    opa_ca_file: Path | None = None
    opa_client_cert_file: Path | None = None
    opa_client_key_file: Path | None = None
    opa_token_file: Path | None = None


def named_engine(policy: Path | None, opa_url: str | None) -> Named | None:
    """The engine of the options, ``None`` if there are none. ``UserError`` if it cannot be meant."""
    if policy is not None and opa_url is not None:
        raise UserError("--policy and --opa-url exclude each other: an OPA server has its own policy")
    if policy is not None:
        if not policy.exists():
            raise UserError(f"--policy: {policy} does not exist: name a bundle file or a policy directory")
        return Named(policy=policy)
    if opa_url is not None:
        from airflow_team_authz.engines.opa_server import parse_url

        try:
            parse_url(opa_url)
        except ValueError as error:
            raise UserError(f"--opa-url: {error}") from None
        return Named(opa_url=opa_url)
    return None


def configured_engine() -> Settings:
    """The engine of Airflow's configuration. ``BadSettingsError`` names the setting that is wrong."""
    try:
        with talking_to_stderr():
            return _configured()
    except BadSettingsError:
        raise
    except ImportError as error:
        raise UserError(
            f"Airflow's configuration cannot be read, because Airflow cannot be imported ({error}): "
            "name the engine by --policy or --opa-url"
        ) from None
    except Exception as error:  # configparser's, Airflow's own, and those of the secrets back ends
        raise UserError(
            f"Airflow's configuration cannot be read ({error}): correct it, or name the engine by --policy or --opa-url"
        ) from None


def _configured() -> Settings:
    from airflow_team_authz.settings import SettingsError, read_settings

    try:
        return read_settings()
    except SettingsError as error:
        raise BadSettingsError(str(error)) from None


@contextmanager
def opened(settings: EngineSettings) -> Iterator[Engine]:
    """The engine, closed in the end. Raises an ``EngineError`` or a ``UserError`` if it cannot be had."""
    from airflow_team_authz.engines.choice import open_engine

    try:
        engine = open_engine(settings)
    except OSError as error:
        raise UserError(
            f"the certificates for {settings.opa_url} cannot be loaded ({error}): "
            "check [team_authz] opa_ca_file, opa_client_cert_file and opa_client_key_file"
        ) from None
    try:
        yield engine
    finally:
        engine.close()
