"""AuthZEN's Authorization API: forms of requests and answers, who may ask, and searches."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from msgspec import UNSET

from airflow_team_authz.engines import DecisionPoint, Reply
from airflow_team_authz.model import Resource, Subject, UnreachableError
from airflow_team_authz.opa.compile import compile_directory
from airflow_team_authz.server import authzen, authzen_routes, evaluations
from airflow_team_authz.server.access import Caller
from airflow_team_authz.server.authzen import BadRequestError, Batch
from airflow_team_authz.server.evaluations import Asker, NotAllowedError, TooMuchError
from airflow_team_authz.server.work_queue import Turns
from tests.conftest import opened, write
from tests.server.conftest import Server
from tests.server.test_decisions import sent

PLATFORM, ALPHA, READER = Caller("p", "platform"), Caller("token a", "team", ("alpha",)), Caller("token r", "reader")
ANN = {"type": "user", "id": "ann", "properties": {"team_ids": ["alpha"], "roles": ["op"]}}
BOB = {"type": "user", "id": "bob", "properties": {"team_ids": ["beta"], "roles": ["op"]}}


def dag(id_: str = "daily", team_id: str | None = "alpha", kind: str = "dag") -> dict[str, Any]:
    return {"type": kind, "id": id_, "properties": {"team_id": team_id}}


def ask(subject: Any = ANN, action: Any = "read", resource: Any = None, **more: Any) -> dict[str, Any]:
    return {"subject": subject, "action": {"name": action}, "resource": resource or dag()} | more


def post(server: Server, path: str, question: Any, who: str | None = "platform", **headers: str) -> httpx.Response:
    content = question if isinstance(question, bytes) else json.dumps(question).encode()
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return server.ask("POST", f"/production/access/v1/{path}", who, content=content, headers=headers)


def decided(server: Server, question: Any, who: str = "platform") -> dict[str, Any]:
    answer = post(server, "evaluation", question, who)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    assert type(told["decision"]) is bool
    return told


# The server


def test_a_decision_is_that_of_the_policy_with_its_reasons(server: Server) -> None:
    told = decided(server, ask())
    assert told["decision"] is True
    assert told["context"].keys() == {"reasons", "layer", "revision"}
    assert (told["context"]["reasons"], told["context"]["layer"]) == (["viewer in team alpha"], "baseline")
    assert decided(server, ask(BOB))["decision"] is False
    assert decided(server, ask(BOB), "alpha")["decision"] is False
    assert decided(server, ask(ANN, "list", dag("")))["decision"] is True
    assert decided(server, ask(ANN, "trigger", dag(kind="dag.run")))["decision"] is True
    assert decided(server, ask(ANN, context={"time": "1985-10-26T01:22-07:00"}, later="x"))["decision"] is True


def test_who_may_ask_is_answered_by_code_and_never_by_a_decision(server: Server) -> None:
    cases = [
        (None, ask(), 401), ("taz_none_x", ask(), 401), ("reader", ask(), 403), ("narrow", ask(), 403),
        ("beta", ask(), 403), ("alpha", ask(resource=dag(team_id="beta")), 403),
        ("alpha", ask(resource=dag(team_id=None)), 403), ("alpha", ask(BOB), 200),
        ("alpha", ask(resource={"type": "configuration", "id": "core"}), 403),
        ("platform", ask(resource={"type": "configuration", "id": "core"}), 200),
    ]  # fmt: skip
    for who, question, code in cases:
        answer = post(server, "evaluation", question, who, X_Request_ID="id-1")
        assert answer.status_code == code, (who, question, answer.text)
        assert answer.headers["X-Request-ID"] == "id-1"
        assert "decision" in answer.json() if code == 200 else isinstance(answer.json(), str)
        assert (answer.headers.get("WWW-Authenticate") == "Bearer") is (code == 401)
    # One question that the caller may not ask is enough.
    many = {"evaluations": [ask(), ask(resource=dag(team_id="beta"))]}
    assert post(server, "evaluations", many, "alpha").status_code == 403
    assert "X-Request-ID" not in post(server, "evaluation", ask()).headers


def test_a_body_that_is_too_large_is_a_bad_request(server: Server) -> None:
    for body in (ask(padding="x" * (1 << 20)), {"evaluations": [ask()] * 8_000}):
        answer = post(server, "evaluations", body, X_Request_ID="id-2")
        assert answer.status_code == 400, answer.text
        assert "larger than 262,144 bytes" in answer.json()
        assert answer.headers["X-Request-ID"] == "id-2"


def test_a_policy_that_is_not_there_is_an_error_and_not_a_denial(server: Server) -> None:
    paths = ("evaluation", "evaluations", "search/subject")
    for path, question in ((path, ask(evaluations=[{}])) for path in paths):
        answer = server.ask("POST", f"/staging/access/v1/{path}", "platform", json=question)
        assert (answer.status_code, "staging has no policy yet" in answer.json()) == (503, True), answer.text
    answer = server.ask("POST", "/access/v1/evaluation", "platform", json=ask())
    assert (answer.status_code, answer.json()) == (
        400, "there are several environments: ask at /production/access/v1/evaluation",
    )  # fmt: skip
    answer = server.ask("POST", "/moon/access/v1/evaluation", "platform", json=ask())
    assert (answer.status_code, answer.json()) == (404, "there is no environment moon")
    assert server.ask("GET", "/production/access/v1/evaluation").status_code == 405


def test_the_metadata_have_the_servers_own_address_and_not_the_requests(server: Server) -> None:
    answer = server.ask("GET", "/.well-known/authzen-configuration/production", None, headers={"Host": "evil.example"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {
        "policy_decision_point": "https://bundles.example/production",
        **{f"{name}_endpoint": f"https://bundles.example/production/access/v1/{path}" for name, path in {
            "access_evaluation": "evaluation", "access_evaluations": "evaluations", "search_subject": "search/subject",
            "search_resource": "search/resource", "search_action": "search/action"}.items()},
    }  # fmt: skip
    for path in ("", "/moon"):
        assert server.ask("GET", f"/.well-known/authzen-configuration{path}", None).status_code == 404


def test_the_requests_of_the_public_todo_scenario_get_answers_of_its_form(server: Server) -> None:
    """The scenario's policy is another one: its types are unknown here, and its roles are tried with Dags."""
    todo = {"type": "todo", "id": "7240d0db", "properties": {"ownerID": "morty@the-citadel.com"}}
    rick = {"type": "user", "id": "CiRmZDA2MTRkMy1jMzlhLTQ3ODEt"}
    for action, resource in (
        ("can_read_user", {"type": "user", "id": "beth@the-smiths.com"}),
        ("can_read_todos", {"type": "todo", "id": "1"}),
        ("can_create_todo", {"type": "todo", "id": "1"}), ("can_update_todo", todo), ("can_delete_todo", todo),
    ):  # fmt: skip
        with pytest.raises(BadRequestError, match="is not known: the types are asset, "):
            authzen.evaluation(ask(rick, action, resource))
    many = {"subject": rick, "action": {"name": "can_update_todo"}, "evaluations": [{"resource": todo}] * 2}
    assert post(server, "evaluations", many).status_code == 400

    roles = {"viewer": ("viewer",), "editor": ("op",), "admin": ("admin",)}
    expected = {"read": {"viewer", "editor", "admin"}, "update": {"editor", "admin"}, "delete": {"editor", "admin"}}
    for name, held in roles.items():
        person = {"type": "user", "id": name, "properties": {"team_ids": ["alpha"], "roles": held}}
        assert decided(server, ask(person, "update", dag("todo-1")))["decision"] is (name in expected["update"])
        boxcar = {"subject": person, "resource": dag("todo-1"),
                  "evaluations": [{"action": {"name": action}} for action in expected]}  # fmt: skip
        told = post(server, "evaluations", boxcar).json()
        assert told.keys() == {"evaluations"}
        assert [one["decision"] for one in told["evaluations"]] == [name in may for may in expected.values()]


