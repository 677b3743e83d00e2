"""What the documentation shows, command by command: the README's walk-through, with a real Airflow, from nothing to an
enforced rule; a team's CI; and requests by hand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from demo.airflow import Settings, free_port
from demo.site import Site
from tests.conftest import REPOSITORY, eventually
from tests.server.conftest import Server, good

README = (REPOSITORY / "README.md").read_text()
STEPS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
SETTINGS = dict(
    line.split(" = ")
    for block in re.findall(r"```ini\n(.*?)```", README, re.DOTALL)
    if "policy_keys_file" in block
    for line in block.splitlines()[1:]
)
(QUESTION,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
(IN_FORCE,) = [
    block
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    if "version 1 of the team's package" in block
]

EXAMPLE = "https://bundles.example"


class Place:
    """The directory where the commands are typed; the server listens on a port that is free here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"127.0.0.1:{free_port()}"
        self._environment = os.environ | {"TEAM_AUTHZ_SERVER_PORT": self.address.rpartition(":")[2]}
        self._server: subprocess.Popen[bytes] | None = None
        directory.mkdir()

    def type(self, step: str) -> None:
        for line in step.replace("127.0.0.1:8282", self.address).splitlines():
            if line.split("#")[0].rstrip().endswith("&"):
                with (self.directory / "server.log").open("wb") as log:
                    command = ["/bin/sh", "-c", f"exec {line.split('&')[0]}"]
                    self._server = subprocess.Popen(
                        command, cwd=self.directory, env=self._environment, stdout=log, stderr=log
                    )
                eventually(self._answers)
                continue
            self.run(line)

    def run(self, line: str, **environment: str) -> str:
        """What a command prints that has to succeed."""
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=self.directory, env=self._environment | environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/health").status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()


class Walked(Site):
    """The demonstration's Airflow with the settings that the README shows."""

    def __init__(self, home: Path, place: Place) -> None:
        self._place = place
        super().__init__(home)

    def guarding_settings(self) -> Settings:
        told = {
            name: value.replace("127.0.0.1:8282", self._place.address).replace(
                "/etc/airflow", str(self._place.directory)
            )
            for name, value in SETTINGS.items()
        }
        return {
            "core": {"multi_team": "True", "auth_manager": "airflow_team_authz.TeamAuthManager"},
            "team_authz": told,
        }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "typed")
    yield made
    made.close()


def test_from_init_to_an_enforced_rule(place: Place, tmp_path: Path) -> None:
    platform, team, publish = STEPS
    place.type(platform)
    airflow = Walked(tmp_path / "site", place)
    try:
        airflow.start()
        path = "/api/v2/connections/alpha_db"
        assert airflow.client("ann").get(path).status_code == 200
        refused = airflow.client("bob").get(path)
        assert (refused.status_code, "that takes the role op in team alpha" in refused.text) == (403, True)
        began = time.monotonic()
        place.type(team)
        assert airflow.client("bob").get(path).status_code == 403
        place.type(publish)
        eventually(lambda: airflow.client("bob").get(path).status_code == 200)
        # What a person types in between, and reads: five minutes less this.
        print(f"all of the team's commands: {time.monotonic() - began:.1f} s")
        assert airflow.client("bob").delete(path).status_code == 403
        command, _, told = IN_FORCE.partition("\n")
        (place.directory / "question.json").write_text(QUESTION)
        answer = place.run(command.removeprefix("$ "), AIRFLOW_HOME=str(airflow.airflow.home))
        assert re.sub(r"revision [\w-]+", "revision …", answer) == told
    finally:
        airflow.stop()


def shown(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), re.DOTALL)


def shell(commands: str, directory: Path, environment: dict[str, str]) -> str:
    """What they print, all of which have to succeed."""
    line = ["bash", "-e", "-c", commands]
    done = subprocess.run(
        line, cwd=directory, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_a_teams_ci_publishes_and_requests_by_hand_are_answered(own_server: Server, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        assert "REQUIRE_ALL" not in os.environ
        pytest.skip("curl is not on this machine: apt-get install curl")
    git = "git -c user.name=a -c user.email=a@example.com"
    shell(f"team-authz init . --team alpha && {git} init -q && {git} add . && {git} commit -qm first", tmp_path, {})
    known = {
        "TEAM_AUTHZ_SIGNING_KEY": own_server.keys["alpha"].pem().decode(),
        "TEAM_AUTHZ_SERVER": own_server.url,
        "TEAM_AUTHZ_TOKEN": own_server.tokens["alpha"],
    }
    (steps,) = shown("bundles.md", "yaml")
    for step in yaml.safe_load(steps):
        shell(step.get("run", ""), tmp_path, {name: known[name] for name in step.get("env", {})})
    assert json.loads((tmp_path / "gate.sarif").read_text())["runs"][0]["results"] == []

    assert own_server.publish(good("alpha", 2), environment="staging").status_code == 200
    (tmp_path / ".curlrc").write_text("fail\nsilent\nshow-error\n")
    for owner in ("alpha", "platform"):
        (tmp_path / f"{owner}-token").write_text(own_server.tokens[owner])
    by_team, by_platform = shown("bundle-server.md", "sh")
    home = {"HOME": str(tmp_path)}
    assert '+allow contains "alpha lends pg" if {' in shell(by_team.replace(EXAMPLE, own_server.url), tmp_path, home)
    history = own_server.ask("GET", "/teams/alpha/history").json()
    assert [(entry["action"], entry["environment"], entry["version"]) for entry in history] == [
        ("rollback", "staging", 1), ("promote", "production", 2), ("publish", "staging", 2), ("publish", "staging", 1),
    ]  # fmt: skip
    answers = shell(by_platform.replace(EXAMPLE, own_server.url), tmp_path, home)
    assert answers == 2 * '{"scope":"*","reason":"end of the year"}'
    assert own_server.ask("GET", "/freeze").json() == []
