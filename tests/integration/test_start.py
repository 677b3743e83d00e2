"""What is wrong in the settings or the policy is refused when the API server starts, and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.airflow import Airflow, Settings, merged
from demo.process import StartError

pytestmark = pytest.mark.timeout(120)

OURS = {"core": {"multi_team": "True", "auth_manager": "airflow_team_authz.TeamAuthManager"}}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A migrated database: nothing but what is under test keeps the server from starting."""
    airflow = Airflow(tmp_path_factory.mktemp("database"), {})
    airflow.run("db", "migrate")
    return {"database": {"sql_alchemy_conn": f"sqlite:///{airflow.home}/airflow.db"}}


def refusal(home: Path, *settings: Settings) -> str:
    airflow = Airflow(home, merged(OURS, *settings))
    try:
        with pytest.raises(StartError, match=r"ended with code [1-9]"):
            airflow.start()
    finally:
        airflow.stop()
    return airflow.log()


# An API server takes seconds to say so. Each text has a test of its own beside what reads the setting.
_EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            {"opa_urll": "unix:///run/opa.sock"},
            "[team_authz] opa_urll is not a setting: did you mean opa_url?",
        ),
        pytest.param(
            {"opa_url": "localhost"}, "[team_authz] opa_url: opa_url is unix:///path/to/socket", marks=_EXHAUSTIVE
        ),
        pytest.param(
            {"authn_manager": "airflow.no.such.Manager"},
            "[team_authz] authn_manager: airflow.no.such.Manager cannot be",
            marks=_EXHAUSTIVE,
        ),
        pytest.param(
            {"authn_manager": "airflow.models.Pool"},
            "airflow.models.Pool is not an auth manager that logs people in",
            marks=_EXHAUSTIVE,
        ),
    ],
)
def test_a_bad_setting_is_named(home: Path, database: Settings, setting: dict[str, str], told: str) -> None:
    assert told in refusal(home, database, {"team_authz": setting})


@pytest.mark.parametrize(
    ("rego", "told"),
    [
        ("package teams.alpha\n\nallow contains", "teams/alpha/alpha.rego:3"),
        pytest.param(
            "package airflow.site\n\nallow contains true",
            "teams/alpha/alpha.rego declares package airflow.site",
            marks=_EXHAUSTIVE,
        ),
    ],
)
def test_a_broken_policy_is_named(home: Path, database: Settings, tmp_path: Path, rego: str, told: str) -> None:
    file = tmp_path / "policy" / "teams" / "alpha" / "alpha.rego"
    file.parent.mkdir(parents=True)
    file.write_text(rego)
    log = refusal(home, database, {"team_authz": {"policy": str(tmp_path / "policy")}})
    assert f"the policy in {tmp_path / 'policy'} does not compile" in log
    assert told in log
