"""What docs/decision-log.md shows is so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from airflow_team_authz.decision_log.record import Form, Gap
from airflow_team_authz.decision_log.sinks import File
from airflow_team_authz.model import Decision
from tests.conftest import REPOSITORY
from tests.decision_log.conftest import valid
from tests.decision_log.test_writer import entry

PAGE = (REPOSITORY / "docs/decision-log.md").read_text()
YES = [Decision(True, ("bob may",), "baseline")]


def test_the_record_of_the_page_is_valid() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    assert valid(json.loads(example)) == json.loads(example)


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_examples_with_jq_find_what_they_say(tmp_path: Path) -> None:
    entries = [entry("a"), entry("a"), entry("b", subject="eve\n"), entry("c")._replace(decisions=YES, allowed=1)]
    records = [*map(Form().record, entries), Form().gap(Gap(3, 1, 2), "a sink")]
    File(tmp_path / "decisions.ndjson").write(records)
    shell = ["bash", "-euo", "pipefail", "-c"]
    refused, changed, gaps = [
        subprocess.run([*shell, block], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    ]
    assert [line.split("\t") for line in refused.splitlines()] == [
        ["      2 bob", "read", "connection", "a"],
        ["      1 eve\\n", "read", "connection", "b"],
    ]
    assert json.loads(changed)[1:] == ["read", {"type": "connection", "team_id": "alpha", "id": "c"}]
    assert json.loads(gaps)["lost"] == 3
