"""``[team_authz]`` of the Airflow configuration: read once, typed, and checked at start."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

SECTION = "team_authz"
MANAGER = "airflow_team_authz.TeamAuthManager"


class SettingsError(ValueError):
    """A setting is misspelt or has a bad value; the message names it and what would be right."""


class Settings(BaseModel):
    """The settings; the descriptions are what ``airflow config list`` and the reference show."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["decide", "observe"] = Field(
        "decide",
        description=(
            "`observe`: the auth manager in `[core] auth_manager` decides, as if this package were not installed, and "
            "the policy says afterwards what it would have answered. Nothing is enforced. `observe` has to be in "
            "the configuration file, and `[core] auth_manager` must not be this package's."
        ),
    )
    authn_manager: str = Field(
        "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
        description=(
            "The class that logs people in: the import path of any auth manager. This package replaces "
            "only its decisions."
        ),
    )
    identity: str | None = Field(
        None,
        description=(
            "The import path of a subclass of `airflow_team_authz.identities.Identity`. It reads groups"
            " and roles from the users of a login manager that this package does not know. Unset: by "
            "the login manager."
        ),
    )
    claims: str | None = Field(
        None,
        description=(
            "Names of claims in the login's verified token, separated by commas. The policy sees these "
            "beside groups and roles: `department, cost_center`. Unset: none."
        ),
    )
    opa_url: str | None = Field(
        None,
        description=(
            "Address of an OPA server: `unix:///path/to/socket`, `http://host:port` or "
            "`https://host:port`. Unset: the policy runs in this process."
        ),
    )
    policy: Path | str | None = Field(
        None,
        description=(
            "The policy that runs in this process: a bundle file from `opa build --target wasm`; a "
            "directory of Rego from `team-authz init`, which the process compiles at its start and "
            "after each change; or the address of a signed bundle, such as "
            "`https://host/bundles/production.wasm` of a bundle server, or "
            "`s3://bucket/production.wasm.tar.gz` (any address that fsspec knows). Unset: the packaged "
            "baseline."
        ),
    )
    policy_keys_file: Path | None = Field(
        None,
        description=(
            "Public keys (PEM). One of them must have signed the bundle of `policy`, for its name. An "
            "address needs this setting. With this setting, a file needs a signature too."
        ),
    )
    policy_max_age_hours: int | None = Field(
        None,
        ge=1,
        description=(
            "The greatest age of the bundle's signature, in hours. The engine refuses an older bundle. "
            "The setting needs a bundle server, or a regular `team-authz bundle aggregate`; both sign "
            "again every 6 hours. Unset: no limit."
        ),
    )
    policy_token_file: Path | None = Field(
        None, description="File with the bearer token for the bundle server of `policy`."
    )
    opa: str | None = Field(
        None,
        description=("Path of the `opa` program that compiles a policy directory. Unset: beside Python, then on PATH."),
    )
    strict_policy: bool = Field(
        False,
        description=(
            "Whether this process refuses a policy (`True`) or only logs a warning (`False`) if a rule "
            "reads a field that no question has, or if a rule is in a file that no engine loads. `team-"
            "authz doctor` reports both."
        ),
    )
    deadline_ms: int = Field(
        250,
        ge=1,
        le=60_000,
        description=(
            "Milliseconds until a question to an OPA server becomes an error. Each further resource of "
            "a list adds 0.1 ms. A server that answers nothing at all stops the requests of a process for "
            "this time once, not each of them."
        ),
    )
    opa_ca_file: Path | None = Field(None, description="Certificates (PEM) that verify an https OPA server.")
    opa_client_cert_file: Path | None = Field(None, description="Client certificate (PEM) for an https OPA server.")
    opa_client_key_file: Path | None = Field(None, description="Key (PEM) of the client certificate.")
    opa_token_file: Path | None = Field(None, description="File with the bearer token for the OPA server.")

    own_dags_without_decision: Literal["hold", "start"] = Field(
        "hold",
        description=(
            "The effect of an asset event on Dags of its own team, and on common Dags, while no engine "
            "decides: `hold` (they wait for `team-authz assets replay`) or `start`. Dags of other teams"
            " always wait."
        ),
    )
    refusals: Literal["explain", "conceal"] = Field(
        "explain",
        description=(
            "The text of a refusal about another team's resource. `explain`: it names the owner and the"
            " missing role, if the person may see something of that type; otherwise the answer is that "
            "of a resource that does not exist. `conceal`: that answer for everybody who may not read "
            "the resource."
        ),
    )
    shadow: Path | None = Field(
        None,
        description=(
            "A policy that decides nothing: a policy directory or a bundle file. After each answer, this process also "
            "asks this policy, and records different answers in the decision log. `team-authz shadow report` shows "
            "them. Unset: none."
        ),
    )
    shadow_sample: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description=(
            "The share of the questions that `shadow` gets, at random: `0.1` is one of ten. The policy in `shadow` "
            "takes as much of the processor as the one in force. With `mode = observe`, the share that `policy` gets."
        ),
    )
    decision_log: str = Field(
        "database",
        description=(
            "The places for records of decisions: `database` (Airflow's own, after `airflow db "
            "migrate`), `file`, `log` (Airflow's standard log), `otel` (a collector of OpenTelemetry), `server` (a "
            "bundle server), several of them separated by commas, or `none`."
        ),
    )
    decision_log_levels: str = Field(
        "changes",
        description=(
            "The decisions to record: `none`, `denied` (refusals and errors), `changes` (also each "
            "allowed action that is not a reading one) or `all`. Other levels for types and their "
            "actions may follow: `changes, variable=all, dag/read=none`. A number such as `0.01` is `changes` and that "
            "share of reading."
        ),
    )
    decision_log_masks: str = Field(
        "/input/subject/claims",
        description=(
            "Fields that no record has: JSON pointers into `input`, `result` and `custom`, separated by"
            " commas, or `none`."
        ),
    )
    decision_log_file: Path | None = Field(
        None,
        description=(
            "The file of the sink `file`, with one record a line. Unset: `decisions.ndjson` in the directory `state`."
        ),
    )
    decision_log_url: str | None = Field(
        None,
        description="The bundle server of the sink `server`: `https://host`. Unset: the bundle server of `policy`.",
    )
    decision_log_token_file: Path | None = Field(
        None,
        description=(
            "File with a reader's token for the bundle server of the sink `server`. Unset: `policy_token_file`, if "
            "`decision_log_url` is unset too."
        ),
    )
    decision_log_days: int = Field(90, ge=1, le=36_500, description="Days until the database deletes a record.")
    state: Path | None = Field(
        None,
        description=(
            "Directory for the last good signed bundle, for compiled policies of this host, and for the"
            " Dag processor's last answers about pools. Unset: `team_authz` in `AIRFLOW_HOME`."
        ),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any, info: Any) -> Any:
        # Airflow's configuration has no way to say "not set" but the empty string.
        return cls.model_fields[info.field_name].default if value == "" else value

    @field_validator("shadow", mode="before")
    @classmethod
    def _is_path(cls, value: Any) -> Any:
        # Whether it is there is no matter of the settings: a candidate that is gone must not stop Airflow.
        if isinstance(value, str) and "://" in value:
            raise ValueError("name a policy directory or a bundle file: the shadow is not downloaded")
        return value

    @field_validator("opa_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None:
            from airflow_team_authz.engines.opa_server import parse_url

            parse_url(value)
        return value

    @field_validator("policy", mode="before")
    @classmethod
    def _is_path_or_url(cls, value: Any) -> Any:
        if not isinstance(value, str) or value == "":
            return value
        if "://" not in value:
            return Path(value)
        try:
            parts = urlsplit(value)
        except ValueError:
            raise ValueError("it is not an address") from None
        # The address is in logs and messages. What signs an address of the web is in its query.
        if "@" in parts.netloc or (parts.scheme in {"http", "https"} and parts.query):
            told = "an address shows in logs: what is secret belongs into policy_token_file or the environment"
            raise ValueError(told)
        return value

    @field_validator(
        "policy",
        "policy_keys_file",
        "policy_token_file",
        "opa_ca_file",
        "opa_client_cert_file",
        "opa_client_key_file",
        "opa_token_file",
        "decision_log_token_file",
    )
    @classmethod
    def _exists(cls, value: Path | str | None) -> Path | str | None:
        # Not `Path.exists`: it raises, and shows, what is too long for a name.
        if isinstance(value, Path) and not os.path.exists(value):
            # Not the value: who has put a token instead of its file there must not find it in a log.
            raise ValueError("there is no such file")
        return value

    @field_validator("decision_log_url")
    @classmethod
    def _is_server(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
                raise ValueError("write the address of a bundle server, such as https://bundles.example")
        return value

    @field_validator("decision_log", "decision_log_levels", "decision_log_masks")
    @classmethod
    def _can_be_recorded(cls, value: str, info: Any) -> str:
        from airflow_team_authz.decision_log import sink_names
        from airflow_team_authz.decision_log.levels import Levels
        from airflow_team_authz.decision_log.record import Form

        read: dict[str, Callable[[str], object]] = {
            "decision_log": sink_names,
            "decision_log_levels": Levels,
            "decision_log_masks": Form,
        }
        read[info.field_name](value)
        return value

    @property
    def claim_names(self) -> tuple[str, ...]:
        """The names in ``claims``."""
        return tuple(name for part in (self.claims or "").split(",") if (name := part.strip()))

    @property
    def decision_log_server(self) -> str:
        """The address of the bundle server that takes decisions; empty if there is none."""
        if self.decision_log_url or not isinstance(self.policy, str):
            return self.decision_log_url or ""
        parts = urlsplit(self.policy)
        return f"{parts.scheme}://{parts.netloc}" if parts.scheme in {"http", "https"} else ""

    @property
    def decision_log_server_token(self) -> Path | None:
        """The file with the token for it."""
        return self.decision_log_token_file or (None if self.decision_log_url else self.policy_token_file)

    @model_validator(mode="after")
    def _has_a_server(self) -> Settings:
        from airflow_team_authz.decision_log import sink_names

        if "server" in sink_names(self.decision_log) and not self.decision_log_server:
            raise ValueError("decision_log names the sink server, so decision_log_url must name a bundle server")
        return self

    @model_validator(mode="after")
    def _one_engine(self) -> Settings:
        if self.opa_url and self.policy:
            raise ValueError("opa_url and policy exclude each other: an OPA server has its own policy")
        if isinstance(self.policy, str) and self.policy_keys_file is None:
            raise ValueError("policy is an address, so policy_keys_file must name the keys that may sign it")
        if self.policy_max_age_hours is not None and (self.policy_keys_file is None or self.opa_url):
            raise ValueError("policy_max_age_hours takes policy_keys_file, and no opa_url: OPA looks at no such time")
        if self.strict_policy and self.opa_url:
            raise ValueError("strict_policy takes no opa_url: an OPA server loads its policy by itself")
        return self


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from the raw section; ``SettingsError`` names each wrong key with the nearest right one."""
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem) for problem in error.errors())) from None


def observes() -> bool:
    """Whether the policy only says what it would have answered. ``SettingsError`` if that cannot be meant.

    Of the other settings nothing is read here: what is wrong there must not stop an Airflow that decides by itself.
    """
    from airflow.configuration import conf

    mode = conf.get(SECTION, "mode", fallback="")
    if mode == "observe":
        _refuse_accidents()
    elif mode not in {"", "decide"}:
        parse_settings({"mode": mode})
    return bool(mode == "observe")


def is_enabled() -> bool:
    """Whether this Airflow is ours to guard: the package may be installed where nobody has configured it."""
    from airflow.configuration import conf

    classes = (conf.get("core", "auth_manager", fallback=""), conf.get("core", "asset_manager_class", fallback=""))
    return (
        any(str(name).startswith("airflow_team_authz.") for name in classes)
        or conf.has_section(SECTION)
        or any(name.startswith(f"AIRFLOW__{SECTION.upper()}__") for name in os.environ)
    )


def another_manager() -> str:
    """The message that another auth manager than this package is in force; empty if it is this one."""
    from airflow.configuration import conf

    name = str(conf.get("core", "auth_manager", fallback=""))
    if name == MANAGER:
        return ""
    return (
        f"[core] auth_manager is {name}, and not {MANAGER}: nobody asks the policy about people. `airflow standalone` "
        "sets SimpleAuthManager, whatever is configured: start api-server, scheduler, dag-processor and triggerer "
        "one by one to have it asked"
    )


def read_settings() -> Settings:
    """Settings of the running Airflow, from file and environment as Airflow resolves them."""
    from airflow.configuration import conf

    # `getsection` knows nothing of the environment as long as nobody has declared the section.
    prefix = f"AIRFLOW__{SECTION.upper()}__"
    keys = {name.removeprefix(prefix).lower() for name in os.environ if name.startswith(prefix)}
    if keys <= Settings.model_fields.keys():
        # With others, such as `policy_cmd`, it would fail in words of its own.
        keys |= (conf.getsection(SECTION) or {}).keys()
    values = {key: conf.get(SECTION, key, fallback="") for key in sorted(keys)}
    settings = parse_settings(values)
    return settings if settings.mode == "decide" else _observing(settings, values)


def _refuse_accidents() -> None:
    """``SettingsError`` if something says that this package decides, though it is to observe."""
    from airflow.configuration import conf

    # The file alone: whoever can set a variable of a process must not be able to stop decisions by that.
    if str(ConfigParser.get(conf, SECTION, "mode", raw=True, fallback="")).strip() != "observe":
        raise SettingsError(
            f"[{SECTION}] mode is observe in the environment alone: then nothing would be enforced. Write it into "
            "airflow.cfg too, or unset it"
        )
    for key in ("auth_manager", "asset_manager_class"):
        if str(conf.get("core", key, fallback="")).startswith("airflow_team_authz."):
            raise SettingsError(
                f"[{SECTION}] mode is observe, and [core] {key} is this package's: observing leaves decisions to "
                f"another one. Set [core] {key} to the one that is to decide, or mode to decide"
            )


def _observing(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The same over Airflow's own auth manager; ``SettingsError`` if something says that this package decides."""
    from airflow.configuration import conf

    _refuse_accidents()
    manager = str(conf.get("core", "auth_manager", fallback=""))
    if settings.shadow is not None:
        raise SettingsError(
            f"[{SECTION}] mode is observe, so nothing has a shadow: observe policy itself, or unset shadow"
        )
    if values.get("authn_manager") not in {None, "", manager}:
        raise SettingsError(
            f"[{SECTION}] mode is observe, so people log in by [core] auth_manager, {manager}: unset authn_manager"
        )
    return settings.model_copy(update={"authn_manager": manager})


class Installation(NamedTuple):
    """Airflow's own settings that this package depends on, and the source of each of its settings."""

    auth_manager: str
    multi_team: bool
    sources: dict[str, str]


def read_installation() -> Installation:
    """See ``Installation``; values are left out, so that it can be shown to anybody."""
    from airflow.configuration import conf

    # What commands and secret back ends say is not needed to know where it comes from.
    told = conf.as_dict(display_source=True, display_sensitive=True, include_cmds=False, include_secret=False)
    sources = {key: said[1] for key, said in (told.get(SECTION) or {}).items() if isinstance(said, tuple) and said[0]}
    return Installation(
        conf.get("core", "auth_manager"),
        conf.getboolean("core", "multi_team", fallback=False),
        {key: source for key, source in sources.items() if "default" not in source},
    )


def read_database() -> tuple[str, str | None]:
    """Address of Airflow's database, with the password if it has one, and the schema of its tables if it is not the
    user's own.
    """
    from airflow.configuration import conf

    return conf.get("database", "sql_alchemy_conn"), conf.get("database", "sql_alchemy_schema", fallback="") or None


def metrics_are_on() -> bool:
    """Whether Airflow sends its metrics anywhere."""
    from airflow.configuration import conf

    switches = ("statsd_on", "otel_on", "statsd_datadog_enabled")
    return any(conf.getboolean("metrics", switch, fallback=False) for switch in switches)


def traces_are_on() -> bool:
    """Whether Airflow sends traces to OpenTelemetry."""
    from airflow.configuration import conf

    return conf.getboolean("traces", "otel_on", fallback=False)


def _explain(problem: Any) -> str:
    key = str(problem["loc"][0]) if problem["loc"] else ""
    name = f"[{SECTION}] {key}".strip()
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Settings.model_fields, n=1)
        known = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(Settings.model_fields)}"
        return f"{name} is not a setting: {known}"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"
