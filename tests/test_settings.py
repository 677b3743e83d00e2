"""``[team_authz]``: what is set is in force, what is wrong is refused by name, and no secret is shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.configuration import conf
from airflow.providers_manager import ProvidersManager

from airflow_team_authz.provider import get_cli_commands, get_provider_info
from airflow_team_authz.settings import SECTION, Settings, SettingsError, observes, parse_settings, read_settings
from tests.conftest import REPOSITORY

PREFIX = "AIRFLOW__TEAM_AUTHZ__"
SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
DEFAULTS = {
    "mode": "decide",
    "authn_manager": SIMPLE,
    "identity": None,
    "claims": None,
    "opa_url": None,
    "policy": None,
    "policy_keys_file": None,
    "policy_max_age_hours": None,
    "policy_token_file": None,
    "opa": None,
    "strict_policy": False,
    "deadline_ms": 250,
    "opa_ca_file": None,
    "opa_client_cert_file": None,
    "opa_client_key_file": None,
    "opa_token_file": None,
    "own_dags_without_decision": "hold",
    "refusals": "explain",
    "shadow": None,
    "shadow_sample": 1.0,
    "decision_log": "database",
    "decision_log_levels": "changes",
    "decision_log_masks": "/input/subject/claims",
    "decision_log_file": None,
    "decision_log_url": None,
    "decision_log_token_file": None,
    "decision_log_days": 90,
    "state": None,
}
FILES = [name for name in DEFAULTS if name.endswith("_file") and name != "decision_log_file"] + ["policy"]
MISSPELT = {
    "opa_ur": "opa_url",
    "opaurl": "opa_url",
    "policies": "policy",
    "deadline": "deadline_ms",
    "deadline_seconds": "deadline_ms",
    "opa_token": "opa_token_file",
    "opa_cert_file": "opa_ca_file",
    "authn_managers": "authn_manager",
    "decision_log_level": "decision_log_levels",
    "decision_logs": "decision_log",
}
NO_ADDRESS = "opa_url is unix:///path/to/socket, http://host:port or https://host:port"
BAD = [
    ("strict_policy", "often", "valid boolean"),
    ("deadline_ms", "0", "greater than or equal to 1"),
    ("deadline_ms", "-1", "greater than or equal to 1"),
    ("deadline_ms", "60001", "less than or equal to 60000"),
    ("deadline_ms", "soon", "valid integer"),
    ("deadline_ms", "2.5", "valid integer"),
    ("opa_url", "localhost:8181", NO_ADDRESS),
    ("opa_url", "ftp://localhost", NO_ADDRESS),
    ("opa_url", "unix://opa.sock", NO_ADDRESS),
    ("opa_url", "unix://", NO_ADDRESS),
    ("opa_url", "http://", NO_ADDRESS),
    ("opa_url", "http://opa/?pretty", NO_ADDRESS),
    ("decision_log", "databse", "'databse' is not a sink: name some of database, file, log, otel, server, or none"),
    ("decision_log", "none, file", "'none' is not a sink"),
    ("decision_log_levels", "change", "'change' is not a level: did you mean changes?"),
    ("decision_log_levels", "changes, dag=al", "did you mean all?"),
    ("decision_log_levels", "changes, =all", "has no type"),
    ("decision_log_masks", "input/subject", "'input/subject' is not a mask: write a JSON pointer"),
    ("decision_log_masks", "/subject/id", "is not a mask"),
    ("decision_log_url", "bundles.example", "write the address of a bundle server"),
    ("decision_log_url", "https://somebody:password@bundles.example", "write the address of a bundle server"),
    ("decision_log_days", "0", "greater than or equal to 1"),
    ("shadow", "https://host/bundles/next.wasm", "the shadow is not downloaded"),
    ("mode", "observ", "'decide' or 'observe'"),
    ("mode", "Observe", "'decide' or 'observe'"),
    ("shadow_sample", "0", "greater than 0"),
    ("shadow_sample", "2", "less than or equal to 1"),
    ("shadow_sample", "nan", "finite number"),
    ("opa_url", "http://opa:port", "[team_authz] opa_url"),
    ("opa_url", "http://[::1", "[team_authz] opa_url"),
    *((name, "/no/such/file", "there is no such file") for name in FILES),
]
SECRETS = {
    "a short token": "s3cr3t-t0ken",
    "a token as long as a JWT": "eyJ" + "s3cr3t" * 200,
    "a key": "-----BEGIN PRIVATE KEY-----\n" + "s3cr3t\n" * 1000,
    "a token with a null": "s3cr3t\0token",
    "a token like a path": "/s3cr3t/" + "s3cr3t" * 50,
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def configured() -> Iterator[dict[str, str]]:
    """What `airflow.cfg` holds in the section: the test fills it, ``conf`` has it, until the test is over."""
    before = dict(conf.items(SECTION)) if conf.has_section(SECTION) else None
    section: dict[str, str] = {}
    conf.read_dict({SECTION: section})
    yield conf[SECTION]
    conf.remove_section(SECTION)
    if before is not None:
        conf.read_dict({SECTION: before})


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as error:
        parse_settings(values)
    assert isinstance(error.value, ValueError)
    assert error.value.__suppress_context__, "a traceback would show the value"
    return str(error.value)


def test_defaults_are_the_documented_ones() -> None:
    assert parse_settings({}).model_dump() == DEFAULTS
    assert read_settings().model_dump() == DEFAULTS


def test_empty_is_unset() -> None:
    assert parse_settings(dict.fromkeys(DEFAULTS, "")).model_dump() == DEFAULTS


def test_what_is_set_is_in_force_with_its_type(tmp_path: Path) -> None:
    values = {name: str(tmp_path) for name in FILES if name != "policy"}
    settings = parse_settings(
        values | {"opa_url": "https://opa:8181", "deadline_ms": "60000", "opa": "opa", "authn_manager": "a.B"}
    )
    assert settings.deadline_ms == 60_000
    assert settings.opa_url == "https://opa:8181"
    assert (settings.opa, settings.authn_manager) == ("opa", "a.B")
    assert {getattr(settings, name) for name in values} == {tmp_path}
    assert parse_settings({"policy": str(tmp_path)}).policy == tmp_path


@pytest.mark.parametrize(
    "url", ["unix:///run/opa.sock", "http://localhost:8181", "http://[::1]:8181/opa", "https://opa"]
)
def test_addresses_of_a_server_are_taken_as_they_are(url: str) -> None:
    assert parse_settings({"opa_url": url}).opa_url == url


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_settings({}).deadline_ms = 1  # type: ignore[misc]


@pytest.mark.parametrize(("wrong", "right"), MISSPELT.items())
def test_a_misspelt_setting_is_refused_with_the_nearest_right_one(wrong: str, right: str) -> None:
    assert refused({wrong: "s3cr3t"}) == f"[team_authz] {wrong} is not a setting: did you mean {right}?"


def test_an_invented_setting_is_refused_with_all_that_there_are() -> None:
    assert (
        refused({"zebra": "s3cr3t"}) == f"[team_authz] zebra is not a setting: the settings are {', '.join(DEFAULTS)}"
    )


def test_a_shadow_that_is_not_there_is_no_wrong_setting() -> None:
    assert parse_settings({"shadow": "/no/such/policy"}).shadow == Path("/no/such/policy")


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_bad_value_is_refused_by_its_name(name: str, value: str, message: str) -> None:
    said = refused({name: value})
    assert said.startswith(f"[team_authz] {name}: ")
    assert message in said


def test_everything_that_is_wrong_is_said_at_once() -> None:
    said = refused({"deadline_ms": "soon", "opa_urll": "x", "opa_token_file": "/no/such/file"})
    assert re.findall(r"\[team_authz\] (\w+)", said) == ["deadline_ms", "opa_token_file", "opa_urll"]


def test_a_server_and_a_policy_exclude_each_other(tmp_path: Path) -> None:
    said = refused({"opa_url": "http://localhost", "policy": str(tmp_path)})
    assert said == "[team_authz]: opa_url and policy exclude each other: an OPA server has its own policy"
    assert parse_settings({"opa_url": "http://localhost", "policy": ""}).policy is None


def test_decisions_go_to_the_server_of_the_policy_unless_another_one_is_named(tmp_path: Path) -> None:
    assert "decision_log_url must name a bundle server" in refused({"decision_log": "file, server"})
    keys = tmp_path / "keys"
    keys.touch()
    there = {"decision_log": "server", "policy": "https://bundles.example:8/bundles/production.wasm"}
    files = {"policy_keys_file": str(keys), "policy_token_file": str(tmp_path)}
    known = parse_settings(there | files)
    assert (known.decision_log_server, known.decision_log_server_token) == ("https://bundles.example:8", tmp_path)
    # A token is for the server that it was made for.
    known = parse_settings(there | files | {"decision_log_url": "http://other"})
    assert (known.decision_log_server, known.decision_log_server_token) == ("http://other", None)
    assert "decision_log_url" in refused(there | files | {"policy": "s3://bucket/production.wasm.tar.gz"})


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("name", [*FILES, "deadline_ms"])
def test_a_secret_in_place_of_its_file_is_not_shown(name: str, secret: str) -> None:
    assert "s3cr3t" not in refused({name: secret})


@pytest.mark.parametrize(
    "url", ["http://user:s3cr3t@opa:8181", "https://opa/?token=s3cr3t", "s3cr3t", "https://s3cr3t@"]
)
def test_a_secret_in_the_address_is_refused_and_not_shown(url: str) -> None:
    assert "s3cr3t" not in refused({"opa_url": url})


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(f"{PREFIX}DEADLINE_MS", "17")
    monkeypatch.setenv(f"{PREFIX}POLICY", str(tmp_path))
    monkeypatch.setenv(f"{PREFIX}OPA_URL", "")
    assert read_settings().model_dump() == DEFAULTS | {"deadline_ms": 17, "policy": tmp_path}


def test_the_configuration_is_read_and_the_environment_goes_before_it(
    monkeypatch: pytest.MonkeyPatch, configured: dict[str, str]
) -> None:
    configured.update({"deadline_ms": "18", "opa_url": "http://configured"})
    assert read_settings().model_dump() == DEFAULTS | {"deadline_ms": 18, "opa_url": "http://configured"}
    monkeypatch.setenv(f"{PREFIX}DEADLINE_MS", "19")
    assert read_settings().deadline_ms == 19


def test_what_is_misspelt_in_the_configuration_is_refused(configured: dict[str, str]) -> None:
    configured["polici"] = "s3cr3t"
    with pytest.raises(SettingsError, match=r"^\[team_authz\] polici is not a setting: did you mean policy\?$"):
        read_settings()


@pytest.mark.parametrize("name", ["POLICYY", "POLICY_CMD", "POLICY_SECRET"])
def test_what_is_misspelt_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # Airflow runs commands for settings of its own only: to take one for unset would lose the site's policy.
    monkeypatch.setenv(PREFIX + name, "echo s3cr3t")
    with pytest.raises(
        SettingsError, match=rf"^\[team_authz\] {name.lower()} is not a setting: did you mean policy\?$"
    ):
        read_settings()


def test_a_file_and_an_environment_of_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "airflow.cfg").write_text("[team_authz]\ndeadline_ms = 20\nopa_url = http://file\nopa =\n")
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), f"{PREFIX}OPA_URL": "http://environment"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    print_it = "from airflow_team_authz.settings import read_settings as r; print(r().model_dump())"
    done = subprocess.run(
        [sys.executable, "-c", print_it], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == str(DEFAULTS | {"deadline_ms": 20, "opa_url": "http://environment"})


@pytest.fixture
def observing(configured: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """`airflow.cfg` says that Airflow's own auth manager decides."""
    monkeypatch.delenv("AIRFLOW__CORE__AUTH_MANAGER", raising=False)
    configured["mode"] = "observe"
    return configured


