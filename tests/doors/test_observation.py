"""``mode = observe``: each answer of each login manager is its own, and the policy's differences are recorded."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from airflow import settings
from airflow.api_fastapi.auth.managers.models import resource_details as details
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

from airflow_team_authz import shadow
from airflow_team_authz.decision_log import writer
from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.record import Listed
from airflow_team_authz.doors import decision_point, observation
from airflow_team_authz.doors.observation import Observed, observe
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.identities import Identity, identity_for
from airflow_team_authz.model import EngineError, Evaluations, Resource, Subject
from airflow_team_authz.shadow import Queue
from tests.conftest import eventually
from tests.decision_log.conftest import Made
from tests.doors.conftest import OWNED, Recording, person
from tests.doors.test_users import ASKING, CALLS
from tests.identities.test_beside_login import MANAGERS, login

DAG = {"method": "PUT", "details": details.DagDetails("alpha_daily")}
# Beside those of the users' door: a resource in particular, a part of it, and none.
MORE: list[tuple[str, dict[str, Any]]] = [
    ("is_authorized_dag", DAG),
    ("is_authorized_dag", DAG | {"access_entity": details.DagAccessEntity.RUN}),
    ("is_authorized_connection", {"method": "DELETE", "details": details.ConnectionDetails("alpha_db", "alpha")}),
    ("batch_is_authorized_dag", {"requests": [DAG, DAG | {"details": details.DagDetails("daily")}]}),
    ("is_authorized_view", {"access_view": details.AccessView.WEBSITE}),
    ("filter_authorized_dag_ids", {"dag_ids": {"alpha_daily"}, "method": "PUT", "team_name": "alpha"}),
    ("filter_authorized_dag_ids", {"dag_ids": set()}),
]
EVERY = [*((name, CALLS[name]) for name in ASKING), *MORE]


def chance(*about: object) -> bool:
    """An answer that nobody foresees, and that is the same each time."""
    return zlib.crc32(repr(about).encode()) % 2 == 0


class Facade:
    """What Amazon's manager asks."""

    def is_authorized(self, **asked: Any) -> bool:
        asked.pop("user")
        return chance(sorted(asked.items(), key=str))

    def batch_is_authorized(self, *, requests: Any, **_: Any) -> bool:
        return all(chance(sorted(request.items(), key=str)) for request in requests)

    def get_batch_is_authorized_results(self, *, requests: Any, **_: Any) -> list[Any]:
        return list(requests)

    def get_batch_is_authorized_single_result(self, *, request: Any, **_: Any) -> dict[str, str]:
        return {"decision": "ALLOW" if chance(sorted(request.items(), key=str)) else "DENY"}


class Named(Identity):
    """For a login whose tokens nobody has signed here."""

    def subject(self, user: Any) -> Subject:
        return Subject("user", str(user.get_name()), ("alpha",), ("viewer",))


def _keycloak(manager: type) -> type:
    def allowed(_: Any, *, permissions: Any, **__: Any) -> set[Any]:
        return {permission for permission in permissions if chance(permission)}

    def ask(_: Any, *, user: Any, **asked: Any) -> bool:  # noqa: ARG001
        return chance(sorted(asked.items(), key=str))

    return type("Keycloak", (manager,), {"_is_authorized": ask, "_is_batch_authorized": allowed})


def _amazon(manager: type) -> type:
    return type("Amazon", (manager,), {"avp_facade": Facade()})


PREPARED: dict[str, Callable[[type], type]] = {"Keycloak": _keycloak, "Amazon": _amazon}
USERS: dict[str, Callable[[], Any]] = {
    "Simple": lambda: SimpleAuthManagerUser(username="sue", role="viewer", teams=["alpha"]),
    "FAB": lambda: person("FAB", "Viewer", [], []),
    "Keycloak": lambda: SimpleNamespace(access_token="t", get_id=lambda: "7", get_name=lambda: "sue"),  # noqa: S106
    "Amazon": lambda: SimpleNamespace(
        username="sue", groups=["alpha-engineers"], get_id=lambda: "7", get_name=lambda: "sue"
    ),
}


