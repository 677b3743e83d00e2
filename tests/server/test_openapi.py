"""The description of the interface is complete: what schemathesis makes of it never breaks the server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import Server


def test_every_route_tells_its_answers(own_server: Server) -> None:
    described = httpx.get(f"{own_server.url}/openapi.json").json()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (path, method)
            codes = operation["responses"].keys()
            assert path == "/health" or {"401", "403", "503"} <= codes, (path, method)
            assert path == "/health" or operation.get("security"), (path, method)


@pytest.mark.parametrize(
    "which", ["--exclude-path-regex", pytest.param("--include-path-regex", marks=pytest.mark.exhaustive)]
)
def test_no_request_breaks_it(own_server: Server, tmp_path: Path, which: str) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    program = Path(sys.executable).parent / "schemathesis"
    told = subprocess.run(
        [
            str(program), "run", f"{own_server.url}/openapi.json", "--checks", checks,
            "--header", f"Authorization: Bearer {own_server.tokens['platform']}",
            "--max-examples", "15", "--seed", "7", "--phases", "examples,coverage,fuzzing",
            # AuthZEN's bodies have tests of their own.
            which, "^/access/",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    assert told.returncode == 0, told.stdout[-6000:]
    assert "Traceback" not in own_server.log()
