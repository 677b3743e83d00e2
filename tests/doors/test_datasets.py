"""Whose event starts whose Dag: Airflow's asset manager with the policy in it, over a real database and engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from airflow import settings
from airflow.assets.manager import AssetManager
from airflow.models import DagModel
from airflow.models import dag as dag_module
from airflow.models.asset import (
    AssetActive,
    AssetDagRunQueue,
    AssetEvent,
    AssetModel,
    DagScheduleAssetReference,
    TaskOutletAssetReference,
)
from airflow.models.log import Log
from airflow.models.trigger import Trigger
from sqlalchemy import delete, select

from airflow_team_authz.doors import assets, decision_point
from airflow_team_authz.doors.assets import HELD_BACK, REFUSED, REPLAYED, TeamAssetManager
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.identities import requests
from airflow_team_authz.model import Decision, Standing, Subject, UnreachableError
from tests.conftest import opened, write
from tests.decision_log.conftest import Made
from tests.doors.conftest import Recording

# Airflow 3.2 has neither authors' consent nor a choice of its own about teams.
CONSENT = hasattr(DagScheduleAssetReference, "allow_global_producers")
needs_consent = pytest.mark.skipif(not CONSENT, reason="this Airflow knows no consent of authors")

ASSET = 7
PRODUCERS = {"alpha": "alpha_daily", "beta": "beta_daily", None: "daily"}
# Dags that wait for the asset: of which team, and what their authors consent to.
WAITING: dict[str, tuple[str | None, dict[str, Any]]] = {
    "alpha_closed": ("alpha", {"allow_global_producers": False}),
    "alpha_open_to_beta": ("alpha", {"allow_producer_teams": ["beta"], "allow_global_producers": False}),
    "alpha_open_to_common": ("alpha", {}),
    "beta_closed": ("beta", {"allow_global_producers": False}),
    "common": (None, {}),
}


@pytest.fixture(scope="module")
def waiting(database: None) -> None:  # noqa: ARG001
    with _session() as session:
        session.add(AssetModel(id=ASSET, name="orders", uri="s3://orders", group="asset"))
        session.flush()
        session.add(AssetActive(name="orders", uri="s3://orders"))
        for dag_id, (team_id, consent) in WAITING.items():
            session.add(DagModel(dag_id=dag_id, bundle_name=f"of {team_id}", is_paused=False))
            session.flush()
            told = consent if CONSENT else {}
            session.add(DagScheduleAssetReference(asset_id=ASSET, dag_id=dag_id, **told))
        session.commit()


def _session() -> Any:
    assert settings.Session is not None
    return settings.Session()


class Orders(NamedTuple):
    """The asset, and what became of its last event."""

    engine: Recording

    def change(self, team_id: str | None = None, **named: Any) -> set[str]:
        """Dags that wait to be started after an event of this team's task, or of what is named."""
        task = SimpleNamespace(dag_id=PRODUCERS[team_id], task_id="work", run_id="r", map_index=-1)
        return self.register(**({"task_instance": task} | named))

    def register(self, **named: Any) -> set[str]:
        with _session() as session:
            with requests.unfiltered():
                for table in (AssetDagRunQueue, Log):
                    session.execute(delete(table))
            session.commit()
            # As the route has found it, whoever it is that may see it.
            with requests.unfiltered():
                asset = session.get_one(AssetModel, ASSET)
            event = TeamAssetManager.register_asset_change(asset=asset, session=session, **named)
            assert event is not None
            session.commit()
        return started()


def started() -> set[str]:
    with requests.unfiltered(), _session() as session:
        return set(session.scalars(select(AssetDagRunQueue.target_dag_id)))


def told(event: str) -> dict[str, dict[str, Any]]:
    """What the audit log says, by Dag."""
    with _session() as session:
        rows = session.scalars(select(Log).where(Log.event == event))
        return {str(row.dag_id): json.loads(row.extra) for row in rows}


@pytest.fixture(scope="module")
def engine(bundles: dict[str, Path]) -> Iterator[Recording]:
    recording = Recording(bundles["example"])
    yield recording
    recording.close()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """No test keeps another's settings."""
    yield
    decision_point.forget()


