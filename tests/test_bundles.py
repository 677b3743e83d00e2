"""The OPA configurations in `bundles/` are started as their comments say."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from airflow_team_authz.compile import find_opa
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.model import EngineError, Evaluations, Resource, Subject

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def opa_with_bundle(tmp_path: Path) -> Iterator[str]:
    """Address of an OPA that has loaded the repository's policies as a bundle from a file server."""
    build = ["build", "--bundle", "policies", "--ignore", "*_test.rego", "--revision", "7"]
    capabilities = ["--capabilities", "policies/capabilities.json"]
    output = ["--output", str(tmp_path / "airflow.tar.gz")]
    subprocess.run([find_opa(), *build, *capabilities, *output], cwd=REPOSITORY, check=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        environment = os.environ | {"BUNDLE_SERVER_URL": f"http://127.0.0.1:{files.server_port}"}
        configuration = ["--config-file", str(REPOSITORY / "bundles" / "opa.yaml")]
        quiet = ["--skip-version-check", "--log-level-request", "debug"]
        opa = subprocess.Popen(
            [find_opa(), "run", "--server", *configuration, "--addr", f"unix://{tmp_path}/opa.sock", *quiet],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"unix://{tmp_path}/opa.sock"
        finally:
            opa.terminate()
            opa.wait()
            files.shutdown()


def test_the_shared_opa_serves_the_policy_and_its_revision(opa_with_bundle: str) -> None:
    decisions = DecisionPoint(OpaServer(opa_with_bundle, deadline_ms=5_000))
    question = Evaluations(Subject("user", "ann", ("alpha",), ("op",)), "read", [Resource("connection", "alpha", "pg")])
    end = time.monotonic() + 20
    while True:
        try:
            answer = decisions.decide(question)
            break
        except EngineError:
            assert time.monotonic() < end, "OPA did not load the bundle"
            time.sleep(0.1)
    assert answer.decisions[0].allow is True
    assert answer.revision == "7"
    with httpx.Client(transport=httpx.HTTPTransport(uds=opa_with_bundle.removeprefix("unix://"))) as client:
        written = client.put("http://localhost/v1/policies/mine", content="package airflow.site")
    assert written.status_code == 400
    assert "bundle" in written.text
