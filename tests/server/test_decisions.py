"""Decisions of OPA servers and Airflow processes: who may send them, what is kept of them, and who sees which."""

from __future__ import annotations

import gzip
import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.event import listen
from typer.testing import CliRunner

from airflow_team_authz.bundles.artifact import Artifact
from airflow_team_authz.cli import app, recorded
from airflow_team_authz.decision_log import DecisionLog
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.over_http import BundleServer
from airflow_team_authz.decision_log.reading import Wanted
from airflow_team_authz.decision_log.record import Form, new_id
from airflow_team_authz.engines import Answer, DecisionPoint
from airflow_team_authz.model import EngineError, Evaluations, Resource, Subject
from airflow_team_authz.opa.compile import compile_directory, shipped_policies
from airflow_team_authz.server import decisions
from airflow_team_authz.server.access import READER, Caller
from airflow_team_authz.server.database import connect, migrate
from airflow_team_authz.server.decisions import (
    Counts,
    Decisions,
    NoDecisionsError,
    Readable,
    Search,
    TooFastError,
    read,
)
from airflow_team_authz.server.policies import NoPolicyError, Policies
from airflow_team_authz.server.served import ServedBundle
from tests.conftest import eventually, write
from tests.server.conftest import Server, good, newest
from tests.server.test_protocol import opa

OPAS = "decision_logs:\n  service: bundles\n  reporting: {min_delay_seconds: 1, max_delay_seconds: 1}\n"
ANN = Caller("token 1", READER)


def event(resource: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """An event of a stock OPA."""
    input_ = {"subject": {"type": "user", "id": "bob", "groups": ["secret-group"]}, "action": "read"}
    if resource is not None:
        input_["resource"] = resource
    return {
        "labels": {"id": "0c9d2e5e-54a3-4a2c-a4a0-2f3ae6a2a1de", "version": "1.22.2"},
        "decision_id": str(uuid.uuid4()), "path": "airflow/authz/decision", "input": input_,
        "result": {"allow": False, "reasons": ["ALPHA-1: closed"], "layer": "team"},
        "timestamp": "2026-11-27T04:19:09.551292123Z", "metrics": {"timer_server_handler_ns": 1},
    } | more  # fmt: skip


def connection(team_id: str | None, id_: str = "db") -> dict[str, Any]:
    return {"type": "connection", "id": id_} | ({"team_id": team_id} if team_id else {"team_id": None})


@pytest.fixture
def table(tmp_path: Path) -> Decisions:
    engine = connect(f"sqlite:///{tmp_path}/server.db")
    migrate(engine)
    return Decisions(engine, Form(), 90)


def everything(table: Decisions, **wanted: Any) -> list[dict[str, Any]]:
    page = table.search(Caller("platform", "platform"), Search(**wanted), Readable(Policies([])))
    return [one.record for one in page.found]


def taken(table: Decisions, *events: Any, who: Caller = ANN) -> Counts:
    return table.take(who, gzip.compress(json.dumps(events).encode()), "gzip")


def test_what_an_opa_sends_is_kept_without_what_is_masked_or_secret(table: Decisions) -> None:
    sent = event(connection("alpha"), nd_builtin_cache={"http.send": "secret-1"}, request_context={"http": "secret-2"})
    sent["input"]["subject"]["claims"] = {"department": ["secret-3"]}
    sent["result"]["reasons"].append("see https://bob:secret-4@host/")
    assert taken(table, sent) == Counts(1, 1, 0)
    (record,) = everything(table)
    assert not any(f"secret-{number}" in json.dumps(record) for number in range(1, 5))
    assert record["erased"] == ["/input/subject/claims"]
    assert record["custom"] == {"outcome": "deny", "door": "opa"}
    assert record["timestamp"] == sent["timestamp"]


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({"result": [{"allow": True}, {"allow": True}]}, "allow"),
        ({"result": [{"allow": True}, {"allow": "true"}]}, "deny"),
        ({"path": "airflow/authz/allowed", "result": [0]}, "list"),
        ({"error": {"code": "internal_error"}, "result": None}, "error"),
        ({"path": "system/main", "result": {"x": 1}}, "other"),
        ({"path": "", "query": "data", "input": [1], "result": None}, "other"),
    ],
)
def test_what_has_come_of_it_is_read_from_the_result(table: Decisions, changed: dict[str, Any], outcome: str) -> None:
    taken(table, event(connection("alpha")) | changed)
    assert [record["custom"]["outcome"] for record in everything(table)] == [outcome]