@pytest.fixture
def orders(waiting: None, engine: Recording, monkeypatch: pytest.MonkeyPatch) -> Orders:  # noqa: ARG001
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    point = DecisionPoint(engine)
    monkeypatch.setattr(assets, "decision_point", lambda: point)
    engine.asked.clear()
    return Orders(engine)


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, orders: Orders) -> None:  # noqa: ARG001
    class Gone:
        def decide(self, _: Any) -> Any:
            raise UnreachableError("nobody answers at unix:///x")

        decide_by_owner = decide

    monkeypatch.setattr(assets, "decision_point", Gone)


@needs_consent
def test_an_event_starts_its_own_teams_common_and_consenting_dags(orders: Orders) -> None:
    assert orders.change("alpha") == {"alpha_closed", "alpha_open_to_beta", "alpha_open_to_common", "common"}
    assert orders.change("beta") == {"alpha_open_to_beta", "beta_closed", "common"}
    assert orders.change(None) == {"alpha_open_to_common", "common"}


@needs_consent
def test_all_dags_of_an_event_are_one_question(orders: Orders) -> None:
    orders.change("beta")
    ((entrypoint, asked),) = orders.engine.asked
    assert entrypoint == "decisions"
    assert asked["action"] == "trigger"
    assert asked["subject"]["id"] == "beta_daily.work"
    assert len(asked["resources"]) == 2 * len(WAITING)
    starts, goes = asked["resources"][:2]
    assert (starts["type"], starts["entity"], starts["id"], starts["team_id"]) == (
        "dag", "run", "alpha_closed", "alpha",
    )  # fmt: skip
    assert (goes["type"], goes["entity"], goes["name"], goes["team_id"]) == ("asset", "event", "orders", "beta")
    assert starts["delivery"] == goes["delivery"]
    assert starts["delivery"]["airflow_allows"] is False


