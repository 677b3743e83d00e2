"""Assets, their events and their state, as tasks find them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow import settings
from airflow.models import DagModel
from airflow.models.asset import (
    AssetEvent,
    AssetModel,
    AssetWatcherModel,
    DagScheduleAssetNameReference,
    DagScheduleAssetReference,
    DagScheduleAssetUriReference,
    TaskInletAssetReference,
    TaskOutletAssetReference,
)
from airflow.models.dagcode import DagCode
from airflow.models.trigger import Trigger
from sqlalchemy import delete, select

from airflow_team_authz.doors import tasks
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.opa.compile import compile_directory
from tests.conftest import REPOSITORY
from tests.doors.conftest import Recording
from tests.doors.tasks.conftest import DAGS, Api, _now, needs_state


@needs_state
@pytest.mark.usefixtures("concealing")
def test_anothers_state_of_an_asset_is_answered_like_none(api: Api) -> None:
    for by, value in (("name", "1"), ("uri", "s3://1")):
        about = {by: value, "key": "place"}
        path = f"store/asset/by-{by}/value"
        assert api.call("alpha", "PUT", path, params=about, json={"value": "here"}).status_code == 204
        for method in ("GET", "PUT", "DELETE"):
            more = {"json": {"value": "there"}} if method == "PUT" else {}
            there = api.call("beta", method, path, params=about, **more)
            no_asset = api.call("beta", method, path, params=about | {by: "nothing"}, **more)
            assert there.status_code == no_asset.status_code == 404
            assert there.text == no_asset.text.replace("nothing", value)
        with _added(SHARED["waits for it"]("beta_daily")):
            there = api.call("beta", "GET", path, params=about)
            none = api.call("beta", "GET", path, params=about | {"key": "nothing"})
            assert there.status_code == none.status_code == 404
            assert there.text.replace("place", "nothing") == none.text
            # As Airflow has it.
            assert none.text == api.call("alpha", "GET", path, params=about | {"key": "nothing"}).text
            # By this name something is there, so it cannot be made.
            refused = api.call("beta", "PUT", path, params=about, json={"value": "there"})
            assert refused.status_code == 403
            assert "team alpha" not in refused.text
        assert api.call("alpha", "GET", path, params=about).json() == {"value": "here"}
        assert api.call("alpha", "DELETE", path, params=about).status_code == 204


@needs_state
def test_an_assets_state_is_its_producers(api: Api) -> None:
    name = {"name": "1", "key": "place"}
    asked = {}
    for who in DAGS:
        for method in ("GET", "PUT", "DELETE"):
            more = {"json": {"value": 1}} if method == "PUT" else {}
            answer = api.call(who, method, "store/asset/by-name/value", params=name, **more)
            asked[who, method] = answer.status_code == 403
    assert asked == {(who, method): who != "alpha" for who in DAGS for method in ("GET", "PUT", "DELETE")}
    assert api.engine.asked[-1][1]["resources"][0]["name"] == "1"
    # Nobody's: everybody keeps a place in it.
    everybodys = {"name": "2", "key": "place"}
    assert api.call("beta", "GET", "store/asset/by-name/value", params=everybodys).status_code != 403
    assert api.call("beta", "GET", "assets/by-name", params=everybodys).status_code != 403


# Each way to an asset of alpha's: the route, what finds the asset, and what finds none.
TO_AN_ASSET = {
    "assets/by-name": ({"name": "1"}, {"name": "nothing"}),
    "assets/by-uri": ({"uri": "s3://1"}, {"uri": "s3://nothing"}),
    "asset-events/by-asset": ({"name": "1", "uri": "s3://1"}, {"name": "nothing", "uri": "s3://nothing"}),
}


@pytest.fixture
def event() -> Iterator[None]:
    """An event of alpha's asset that names no Dag, as a watcher's or a person's does."""
    assert settings.Session is not None
    with settings.Session() as session:
        event = AssetEvent(asset_id=1, extra={"secret": "of alpha"})
        session.add(event)
        session.commit()
        yield
        session.delete(event)
        session.commit()


