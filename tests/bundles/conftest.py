"""A platform's part, teams' packages, and keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_team_authz.bundles.artifact import PLATFORM, Artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.gate.platform_part import read_platform
from tests.conftest import REPOSITORY

Make = Callable[..., Artifact]


def nested(team_id: str, version: int = 1) -> Artifact:
    """A package that the second compiler has in no time, while the first one takes several seconds of a processor."""
    loops = "\n".join(f"\tsome y{number} in input.x{number}" for number in range(800))
    rego = f'package teams.{team_id}\n\nallow contains "x" if {{\n{loops}\n}}\n'
    return Artifact(team_id, version, {f"teams/{team_id}/nested.rego": rego.encode()})


def lends(team_id: str, connection: str = "pg", version: int = 1) -> Artifact:
    """A package whose one rule lends a connection to everybody."""
    rego = f"""package teams.{team_id}

allow contains "{team_id} lends {connection}" if {{
	input.resource.type == "connection"
	input.resource.id == "{connection}"
}}
"""
    test = f"""package teams.{team_id}_test

import data.teams.{team_id}

test_lent if {{
	team := {team_id}.allow with input as {{"resource": {{"type": "connection", "id": "{connection}"}}}}
	count(team) == 1
}}
"""
    place = f"teams/{team_id}"
    files = {f"{place}/{team_id}.rego": rego.encode(), f"{place}/{team_id}_test.rego": test.encode()}
    return Artifact(team_id, version, files)


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return SigningKey.new()


@pytest.fixture(scope="session")
def platform() -> Artifact:
    return Artifact(PLATFORM, 4, read_platform(REPOSITORY / "policies"))


@pytest.fixture
def keys_file(key: SigningKey, tmp_path: Path) -> Path:
    file = tmp_path / "trusted.pem"
    file.write_bytes(key.public.pem())
    return file