class Observing(NamedTuple):
    """A manager, the same one observed, the policy that is asked, and what is recorded and counted."""

    plain: Any
    observed: Any
    user: Any
    engine: Recording
    made: Made
    queue: Queue
    counts: Counter[str]

    def wait(self) -> None:
        eventually(lambda: not self.queue.writer.waiting())


# What is the same code for all of them.
ONE = pytest.mark.parametrize("kind", ["FAB"], indirect=True)


# Amazon's provider takes seconds to import.
KINDS = [pytest.param(name, marks=[pytest.mark.exhaustive] * (name == "Amazon")) for name in sorted(MANAGERS)]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def policy(bundles: dict[str, Path]) -> Iterator[Recording]:
    engine = Recording(bundles["baseline"])
    yield engine
    engine.close()


@pytest.fixture
def observing(
    kind: str,
    policy: Recording,
    database: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Observing]:
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__IDENTITY", f"{__name__}.Named" if kind == "Keycloak" else "")
    monkeypatch.setenv("AIRFLOW__FAB__AUTH_ROLE_PUBLIC", "")
    if kind == "FAB":
        # Its tables are not in this database, and this user is in none of its groups.
        monkeypatch.setattr("airflow_team_authz.identities.fab._groups", lambda _: {})
    monkeypatch.setattr(writer, "_LINGER_SECONDS", 0.001)
    monkeypatch.setattr(settings, "DASHBOARD_UIALERTS", [])
    decision_point.forget()
    policy.asked.clear()
    manager = PREPARED.get(kind, lambda found: found)(login(kind))
    made, counts = Made("none", "none"), Counter[str]()
    candidate = Observed(
        made.log, lambda: DecisionPoint(policy, name="observed"), lambda what, count: counts.update({what: count}),
        outcome="observe",
    )  # fmt: skip
    queue = Queue(candidate)
    plain, observed = manager(), manager()
    observe(observed, queue)
    yield Observing(plain, observed, USERS[kind](), policy, made, queue, counts)
    queue.writer.close(0)
    made.log.close()
    decision_point.forget()


def outcome(call: Callable[[], Any]) -> Any:
    """What comes of it: an answer with its type, or an error."""
    try:
        answer = call()
    except Exception as error:
        return type(error), str(error)
    return type(answer), answer


def test_each_answer_is_the_managers_own_and_each_question_reaches_the_policy(observing: Observing) -> None:
    assert "is_authorized_dag" in vars(observing.observed)
    for name, named in EVERY:
        if not hasattr(observing.plain, name):
            continue
        before = len(observing.engine.asked)
        theirs = outcome(lambda name=name, named=named: getattr(observing.plain, name)(user=observing.user, **named))
        same = outcome(lambda name=name, named=named: getattr(observing.observed, name)(user=observing.user, **named))
        assert theirs == same, name
        observing.wait()
        is_answered = theirs[0] in {bool, set, list}
        is_asked = len(observing.engine.asked) > before
        nothing = not named.get("dag_ids", True) or (name == "get_extra_menu_items" and not theirs[1])
        # A policy keeps its answers, and is asked the same once.
        assert is_asked or not is_answered or nothing or observing.counts["same"], name
    assert observing.counts["fails"] == 0
    # Neither agrees with the other by accident.
    assert observing.counts["same"]
    assert observing.counts["opens"] + observing.counts["closes"]
    observing.queue.writer.flush(30)
    records = observing.made.records()
    assert {record["custom"]["outcome"] for record in records} == {"observe"}
    assert {record["custom"]["door"] for record in records} == {"users"}


@pytest.mark.parametrize("name", ["is_authorized_connection", "get_authorized_connections"])
def test_what_is_recorded_is_how_the_two_differ(observing: Observing, name: str) -> None:
    """The policy's own answers are asked for here, one by one."""
    if name == "is_authorized_connection":
        for id_, team in OWNED["connection"].items():
            about = details.ConnectionDetails(id_, team)
            observing.observed.is_authorized_connection(method="PUT", details=about, user=observing.user)
        theirs = {
            id_ for id_, team in OWNED["connection"].items()
            if observing.plain.is_authorized_connection(
                method="PUT", details=details.ConnectionDetails(id_, team), user=observing.user
            )
        }  # fmt: skip
    else:
        theirs = observing.observed.get_authorized_connections(user=observing.user)
    observing.queue.writer.flush(30)
    told = {
        (record["input"]["resource"]["id"], record["custom"]["candidate"]["direction"])
        for record in observing.made.records() if record["custom"]["outcome"] == "observe"
    }  # fmt: skip
    action = "update" if name == "is_authorized_connection" else "read"
    point = DecisionPoint(observing.engine)
    subject = identity_for(type(observing.plain), decision_point.settings().identity)().later(observing.user)()
    expected = set()
    for id_, team in OWNED["connection"].items():
        question = Evaluations(subject, action, [Resource("connection", team, id_)])
        ours = point.decide(question).decisions[0].allow
        if ours is not (id_ in theirs):
            expected.add((id_, "opens" if ours else "closes"))
    assert told == expected


