"""Connections and variables that a secrets backend, the environment or another team's row has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow import settings
from airflow.models import Connection, Variable
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team
from airflow.secrets import BaseSecretsBackend
from airflow.secrets.local_filesystem import LocalFilesystemBackend
from sqlalchemy import delete

from tests.doors.tasks.conftest import DAGS, Api, needs_state, read


class Vault(BaseSecretsBackend):
    """A secrets backend with a connection and a variable for all, and one of either for a team."""

    fails = False

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        return "http://vault" if self._has(conn_id, team_name) else None

    def get_variable(self, key: str, team_name: str | None = None) -> str | None:
        return "vault" if self._has(key, team_name) else None

    def _has(self, name: str, team_name: str | None) -> bool:
        if self.fails:
            raise OSError("the vault is sealed")
        return name == "kept" or (name, team_name) == ("kept_for_alpha", "alpha")


class OldVault(Vault):
    """One from before there were teams."""

    def get_conn_value(self, conn_id: str) -> str | None:  # type: ignore[override]
        return super().get_conn_value(conn_id)

    def get_variable(self, key: str) -> str | None:  # type: ignore[override]
        return super().get_variable(key)


# Airflow 3.2 itself cannot ask a backend that knows no teams.
@pytest.fixture(params=[Vault, pytest.param(OldVault, marks=needs_state), "environment", "file"], ids=str)
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Has a secrets backend keep a connection and a variable ``kept``, which beta has in the database."""
    if request.param == "environment":
        monkeypatch.setenv("AIRFLOW_CONN_KEPT", "http://vault")
        monkeypatch.setenv("AIRFLOW_VAR_KEPT", "vault")
    elif request.param == "file":
        (tmp_path / "connections.env").write_text("kept=http://vault\n")
        (tmp_path / "variables.env").write_text("kept=vault\n")
        files = {"connections": "connections_file_path", "variables": "variables_file_path"}
        named = {parameter: str(tmp_path / f"{name}.env") for name, parameter in files.items()}
        use_backend(monkeypatch, LocalFilesystemBackend(**named))
    else:
        use_backend(monkeypatch, request.param())
    return getattr(request.param, "__name__", str(request.param))


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: BaseSecretsBackend) -> None:
    from airflow import configuration

    backend._set_connection_class(Connection)
    others = configuration.initialize_secrets_backends()
    monkeypatch.setattr(configuration, "secrets_backend_list", [backend, *others])


@pytest.fixture
def betas_rows(filled: None) -> Iterator[None]:  # noqa: ARG001
    """What bob creates in the database, under names that a secrets backend has."""
    assert settings.Session is not None
    names = ("kept", "kept_for_alpha", "betas")
    with settings.Session() as session:
        session.add_all(Connection(conn_id=name, conn_type="http", host="bob", team_name="beta") for name in names)
        session.add_all(Variable(key=name, val="bob", team_name="beta") for name in names)
        session.commit()
    yield
    with settings.Session() as session:
        session.execute(delete(Connection).where(Connection.conn_id.in_(names)))
        session.execute(delete(Variable).where(Variable.key.in_(names)))
        session.commit()


def test_a_row_hides_nothing_of_what_a_secrets_backend_has_for_all(api: Api, kept: str, betas_rows: None) -> None:
    del betas_rows
    for who in DAGS:
        assert read(api, who, "kept") == {"vault"}
    # What no backend has is the row's owner's alone.
    assert {who: read(api, who, "betas") for who in DAGS} == {"alpha": {"403"}, "beta": {"bob"}, None: {"403"}}
    if kept == "Vault":
        of_alpha = {who: read(api, who, "kept_for_alpha") for who in DAGS}
        assert of_alpha == {"alpha": {"vault"}, "beta": {"bob"}, None: {"403"}}


def test_a_write_tells_nothing_of_what_a_backend_has_for_another_team(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_backend(monkeypatch, Vault())
    answers = {}
    for key in ("kept_for_alpha", "not_kept"):
        written = [api.call("beta", method, f"variables/{key}", json={"val": "2"}) for method in ("PUT", "DELETE")]
        answers[key] = [(answer.status_code, answer.text) for answer in written]
    assert answers["kept_for_alpha"] == answers["not_kept"]
    assert [status for status, _ in answers["not_kept"]] == [201, 204]
    assert "Vault" not in caplog.text


def test_a_backend_that_fails_is_no_denial(api: Api, betas_rows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    del betas_rows
    use_backend(monkeypatch, Vault())
    monkeypatch.setattr(Vault, "fails", True)
    assert read(api, "alpha", "kept") == {"503"}
    answer = api.call("alpha", "GET", "variables/kept").json()["detail"]
    assert answer["message"] == "No decision can be had. The secrets backend Vault fails: OSError"
    # Who needs no backend to be decided about gets Airflow's own answer.
    assert read(api, "beta", "kept") == {"bob"}


SAME_NAMES = {"in capitals": ("one_team", "ONE_team", "key"), "but for underscores": ("two", "two_", "key")}


@pytest.mark.parametrize("case", SAME_NAMES)
def test_a_variable_of_the_environment_that_may_be_two_teams_is_nobodys(
    api: Api, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow alone hands it to both."""
    one, other, key = SAME_NAMES[case]
    assert settings.Session is not None
    with settings.Session() as session:
        session.add(Team(name=other))
        session.flush()
        bundle = session.get_one(DagBundleModel, "of alpha")
        before, bundle.teams = list(bundle.teams), [session.get_one(Team, other)]
        session.commit()
        for kind, value in (("VAR", "vault"), ("CONN", "http://vault")):
            monkeypatch.setenv(f"AIRFLOW_{kind}__{other}___{key}".upper(), value)
        try:
            assert read(api, "alpha", key) == {"vault"}
            session.add(Team(name=one))
            session.commit()
            assert read(api, "alpha", key) == {"403"}
            reason = api.call("alpha", "GET", f"variables/{key}").json()["detail"]["message"]
            assert f"may be meant for team {' or '.join(sorted((one, other)))}" in reason
            # Nothing else is.
            assert read(api, "beta", "beta_key") == {"1", "404"}
        finally:
            bundle.teams = before
            session.flush()
            session.execute(delete(Team).where(Team.name.in_((one, other))))
            session.commit()