def _about_an_asset(api: Api, who: str | None) -> dict[str, tuple[Any, Any]]:
    """The answers about alpha's asset, and those about none, as if it had been asked about by the same name."""
    answers = {}
    for path, (there, nothing) in TO_AN_ASSET.items():
        found, missing = (api.call(who, "GET", path, params=params) for params in (there, nothing))
        as_asked = missing.text
        for name, value in there.items():
            as_asked = as_asked.replace(nothing[name], value)
        answers[path] = (found.status_code, found.text), (missing.status_code, as_asked)
    return answers


@pytest.mark.usefixtures("concealing", "event")
def test_anothers_asset_is_answered_like_none(api: Api) -> None:
    for who in ("beta", None):
        assert all(found == missing for found, missing in _about_an_asset(api, who).values())


@pytest.mark.usefixtures("event")
def test_a_refused_asset_says_whose_it_is(api: Api) -> None:
    for who in ("beta", None):
        for path, ((status, text), (missing, _)) in _about_an_asset(api, who).items():
            assert (status, missing) == (403, 200 if "events" in path else 404)
            assert "of team alpha" in text


@pytest.mark.usefixtures("concealing", "event")
def test_ones_own_asset_is_found(api: Api) -> None:
    assert all(
        status == 200 and text != missing for (status, text), (_, missing) in _about_an_asset(api, "alpha").values()
    )


# How a Dag comes to share alpha's asset.
SHARED: dict[str, Callable[[str], Any]] = {
    "waits for it": lambda dag_id: DagScheduleAssetReference(asset_id=1, dag_id=dag_id),
    "reads it": lambda dag_id: TaskInletAssetReference(asset_id=1, dag_id=dag_id, task_id="later"),
    "produces it too": lambda dag_id: TaskOutletAssetReference(asset_id=1, dag_id=dag_id, task_id="later"),
    "waits for whatever has its name": lambda dag_id: DagScheduleAssetNameReference(name="1", dag_id=dag_id),
    "waits for whatever has its address": lambda dag_id: DagScheduleAssetUriReference(uri="s3://1", dag_id=dag_id),
}


@contextlib.contextmanager
def _added(row: Any) -> Iterator[None]:
    assert settings.Session is not None
    with settings.Session() as session:
        session.add(row)
        session.commit()
        try:
            yield
        finally:
            session.delete(row)
            session.commit()


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("who", ["beta", None])
@pytest.mark.parametrize("case", SHARED)
def test_an_asset_that_a_dag_of_its_team_names_is_found_by_a_task(api: Api, case: str, who: str | None) -> None:
    with _added(SHARED[case](DAGS[who])):
        assert _found(api, who) == {200}
        # And by nobody else's.
        assert _found(api, "beta" if who is None else None) == {404}


def _found(api: Api, who: str | None) -> set[int]:
    return {api.call(who, "GET", path, params=TO_AN_ASSET[path][0]).status_code for path in sorted(TO_AN_ASSET)[1:]}


@needs_state
@pytest.mark.usefixtures("concealing")
def test_a_team_that_the_owner_lets_consume_an_asset_finds_it(api: Api) -> None:
    with _added(_outlet("alpha_daily", allow_consumer_teams=["beta"])):
        assert _found(api, "beta") == {200}
        assert _found(api, None) == {404}
    # Nobody else lets anybody consume it.
    with _added(_outlet("daily", allow_consumer_teams=["beta"])):
        assert _found(api, "beta") == {404}


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("reference", [{"name": "1"}, {"uri": "s3://1"}], ids=str)
def test_an_asset_that_ones_own_dag_refers_to_is_found(api: Api, reference: dict[str, str]) -> None:
    """As ``@asset`` functions refer to others by their parameters."""
    from airflow.models.dag_version import DagVersion
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG, Asset
    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    with DAG("beta_daily", schedule=None) as dag:
        EmptyOperator(task_id="work", inlets=[Asset.ref(**reference)])
    assert settings.Session is not None
    with settings.Session() as session:
        SerializedDagModel.write_dag(LazyDeserializedDAG.from_dag(dag), "of beta", session=session)
        session.commit()
        try:
            assert _found(api, "beta") == {200}
            assert _found(api, None) == {404}
        finally:
            for model in (DagCode, SerializedDagModel, DagVersion):
                session.execute(delete(model).where(model.dag_id == "beta_daily"))
            session.commit()
        assert _found(api, "beta") == {404}