def test_a_question_that_answers_itself_is_noted_once(observing: Observing) -> None:
    """Airflow's own methods ask the manager about each of many, in threads too."""
    observing.observed.filter_authorized_variables(variable_keys=set(OWNED["variable"]), user=observing.user)
    observing.observed.batch_is_authorized_pool(requests=[{"method": "GET"}] * 3, user=observing.user)
    observing.wait()
    assert observing.queue.writer.written == 2


@ONE
def test_whatever_fails_beside_an_answer_leaves_it_as_it_is(
    observing: Observing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise EngineError("beside")

    named = {"method": "GET", "user": observing.user}
    expected = observing.plain.is_authorized_variable(**named)
    monkeypatch.setattr(observing.queue, "put", fail)
    assert observing.observed.is_authorized_variable(**named) is expected
    monkeypatch.undo()
    monkeypatch.setattr(observation, "_phrased", fail)
    assert observing.observed.is_authorized_variable(**named) is expected
    observing.wait()
    eventually(lambda: observing.counts["fails"] == 1)
    assert "could not be observed" in caplog.text


@ONE
def test_a_manager_that_cannot_be_observed_stays_as_it_is(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    manager = login(kind)()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__TEAM_AUTHZ__POLICYY", "wrong")
        decision_point.forget()
        observe(manager)
    decision_point.forget()
    assert not [name for name in vars(manager) if name.startswith("is_authorized")]
    assert "cannot be observed" in caplog.text


@ONE
def test_an_api_server_starts_with_the_same_manager_and_commands_are_left_alone(
    observing: Observing, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[Any] = []
    monkeypatch.setattr(observation, "observe", observed.append)
    module: Any = SimpleNamespace(
        init_auth_manager=lambda app=None: (app, observing.plain), create_auth_manager=lambda: observing.plain
    )
    observation.guard(module)
    assert module.create_auth_manager() is observing.plain
    assert observed == []
    assert module.init_auth_manager("app") == ("app", observing.plain)
    assert observed == [("app", observing.plain)]


@ONE
def test_the_home_page_says_that_nothing_is_enforced(observing: Observing) -> None:
    observe(observing.observed, observing.queue)
    (alert,) = settings.DASHBOARD_UIALERTS
    assert alert.category == "warning"
    assert alert.text.startswith(
        f"{type(observing.observed).__name__} decides. The policy of [team_authz] only observes"
    )


@ONE
def test_errors_of_the_manager_are_its_own(observing: Observing) -> None:
    class OwnError(Exception):
        pass

    def broken(**_: Any) -> bool:
        raise OwnError

    noting = vars(observing.observed)["_team_authz_observed"]
    call = observation._noted("is_authorized_pool", broken, noting)
    with pytest.raises(OwnError):
        call(method="GET", user=observing.user)
    # The next one is noted again.
    observing.observed.is_authorized_pool(method="GET", user=observing.user)
    observing.wait()
    assert observing.queue.writer.written == 1


@ONE
def test_a_list_that_nothing_allows_as_a_whole_is_no_difference(observing: Observing) -> None:
    """The users' door shows it with what the person may read; what that is, is another question."""
    nobody = Subject("user", "nil", (), ())
    candidate = observing.queue._candidate
    for resource, is_told in ((Resource("pool", None), False), (Resource("view", None, "jobs"), True)):
        asked = Evaluations(nobody, "list" if not is_told else "read", [resource])
        question = shadow.Question(1, Origin("users"), asked, [Listed(True)], (), "")
        assert bool(list(candidate.differences(DecisionPoint(observing.engine), question))) is is_told