def test_searches_find_what_the_collected_decisions_have(server: Server) -> None:
    def event(number: int, subject: dict[str, Any], team_id: str, id_: str) -> dict[str, Any]:
        return {
            "decision_id": f"authzen-{number}", "timestamp": "2026-11-27T04:19:09Z", "path": "airflow/authz/decision",
            "input": {"subject": subject, "action": "read",
                      "resource": {"type": "pool", "team_id": team_id, "id": id_}}, "result": {"allow": True},
        }  # fmt: skip

    people = [{"type": "user", "id": f"zoe{team}", "team_ids": [team], "roles": ["op"]} for team in ("alpha", "beta")]
    assert sent(server, event(1, people[0], "alpha", "zp_a"), event(2, people[1], "beta", "zp_b")).status_code == 200

    def found(path: str, question: Any, who: str = "platform") -> list[Any]:
        answer = post(server, f"search/{path}", question, who, X_Request_ID="id-3")
        assert (answer.status_code, answer.headers["X-Request-ID"]) == (200, "id-3"), answer.text
        assert answer.json()["page"]["next_token"] == ""
        results: list[Any] = answer.json()["results"]
        return results

    pools = {"type": "pool"}
    zoe = {"type": "user", "id": "zoealpha", "properties": {"team_ids": ["alpha"], "roles": ["op"]}}
    assert dag("zp_a", kind="pool") in found("resource", ask(zoe, "update", pools))
    assert not [one for one in found("resource", ask(zoe, "update", pools)) if one["id"] == "zp_b"]
    subjects = found("subject", ask({"type": "user"}, "update", dag("zp_a", kind="pool")))
    assert {"type": "user", "id": "zoealpha", "properties": {"team_ids": ["alpha"], "roles": ["op"]}} in subjects
    assert "zoebeta" not in {one["id"] for one in subjects}
    # A team hears the names of people who had to do with its own resources, and nothing of their groups.
    own = found("subject", ask({"type": "user"}, "update", dag("zp_a", kind="pool")), "alpha")
    assert {"type": "user", "id": "zoealpha"} in own
    assert all(one.keys() == {"type", "id"} for one in own)
    assert not [one for one in found("resource", ask(BOB, "update", pools), "alpha") if one["id"] == "zp_b"]
    assert [one["name"] for one in found("action", ask(zoe, resource=dag("zp_a", kind="pool")))] == [
        "read", "create", "update", "delete",
    ]  # fmt: skip
    for path, question in (("subject", ask({"type": "user"}, resource=dag(team_id="beta"))),
                           ("resource", ask(resource={"type": "dag", "properties": {"team_id": "beta"}})),
                           ("resource", ask(resource={"type": "dag", "properties": {"team_id": None}})),
                           ("action", ask(resource=dag(team_id="beta")))):  # fmt: skip
        assert post(server, f"search/{path}", question, "alpha").status_code == 403, question
    assert post(server, "search/action", ask(), "reader").status_code == 403