def test_a_refused_event_is_recorded_with_its_door(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Made("denied")
    monkeypatch.setattr(assets, "decision_point", lambda: DecisionPoint(orders.engine, recorded.log))
    orders.change("beta")
    (record,) = recorded.records()
    assert (record["custom"]["door"], record["input"]["action"]) == ("datasets", "trigger")
    assert "alpha_closed" in [resource["id"] for resource in record["input"]["resources"]]
    assert 0 < record["custom"]["allowed"] < record["custom"]["asked"]


@needs_consent
def test_a_refusal_is_told_to_the_dag_that_was_not_started(orders: Orders) -> None:
    orders.change("beta")
    refused = told(REFUSED)
    assert set(refused) == {"alpha_closed", "alpha_open_to_common"}
    assert "starts it only if producer_teams" in refused["alpha_closed"]["reasons"][0]


@needs_consent
def test_the_producing_author_decides_where_events_go(orders: Orders) -> None:
    outlet = {"asset_id": ASSET, "dag_id": "beta_daily", "task_id": "work"}
    with _session() as session:
        session.add(TaskOutletAssetReference(**outlet, allow_consumer_teams=["gamma"], allow_global_consumers=False))
        session.commit()
    try:
        assert orders.change("beta") == {"beta_closed"}
        assert "consumer_teams" in told(REFUSED)["alpha_open_to_beta"]["reasons"][0]
    finally:
        with _session() as session:
            session.execute(delete(TaskOutletAssetReference).where(TaskOutletAssetReference.asset_id == ASSET))
            session.commit()


PEOPLE = {
    "a user of beta": (Subject("user", "bob", ("beta",), ("user",)), {"beta_closed", "common"}),
    "a viewer of beta": (Subject("user", "vic", ("beta",), ("viewer",)), set()),
    "an op of beta": (Subject("user", "oda", ("beta",), ("op",)), {"alpha_open_to_beta", "beta_closed", "common"}),
    "a member of beta without a role": (Subject("user", "mel", ("beta",), ()), set()),
    "an op of beta by a group": (
        Subject("user", "gus", (), (), ("beta-engineers",)), {"alpha_open_to_beta", "beta_closed", "common"},
    ),
    "a platform admin": (Subject("user", "pat", (), ("admin",)), set(WAITING)),
    "nobody": (Subject("user", "nil", (), ()), set()),
}  # fmt: skip


@needs_consent
@pytest.mark.parametrize("who", PEOPLE)
def test_a_user_starts_what_they_may_trigger_and_what_consents_to_their_team(orders: Orders, who: str) -> None:
    subject, expected = PEOPLE[who]
    with requests.request():
        requests.remember(subject)
        teams = set(subject.team_ids or ())
        assert orders.register(source_is_api=True, api_user_teams=teams) == expected


@needs_consent
def test_a_user_may_keep_an_event_from_teams(orders: Orders) -> None:
    with requests.request():
        requests.remember(Subject("user", "pat", ("beta",), ("admin",)))
        named = {"source_is_api": True, "api_user_teams": {"beta"}, "api_allow_consumer_teams": []}
        assert orders.register(**named, api_allow_global_consumers=False) == {"beta_closed"}


@needs_consent
def test_a_user_whom_nobody_knows_starts_nothing_of_a_team(orders: Orders) -> None:
    assert orders.register(source_is_api=True, api_user_teams=set()) == set()


@needs_consent
@pytest.mark.parametrize("team_id", ["alpha", "beta", None])
def test_a_watchers_event_is_of_the_team_that_watches(orders: Orders, team_id: str | None) -> None:
    if not hasattr(Trigger, "team_name"):
        pytest.skip("this Airflow knows no teams of triggers")
    with _session() as session:
        trigger = Trigger(classpath="x", kwargs={}, team_name=team_id)
        session.add(trigger)
        session.commit()
        token = assets._watching.set(trigger.id)
    try:
        watched = orders.register()
    finally:
        assets._watching.reset(token)
    assert orders.engine.asked[0][1]["subject"]["type"] == "watcher"
    assert watched == orders.change(team_id)


@needs_consent
def test_an_owner_whose_rules_fail_holds_back_only_its_own(
    orders: Orders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One function with two values, for runs of the team's Dags: such a rule cannot be evaluated."""
    fails = """
package teams.beta

_two(text) := 1 if text != ""
_two(text) := 2 if text != ""

deny contains "never said" if {
	input.resource.type == "dag"
	_two(input.action) == 1
}
"""
    expected = orders.change("alpha")
    assert expected
    with opened(write(tmp_path / "policy", {"teams/beta/beta.rego": fails})) as point:
        monkeypatch.setattr(assets, "decision_point", lambda: point)
        assert orders.change("alpha") == expected
        assert set(told(HELD_BACK)) == {"beta_closed"}
        (waiting,) = assets.held_back()
        assert "teams/beta/beta.rego" in waiting.held.error


def test_without_a_decision_nothing_starts_and_nothing_is_lost(orders: Orders, no_engine: None) -> None:  # noqa: ARG001
    assert orders.change("beta") == set()
    assert set(told(HELD_BACK)) == set(WAITING)
    with _session() as session:
        assert session.scalars(select(AssetEvent).order_by(AssetEvent.id.desc())).first() is not None
    waiting = assets.held_back()
    assert {one.dag_id for one in waiting} == set(WAITING)
    assert {(one.held.asset, one.held.subject.id) for one in waiting} == {("orders", "beta_daily.work")}
    with pytest.raises(UnreachableError):
        list(assets.replay())
    assert set(told(HELD_BACK)) == set(WAITING)


@needs_consent
def test_what_was_held_back_is_asked_again(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = assets.decision_point
    with monkeypatch.context() as outage:
        outage.setattr(assets, "decision_point", lambda: SimpleNamespace(decide=_raise, decide_by_owner=_raise))
        orders.change("beta")
    assert assets.decision_point is answering
    outcomes = {outcome.dag_id: outcome.state for outcome in assets.replay()}
    expected = {"alpha_open_to_beta", "beta_closed", "common"}
    assert outcomes == {dag_id: REPLAYED if dag_id in expected else REFUSED for dag_id in WAITING}
    assert started() == expected
    assert "starts it only if producer_teams" in told(REFUSED)["alpha_closed"]["reasons"][0]
    assert list(assets.replay()) == []


def _change(model: Any, key: Any, **values: Any) -> dict[str, Any]:
    """Changes a row; what it was before."""
    with _session() as session:
        row = session.get_one(model, key)
        before = {name: getattr(row, name) for name in values}
        for name, value in values.items():
            setattr(row, name, value)
        session.commit()
    # What this package does away with in each process of Airflow.
    getattr(dag_module, "clear_team_name_cache", lambda: None)()
    return before


PRODUCING = (ASSET, "alpha_daily", "work")
# What happens while an event waits: the row, and what changes.
MEANWHILE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "the Dag has moved to another team": (DagModel, "alpha_closed", {"bundle_name": "of beta"}),
    "the Dag has become a common one": (DagModel, "beta_closed", {"bundle_name": "of None"}),
    "the producing Dag has moved": (DagModel, "alpha_daily", {"bundle_name": "of beta"}),
    "the Dag's author has consented": (
        DagScheduleAssetReference, (ASSET, "beta_closed"), {"allow_producer_teams": ["alpha"]},
    ),
    "the Dag's author has changed their mind": (
        DagScheduleAssetReference, (ASSET, "alpha_open_to_beta"), {"allow_producer_teams": []},
    ),
    "the producing author has changed their mind": (
        TaskOutletAssetReference, PRODUCING, {"allow_global_consumers": False, "allow_consumer_teams": []},
    ),
}  # fmt: skip


@needs_consent
@pytest.mark.parametrize("case", MEANWHILE)
def test_what_was_held_back_is_asked_as_if_it_came_now(
    orders: Orders, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    model, key, values = MEANWHILE[case]
    who = "beta" if "mind" in case and "producing" not in case else "alpha"
    with _session() as session:
        session.add(TaskOutletAssetReference(asset_id=ASSET, dag_id="alpha_daily", task_id="work"))
        session.commit()
    try:
        then = orders.change(who)
        with monkeypatch.context() as outage:
            outage.setattr(assets, "decision_point", lambda: SimpleNamespace(decide=_raise, decide_by_owner=_raise))
            orders.change(who)
        before = _change(model, key, **values)
        try:
            orders.engine.asked.clear()
            list(assets.replay())
            replayed, asked = started(), [question for _, question in orders.engine.asked]
            orders.engine.asked.clear()
            fresh = orders.change(who)
            ((_, anew),) = orders.engine.asked
        finally:
            _change(model, key, **before)
        assert [resource for question in asked for resource in question["resources"]] == anew["resources"]
        if case == "the producing Dag has moved":
            # It was alpha's when it made the event, which now belongs to beta.
            assert {tuple(question["subject"]["team_ids"]) for question in asked} == {("alpha",)}
            assert replayed == then
        else:
            assert replayed == fresh != then
    finally:
        with _session() as session:
            session.execute(delete(TaskOutletAssetReference).where(TaskOutletAssetReference.asset_id == ASSET))
            session.commit()


@needs_consent
def test_a_persons_held_back_event_counts_where_the_person_has_a_role_now(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    oda = Subject("user", "oda", (), (), ("beta-engineers",))
    with requests.request(), monkeypatch.context() as outage:
        requests.remember(oda)
        outage.setattr(assets, "decision_point", lambda: SimpleNamespace(decide=_raise, decide_by_owner=_raise))
        orders.register(source_is_api=True, api_user_teams={"beta"}, api_allow_consumer_teams=[])
    list(assets.replay())
    assert started() == {"beta_closed", "common"}


@needs_consent
def test_what_is_left_of_a_dag_that_is_gone_is_its_teams(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    with _session() as session:
        session.add(DagModel(dag_id="beta_gone", bundle_name="of beta"))
        session.commit()
    task = SimpleNamespace(dag_id="beta_gone", task_id="work", run_id="r", map_index=-1)
    with monkeypatch.context() as outage:
        outage.setattr(assets, "decision_point", lambda: SimpleNamespace(decide=_raise, decide_by_owner=_raise))
        orders.register(task_instance=task)
    with _session() as session:
        session.execute(delete(DagModel).where(DagModel.dag_id == "beta_gone"))
        session.commit()
    list(assets.replay())
    assert started() == {"alpha_open_to_beta", "beta_closed", "common"}


def _raise(_: Any) -> Any:
    raise UnreachableError("nobody answers at unix:///x")


# What a policy or an outage may say: long, much, and what databases do not store.
TEXTS = {
    "long": ["r" * 200_000],
    "many": ["no"] * 100_000,
    "many and long": ["ß" * 5_000] * 100,
    "unprintable": ["\0\x1b" * 50_000] * 50,
    "half a character": ["\ud83d"],
}


@needs_consent
@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("how", ["refused", "held back", "held back, then refused"])
def test_no_text_is_too_long_for_the_audit_log(
    orders: Orders, monkeypatch: pytest.MonkeyPatch, strict: set[str], texts: list[str], how: str
) -> None:
    monkeypatch.setattr(assets, "decision_point", lambda: Talking(how == "refused", texts))
    assert orders.change("beta") == set()
    if how == "held back, then refused":
        monkeypatch.setattr(assets, "decision_point", lambda: Talking(True, texts))
        assert {outcome.state for outcome in assets.replay()} == {REFUSED}
    assert set(told(HELD_BACK if how == "held back" else REFUSED)) == set(WAITING)
    assert {"Log.extra", "Log.owner"} <= strict


class Talking(NamedTuple):
    """A policy that refuses, or an outage, with much to say about it."""

    answers: bool
    texts: list[str]

    def decide(self, question: Any) -> Any:
        if not self.answers:
            raise UnreachableError("; ".join(self.texts))
        denied = Decision(False, tuple(self.texts), "default")
        return SimpleNamespace(decisions=[denied] * len(question.resources))

    def decide_by_owner(self, question: Any) -> Any:
        return self.decide(question).decisions

    def whoami(self, _: Subject) -> tuple[Standing, str]:
        return Standing({}, (), (), (), {}), ""


@needs_consent
def test_a_refusal_tells_its_first_reasons_and_how_many_more_there_are(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = [f"reason {number}" for number in range(25)]
    monkeypatch.setattr(assets, "decision_point", lambda: Talking(True, reasons))
    orders.change("beta")
    # Both owners say all of it.
    assert told(REFUSED)["common"]["reasons"] == [*reasons[:10], "and 40 more reasons"]


@needs_consent
def test_whoever_asks_is_kept_whole_in_as_many_rows_as_it_takes(
    orders: Orders, no_engine: None, strict: set[str], monkeypatch: pytest.MonkeyPatch  # noqa: ARG001
) -> None:  # fmt: skip
    groups = tuple(f"größe-{number:09}" * 10 for number in range(2_000))
    asked = Subject("user", "n" * 1_000, ("beta",), ("user",), groups)
    with requests.request():
        requests.remember(asked)
        assert orders.register(source_is_api=True, api_user_teams={"beta"}) == set()
    waiting = assets.held_back()
    assert {one.dag_id for one in waiting} == set(WAITING)
    assert {one.held.subject for one in waiting} == {asked}
    monkeypatch.setattr(assets, "decision_point", lambda: Talking(True, ["no"]))
    assert {outcome.state for outcome in assets.replay()} == {REFUSED}
    assert assets.held_back() == []
    with _session() as session:
        assert {row.event for row in session.scalars(select(Log))} == {REFUSED}


@needs_consent
def test_own_dags_may_start_without_a_decision(
    orders: Orders, no_engine: None, monkeypatch: pytest.MonkeyPatch  # noqa: ARG001
) -> None:  # fmt: skip
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__OWN_DAGS_WITHOUT_DECISION", "start")
    decision_point.forget()
    assert orders.change("beta") == {"beta_closed", "common"}
    assert set(told(HELD_BACK)) == set(WAITING) - {"beta_closed", "common"}
    with requests.request():
        requests.remember(Subject("user", "pat", (), ("admin",)))
        assert orders.register(source_is_api=True) == set()


@needs_consent
def test_a_wrong_setting_holds_everything_back(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__OWN_DAGS_WITHOUT_DECISION", "perhaps")
    decision_point.forget()
    assert orders.change("beta") == set()
    assert "own_dags_without_decision" in told(HELD_BACK)["common"]["error"]


@needs_consent
def test_airflow_alone_starts_other_teams_by_watchers(orders: Orders) -> None:
    """What this door is for, seen on the base class."""
    with _session() as session:
        session.execute(delete(AssetDagRunQueue))
        asset = session.get_one(AssetModel, ASSET)
        AssetManager.register_asset_change(asset=asset, session=session)
        session.commit()
    assert {"alpha_open_to_common", "common"} <= started()
    assert orders.engine.asked == []


@pytest.mark.skipif(CONSENT, reason="this Airflow knows authors' consent")
def test_without_consent_an_event_starts_its_own_teams_and_common_dags(orders: Orders) -> None:
    assert orders.change("beta") == {"beta_closed", "common"}
    assert orders.change(None) == set(WAITING)
