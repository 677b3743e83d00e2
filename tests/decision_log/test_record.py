"""What is recorded, at which level, and in which form."""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from airflow_team_authz.decision_log import DecisionLog, origin
from airflow_team_authz.decision_log.bursts import Bursts, Repeated
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.record import MOST_RESOURCES, Entry, Form, encode, new_id
from airflow_team_authz.engines import DecisionPoint, Reply
from airflow_team_authz.model import (
    Context,
    Decision,
    EngineError,
    Evaluations,
    Provenance,
    Resource,
    Subject,
    UnreachableError,
)
from tests.decision_log.conftest import BOB, NO, SCHEMA, YES, Kept, Made, ask_with, valid

Make = Callable[..., Made]
DB = Resource("connection", "alpha", "db")


def test_a_refusal_is_an_event_of_opas_form(make: Make) -> None:
    made = make("denied")
    id_ = made.decided(DB)
    (record,) = made.records()
    assert record["decision_id"] == id_
    assert uuid.UUID(id_).version == 7
    assert record["path"] == "airflow/authz/decision"
    assert record["input"]["resource"] == {"type": "connection", "team_id": "alpha", "id": "db"}
    assert record["input"]["subject"]["groups"] == ["beta-people"]
    assert record["result"] == {"allow": False, "reasons": ["bob may not"], "layer": "baseline"}
    assert record["bundles"] == {"authz": {"revision": "r1"}}
    assert record["metrics"] == {"timer_server_handler_ns": 7}
    assert record["custom"] == {"outcome": "deny", "door": "other", "asked": 1, "allowed": 0}


def test_codes_of_the_rules_that_decide_are_told(make: Make) -> None:
    made = make("denied")
    said = [Decision(False, ("B-2: closed", "A-1: sealed", "no code: x"), "team"), Decision(False, ("A-1: y",), "team")]
    made.log.decided(Evaluations(BOB, "use", [DB, Resource("pool", "alpha", "p")]), said, Provenance("", 1))
    (record,) = made.records()
    assert record["custom"]["codes"] == ["A-1", "B-2"]


def test_an_error_is_recorded_without_a_result(make: Make) -> None:
    made = make("denied")
    id_ = made.failed(UnreachableError("nobody answers"))
    (record,) = made.records()
    assert record["decision_id"] == id_
    assert record["error"] == {"code": "Unreachable", "message": "nobody answers"}
    assert record["custom"]["outcome"] == "error"
    assert "result" not in record


def test_every_error_of_an_engine_is_in_the_schema() -> None:
    def all_of(kind: type[EngineError]) -> set[str]:
        return {kind("").code}.union(*map(all_of, kind.__subclasses__()))

    of_the_package = {name for name in all_of(EngineError) if not name.startswith("_")}
    assert of_the_package <= set(SCHEMA["properties"]["error"]["properties"]["code"]["enum"])


def test_of_many_resources_the_refused_ones_are_kept(make: Make) -> None:
    made = make("denied")
    resources = [Resource("pool", "alpha", f"p{number}") for number in range(300)]
    decisions = [NO if number in {5, 299} else YES for number in range(300)]
    made.log.decided(Evaluations(BOB, "use", resources), decisions, Provenance("", 1))
    (record,) = made.records()
    shown = [resource["id"] for resource in record["input"]["resources"]]
    assert shown[:2] == ["p5", "p299"]
    assert len(shown) == len(record["result"]) == 50
    assert [decision["allow"] for decision in record["result"]].count(False) == 2
    assert (record["custom"]["asked"], record["custom"]["allowed"]) == (300, 298)
    assert "bundles" not in record


def test_of_a_list_the_counts_and_what_was_refused_are_kept(make: Make) -> None:
    made = make("all")
    resources = [Resource("dag", "alpha", str(number)) for number in range(1000)]
    made.log.listed(Evaluations(BOB, "list", resources), resources[::2], Provenance("r1", 1))
    (record,) = made.records()
    assert record["path"] == "airflow/authz/allowed"
    assert [resource["id"] for resource in record["input"]["resources"]] == [str(n) for n in range(1, 100, 2)]
    assert record["custom"] == {"outcome": "list", "door": "other", "asked": 1000, "allowed": 500}