# The form of requests


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not valid JSON"), (b"{", "not valid JSON"), (b"[" * 100_000, "not valid JSON"), (b"[]", "a JSON object"),
        (b'"x"', "a JSON object"), (b"null", "a JSON object"), (b"\xff", "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"), (b'{"a": NaN}', "NaN is not a number"),
        (b'{"subject": 1, "subject": 2}', "a member twice"),
        (b'{"x": {"team_id": "a", "team_\\u0069d": "b"}}', "a member twice"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "not valid JSON"),
    ],
)  # fmt: skip
def test_text_that_is_not_an_object_of_json_is_a_bad_request(content: bytes, told: str) -> None:
    with pytest.raises(BadRequestError, match=told):
        authzen.body(content, "application/json")


@pytest.mark.parametrize("type_", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_another_type_of_content_is_a_bad_request(type_: str) -> None:
    with pytest.raises(BadRequestError, match="Content-Type"):
        authzen.body(b"{}", type_)
    assert authzen.body(b"{}", "Application/JSON; charset=utf-8") == {}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "resource is missing"),
    *(({**ask(), name: wrong}, f"{name} has to be an object")
      for name in ("subject", "action", "resource", "context") for wrong in ("x", 1, None, [], True)),
    *(({name: part for name, part in ask().items() if name != missing}, f"{missing} is missing")
      for missing in ("subject", "action", "resource")),
    (ask({"id": "ann"}), "subject.type is missing"), (ask({"type": "user"}), "subject.id is missing"),
    (ask({"type": "user", "id": ""}), "subject.id is empty"), (ask({"type": "user", "id": 1}), "subject.id has to be"),
    (ask({"type": "robot", "id": "x"}), "subject: "), (ask({"type": ["user"], "id": "x"}), "subject.type has to be"),
    *((ask({"type": "user", "id": "x", "properties": {name: wrong}}), "subject: ")
      for name in ("team_ids", "roles", "groups", "claims") for wrong in ("alpha", 1, None, [1], {"a": 1})),
    (ask({"type": "user", "id": "x", "properties": []}), "subject.properties has to be an object"),
    (ask(action="raed"), "action.name 'raed' is not known for dag: list, read"), (ask(action=""), "action.name ''"),
    (ask(action=1), "action.name has to be a string"), ({**ask(), "action": {}}, "action.name is missing"),
    (ask(resource={"id": "x"}), "resource.type is missing"), (ask(resource={"type": "dag"}), "resource.id is missing"),
    (ask(resource={"type": "todo", "id": "1"}), "resource.type 'todo' is not known"),
    (ask(resource={"type": "dag", "id": 1, "properties": {"team_id": None}}), "resource.id has to be a string"),
    (ask(resource={"type": "dag", "id": "daily"}), "resource.properties.team_id is missing"),
    *((ask(resource=dag(team_id=wrong)), "resource: ") for wrong in (1, ["alpha"], {}, True)),  # type: ignore[arg-type]
    (ask(resource=dag("")), "resource.id is empty"), (ask(action="list"), "list is about no resource in particular"),
    (ask(resource={"type": "x" * 100_000, "id": "1"}), "is not known"),
    (ask(context={"assigned_users": "bob"}), "context: "), (ask(context={"user_id": 1}), "context: "),
    (ask(resource={**dag(), "properties": {"team_id": "alpha", "delivery": {"dag_id": 1}}}), "resource: "),
]  # fmt: skip


