"""The wheel in an environment of its own: two settings are enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from airflow_team_authz.settings import Settings
from demo.airflow import Airflow

pytestmark = pytest.mark.timeout(280)

REPOSITORY = Path(__file__).resolve().parents[2]
PASSWORDS = {"ann": "of-alpha", "bob": "of-beta"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the wheel and what it depends on, in the versions that are locked; the repository is not on it."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(place / "dist")]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = (place / "dist").glob("*.whl")
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    python = place / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, place / "venv"], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraints", "requirements/dev.txt", wheel]
    # What `make setup` has installed is in uv's cache; only a machine that has lost it needs the network.
    offline = subprocess.run([*install, "--offline"], cwd=REPOSITORY, check=False, capture_output=True)
    if offline.returncode != 0:
        subprocess.run(install, cwd=REPOSITORY, check=True, env=dict(os.environ))
    return python


@pytest.fixture(scope="module")
def airflow(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """Nothing is set for us but that we are the auth manager."""
    home = tmp_path_factory.mktemp("site")
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    core = {
        "multi_team": "True",
        "auth_manager": "airflow_team_authz.TeamAuthManager",
        "simple_auth_manager_users": "ann:op:alpha,bob:op:beta",
        "simple_auth_manager_passwords_file": str(passwords),
    }
    site = Airflow(home, {"core": core}, python=installed)
    site.run_all(("db", "migrate"), *(("teams", "create", team) for team in ("alpha", "beta")))
    with site:
        yield site


def login(airflow: Airflow, name: str) -> httpx.Client:
    return airflow.login(name, PASSWORDS[name])


def test_it_is_the_wheel_that_runs(airflow: Airflow, installed: Path) -> None:
    found = airflow.attempt("-c", "import airflow_team_authz; print(airflow_team_authz.__file__)").stdout
    assert Path(found.strip()).is_relative_to(installed.parents[1])


def test_the_packaged_baseline_allows_and_denies(airflow: Airflow) -> None:
    with login(airflow, "ann") as ann, login(airflow, "bob") as bob:
        body = {"connection_id": "pg", "conn_type": "sqlite", "team_name": "alpha"}
        assert bob.post("/api/v2/connections", json=body).status_code == 403
        assert ann.post("/api/v2/connections", json=body).status_code == 201
        assert ann.get("/api/v2/connections/pg").status_code == 200
        refused = bob.get("/api/v2/connections/pg")
        assert refused.status_code == 403
        assert refused.json()["detail"].partition(" (decision ")[0] == (
            "Forbidden: user bob may not read connection pg of team alpha: that takes the role op in team alpha"
        )
        assert [row["connection_id"] for row in bob.get("/api/v2/connections").json()["connections"]] == []


def test_airflow_lists_our_settings_with_their_defaults(airflow: Airflow) -> None:
    listed = airflow.run("config", "list", "--section", "team_authz", "--show-values")
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.default)
        assert f"{name} = {default}".strip() in listed, name


def test_the_command_is_there(airflow: Airflow, installed: Path) -> None:
    done = subprocess.run(
        [installed.with_name("team-authz"), "--help"], cwd=airflow.home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "doctor" in done.stdout