@pytest.mark.parametrize(
    ("levels", "recorded"),
    [
        ("none", ""),
        ("denied", "read- update- error"),
        ("changes", "read- update- update+ error"),
        ("all", "read- read+ update- update+ error list"),
        ("none, connection=denied", "read- update- error"),
        ("none, connection/update=all", "update- update+"),
        ("all, connection=none", ""),
        ("all, connection/read=denied, connection/list=none", "read- update- update+ error"),
        ("denied, variable=all", "read- update- error"),
    ],
)
def test_a_level_says_what_is_recorded(make: Make, levels: str, recorded: str) -> None:
    made = make(levels)
    given = {
        f"{action}{sign}": made.decided(DB, decision=decision, action=action)
        for action in ("read", "update")
        for sign, decision in (("-", NO), ("+", YES))
    } | {"error": made.failed(UnreachableError("nobody"))}
    made.log.listed(Evaluations(BOB, "list", [DB]), [], Provenance("", 1))
    signs = {"deny": "-", "allow": "+"}
    found = {record["decision_id"]: record for record in made.records()}
    told = {
        f"{record['input']['action']}{signs[outcome]}" if outcome in signs else outcome
        for record in found.values() for outcome in [record["custom"]["outcome"]]
    }  # fmt: skip
    assert told == set(recorded.split())
    assert len(found) == len(told)
    # Who is refused hears the id of the record, and nobody else.
    refused = {name: id_ for name, id_ in given.items() if id_}
    assert refused.keys() == {name for name in told if name == "error" or name.endswith("-")}
    assert found.keys() >= set(refused.values())


def test_of_reading_a_share_is_recorded_and_says_so(make: Make) -> None:
    """Refusals, errors and changes are recorded whole."""
    made = make("denied, connection=0.1")
    for number in range(2_000):
        made.decided(Resource("connection", "alpha", f"r{number}"), decision=YES)
        made.log.listed(Evaluations(BOB, "list", [DB]), [DB], Provenance("r1", 1))
        if number % 100 == 0:
            # On a busy machine the queue would be full.
            made.log.flush()
    for number in range(50):
        made.decided(Resource("connection", "alpha", f"n{number}"))
        made.decided(Resource("connection", "alpha", f"c{number}"), decision=YES, action="update")
    made.decided(Resource("pool", "alpha", "p"), decision=YES)
    counts = Counter((record["custom"]["outcome"], record["custom"].get("share")) for record in made.records())
    assert counts.keys() == {("allow", 0.1), ("list", 0.1), ("deny", None), ("allow", None)}
    assert counts["deny", None] == counts["allow", None] == 50
    # Six times the standard deviation, 13.4, at most.
    assert all(120 <= counts[outcome, 0.1] <= 280 for outcome in ("allow", "list"))


@pytest.mark.parametrize("share", ["0", "1.01", "-1", "0.x", "1e-9999", "1%"])
def test_what_is_no_share_is_refused(share: str) -> None:
    with pytest.raises(ValueError, match="is not a share of reading: write a number"):
        Levels(f"changes, dag/read={share}")


def test_the_verbs_of_custom_views_fill_no_memory() -> None:
    levels = Levels("changes")
    for number in range(5_000):
        levels.of("custom_view", f"verb{number}")
    assert len(levels._known) <= 1_000


def test_the_same_again_is_one_record_and_a_count(make: Make) -> None:
    made = make("denied")
    ids = {made.decided(DB) for _ in range(50)}
    other = made.decided(Resource("connection", "alpha", "other"))
    first, second, again = made.records()
    assert ids == {first["decision_id"]}
    assert second["decision_id"] == other
    assert again["custom"]["repeated"]["decision_id"] == first["decision_id"]
    assert again["custom"]["repeated"]["times"] == 49
    assert again["decision_id"] not in ids


def test_a_new_owner_does_not_show_in_the_id_that_is_told(make: Make) -> None:
    made = make("denied")
    assert made.decided(DB) == made.decided(Resource("connection", None, "db"))


def test_what_differs_is_no_repetition(make: Make) -> None:
    made = make("denied")
    ids = [
        made.decided(DB),
        made.decided(DB, action="update"),
        made.decided(Resource("connection", "alpha", "other")),
        made.decided(Resource("pool", "alpha", "db")),
        made.decided(DB, by=Subject("user", "eve")),
        made.failed(UnreachableError("nobody")),
        made.failed(EngineError("nobody")),
    ]
    with origin.at("datasets"):
        ids.append(made.decided(DB))
    many = [Resource("connection", "alpha", f"db{number}") for number in range(3 * MOST_RESOURCES)]
    ids += [made.decided(*many), made.decided(*many[:-1], DB), made.decided(DB, *many[1:])]
    assert len(set(ids)) == len(ids)


def test_many_refusals_take_bounded_memory_and_none_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_team_authz.decision_log.bursts._MOST", 10)
    bursts, entry = Bursts(), _entry()
    for number in range(100):
        bursts.begin(number, entry)
        if number % 10 == 0:
            assert bursts.again(number) == entry.id
    assert len(bursts._running) == 10
    assert sum(repeated.times for _, repeated in bursts.over(at_once=True)) == 10