@pytest.mark.parametrize(("question", "told"), WRONG)
def test_a_question_that_cannot_be_meant_is_a_bad_request(question: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        authzen.evaluation(question)
    assert told in str(raised.value)
    assert len(str(raised.value)) < 1_000
    # One of many: none of them is answered.
    with pytest.raises(BadRequestError, match=r"^evaluations\[1\]: "):
        authzen.evaluations({"evaluations": [ask(), question]})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"evaluations": {}}, "evaluations has to be an array"), ({"evaluations": "x"}, "has to be an array"),
        ({"evaluations": [1]}, r"evaluations\[0\] has to be an object"), ({"options": []}, "has to be an object"),
        ({"options": {"evaluations_semantic": "any"}}, "has to be execute_all, deny_on_first_deny or permit_on_first"),
        ({"options": {"evaluations_semantic": None}}, "evaluations_semantic has to be"),
        ({"options": {"evaluations_semantic": []}}, "evaluations_semantic has to be"),
        ({"evaluations": [{}] * 1_001}, "1,000 may come at once"),
    ],
)  # fmt: skip
def test_many_questions_have_a_form_too(more: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequestError, match=told):
        authzen.evaluations(ask() | more)


def test_the_question_has_the_fields_of_the_policys_schema_and_no_others() -> None:
    assert authzen.evaluation(ask({"type": "task", "id": "d.t", "properties": {
        "team_ids": ["alpha"], "dag_id": "d", "task_id": "t", "run_id": "r", "unverified": "x", "x": 1}})).subject == (
        Subject("task", "d.t", ("alpha",), dag_id="d", task_id="t", run_id="r"))  # fmt: skip
    asset = {"type": "asset.event", "id": "7", "properties": {"team_id": None, "name": "n", "uri": "u", "id": "8"}}
    assert authzen.evaluation(ask(resource=asset)).resource == Resource("asset", None, "7", "event", "n", "u")
    assert authzen.evaluation(ask(action="list", resource=dag(""))).resource == Resource("dag", "alpha")
    hitl = {"type": "hitl_task", "id": "x"}
    context = authzen.evaluation(ask(action="update", resource=hitl, context={"user_id": "1", "x": 2})).context
    assert context is not UNSET
    assert (context.user_id, context.assigned_users) == ("1", UNSET)