def test_the_same_once_more_is_one_record_and_nobody_replaces_anothers(table: Decisions) -> None:
    first = event(connection("alpha"))
    assert taken(table, first, first) == Counts(2, 1, 0)
    assert taken(table, first, event(connection("beta"))) == Counts(2, 1, 0)
    other = first | {"result": {"allow": True}}
    assert taken(table, other, who=Caller("token 2", READER)) == Counts(1, 1, 0)
    found = table.search(Caller("p", "platform"), Search(id=first["decision_id"]), Readable(Policies([]))).found
    assert [(one.reporter, one.record["custom"]["outcome"]) for one in found] == [
        ("token 2", "allow"), ("token 1", "deny"),
    ]  # fmt: skip


def test_the_opa_of_one_team_plants_no_record_among_anothers(table: Decisions) -> None:
    own, both = event(connection("alpha")), event(path="airflow/authz/decisions", result=[{"allow": False}] * 2)
    both["input"]["resources"] = [connection("beta"), connection("alpha")]
    alphas = Caller("token a", READER, (), "production.team.alpha")
    assert taken(table, own, both, event(connection("beta")), who=alphas).written == 3
    assert len(everything(table)) == 3
    assert [len(everything(table, wanted=Wanted(team=team))) for team in ("alpha", "beta")] == [2, 0]
    assert taken(table, event(connection("beta")), who=Caller("token b", READER, (), "production")).written == 1
    assert len(everything(table, wanted=Wanted(team="beta"))) == 1


