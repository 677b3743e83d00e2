"""A policy directory that ``team-authz init`` has written, behind every engine that the command can ask."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from airflow_team_authz.cli import app
from airflow_team_authz.opa.compile import find_opa

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs ``team-authz`` in this process."""

    def run(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return run


@pytest.fixture(scope="session")
def program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``team-authz`` as people do: another process, with its own environment and exit code."""

    def program(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "airflow_team_authz.cli", *map(str, arguments)]
        return subprocess.run(
            command, input=stdin, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
        )

    return program


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform's policy directory with something in it; tests do not change it."""
    directory = tmp_path_factory.mktemp("policy") / "platform"
    written = CliRunner().invoke(app, ["init", str(directory)])
    assert written.exit_code == 0, written.output
    people = {"groups": {"engineers": [{"team_id": "alpha", "role": "op"}]}, "roles": {"Staff": [{"team_id": "alpha"}]}}
    (directory / "airflow/directory/data.json").write_text(json.dumps(people))
    return directory


@pytest.fixture(scope="session")
def opa_server(platform: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real OPA with that directory; its addresses by scheme."""
    urls = {
        "tcp": f"http://127.0.0.1:{free_port()}",
        "unix": f"unix://{tmp_path_factory.mktemp('opa') / 'opa.sock'}",
    }
    with serving(urls, platform):
        yield urls


@pytest.fixture(scope="session")
def empty_opa_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An OPA in which nobody has loaded a policy."""
    url = f"http://127.0.0.1:{free_port()}"
    with serving({"tcp": url}, tmp_path_factory.mktemp("nothing")):
        yield url


@pytest.fixture(params=["in process", "tcp", "unix"])
def engine(request: pytest.FixtureRequest, platform: Path, opa_server: dict[str, str]) -> list[str]:
    """The options that name one engine after the other; all of them have the same policy."""
    if request.param == "in process":
        return ["--policy", str(platform)]
    return ["--opa-url", opa_server[request.param]]


class serving:  # noqa: N801 - reads as what it does
    """``with serving(urls, directory)``: an OPA server that answers there."""

    def __init__(self, urls: dict[str, str], directory: Path) -> None:
        addresses = [f"--addr={url.removeprefix('http://')}" for url in urls.values()]
        command = [find_opa(), "run", "--server", "--skip-version-check", "--log-level=error", *addresses]
        self._process = subprocess.Popen([*command, "--bundle", str(directory)])
        self._urls = urls

    def __enter__(self) -> None:
        until = time.monotonic() + 30
        while not all(_answers(url) for url in self._urls.values()):
            assert self._process.poll() is None, "opa has ended"
            assert time.monotonic() < until, "opa does not answer"
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    unix = url.startswith("unix://")
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as plain:
        try:
            plain.connect(url.removeprefix("unix://") if unix else ("127.0.0.1", int(url.rpartition(":")[2])))
        except OSError:
            return False
        return True