def test_the_members_of_a_request_are_defaults_of_its_questions() -> None:
    single = authzen.evaluation(ask())
    assert authzen.evaluations(ask()) == Batch([single]) == authzen.evaluations(ask(evaluations=[]))
    batch = authzen.evaluations(ask(context={"user_id": "1"}, evaluations=[{}, {"subject": BOB}, {"context": {}}]))
    assert batch.semantic == "execute_all"
    assert [one.subject.id for one in batch.questions] == ["ann", "bob", "ann"]
    assert [one.context is UNSET for one in batch.questions] == [False, False, True]


def test_a_part_that_many_questions_share_is_read_once() -> None:
    large = {"type": "user", "id": "ann", "properties": {"groups": [""] * 1_000}}
    waiting = {"context": {"assigned_users": [""] * 1_000}, "resource": {"type": "hitl_task", "id": "x"}}
    listed = [{"action": {"name": "update"}}, {"subject": BOB}, {}] * 300
    questions = authzen.evaluations(ask(large, "update", **waiting, evaluations=listed)).questions
    for name, different in (("subject", 2), ("resource", 1), ("context", 1)):
        assert len({id(getattr(one, name)) for one in questions}) == different, name
    assert [one.subject.id for one in questions[:3]] == ["ann", "bob", "ann"]
    with pytest.raises(BadRequestError, match=r"evaluations\[1\]: context has to be an object"):
        authzen.evaluations(ask(evaluations=[{}, {"context": None}]))


def test_pages_follow_each_other_and_belong_to_one_request() -> None:
    found = [{"name": str(number)} for number in range(5)]
    told, shown, token = ask(page={"limit": 2}), [], ""
    for expected in (2, 2, 1):
        # The specification's example repeats the limit in no later request.
        request = told if not token else ask(page={"token": token})
        answer = authzen.as_results(found, authzen.page(request), ())
        assert (answer["page"]["count"], answer["page"]["total"]) == (expected, 5)
        shown += answer["results"]
        token = answer["page"]["next_token"]
    assert (shown, token) == (found, "")
    # Whoever wants none, and only the number, is not sent from page to page without end.
    none = authzen.as_results(found, authzen.page(ask(page={"limit": 0})), ())
    assert none["page"] == {"next_token": "", "count": 0, "total": 5}
    token = authzen.as_results(found, authzen.page(told), ())["page"]["next_token"]
    for wrong in (ask(BOB, page={"token": token}), ask(page={"token": token, "limit": 3}), ask(page={"token": "x"}),
                  ask(page={"token": "é"}), ask(page={"limit": -1}), ask(page={"limit": True}),
                  ask(page={"limit": "2"}), ask(page=[]), ask(page={"token": "WzFd"}),
                  ask(page={"token": "W1tdLDEsIngiXQ=="})):  # fmt: skip
        with pytest.raises(BadRequestError, match="page"):
            authzen.page(wrong)


# Who may ask, and the order of the decisions


RULES = """package airflow.site

allow contains "the gateway asks" if {
	input.subject.id == "token r"
	input.resource.type == "platform_view"
	input.resource.id == "access_evaluations"
	input.action == "read"
}

deny contains "sealed" if {
	input.resource.entity == "audit_log"
	input.resource.id == "sealed"
}

deny contains "closed" if {
	input.resource.id == "closed"
}
"""


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("authzen")
    compile_directory(write(place / "policy", {"airflow/site/site.rego": RULES}), place / "bundle")
    with opened(place / "bundle") as point:
        yield point


def answered(point: DecisionPoint, question: dict[str, Any], who: Caller = PLATFORM) -> list[bool]:
    told = Asker(point, who).decide(authzen.evaluations(question))
    return [one["decision"] for one in told.get("evaluations", [told])]