@pytest.mark.usefixtures("observing")
def test_observing_leaves_decisions_to_airflows_auth_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "somewhere.Manager")
    assert (read_settings().mode, read_settings().authn_manager) == ("observe", "somewhere.Manager")
    assert observes()
    # Deciding needs no file.
    monkeypatch.setenv(f"{PREFIX}MODE", "decide")
    assert not observes()
    assert read_settings().mode == "decide"


@pytest.mark.parametrize("file", ["", "decide", "observ"])
def test_the_environment_alone_does_not_stop_decisions(
    configured: dict[str, str], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setenv(f"{PREFIX}MODE", "observe")
    if file:
        configured["mode"] = file
    for read in (read_settings, observes):
        with pytest.raises(SettingsError, match="observe in the environment alone: then nothing would be enforced"):
            read()


@pytest.mark.usefixtures("observing")
@pytest.mark.parametrize("name", ["AUTH_MANAGER", "ASSET_MANAGER_CLASS"])
def test_observing_does_not_turn_this_package_off(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"AIRFLOW__CORE__{name}", "airflow_team_authz.TeamAuthManager")
    for read in (read_settings, observes):
        with pytest.raises(SettingsError, match=rf"mode is observe, and \[core\] {name.lower()} is this package's"):
            read()


@pytest.mark.parametrize(("key", "value"), [("shadow", "policy"), ("authn_manager", "somewhere.Else")])
def test_observing_excludes_what_means_deciding(observing: dict[str, str], key: str, value: str) -> None:
    observing[key] = value
    with pytest.raises(SettingsError, match="mode is observe, so"):
        read_settings()


@pytest.mark.usefixtures("observing")
def test_what_else_is_wrong_does_not_stop_an_airflow_that_decides_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}POLICY", "/no/such/policy")
    assert observes()
    with pytest.raises(SettingsError, match="there is no such file"):
        read_settings()