def test_a_burst_that_is_over_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bursts, now = Bursts(), 0.0
    monkeypatch.setattr("airflow_team_authz.decision_log.bursts.time.monotonic", lambda: now)
    entries = [_entry(), _entry()]
    assert bursts.begin("key", entries[0]) == ""
    assert bursts.begin("key", entries[0]) == entries[0].id
    now = 61.0
    assert bursts.begin("key", entries[1]) == ""
    ((entry, repeated),) = bursts.over()
    assert (entry, repeated.decision_id, repeated.times) == (entries[0], entries[0].id, 1)
    assert bursts.over(at_once=True) == []


def _entry(**named: Any) -> Entry:
    question = Evaluations(BOB, "read", [DB])
    return Entry(new_id(), 1, 1, origin.Origin("users"), question, "r", 1, 0, [DB], [NO])._replace(**named)


def test_ids_sort_by_their_time_and_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_700_000_000_000_000_000, 1_700_001_000_000_000_000, 1_000_000))
    monkeypatch.setattr("airflow_team_authz.decision_log.record.time.time_ns", lambda: next(clock))
    ids = [new_id() for _ in range(1_000)]
    assert ids == sorted(ids)
    assert {uuid.UUID(id_).version for id_ in ids} == {7}
    assert {uuid.UUID(id_).variant for id_ in ids} == {uuid.RFC_4122}