@pytest.mark.usefixtures("concealing")
def test_a_rule_of_its_owner_lends_an_asset(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rule = """package teams.alpha

allow contains "beta may look at this one" if {
	input.resource.type == "asset"
	input.resource.name == "1"
	input.action == "read"
	"beta" in input.subject.team_ids
}
"""
    policies = tmp_path / "policies"
    shutil.copytree(REPOSITORY / "policies", policies, ignore=shutil.ignore_patterns("authz"))
    (policies / "teams/alpha/lends.rego").write_text(rule)
    compile_directory(policies, tmp_path / "bundle.tar.gz")
    engine = Recording(tmp_path / "bundle.tar.gz")
    monkeypatch.setattr(tasks, "decision_point", lambda: DecisionPoint(engine))
    assert _found(api, "beta") == {200}
    assert _found(api, None) == {404}
    engine.close()


BY_NAME, BY_URI = {"name": "1"}, {"uri": "s3://1"}
OTHERS_STATE = {
    "by name": ("name", BY_NAME),
    "by name, with a uri that is nowhere": ("name", BY_NAME | {"uri": "nowhere"}),
    "by name, with the uri of a common asset": ("name", BY_NAME | {"uri": "s3://2"}),
    "by name, with an empty uri": ("name", BY_NAME | {"uri": ""}),
    "by name, given twice": ("name", {"name": ["2", "1"]}),
    "by name, and in capitals": ("name", {"NAME": "2", "Uri": "s3://2"} | BY_NAME),
    "by name, with another Dag": ("name", BY_NAME | {"dag_id": "beta_daily"}),
    "by uri": ("uri", BY_URI),
    "by uri, with a name that is nowhere": ("uri", BY_URI | {"name": "nowhere"}),
    "by uri, with the name of a common asset": ("uri", BY_URI | {"name": "2"}),
    "by uri, given twice": ("uri", {"uri": ["s3://2", "s3://1"]}),
}


def _states() -> list[Any]:
    from airflow.models.asset_state_store import AssetStateStoreModel

    assert settings.Session is not None
    with settings.Session() as session:
        columns = (AssetStateStoreModel.asset_id, AssetStateStoreModel.key, AssetStateStoreModel.value)
        return sorted(tuple(row) for row in session.execute(select(*columns)))


def _calls(by: str, params: dict[str, Any], who: str | None, api: Api) -> dict[str, int]:
    """The answers to everything that one may do with an asset's state."""
    value = {"url": f"store/asset/by-{by}/value", "params": params | {"key": "place"}}
    return {
        "PUT": api.call(who, "PUT", value["url"], params=value["params"], json={"value": "x"}).status_code,
        "GET": api.call(who, "GET", value["url"], params=value["params"]).status_code,
        "DELETE": api.call(who, "DELETE", value["url"], params=value["params"]).status_code,
        "clear": api.call(who, "DELETE", f"store/asset/by-{by}/clear", params=params).status_code,
    }


@needs_state
@pytest.mark.parametrize("case", OTHERS_STATE)
def test_only_what_the_handler_uses_says_whose_state_it_is(api: Api, case: str) -> None:
    by, params = OTHERS_STATE[case]
    assert api.call("alpha", "PUT", "store/asset/by-name/value", params=BY_NAME | {"key": "place"}, json={"value": "a"})
    before = _states()
    assert (1, "place", '"a"') in before
    for who in ("beta", None):
        assert set(_calls(by, params, who, api).values()) == {403}
        assert _states() == before
    assert set(_calls(by, params, "alpha", api).values()) <= {200, 204}
    assert _states() == []


@needs_state
def test_an_asset_that_is_not_active_has_no_state(api: Api, asset: int) -> None:
    """As the handler has it; another team's inactive asset of the same name says nothing about the active one."""
    del asset
    for who in DAGS:
        assert set(_calls("uri", {"uri": "aaa://1"}, who, api).values()) == {404}
    assert api.engine.asked == []
    assert set(_calls("name", BY_NAME, "beta", api).values()) == {403}
    assert set(_calls("name", BY_NAME, "alpha", api).values()) <= {200, 204}


@pytest.fixture
def asset() -> Iterator[int]:
    """An asset of a name that is taken: it cannot be active, and beta's Dag produces it."""
    assert settings.Session is not None
    with settings.Session() as session:
        session.add(AssetModel(id=3, name="1", uri="aaa://1", group=""))
        session.flush()
        session.add(TaskOutletAssetReference(asset_id=3, dag_id="beta_daily", task_id="work"))
        session.commit()
    yield 3
    with settings.Session() as session:
        session.execute(delete(TaskOutletAssetReference).where(TaskOutletAssetReference.asset_id == 3))
        session.execute(delete(AssetModel).where(AssetModel.id == 3))
        session.commit()


LATER: dict[str, Callable[[], list[Any]]] = {
    "another team's Dag produces it": lambda: [_outlet("beta_daily")],
    "a common Dag produces it": lambda: [_outlet("daily")],
    "another team watches it": lambda: [_watcher("beta")],
    "somebody without a team watches it": lambda: [_watcher(None)],
    "two others produce it": lambda: [_outlet("beta_daily"), _outlet("daily")],
}


def _outlet(dag_id: str, **named: Any) -> Any:
    return TaskOutletAssetReference(asset_id=1, dag_id=dag_id, task_id="later", **named)


def _watcher(team_id: str | None) -> Any:
    trigger = Trigger(classpath="x", kwargs={}, team_name=team_id)
    return AssetWatcherModel(name="w", asset_id=1, trigger=trigger)


@needs_state
@pytest.mark.parametrize("case", LATER)
@pytest.mark.parametrize("stale", [False, True], ids=["the first one's Dag runs", "the first one's Dag is stale"])
def test_no_later_declaration_takes_an_assets_state_away_or_opens_it(api: Api, case: str, stale: bool) -> None:
    assert settings.Session is not None
    with settings.Session() as session:
        later = LATER[case]()
        session.add_all(later)
        session.get_one(DagModel, "alpha_daily").is_stale = stale
        session.commit()
        try:
            for who in ("beta", None):
                assert set(_calls("name", BY_NAME, who, api).values()) == {403}
            assert set(_calls("name", BY_NAME, "alpha", api).values()) <= {200, 204}
        finally:
            for one in later:
                session.delete(one)
            session.get_one(DagModel, "alpha_daily").is_stale = False
            session.commit()


USERS: dict[str, Callable[[str], Any]] = {
    "waits for it": lambda dag_id: DagScheduleAssetReference(asset_id=2, dag_id=dag_id),
    "reads it": lambda dag_id: TaskInletAssetReference(asset_id=2, dag_id=dag_id, task_id="work"),
}


@needs_state
@pytest.mark.parametrize("case", USERS)
def test_the_state_of_an_asset_that_nobody_produces_is_its_first_users(api: Api, case: str) -> None:
    """Airflow forgets who watches an asset while that Dag is paused, and keeps that it waits for the asset."""
    by_name = {"name": "2"}
    with _added(USERS[case]("alpha_daily")):
        for who in ("beta", None):
            assert set(_calls("name", by_name, who, api).values()) == {403}
        # Who uses it later does not get it.
        with _added(USERS[case]("beta_daily")):
            assert set(_calls("name", by_name, "beta", api).values()) == {403}
        assert set(_calls("name", by_name, "alpha", api).values()) <= {200, 204}


@needs_state
def test_the_first_one_is_who_declared_it_first(api: Api) -> None:
    assert settings.Session is not None
    with settings.Session() as session:
        earlier = _outlet("beta_daily", created_at=_now() - timedelta(days=1))
        session.add(earlier)
        session.commit()
        try:
            assert set(_calls("name", BY_NAME, "alpha", api).values()) == {403}
            assert set(_calls("name", BY_NAME, "beta", api).values()) <= {200, 204}
        finally:
            session.delete(earlier)
            session.commit()
