"""What a real Airflow records by itself: an answer's id leads to the record, and no sink has a secret."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import httpx
import pytest

from demo.site import Site
from tests.conftest import eventually
from tests.decision_log.conftest import valid

pytestmark = pytest.mark.timeout(180)

_SECRET = "MARKED"  # noqa: S105 - it is to be looked for
_HEADERS = {"x-request-id": "request-17", "x-more": _SECRET, "cookie": f"other={_SECRET}"}
_CONNECTION = {
    "connection_id": "new", "conn_type": _SECRET, "description": _SECRET, "host": _SECRET, "login": _SECRET,
    "schema": _SECRET, "password": _SECRET, "extra": json.dumps({"key": _SECRET}), "team_name": "alpha",
}  # fmt: skip
_VARIABLE = {"key": "alpha_config", "value": _SECRET, "description": _SECRET, "team_name": "alpha"}


def _id(answer: httpx.Response) -> str:
    (id_,) = re.findall(r"\(decision ([0-9a-f-]{36})\)", answer.json()["detail"])
    return str(id_)


def _file(site: Site) -> Path:
    return site.airflow.home / "team_authz" / "decisions.ndjson"


def _recorded(site: Site, id_: str) -> bool:
    with sqlite3.connect(next(site.airflow.home.glob("*.db"))) as database:
        (count,) = database.execute("SELECT count(*) FROM team_authz_decision WHERE decision_id = ?", [id_]).fetchone()
    return bool(count) and id_ in _file(site).read_text() and id_ in site.airflow.log()


@pytest.mark.parametrize("site", ["in process"], indirect=True)
def test_an_answers_id_leads_to_the_record_and_no_sink_has_a_secret(site: Site) -> None:
    ann, bob = site.client("ann"), site.client("bob")
    refused = {
        "read": bob.get(f"/api/v2/connections/alpha_db?password={_SECRET}", headers=_HEADERS),
        "create": bob.post("/api/v2/connections", json=_CONNECTION, headers=_HEADERS),
        "update": bob.patch("/api/v2/variables/alpha_config", json=_VARIABLE, headers=_HEADERS),
        "delete": bob.delete("/api/v2/pools/alpha_pool", headers=_HEADERS),
    }
    kept = ann.get("/api/v2/variables/alpha_config").json()["value"]
    assert ann.patch("/api/v2/variables/alpha_config", json=_VARIABLE, headers=_HEADERS).status_code == 200
    assert ann.patch("/api/v2/variables/alpha_config", json=_VARIABLE | {"value": kept}).status_code == 200
    assert {action: answer.status_code for action, answer in refused.items()} == dict.fromkeys(refused, 403)
    for answer in refused.values():
        eventually(lambda answer=answer: _recorded(site, _id(answer)))  # type: ignore[misc]
    records = {record["decision_id"]: record for record in map(valid, map(json.loads, _file(site).open()))}
    for action, answer in refused.items():
        record = records[_id(answer)]
        assert record["input"]["action"] == action
        assert record["input"]["subject"]["id"] == "bob"
        assert record["result"]["allow"] is False
        assert record["custom"]["door"] == "users"
        asked = answer.request
        assert record["custom"]["request"] == {"id": "request-17", "method": asked.method, "path": asked.url.path}
    changed = [
        record for record in records.values()
        if record["custom"]["outcome"] == "allow" and record["input"].get("resource", {}).get("id") == "alpha_config"
    ]  # fmt: skip
    assert {record["input"]["subject"]["id"] for record in changed} >= {"ann"}
    found = site.airflow.attempt("-m", "airflow_team_authz.cli", "decisions", _id(refused["update"]), "-o", "json")
    assert json.loads(found.stdout) == records[_id(refused["update"])], found.stderr
    with sqlite3.connect(next(site.airflow.home.glob("*.db"))) as database:
        told = repr(database.execute("SELECT * FROM team_authz_decision").fetchall())
    ours = [line for line in site.airflow.log().splitlines() if "decision" in line]
    assert _SECRET not in told + _file(site).read_text() + "".join(ours)


@pytest.mark.parametrize("site", ["OPA server"], indirect=True)
def test_an_outage_is_recorded_and_its_answer_tells_the_record(site: Site) -> None:
    assert site.opa is not None
    site.opa.stop()
    try:
        answer = site.client("ann").get("/api/v2/connections/alpha_db")
    finally:
        site.opa.start()
    assert answer.status_code == 503
    eventually(lambda: _recorded(site, _id(answer)))
    record = next(one for one in map(json.loads, _file(site).open()) if one["decision_id"] == _id(answer))
    assert valid(record)["error"]["code"] == "Unreachable"