def test_the_policy_says_who_may_ask(point: DecisionPoint) -> None:
    assert answered(point, ask(), READER) == [True]
    assert answered(point, ask(), ALPHA) == [True]
    for who, resource in ((ALPHA, dag("sealed")), (Caller("token s", "reader"), dag()), (ALPHA, dag(team_id="beta"))):
        with pytest.raises(NotAllowedError, match="may not ask about dag of team"):
            answered(point, ask(resource=resource), who)
    assert answered(point, ask(resource=dag("sealed"))) == [True]


@pytest.mark.parametrize(
    ("semantic", "decisions"),
    [
        ("execute_all", [True, False, True, False]),
        ("deny_on_first_deny", [True, False]),
        ("permit_on_first_permit", [True]),
    ],
)
def test_the_order_of_the_decisions_is_that_of_the_questions(
    point: DecisionPoint, semantic: str, decisions: list[bool]
) -> None:
    questions = [{"resource": dag(id_)} for id_ in ("one", "closed", "two")]
    many = ask(evaluations=[*questions, {"subject": BOB}], options={"evaluations_semantic": semantic})
    assert answered(point, many) == decisions
    if semantic == "permit_on_first_permit":
        assert answered(point, many | {"evaluations": [questions[1], *questions]}) == [False, True]
    if semantic == "deny_on_first_deny":
        assert answered(point, many | {"evaluations": [questions[0]] * 3}) == [True] * 3


@pytest.mark.parametrize("limit", ["_SECONDS", "_MOST_CHARACTERS"])
def test_an_answer_has_limits_and_is_an_error_above(
    point: DecisionPoint, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    asked = (ask(), ask(evaluations=[{}, {"subject": BOB}]))
    assert [len(answered(point, one)) for one in asked] == [1, 2]
    monkeypatch.setattr(evaluations, limit, -1.0)
    for one in asked:
        with pytest.raises(TooMuchError, match="ask fewer questions"):
            answered(point, one)
    if limit == "_SECONDS":
        asker, wanted = Asker(point, PLATFORM), authzen.page({})
        people: Any = SimpleNamespace(subjects=lambda: [Subject("user", "ann")])
        with pytest.raises(TooMuchError):
            asker.subjects("user", authzen.evaluation(ask()), wanted, people)


class Failing:
    """An engine that allows the caller to ask, and then fails."""

    def __init__(self) -> None:
        self.asked = 0

    def query(self, *_: object) -> Reply:
        self.asked += 1
        if self.asked > 1:
            raise UnreachableError("the engine is gone")
        return Reply(b'[{"allow": true, "reasons": [], "layer": "baseline"}]', "1")

    def close(self) -> None:
        pass


def test_an_engine_that_fails_is_an_error_in_each_semantic() -> None:
    for semantic in ("execute_all", "deny_on_first_deny", "permit_on_first_permit"):
        many = ask(evaluations=[{}, {}], options={"evaluations_semantic": semantic})
        with pytest.raises(UnreachableError):
            answered(DecisionPoint(Failing()), many)
    with pytest.raises(UnreachableError):
        answered(DecisionPoint(Failing()), ask())


def test_many_decisions_delay_no_single_one_of_others(point: DecisionPoint) -> None:
    async def scenario() -> None:
        parts: Any = SimpleNamespace(searches=Turns(), evaluations=Turns())
        request: Any = SimpleNamespace(headers={})
        ended = threading.Event()
        busy = [asyncio.create_task(parts.searches.run("token a", ended.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        many = asyncio.create_task(
            authzen_routes.evaluations(
                parts, request, ALPHA, authzen_routes.Asked(ask(evaluations=[{}]), lambda: point)
            )
        )
        one = await authzen_routes.evaluation(parts, request, PLATFORM, authzen_routes.Asked(ask(), lambda: point))
        assert one.status_code == 200
        assert not many.done()
        ended.set()
        assert (await many).status_code == 200
        await asyncio.gather(*busy)

    asyncio.run(scenario())
