"""``GET /auth/decisions``: who sees what of the decision log in Airflow itself, over a real engine and database."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
from airflow import settings
from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
from airflow.configuration import conf
from airflow.models import DagModel
from fastapi.testclient import TestClient
from sqlalchemy import update

from airflow_team_authz.decision_log import DecisionLog, reading
from airflow_team_authz.decision_log.database import Database
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.record import Entry, Form, Gap, Lost, new_id
from airflow_team_authz.decision_log.tables import decisions as decision_table
from airflow_team_authz.doors import decision_point, decisions, decisions_page, wall
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.identities import requests
from airflow_team_authz.model import AssetNames, Decision, Delivery, Evaluations, Resource, Subject
from tests.doors.test_conceal import ALPHAS, MISSING
from tests.doors.test_conceal import _asked as asked_of
from tests.doors.test_conceal import _named as named_routes
from tests.doors.test_user_requests import NEWEST, PEOPLE, Failing, Site, airflows_routes, opened_site

__all__ = ["opened_site"]

PAGE = {"Accept": "text/html,application/xhtml+xml"}
NO = Decision(False, ("ALPHA-1: closed to this",), "team")
YES = Decision(True, ("op",), "baseline")
ALPHA_DB, BETA_DB = Resource("connection", "alpha", "alpha_db"), Resource("connection", "beta", "beta_db")
BOB = Subject("user", "bob", ("beta",), ("op",), ("secret-group",))


class Log:
    """The table, what Airflow's own requests leave in it, and records that a test makes."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.engine = settings.Session().get_bind()
        self.sink = Database(lambda: self.engine, None, 90)
        self.log = DecisionLog([self.sink], Levels("all"), Form(), tells_lines=False)

    def add(self, resource: Resource | list[Resource], by: Subject = BOB, told: str = "", **more: Any) -> str:
        """Write a record: by default of a refusal; its id."""
        resources = resource if isinstance(resource, list) else [resource]
        answers = more.pop("decisions", [NO] * len(resources))
        entry = Entry(
            new_id(), time.time_ns(), 7, Origin("tasks" if by.type == "task" else "users", "GET", "/asked"),
            Evaluations(by, "read", resources), "r1", len(resources), sum(one.allow for one in answers), resources,
            answers, told=told, **more,
        )  # fmt: skip
        self.sink.write([Form().record(entry)])
        return entry.id

    def ask(self, name: str | None, headers: dict[str, str] | None = None, **wanted: Any) -> httpx.Response:
        """The answer to a question for decisions, after all that was decided before is written."""
        self.log.flush()
        client = self.site._client
        login = {"Authorization": f"Bearer {self.site._tokens[name]}"} if name else {}
        return client.get(  # type: ignore[no-any-return]
            "/auth/decisions", params=wanted, headers=login | (headers or {}), follow_redirects=False
        )

    def seen(self, name: str, **wanted: Any) -> list[dict[str, Any]]:
        answer = self.ask(name, **wanted)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["decisions"]
        return found

    def ids(self, name: str, **wanted: Any) -> list[str]:
        return [record["decision_id"] for record in self.seen(name, **wanted)]


@pytest.fixture(scope="module")
def mounted(opened_site: Site) -> Site:
    """The app with the auth manager's own, as Airflow mounts it."""
    opened_site.app.mount("/auth", opened_site.manager.get_fastapi_app())
    # Airflow's own catches all paths.
    opened_site.app.router.routes.insert(0, opened_site.app.router.routes.pop())
    decision_table().create(settings.Session().get_bind())
    return opened_site