@pytest.mark.parametrize("wrong", ["observ", "Observe", "observe,decide", "off"])
def test_a_misspelt_mode_is_an_error_and_never_observes(configured: dict[str, str], wrong: str) -> None:
    configured["mode"] = wrong
    for read in (read_settings, observes):
        with pytest.raises(SettingsError, match="'decide' or 'observe'"):
            read()


def documented() -> dict[str, tuple[str, str]]:
    """Default and meaning of each setting that docs/settings.md has a row for."""
    text = (REPOSITORY / "docs/settings.md").read_text()
    return {
        name: (default, meaning) for name, default, meaning in re.findall(r"^\| `(\w+)` \|(.*?)\| (.*) \|$", text, re.M)
    }


def test_every_setting_is_documented_as_it_is() -> None:
    rows = documented()
    assert list(rows) == list(Settings.model_fields) == list(DEFAULTS)
    for name, field in Settings.model_fields.items():
        default, meaning = rows[name]
        assert default.strip() == ("" if field.default is None else f"`{field.default}`"), name
        assert meaning.replace("`", "") == str(field.description).replace("`", ""), name


@pytest.mark.parametrize(("text", "strict"), [("True", True), ("false", False), ("", False)])
def test_a_policy_that_an_opa_server_loads_is_not_checked_here(text: str, strict: bool) -> None:
    assert parse_settings({"strict_policy": text}).strict_policy is strict
    server = {"strict_policy": text, "opa_url": "http://opa:8181"}
    if strict:
        with pytest.raises(SettingsError, match="strict_policy takes no opa_url"):
            parse_settings(server)
    else:
        assert parse_settings(server).strict_policy is False


def test_airflows_list_of_options_has_every_setting() -> None:
    options = get_provider_info()["config"][SECTION]["options"]
    assert list(options) == list(DEFAULTS)
    for name, option in options.items():
        assert option["description"] == Settings.model_fields[name].description
        assert option["default"] == ("" if DEFAULTS[name] is None else str(DEFAULTS[name]))
        types = {
            "deadline_ms": "integer",
            "decision_log_days": "integer",
            "shadow_sample": "float",
            "strict_policy": "boolean",
        }
        assert option["type"] == types.get(name, "string")
        assert parse_settings({name: option["default"]}).model_dump() == DEFAULTS
    assert get_cli_commands() == []


def test_the_installed_provider_tells_airflow_of_the_manager_and_its_settings() -> None:
    if "airflow-team-authz" not in ProvidersManager().providers:
        pytest.skip("the package is on the path but not installed here, so Airflow does not know it as a provider")
    assert conf.get(SECTION, "authn_manager") == SIMPLE
    assert conf.getint(SECTION, "deadline_ms") == 250
    assert "airflow_team_authz.TeamAuthManager" in ProvidersManager().auth_managers