def test_ids_of_one_moment_of_threads_and_children_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_team_authz.decision_log.record.time.time_ns", lambda: 1_700_000_000_000_000_000)
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend([new_id() for _ in range(5_000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read, write = os.pipe()
    for _ in range(2):
        if (pid := os.fork()) == 0:
            os.write(write, new_id().encode())
            os._exit(0)
        os.waitpid(pid, 0)
        made.append(os.read(read, 36).decode())
    assert len(set(made)) == len(made) == 20_002


def test_all_sinks_have_the_same_id_of_what_is_allowed() -> None:
    kept = [Kept(), Kept()]
    log = DecisionLog(kept, Levels("all"), Form())
    question = Evaluations(BOB, "read", [DB])
    log.decided(question, [YES], Provenance("r1", 1))
    log.listed(question, [DB], Provenance("r1", 1))
    log.close()
    first, second = ([record["decision_id"] for record in sink.records] for sink in kept)
    assert first == second
    assert len(set(first)) == 2
    assert all(uuid.UUID(id_).version == 7 for id_ in first)


def test_a_request_is_told_without_its_query_and_headers(make: Make) -> None:
    made = make("denied")
    trace = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    headers = [
        (b"authorization", b"Bearer MARKED"), (b"cookie", b"_token=MARKED"), (b"traceparent", trace),
        (b"x-request-id", b"r-17\nforged"),
    ]  # fmt: skip
    scope = {
        "method": "GET", "path": "/api/v2/connections/db", "query_string": b"token=MARKED", "headers": headers,
        "client": ("10.0.0.1", 4711),
    }  # fmt: skip
    with origin.at("users", scope):
        made.decided(DB)
        with origin.at("datasets"):
            made.decided(DB)
    for record, door in zip(made.records(), ("users", "datasets"), strict=True):
        assert record["custom"]["door"] == door
        assert record["custom"]["request"] == {
            "id": "r-17\nforged", "method": "GET", "path": "/api/v2/connections/db",
        }  # fmt: skip
        assert (record["trace_id"], record["span_id"]) == ("a" * 32, "b" * 16)
        assert record["requested_by"] == "10.0.0.1:4711"
        assert "MARKED" not in json.dumps(record)


@pytest.mark.parametrize(
    ("mask", "gone"),
    [
        ("/input/subject/claims", ["claims"]),
        ("/input/subject", ["claims", "bob", "beta-people"]),
        ("/input/resource/id", ["one", "two"]),
        ("/input/resources/id", ["one", "two"]),
        ("/result/reasons", ["bob may not"]),
        ("/input/context/user_id", ["carl"]),
        ("/input", ["bob", "one", "two", "carl", "claims"]),
        ("/input/resources/1/id", ["two"]),
        ("/input/subject/groups/0", ["beta-people"]),
        ("/custom/request/path", ["/a/path"]),
        ("/input/subject/groups, /result", ["beta-people", "reasons", "bob may not"]),
        ("/result/reasons/0", ["bob may not"]),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_a_mask_takes_its_part_away_and_says_so(make: Make, mask: str, gone: list[str], many: bool) -> None:
    made = make("all", mask)
    subject = Subject("user", "bob", groups=("beta-people",), claims={"claims": ("x",)})
    names = ["one", "two"] if many else ["one"]
    resources = [Resource("connection", "alpha", name) for name in names]
    said = Decision(False, ("bob may not",), "baseline")
    with origin.at("users", {"method": "GET", "path": "/a/path"}):
        made.log.decided(
            Evaluations(subject, "read", resources, Context("carl")),
            [said] * len(names),
            Provenance("r", 1, told="bob may not"),
        )
    (record,) = made.records()
    text = json.dumps({name: part for name, part in record.items() if name != "erased"})
    if not many and mask.startswith("/input/resources"):
        assert "erased" not in record
        return
    assert set(record["erased"]) == set(mask.split(", "))
    # The reasons are another mask's.
    for word in gone:
        assert f'"{word}"' not in text


@pytest.mark.parametrize("mask", ["/custom", "/custom/outcome", "/input, /custom"])
def test_no_mask_takes_away_what_readers_and_sinks_need(mask: str) -> None:
    with pytest.raises(ValueError, match="would remove the outcome"):
        Form(mask)


SECRETS = {
    "an address with a password": ("postgresql://ann:MARKED@db.example/x", "postgresql://***@db.example/x"),
    "an address with a password alone": ("redis://:MARKED@cache/0", "redis://***@cache/0"),
    "a token": ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJNQVJLRUQifQ.MARKED-x", "***"),
    "a header": ("Authorization: Bearer MARKED.MARKED", "Authorization: Bearer ***"),
    "basic authorization": ("Basic TUFSS0VEMARKED==", "Basic ***"),
    "a key": ("-----BEGIN RSA PRIVATE KEY-----\nMARKED\n-----END RSA PRIVATE KEY-----", "***-----END"),
}


@pytest.mark.parametrize("kind", SECRETS)
def test_what_looks_like_a_secret_is_in_no_record(make: Make, kind: str) -> None:
    secret, left = SECRETS[kind]
    made = make("all", "none")
    ask_with(made.log, secret)
    for record in made.records():
        assert "MARKED" not in json.dumps(record)
        assert json.dumps(left)[1:-1] in json.dumps(record)


ODD = ["\n2026 forged", "\x1b[2J", "\u202egnp", "\0", "\ud800", "é" * 3, "\x7f", "'\"\\", "\u2028"]


@pytest.mark.parametrize("text", ODD)
def test_no_text_breaks_a_record(make: Make, text: str) -> None:
    made = make("all", "none")
    resource = Resource("connection", "alpha", text)
    made.log.decided(
        Evaluations(Subject("user", text), text, [resource]), [Decision(False, (text,), "team")], Provenance(text, 1)
    )
    (record,) = made.records()
    line = encode(record)
    assert line.isascii()
    assert line.isprintable()
    assert record["input"]["resource"]["id"] == text
    assert re.sub(r"\\u[0-9a-f]{4}", "", line).count("\\n") == text.count("\n") * 5


class _Answers:
    """An engine that says what it is told to."""

    def __init__(self, *said: bytes | EngineError) -> None:
        self._said = list(said)

    def query(self, *_: object) -> Reply:
        said = self._said.pop(0)
        if isinstance(said, EngineError):
            raise said
        return Reply(said, "r1")

    def close(self) -> None:
        pass


def test_a_decision_point_tells_what_it_was_asked_and_hands_the_id_on(make: Make) -> None:
    made = make("all")
    no = b'[{"allow": false, "reasons": ["no"], "layer": "team"}]'
    point = DecisionPoint(_Answers(no, no, b"[0]", UnreachableError("gone")), made.log)
    question = Evaluations(BOB, "read", [DB])
    answer = point.decide(question)
    assert point.decide(question, aside=True).decision_id == ""
    assert point.allowed(question) == [DB]
    with pytest.raises(UnreachableError) as raised:
        point.decide(question)
    refused, listed, failed = made.records()
    assert answer.decision_id == refused["decision_id"]
    assert listed["custom"]["outcome"] == "list"
    assert raised.value.decision_id == failed["decision_id"]


def test_a_fault_in_the_log_changes_no_decision(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("all")
    monkeypatch.setattr("airflow_team_authz.decision_log._entry", lambda *_, **__: 1 / 0)
    assert made.decided(DB) == made.decided(DB, decision=YES) == made.failed(UnreachableError("gone")) == ""
    made.log.listed(Evaluations(BOB, "list", [DB]), [], Provenance("", 1))
    assert made.records() == []


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    gap = Form().gap(_gap(), "x")
    jsonschema.validate(gap, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(gap | {"input": {}}, SCHEMA)
    assert "record.schema.json" in (Path(__file__).parents[2] / "docs/decision-log.md").read_text()


def _gap() -> Any:
    from airflow_team_authz.decision_log.record import Gap

    return Gap(3, 1, 2)


def test_a_repetition_is_valid() -> None:
    record = Form().record(_entry(repeated=Repeated(new_id(), 2, 1.0, 2.0)))
    valid(record)