@pytest.fixture
def log(mounted: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """An empty decision log, which the manager's decision point writes to."""
    wall.install()
    for route in airflows_routes(mounted):
        for part in route.dependant.dependencies:
            name = getattr(part.call, "__qualname__", "").partition(".")[0]
            if name.startswith("requires_access_"):
                monkeypatch.setattr(part, "call", wall.asked_before_handler(part.call, name))
    found = Log(mounted)
    monkeypatch.setattr(decisions, "airflows_engine", lambda: found.engine)
    vars(mounted.manager)["_policy"] = DecisionPoint(mounted.engine, found.log)
    with found.engine.begin() as connection:
        connection.execute(decision_table().delete())
    yield found
    found.log.close()
    decision_point.forget()


def task(dag_id: str, team: str | None) -> Subject:
    teams = {"team_ids": (team,)} if team else {}
    return Subject("task", f"{dag_id}.work", dag_id=dag_id, task_id="work", run_id="r", **teams)


def reason_of(answer: httpx.Response) -> tuple[str, str]:
    """The reason that a 403 told, with the id, and the address where it says that the record is."""
    told, _, address = answer.json()["detail"].removeprefix("Forbidden: ").partition(". See ")
    return told, address.removeprefix(conf.get("api", "base_url", fallback="").rstrip("/"))


def test_a_person_sees_of_an_own_refusal_what_the_answer_told_and_no_more(log: Log) -> None:
    answer = log.site.ask("vic", "GET", "/api/v2/connections/alpha_db")
    told, address = reason_of(answer)
    # Once it is written, which takes a moment.
    seen = log.seen("vic")
    assert log.site.ask("vic", "GET", address).json()["decisions"] == seen
    (record,) = log.seen("vic")
    assert f"{record['custom']['told']} (decision {record['decision_id']})" == told
    assert record["custom"]["request"] == {"method": "GET", "path": "/api/v2/connections/alpha_db"}
    assert record["input"] == {"subject": {"type": "user", "id": "vic"}}
    assert "team alpha" not in str(record)
    # The owners see the whole reason, and of the person the name; others see nothing.
    (owned,) = log.seen("ann")
    assert "of team alpha" in owned["result"]["reasons"][0]
    assert owned["input"]["subject"] == {"type": "user", "id": "vic"}
    assert [log.ids(name) for name in ("bob", "nil", "una")] == [[], [], []]
    (whole,) = [one for one in log.seen("pat", user="vic") if one["custom"]["outcome"] == "deny"]
    assert (whole["input"]["subject"]["roles"], whole["input"]["resource"]["team_id"]) == (["viewer"], "alpha")


@pytest.mark.parametrize("refusals", ["explain", "conceal"])
@pytest.mark.parametrize("name", ["bob", "vic", "nil"])
def test_own_refusals_are_the_same_whether_a_thing_is_anothers_or_not_there(
    log: Log, refusals: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", refusals)
    decision_point.forget()
    monkeypatch.setattr("airflow_team_authz.identities.requests._rows_are_hidden", True)
    seen: list[list[str]] = []
    for connection, pool, dag, number in (("audit_store", "alpha_pool", "alpha_daily", 1), ("x", "y", "z", 999)):
        with log.engine.begin() as rows:
            rows.execute(decision_table().delete())
        asked = (("GET", f"connections/{connection}"), ("DELETE", f"pools/{pool}"), ("PATCH", f"dags/{dag}"),
                 ("GET", f"backfills/{number}"), ("GET", f"eventLogs/{number}"))  # fmt: skip
        bodies = {"PATCH": {"is_paused": True}}
        answers = [log.site.ask(name, method, f"/api/v2/{path}", json=bodies.get(method)) for method, path in asked]
        told = {f"{one['custom'].get('told', '')} (decision {one['decision_id']})" for one in log.seen(name)}
        # Each answer that told a reason, and nothing else.
        assert told == {reason_of(answer)[0] for answer in answers if answer.status_code == 403}
        text = " ".join(sorted(f"{one['custom']['told']} {one['custom']['request']}" for one in log.seen(name)))
        for this, that in ((connection, "C"), (pool, "P"), (dag, "D"), (str(number), "N")):
            text = re.sub(rf"\b{this}\b", that, text)
        seen.append([text])
    # With ``explain`` those who see something of a type are told the owner.
    if refusals == "conceal" or name == "nil":
        assert seen[0] == seen[1]


def test_what_a_handler_asks_about_nobody_has_named_and_nobody_is_told(log: Log) -> None:
    """Airflow finds the Dags of an import error by itself, and asks about each."""
    manager, about = log.site.manager, DagDetails("alpha_daily", "alpha")
    assert manager.is_authorized_dag(method="GET", user=PEOPLE["bob"], details=about) is False
    assert [one["input"]["resource"]["id"] for one in log.seen("ann")] == ["alpha_daily"]
    assert log.ids("bob") == []
    with requests.before_handler():
        assert manager.is_authorized_dag(method="DELETE", user=PEOPLE["bob"], details=about) is False
    assert len(log.ids("bob")) == 1


@pytest.mark.parametrize("most", [0, 40])
def test_each_team_sees_its_own_part(log: Log, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also who is in more teams than the database is asked about."""
    monkeypatch.setattr(reading, "_MOST_MARKS", most)
    both = log.add([BETA_DB, ALPHA_DB], decisions=[YES, NO])
    others = [log.add(BETA_DB), log.add(Resource("connection", None, "db")), log.add(Resource("configuration"))]
    (part,) = log.seen("ann")
    assert part["decision_id"] == both
    assert [one["id"] for one in part["input"]["resources"]] == ["alpha_db"]
    assert not {"labels", "metrics", "requested_by"} & part.keys()
    assert "secret-group" not in str(log.seen("ann")) + str(log.seen("bob"))
    assert log.ids("bob") == [others[0], both]
    # Who may not read audit logs of a type sees nothing of it, though it is the team's.
    assert log.ids("vic") == log.ids("nil") == log.ids("una") == []
    assert log.ids("two") == [others[0], both]
    assert set(log.ids("pat")) >= {both, *others}
    # A filter tells nothing of other parts.
    assert log.ids("ann", team="beta") == log.ids("ann", type="configuration") == log.ids("ann", id=others[0]) == []
    assert log.ids("ann", id=both, denied=True) == [both]
    assert log.ids("bob", denied=True) == [others[0]]


@pytest.mark.parametrize("forged", ["bob", "vic"])
def test_only_people_are_told_by_name(log: Log, forged: str) -> None:
    """A task may have any id."""
    log.add(ALPHA_DB, Subject("task", forged, dag_id="alpha_daily", task_id=forged, team_ids=("alpha",)), "a secret")
    assert log.ids(forged) == []


@pytest.mark.parametrize("most", [0, 40])
def test_the_people_of_a_dag_see_what_its_tasks_were_told(log: Log, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST_MARKS", most)
    told = log.add(ALPHA_DB, task("beta_daily", "beta"), "task beta_daily.work may not read connection alpha_db")
    untold = log.add(ALPHA_DB, task("beta_daily", "beta"))
    common = log.add(ALPHA_DB, task("daily", None), "told to a common task")
    # It was alpha's when it asked, or its id is another's now.
    moved = log.add(ALPHA_DB, task("beta_daily", "alpha"), "told to alpha")
    gone = log.add(ALPHA_DB, task("not_there", "beta"), "told to beta")
    (record,) = log.seen("vic")
    assert (record["decision_id"], record["custom"]["told"]) == (
        told, "task beta_daily.work may not read connection alpha_db",
    )  # fmt: skip
    assert record["input"] == {
        "subject": {"type": "task", "id": "beta_daily.work", "dag_id": "beta_daily", "task_id": "work", "run_id": "r"}
    }
    assert log.ids("nil") == log.ids("una") == []
    assert log.ids("ann") == [gone, moved, common, untold, told]


def test_who_may_read_a_dags_audit_log_only_after_it_moved_sees_what_came_after(log: Log) -> None:
    log.add(BETA_DB, task("alpha_daily", "alpha"), "told to alpha")
    assert len(log.ids("ann")) == 1
    try:
        with settings.Session() as rows:
            rows.execute(update(DagModel).where(DagModel.dag_id == "alpha_daily").values(bundle_name="of beta"))
            rows.commit()
        assert log.ids("ann") == []
        # By the connection, and without what alpha's task was told.
        (record,) = log.seen("bob")
        assert "told" not in record["custom"]
    finally:
        with settings.Session() as rows:
            rows.execute(update(DagModel).where(DagModel.dag_id == "alpha_daily").values(bundle_name="of alpha"))
            rows.commit()


def test_a_producers_people_see_nothing_of_dags_that_wait_for_its_events(log: Log) -> None:
    """Not even that there are some; the waiting Dag's people see its refusal, and not whom else the author trusts."""
    asset = AssetNames("orders", "s3://orders", "")
    delivery = Delivery("alpha_daily", "alpha", asset, False, False, False, consumer_teams=("gamma",))
    event = Resource("asset", "beta", "1", "event", delivery=delivery)
    dag = Resource("dag", "alpha", "alpha_daily", "run", delivery=delivery)
    id_ = log.add([dag, event], task("beta_daily", "beta"))
    assert log.ids("bob") == log.ids("vic") == []
    (record,) = log.seen("ann")
    assert record["decision_id"] == id_
    assert [one["type"] for one in record["input"]["resources"]] == ["dag"]
    assert "gamma" not in str(record)


def test_looking_leaves_nothing_that_teams_see(log: Log) -> None:
    log.add(ALPHA_DB)
    for name in ("vic", "ann", "pat"):
        log.ask(name)
    assert [len(log.ids(name)) for name in ("ann", "bob", "vic")] == [1, 0, 0]


def test_pages_follow_each_other_and_their_marks_are_ones_own_records(log: Log) -> None:
    own = [log.add([ALPHA_DB, BETA_DB][number % 2]) for number in range(10)][::-1]
    for name, whole in (("ann", own[1::2]), ("pat", own)):
        found: list[str] = []
        before = ""
        while before is not None:
            page = log.ask(name, limit=2, before=before, user="bob").json()
            found += [one["decision_id"] for one in page["decisions"]]
            before = page["next"]
            assert before is None or before in whole
        assert found == whole


def test_much_that_is_hidden_is_not_read_at_once_and_nothing_is_left_out(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = log.add(Resource("dag", "beta", "beta_daily"))
    for _ in range(5):
        log.add(BETA_DB)
    monkeypatch.setattr(decisions, "_LOOKED_AT", 2)
    first = log.ask("vic", limit=1).json()
    assert (first["decisions"], bool(first["next"])) == ([], True)
    found: list[str] = []
    while first["next"]:
        first = log.ask("vic", limit=1, before=first["next"]).json()
        found += [one["decision_id"] for one in first["decisions"]]
    assert found == [own]


def test_a_hidden_record_of_ones_own_ends_no_page(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``conceal`` there is one if a thing is another's, and none if it is not there."""
    monkeypatch.setattr(decisions, "_LOOKED_AT", 2)
    for name in ("bob", "una"):
        by = Subject("user", name)
        shown = log.add(ALPHA_DB, by, "told")
        for _ in range(4):
            log.add(ALPHA_DB, by)
        assert log.ask(name, limit=1).json() == {"decisions": [], "next": None}
        log.add(ALPHA_DB, by, "told as well")
        page = log.ask(name, limit=1).json()
        assert [one["decision_id"] for one in page["decisions"]] == [page["next"]] != [shown]


def test_by_default_it_looks_back_some_days_and_by_id_at_all(log: Log) -> None:
    id_ = log.add(ALPHA_DB)
    old = {"decided_at": decisions.datetime(2026, 1, 1)}
    with log.engine.begin() as connection:
        connection.execute(decision_table().update().values(**old))
    assert log.ids("ann") == []
    assert log.ids("ann", since="2025-12-31") == log.ids("ann", id=id_) == [id_]


@pytest.mark.parametrize("wanted", [
    *({"since": text} for text in ("yesterday", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "\0")),
    *({name: text} for name in ("id", "before") for text in ("\0", "x", "%", "0" * 37)),
    {"limit": "0"}, {"limit": "101"}, {"user": "x" * 251}, {"type": "x" * 51}, {"denied": "perhaps"},
])  # fmt: skip
def test_what_is_no_filter_is_a_bad_request(log: Log, wanted: dict[str, str]) -> None:
    assert log.ask("ann", **wanted).status_code == 422
    assert log.ask("ann", PAGE, **wanted).status_code == 422


def test_any_text_is_a_filter(log: Log) -> None:
    log.add(ALPHA_DB)
    for text in ("\0", "%", "_", "\\", "'", "~beta", "é"):
        for name in ("user", "team", "type"):
            assert log.seen("ann", **{name: text}) == []


def test_gaps_are_the_platforms(log: Log) -> None:
    log.sink.write([Form().record(Lost(time.time_ns(), Gap(7, 1, 2), "x"))])
    assert [one["custom"]["outcome"] for one in log.seen("pat")] == ["gap"]
    assert log.ids("ann") == log.ids("una") == []
    assert "7 records were lost" in log.ask("pat", PAGE).text


def test_no_decision_is_an_error_and_shows_nothing(log: Log) -> None:
    log.add(ALPHA_DB, BOB, "told")
    vars(log.site.manager)["_policy"] = DecisionPoint(Failing())
    for name in ("ann", "bob", "pat"):
        answer = log.ask(name)
        assert (answer.status_code, answer.json()["detail"]) == (
            503, "No decision can be had about this request. nobody answers",
        )  # fmt: skip
        page = log.ask(name, PAGE)
        assert (page.status_code, "nobody answers" in page.text, "alpha_db" in page.text) == (503, True, False)


def test_an_error_is_shown_to_whom_it_was_told(log: Log) -> None:
    log.log = DecisionLog([log.sink], Levels("all"), Form(), tells_lines=False)
    vars(log.site.manager)["_policy"] = DecisionPoint(Failing(), log.log)
    assert log.site.status("bob", "GET", "/api/v2/connections/alpha_db") == 503
    vars(log.site.manager)["_policy"] = DecisionPoint(log.site.engine)
    (record,) = log.seen("bob")
    assert record["error"] == {"code": "Unreachable", "message": "nobody answers"}
    assert "resource" not in record["input"]
    assert [len(log.ids(name)) for name in ("ann", "vic")] == [1, 0]


def test_who_is_not_logged_in_gets_nothing(log: Log) -> None:
    log.add(ALPHA_DB)
    assert log.ask(None).status_code == 401
    page = log.ask(None, PAGE, user="bob")
    assert page.status_code == 307
    assert page.headers["location"].startswith("/api/v2/auth/login?next=http%3A%2F%2Ftestserver%2Fauth%2Fdecisions%3F")
    assert log.site._client.get("/auth/decisions", headers={"Authorization": "Bearer x"}).status_code == 403


@pytest.mark.parametrize("path", ["/ui/auth/me", "/api/v2/dags", "/auth/decisions"])
@pytest.mark.parametrize("way", ["cookie", "header"])
def test_a_token_that_is_none_is_a_refused_login(log: Log, path: str, way: str) -> None:
    good = log.site._tokens["bob"]
    claims = jwt.decode(good, options={"verify_signature": False})
    secret, header = conf.get_mandatory_value("api_auth", "jwt_secret"), jwt.get_unverified_header(good)

    def signed(key: str, **changed: Any) -> str:
        return jwt.encode(claims | changed, key, header["alg"], headers=header)

    assert log.site._client.get("/ui/auth/me", cookies={"_token": signed(secret)}).status_code == 200
    tokens = {
        "": 401, "undefined": 403, "garbage": 403, "a.b.c": 403, "g\xe4r": 403,
        good[:-5]: 403, good.rpartition(".")[0]: 403, signed(secret[::-1]): 403, signed(secret, exp=1): 401,
        signed(secret, exp="never"): 403, signed(secret, sub=None): 403, signed(secret, nbf=claims["exp"]): 403,
        jwt.encode(claims, None, "none"): 403,
    }  # fmt: skip
    for token, status in tokens.items():
        name, value = ("cookie", f"_token={token}") if way == "cookie" else ("authorization", f"Bearer {token}")
        client = TestClient(log.site.app, raise_server_exceptions=False)
        answer = client.get(path, headers=[(name.encode(), value.encode("latin-1"))], follow_redirects=False)
        assert answer.status_code == status, token


def test_without_the_table_or_the_sink_it_says_so(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item.text for item in log.site.manager.get_extra_menu_items(user=PEOPLE["ann"])]
    assert items == ["Policy:Decisions"]
    decision_table().drop(log.engine)
    answer = log.ask("ann")
    assert (answer.status_code, "run `airflow db migrate`" in answer.text) == (503, True)
    decision_table().create(log.engine)
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG", "file")
    decision_point.forget()
    answer = log.ask("ann")
    assert (answer.status_code, "[team_authz] decision_log" in answer.text) == (404, True)
    assert log.site.manager.get_extra_menu_items(user=PEOPLE["ann"]) == []


def test_no_text_of_a_record_is_more_than_text_or_ends_the_page(log: Log) -> None:
    odd = "<script>alert(1)</script>'\"&\u202e\n\x1b[31m \ud83d \u2028"
    id_ = log.add(Resource("connection", "alpha", odd), Subject("user", odd), told=odd, decisions=[
        Decision(False, (odd,), "team"),
    ])  # fmt: skip
    (record,) = log.seen("ann")
    assert record["decision_id"] == id_
    for wanted in ({}, {"id": id_}, {"user": odd.replace("\ud83d", "?")}, {"team": "'\u2028\n>"}):
        page = log.ask("ann", PAGE, **wanted)
        assert page.status_code == 200
        assert "<script" not in page.text
        assert not re.search("[\u202e\u2028\x1b]", page.text)
        assert page.headers["content-type"].startswith("text/html")
    assert odd[:8] not in page.text


def test_the_pages_own_policy_allows_its_style_and_nothing_else(log: Log) -> None:
    log.add(ALPHA_DB)
    page = log.ask("ann", PAGE)
    (style,) = re.findall("<style>(.*?)</style>", page.text, re.DOTALL)
    hash_ = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert page.headers["content-security-policy"] == (
        f"default-src 'none'; style-src 'sha256-{hash_}'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    )
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"\sstyle=|<script|\son\w+=|src=", page.text)


def test_the_page_has_what_the_answer_has(log: Log) -> None:
    ids = [log.add(ALPHA_DB) for _ in range(3)]
    page = log.ask("ann", PAGE, limit=2, user="bob")
    assert re.findall(r"\?id=([0-9a-f-]{36})", page.text) == ids[:0:-1]
    assert "read connection alpha_db of team alpha" in page.text
    assert "ALPHA-1: closed to this" in page.text
    (older,) = re.findall(r"href='\?([^']*before=[^']*)'", page.text)
    follows = log.site._client.get(
        "/auth/decisions?" + older.replace("&amp;", "&"),
        headers=PAGE | {"Authorization": f"Bearer {log.site._tokens['ann']}"},
    )
    assert re.findall(r"\?id=([0-9a-f-]{36})", follows.text) == ids[:1]
    # An empty field of the form is no filter.
    empty = log.ask("ann", PAGE, user="", team="", type="", since="")
    assert len(re.findall(r"\?id=", empty.text)) == 3
    assert "No decision here" in log.ask("una", PAGE).text
    wrong = log.ask("ann", PAGE, limit="many", user="x" * 251)
    assert (wrong.status_code, "cannot use these filters: user, limit" in wrong.text) == (422, True)


def test_the_login_managers_own_paths_stay_its_own(log: Log) -> None:
    paths = [route.path for route in log.site.manager.get_fastapi_app().routes]
    assert paths[0] == decisions.PATH
    assert log.site._client.post("/auth/decisions").status_code == 405
    assert decisions.add_route(None, decisions.Asker(str, str)).routes[0].path == decisions.PATH  # type: ignore[arg-type]
    assert decisions_page.HEADERS


@NEWEST
@pytest.mark.exhaustive
@pytest.mark.parametrize("who", ["bob", "vic"])
def test_with_conceal_no_route_leaves_an_own_record_that_tells_anothers_from_what_is_not_there(
    log: Log, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", "conceal")
    decision_point.forget()
    own: dict[str, list[dict[str, Any]]] = {}
    number = 0
    for named in (ALPHAS, dict.fromkeys(ALPHAS, MISSING)):
        with log.engine.begin() as rows:
            rows.execute(decision_table().delete())
        for method, template in named_routes(log.site):
            asked_of(log.site, who, method, template, named)
            number += 1
        before = ""
        while before is not None:
            page = log.ask(who, before=before).json()
            own.setdefault(str(named), []).extend(page["decisions"])
            before = page["next"]
    there, gone = (
        sorted((str(one["custom"]["told"]), *map(str, one["custom"]["request"].items())) for one in found)
        for found in own.values()
    )
    for id_ in ALPHAS.values():
        there = [tuple(text.replace(id_, MISSING) for text in one) for one in there]
    assert sorted(there) == sorted(gone)
    assert len(there) > 3
    assert number > 100