def test_many_records_take_few_statements(table: Decisions) -> None:
    asked: list[str] = []
    listen(table._engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    assert taken(table, *(event(connection("alpha")) for _ in range(400))).written == 400
    assert len(asked) < 10


@pytest.mark.parametrize(
    "text", ['"\\ud800"', "NaN", "1e400", "12345678901234567890123", '{"a": 1, "a": 2}', "-0", '"\\u0000\u00e9"']
)
def test_what_python_reads_is_read(text: str) -> None:
    (told,) = read(f"[{text}]".encode(), "")
    # Half a pair is in no text.
    assert repr(told) == repr(json.loads(text.replace("\\ud800", "?")))


@pytest.mark.parametrize("wrong", ["", "[", "[1]x", "\ufeff[]", "[" * 100_000, "{}", "1"])
def test_what_is_no_list_is_an_error_of_the_sender(wrong: str) -> None:
    with pytest.raises(NoDecisionsError, match="not a list of decisions"):
        read(wrong.encode(), "")


@pytest.mark.parametrize(
    "wrong",
    [1, "x", None, [], {}, {"decision_id": "x"}, {"decision_id": 1, "timestamp": "2026-11-27T04:19:09Z"},
     {"decision_id": "x" * 65, "timestamp": "2026-11-27T04:19:09Z"}, {"decision_id": "x", "timestamp": "yesterday"},
     {"decision_id": "x", "timestamp": "2026-11-27T04:19:09"}, {"decision_id": "\0", "timestamp": "2026-11-27T04:19Z"}],
)  # fmt: skip
def test_what_is_no_record_is_dropped_and_the_others_are_kept(table: Decisions, wrong: Any) -> None:
    assert taken(table, wrong, event(connection("alpha"))) == Counts(2, 1, 1)


@pytest.mark.parametrize(
    "odd",
    [
        {"input": {"resources": "x"}}, {"input": {"resources": [1]}}, {"input": {"subject": 1, "action": {}}},
        {"input": {"resource": {"team_id": ["x"], "id": {}}}}, {"custom": {"outcome": {"x": 1}}}, {"custom": 1},
        {"custom": {"outcome": "x" * 99, "opa_decision_ids": [1]}}, {"erased": 1}, {"labels": "\0\ud800"},
        {"input": {"resource": {"type": "x" * 99, "id": "\0"}}},
    ],
)  # fmt: skip
def test_no_form_of_a_record_breaks_it(table: Decisions, odd: dict[str, Any]) -> None:
    assert taken(table, event(connection("alpha")) | odd, event(connection("alpha"))).written == 2
    everything(table)


def test_what_is_no_list_or_too_much_is_refused(table: Decisions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_UNPACKED_BYTES", 1_000)
    for content, encoding, told in (
        (b"{}", "", "not a list"), (b"[", "", "not a list"), (b"x", "gzip", "not a list"),
        (gzip.compress(b"[" + b" " * 2_000 + b"]"), "gzip", "larger than 1,000"), (b"[" * 100_000, "", "not a list"),
        (b"[" + b"1," * 10_001 + b"1]", "", "10,000 may come at once"),
    ):  # fmt: skip
        with pytest.raises(NoDecisionsError, match=told):
            read(content, encoding)
    monkeypatch.setattr(decisions, "BURST", 5)
    # Nothing more may come while the test runs.
    monkeypatch.setattr(decisions, "RATE", 0)
    taken(table, *range(5))
    with pytest.raises(TooFastError, match="token 1 sends more than"):
        taken(table, 1, 2, 3)
    taken(table, 1, 2, 3, who=Caller("token 2", READER))


def test_what_is_too_old_goes(table: Decisions) -> None:
    old = (datetime.now(UTC) - timedelta(days=91)).isoformat()
    taken(
        table,
        event(connection("alpha"), timestamp=old),
        event(connection("beta"), timestamp=datetime.now(UTC).isoformat()),
    )
    assert table.clean() == 1
    assert [record["input"]["resource"]["team_id"] for record in everything(table)] == ["beta"]


def sent(server: Server, *events: dict[str, Any], who: str = "reader") -> httpx.Response:
    content = gzip.compress(json.dumps(events).encode())
    return server.ask("POST", "/logs", who, content=content, headers={"Content-Encoding": "gzip"})


def seen(server: Server, who: str, **wanted: Any) -> list[dict[str, Any]]:
    answer = server.ask("GET", "/decisions", who, params=wanted)
    assert answer.status_code == 200, answer.text
    listed: list[dict[str, Any]] = answer.json()["decisions"]
    return listed


def test_who_may_send_and_see_what(server: Server) -> None:
    own = event(connection("alpha", "lent"), custom={"outcome": "deny", "door": "users", "codes": ["ALPHA-1"]})
    both = event(
        path="airflow/authz/decisions",
        result=[{"allow": False, "reasons": ["BETA-1: b"]}, {"allow": True, "reasons": ["ALPHA-2: a"]}],
        custom={"outcome": "deny", "door": "users", "codes": ["ALPHA-2", "BETA-1"]},
    )
    both["input"]["resources"] = [connection("beta", "betas"), connection("alpha", "alphas")]
    others = [event(connection("beta")), event(connection(None)), event({"type": "configuration", "team_id": None})]
    assert sent(server, own, both, *others).json() == {"received": 5, "written": 5, "dropped": 0}
    assert sent(server, own, who="narrow").status_code == 200
    assert sent(server, own, who="alpha").status_code == 403
    assert sent(server, own, who="nobody").status_code == 401
    assert server.ask("GET", "/decisions", "reader").status_code == 403
    ids = {one["decision_id"] for one in (own, both, *others)}
    assert ids <= {one["record"]["decision_id"] for one in seen(server, "platform", user="bob")}
    assert all(one["reporter"].startswith("token ") for one in seen(server, "platform"))
    told = {one["record"]["decision_id"]: one["record"] for one in seen(server, "alpha")}
    assert told.keys() & ids == {own["decision_id"], both["decision_id"]}
    assert told[own["decision_id"]]["custom"]["codes"] == ["ALPHA-1"]
    part = told[both["decision_id"]]
    assert (part["input"]["resources"], part["result"]) == ([connection("alpha", "alphas")], [both["result"][1]])
    # That the other team's resource was refused, and by which rule, is not alpha's business: a filter tells as little.
    assert (part["custom"]["outcome"], part["custom"]["codes"]) == ("allow", ["ALPHA-2"])
    assert both["decision_id"] not in {one["record"]["decision_id"] for one in seen(server, "alpha", denied=True)}
    assert both["decision_id"] not in {one["record"]["decision_id"] for one in seen(server, "alpha", team="beta")}
    for wanted in ({"denied": True}, {"team": "beta"}):
        assert both["decision_id"] in {one["record"]["decision_id"] for one in seen(server, "platform", **wanted)}
    # Of whom it was about a team hears the name, and nothing of where it happened.
    assert part["input"]["subject"] == {"type": "user", "id": "bob"}
    assert "labels" not in part
    assert not any("betas" in json.dumps(record) or "secret-group" in json.dumps(record) for record in told.values())


def test_no_text_of_a_record_ends_the_answers_about_all(server: Server) -> None:
    """Half a surrogate pair is in no JSON text, and would be in each answer that has the record, and in each search."""
    half = event(connection("alpha", "\ud800db"), trace_id="\udc00")
    half["input"]["subject"]["id"] = "bob \U0001f600 \ud83d"
    assert sent(server, half).json()["written"] == 1
    for who in ("platform", "alpha"):
        (told,) = [one["record"] for one in seen(server, who, id=half["decision_id"])]
        assert told["input"]["resource"]["id"] == "?db"
        assert told["input"]["subject"]["id"] == "bob \U0001f600 ?"
        assert seen(server, who)
    asked = {"subject": {"type": "user"}, "action": {"name": "read"},
             "resource": {"type": "connection", "id": "db", "properties": {"team_id": "alpha"}}}  # fmt: skip
    for name, part in (("subject", {}), ("resource", {"subject": {"type": "user", "id": "x"}})):
        assert server.ask("POST", f"/production/access/v1/search/{name}", json=asked | part).status_code == 200
    raw = json.dumps([event(connection("alpha", "RAW"))]).encode().replace(b"RAW", b"\xed\xa0\x80")
    assert server.ask("POST", "/logs", "reader", content=raw).status_code == 422


def test_a_team_sees_the_other_answer_about_its_own_and_nothing_of_several(server: Server) -> None:
    candidate = {"direction": "opens", "result": {"allow": True, "reasons": ["x"]}, "revision": "r2"}
    # A number and a message about the rest of a question, which may be anybody's.
    error = {"code": "PolicyBroken", "message": "teams/beta/beta.rego:3: betas rule fails"}
    custom = {"outcome": "shadow", "door": "users", "candidate": candidate | {"more": 2_999, "error": error}}
    one, several = (event(connection("alpha", "lent"), custom=custom) for _ in range(2))
    several["input"]["resources"] = [several["input"].pop("resource"), connection("beta")]
    assert sent(server, one, several).status_code == 200
    told = {
        record["record"]["decision_id"]: record["record"]["custom"] for record in seen(server, "alpha", shadow=True)
    }
    assert told[one["decision_id"]]["candidate"] == candidate
    assert "candidate" not in told[several["decision_id"]]
    for who in ("alpha", "platform"):
        assert not told.keys() & {record["record"]["decision_id"] for record in seen(server, who)}


def test_the_policy_decides_what_a_team_sees(table: Decisions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules of the site take one audit log away; without any policy nobody but the platform sees anything."""
    taken(table, event(connection("alpha", "open")), event(connection("alpha", "sealed")))
    (tmp_path / "policy/airflow/site").mkdir(parents=True)
    (tmp_path / "policy/airflow/site/site.rego").write_text(
        "package airflow.site\n\n"
        'deny contains "sealed" if {\n\tinput.resource.entity == "audit_log"\n\tinput.resource.id == "sealed"\n}\n'
    )
    compile_directory(tmp_path / "policy", tmp_path / "strict")
    compile_directory(shipped_policies(), tmp_path / "usual")
    strict, usual = (ServedBundle(name, (tmp_path / name).read_bytes(), "r", 1) for name in ("strict", "usual"))
    alpha, policies = Caller("token a", "team", ("alpha",)), Policies(["staging", "production"])
    readable = Readable(policies)

    def seen_with(**held: ServedBundle) -> list[str]:
        policies.with_bundles({f"{name}.wasm": it for name, it in held.items()})
        page = table.search(alpha, Search(), readable)
        return [one.record["input"]["resource"]["id"] for one in page.found]

    with pytest.raises(NoPolicyError):
        seen_with()
    assert seen_with(production=usual) == ["sealed", "open"]
    assert seen_with(production=strict) == ["open"]
    # All environments have to agree: one of them may be what a team tries out.
    assert seen_with(staging=usual, production=strict) == ["open"]
    assert seen_with(staging=strict, production=usual) == ["open"]
    monkeypatch.setattr(decisions, "_LOOKED_AT", 1)
    # The number of a row would tell how many there are.
    assert table.search(Caller("nobody", "team"), Search(limit=1), readable) == ([], None)


def test_pages_follow_each_other(server: Server) -> None:
    user = f"u{uuid.uuid4()}"
    for _ in range(5):
        one = event(connection("alpha"))
        one["input"]["subject"]["id"] = user
        sent(server, one)
    for who in ("platform", "alpha"):
        numbers, before = [], {}
        for _ in range(9):
            page = server.ask("GET", "/decisions", who, params={"user": user, "limit": 2} | before).json()
            numbers += [one["number"] for one in page["decisions"]]
            if page["next"] is None:
                break
            before = {"before": page["next"]}
        assert len(numbers) == 5
        assert numbers == sorted(numbers, reverse=True)


def test_records_of_a_stock_opa_and_of_airflow_join_by_id(server: Server, tmp_path: Path) -> None:
    version = newest(server, "alpha")
    assert server.publish(good("alpha", version)).status_code == 200
    (tmp_path / "reader").write_text(server.tokens["reader"])
    log = DecisionLog([BundleServer(server.url, tmp_path / "reader")], Levels("all"), Form())
    # A refusal: nobody hears the id of what is allowed.
    question = Evaluations(Subject("user", "gus"), "read", [Resource("connection", "alpha", "other")])
    answers: list[Answer] = []
    with opa(server, "opa.yaml", tmp_path / "joined", "reader", OPAS) as engine:
        point = DecisionPoint(engine, log)

        def decides() -> bool:
            try:
                answers.append(point.decide(question))
            except EngineError:
                return False
            return True

        eventually(decides)
        assert answers[-1].decisions[0].team_version == version
        id_ = answers[-1].decision_id
        log.close()

        def joined() -> list[dict[str, Any]]:
            return [one["record"] for one in seen(server, "platform", id=id_)]

        eventually(lambda: len(joined()) == 2)
    ours, theirs = sorted(
        joined(), key=lambda record: "codes" not in record["custom"] and record["custom"]["door"] == "opa"
    )
    assert ours["decision_id"] == id_
    assert ours["custom"]["opa_decision_ids"] == [theirs["decision_id"]]
    assert theirs["labels"]["app"] == "opa"
    assert theirs["input"]["resources"] == [ours["input"]["resource"]]
    # And by OPA's own id, which its log has.
    assert {one["record"]["decision_id"] for one in seen(server, "platform", id=theirs["decision_id"])} >= {id_}


def test_metrics_count_what_happens_and_name_nobody(server: Server) -> None:
    def told(who: str = "reader") -> dict[str, float]:
        answer = server.ask("GET", "/metrics", who)
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = (line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#"))
        return {name.removeprefix("team_authz_server_"): float(value) for name, _, value in lines}

    before = told()
    assert before["up"] == 1
    assert before["bundles"] > 0
    version = newest(server, "beta")
    assert server.publish(good("beta", version)).status_code == 200
    bad = Artifact("beta", version + 1, {"teams/beta/beta.rego": b"package teams.beta\n\nallow := true\n"})
    assert server.publish(bad).status_code == 422
    sent(server, event(connection("beta")), {"decision_id": "none"})
    after = told("platform")
    more = {name: after[name] - before.get(name, 0) for name in after}
    assert more['publishes_total{outcome="published"}'] == more['publishes_total{outcome="refused"}'] == 1
    assert more['findings_total{rule="entry-rule"}'] >= 1
    assert more['requests_total{method="PUT",route="/teams/{team_id}/package",status="422"}'] == 1
    decided = [more[f"decisions_{name}_total"] for name in ("received", "written", "dropped")]
    assert decided == [2, 1, 1]
    assert not any(name in str(after) for name in ("alpha", "beta", "taz_", "bob"))
    assert server.ask("GET", "/metrics", "alpha").status_code == 403
    assert server.ask("GET", "/metrics", None).status_code == 401


def test_a_server_that_answers_no_keeps_the_records_waiting(server: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("taz_nobody_x")
    sink = BundleServer(server.url, tmp_path / "token")
    records = [event(connection("alpha")) | {"decision_id": new_id()}]
    with pytest.raises(Exception, match=r"401 .*decision_log_token_file"):
        sink.write(records)
    (tmp_path / "token").write_text(server.tokens["reader"])
    assert sink.write(records) == 0
    assert sink.write([{"decision_id": "no record"}, *records]) == 1


def test_what_the_server_has_collected_is_decided_again(server: Server, tmp_path: Path) -> None:
    subject = {"type": "user", "id": "replayed", "team_ids": ["alpha"], "roles": ["op"]}
    asked = {"subject": subject, "action": "update", "resource": connection("alpha", "closed")}
    made = [event(input=asked, result={"allow": True, "reasons": [], "layer": "baseline"}) for _ in range(3)]
    assert sent(server, *made).status_code == 200
    rule = 'package teams.alpha\n\ndeny contains "closed" if input.resource.id == "closed"\n'
    candidate = write(tmp_path / "next", {"teams/alpha/alpha.rego": rule})
    (tmp_path / "token").write_text(server.tokens["platform"])
    options = ["--server", server.url, "--token-file", str(tmp_path / "token"), "--user", "replayed", "-o", "json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "_PAGE", 2)
        done = CliRunner().invoke(app, ["replay", str(candidate), *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["questions"] == 3
    assert [(change["direction"], change["decisions"]) for change in told["changes"]] == [("lost", 3)]
