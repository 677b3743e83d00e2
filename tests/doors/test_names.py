"""A Dag id belongs to the team whose bundle declared it first; only the platform gives it to another team."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from airflow import settings
from airflow.dag_processing import collection, dagbag, manager
from airflow.dag_processing.bundles import manager as bundles_manager
from airflow.models import DagModel, DagTag
from airflow.models import dag as dag_module
from airflow.models.asset import AssetModel, DagScheduleAssetReference
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagwarning import DagWarning, DagWarningType
from airflow.models.log import Log
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.team import Team
from airflow.models.trigger import Trigger
from airflow.sdk import DAG, Asset, AssetWatcher, BaseOperator
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.triggers.base import BaseEventTrigger
from sqlalchemy import delete, event, false, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, with_loader_criteria
from typer.testing import CliRunner, Result

from airflow_team_authz.cli import app
from airflow_team_authz.doors import decision_point, names
from airflow_team_authz.doors.asset_owners import owning_teams
from airflow_team_authz.identities import requests
from tests.doors.test_pools import made, runs, write

try:
    from airflow.models.asset_state_store import AssetStateStoreModel
except ImportError:
    WITH_STATE = False
else:
    WITH_STATE = True

ALPHA, BETA, COMMON = "of alpha", "of beta", "of None"


@pytest.fixture
def parsing(database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: ARG001
    """Airflow's functions with the door in them."""
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    monkeypatch.setattr(collection, "update_dag_parsing_results_in_db", collection.update_dag_parsing_results_in_db)
    operation: Any = collection.DagModelOperation
    monkeypatch.setattr(operation, "add_dags", operation.add_dags)
    assets: Any = collection.AssetModelOperation
    monkeypatch.setattr(assets, "add_asset_trigger_references", assets.add_asset_trigger_references)
    names.guard(collection)
    yield
    _put(COMMON, None, active=True)
    for team_id in ("alpha", "beta"):
        _put(f"of {team_id}", team_id, active=True)


def _put(bundle: str, team_id: str | None, active: bool) -> None:
    with _session() as session:
        row = session.get(DagBundleModel, bundle) or DagBundleModel(name=bundle)
        row.active = active
        row.teams = [session.get_one(Team, team_id)] if team_id else []
        session.add(row)
        session.commit()


def _session() -> Any:
    assert settings.Session is not None
    return settings.Session()


def everything(dag_id: str) -> dict[str, Any]:
    """What the database says of a Dag, apart from when it was parsed."""
    with _session() as session:
        row = session.get_one(DagModel, dag_id)
        columns = {column.key: getattr(row, column.key) for column in DagModel.__table__.columns}
        serialized = session.scalars(select(SerializedDagModel).where(SerializedDagModel.dag_id == dag_id)).all()
        waits = select(DagScheduleAssetReference.asset_id).where(DagScheduleAssetReference.dag_id == dag_id)
        return columns | {
            "tags": set(session.scalars(select(DagTag.name).where(DagTag.dag_id == dag_id))),
            "waits": set(session.scalars(waits)),
            "code": [(one.dag_hash, one.dag_version_id) for one in serialized],
            "warnings": set(session.scalars(select(DagWarning.message).where(DagWarning.dag_id == dag_id))),
        }


def rich(dag_id: str, tag: str, file: str = "dags.py") -> LazyDeserializedDAG:
    """A Dag with whatever hangs on it."""
    with DAG(dag_id, schedule=[Asset(f"{tag}_waits")], tags=[tag], description=tag) as dag:
        pass
    dag.fileloc, dag.relative_fileloc = __file__, file
    return LazyDeserializedDAG.from_dag(dag)


@pytest.mark.parametrize(("refusals", "is_told"), [("explain", True), ("conceal", False), ("misspelt", False)])
def test_whose_a_taken_dag_id_is_can_be_concealed(
    parsing: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    refusals: str,
    is_told: bool,
) -> None:
    write(rich(f"taken_{refusals}", "mine"), bundle=ALPHA)
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", refusals)
    decision_point.forget()
    try:
        error = write(rich(f"taken_{refusals}", "theirs"), bundle=BETA)["dags.py"]
    finally:
        decision_point.forget()
    assert f"Dag taken_{refusals} " in error
    assert ("alpha" in error) == is_told


# The bundle that declares an id first, one that wants it, and whose it is.
TAKEOVERS = {
    "another team's": (ALPHA, BETA, "team alpha (bundle of alpha)"),
    "a team's, by a common bundle": (ALPHA, COMMON, "team alpha (bundle of alpha)"),
    "a common one, by a team": (COMMON, BETA, "all teams (bundle of None)"),
}


@pytest.mark.parametrize("kind", TAKEOVERS)
@pytest.mark.parametrize("stale", [False, True], ids=["that runs", "whose file is gone"])
def test_a_dag_id_that_is_taken_is_an_import_error(parsing: None, kind: str, stale: bool) -> None:  # noqa: ARG001
    first, second, owner = TAKEOVERS[kind]
    dag_id = f"taken_{len(kind)}_{stale}"
    assert write(rich(dag_id, "mine"), bundle=first) == {}
    with _session() as session:
        session.get_one(DagModel, dag_id).is_stale = stale
        session.commit()
    before = everything(dag_id)

    errors = write(rich(dag_id, "theirs"), made("beside", "pool", file="other.py"), bundle=second)
    assert set(errors) == {"dags.py"}
    assert errors["dags.py"].startswith(f"Dag {dag_id} belongs to {owner}, which declared it first")
    assert f"team-authz dags move {dag_id} --to '{second}'" in errors["dags.py"]
    assert everything(dag_id) == before
    with _session() as session:
        assert session.scalar(select(AssetModel.id).where(AssetModel.name == "theirs_waits")) is None
    # Who only shares the bundle, in a file of its own, runs.
    assert runs("beside")
    with _session() as session:
        session.execute(delete(DagModel).where(DagModel.dag_id == "beside"))
        session.commit()


def test_the_owner_may_change_it_and_its_team_may_move_it_between_bundles(parsing: None) -> None:  # noqa: ARG001
    _put("alpha too", "alpha", active=True)
    assert write(rich("own", "one"), bundle=ALPHA) == {}
    assert write(rich("own", "two"), bundle=ALPHA) == {}
    assert write(rich("own", "three"), bundle="alpha too") == {}
    assert everything("own")["bundle_name"] == "alpha too"
    assert everything("own")["tags"] == {"three"}


def test_a_warning_about_another_teams_dag_is_not_written(parsing: None) -> None:  # noqa: ARG001
    assert write(rich("warned", "mine"), bundle=ALPHA) == {}
    before = everything("warned")
    with _session() as session:
        warning = DagWarning("warned", DagWarningType.NONEXISTENT_POOL, "rubbish")
        collection.update_dag_parsing_results_in_db(BETA, None, [], {}, None, {warning}, session)
        session.commit()
    assert everything("warned") == before


def test_what_airflow_does_alone(database: None) -> None:  # noqa: ARG001
    """What this door is for."""
    assert write(rich("alone", "mine"), bundle=ALPHA) == {}
    assert write(rich("alone", "theirs"), bundle=BETA) == {}
    assert everything("alone")["bundle_name"] == BETA


def test_reserializing_takes_the_same_way(parsing: None) -> None:  # noqa: ARG001
    assert write(rich("again", "mine"), bundle=ALPHA) == {}
    before = everything("again")
    with DAG("again", schedule=None) as dag:
        pass
    dag.fileloc, dag.relative_fileloc = __file__, "again.py"
    bag = dagbag.DagBag("/dev/null", collect_dags=False)
    bag.dags["again"] = dag
    with _session() as session:
        dagbag.sync_bag_to_db(bag, BETA, None, session=session)
        session.commit()
    assert everything("again") == before


@pytest.mark.parametrize("when", ["before Airflow looks", "after Airflow has looked"])
def test_of_two_that_declare_an_id_at_once_one_gets_it(
    parsing: None, monkeypatch: pytest.MonkeyPatch, when: str  # noqa: ARG001
) -> None:  # fmt: skip
    dag_id = f"raced_{len(when)}"
    find = collection.DagModelOperation.find_orm_dags
    raced = []

    def find_late(self: Any, *, session: Any) -> Any:
        found = find(self, session=session) if when.startswith("after") else None
        if not raced:
            raced.append(dag_id)
            with _session() as other:
                other.add(DagModel(dag_id=dag_id, bundle_name=ALPHA, description="mine"))
                other.commit()
        return find(self, session=session) if found is None else found

    monkeypatch.setattr(collection.DagModelOperation, "find_orm_dags", find_late)
    with pytest.raises((names.TakenMeanwhileError, SQLAlchemyError)):
        write(rich(dag_id, "theirs"), rich("half_written", "theirs"), bundle=BETA)
    with _session() as session:
        assert session.get(DagModel, "half_written") is None
    assert raced == [dag_id]
    assert (everything(dag_id)["bundle_name"], everything(dag_id)["description"]) == (ALPHA, "mine")
    # The next time the file is parsed its author is told.
    assert "belongs to team alpha" in write(rich(dag_id, "theirs"), bundle=BETA)["dags.py"]


class Watches(BaseEventTrigger):
    """A trigger that looks at a place."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.Watches", {"place": self.place}

    async def run(self) -> Any:
        raise NotImplementedError


def watching(dag_id: str, *places: str) -> LazyDeserializedDAG:
    watchers = [AssetWatcher(name=place, trigger=Watches(place)) for place in places]
    with DAG(dag_id, schedule=[Asset("watched", uri="x://watched", watchers=watchers)]) as dag:
        pass
    dag.fileloc, dag.relative_fileloc = __file__, f"{dag_id}.py"
    return LazyDeserializedDAG.from_dag(dag)


def watched() -> set[tuple[str, str | None]]:
    """The places that are watched for the asset, with the teams of the triggers."""
    with _session() as session:
        asset = session.scalars(select(AssetModel).where(AssetModel.name == "watched")).one()
        return {(watcher.name, watcher.trigger.team_name) for watcher in asset.watchers}


@pytest.mark.skipif(not hasattr(Trigger, "team_name"), reason="this Airflow knows no teams of triggers")
def test_another_team_leaves_an_assets_watchers_alone(parsing: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION", "False")
    for bundle, dag_id in ((ALPHA, "alpha_watches"), (BETA, "beta_watches"), (COMMON, "all_watch")):
        for places in ((), ("theirs",), ("mine", "theirs")) if bundle != ALPHA else (("mine",), ("mine",)):
            assert write(watching(dag_id, *places), bundle=bundle) == {}
        with _session() as session:
            session.execute(update(DagModel).where(DagModel.dag_id == dag_id).values(is_paused=False))
            session.commit()
        for places in ((), ("theirs",), ("mine", "theirs")) if bundle != ALPHA else (("mine",),):
            assert write(watching(dag_id, *places), bundle=bundle) == {}
            assert watched() == {("mine", "alpha")}
    # The owner changes them as ever, for which Airflow takes two turns.
    for _ in range(2):
        assert write(watching("alpha_watches", "elsewhere"), bundle=ALPHA) == {}
    assert watched() == {("elsewhere", "alpha")}
    assert write(watching("alpha_watches"), bundle=ALPHA) == {}
    assert watched() == set()
    assert write(watching("beta_watches", "theirs"), bundle=BETA) == {}
    assert watched() == {("theirs", "beta")}


def producing(dag_id: str, asset: str) -> LazyDeserializedDAG:
    with DAG(dag_id, schedule=None) as dag:
        BaseOperator(task_id="make", outlets=[Asset(asset)])
    dag.fileloc, dag.relative_fileloc = __file__, f"{dag_id}.py"
    return LazyDeserializedDAG.from_dag(dag)


def state_owner(asset: str) -> str | None:
    with _session() as session:
        asset_id = session.scalars(select(AssetModel.id).where(AssetModel.name == asset)).one()
        return owning_teams(session, [asset_id]).get(asset_id)


@pytest.mark.skipif(not WITH_STATE, reason="this Airflow keeps no state with assets")
@pytest.mark.parametrize("case", ["others produce it too", "it has state"])
def test_a_deleted_file_gives_no_state_away(parsing: None, monkeypatch: pytest.MonkeyPatch, case: str) -> None:  # noqa: ARG001
    monkeypatch.setattr(manager, "remove_references_to_deleted_dags", manager.remove_references_to_deleted_dags)
    names.guard(manager)
    asset = f"made {case}"
    assert write(producing("alpha_makes", asset), producing("alpha_alone", f"alone {asset}")) == {}
    if case == "others produce it too":
        assert write(producing("beta_makes", asset), bundle=BETA) == {}
    with _session() as session:
        if case == "it has state":
            asset_id = session.scalars(select(AssetModel.id).where(AssetModel.name == asset)).one()
            session.add(AssetStateStoreModel(asset_id=asset_id, key="place", value="1"))
        session.execute(
            update(DagModel).where(DagModel.dag_id.in_(("alpha_makes", "alpha_alone"))).values(is_stale=True)
        )
        # Somebody has deleted a file, whichever.
        manager.remove_references_to_deleted_dags(session=session)
        session.commit()
    assert state_owner(asset) == "alpha"
    assert write(producing("beta_makes", asset), bundle=BETA) == {}
    assert state_owner(asset) == "alpha"
    assert write(producing("alpha_makes", asset)) == {}
    assert state_owner(asset) == "alpha"
    # Nobody else would get anything by this one.
    assert state_owner(f"alone {asset}") is None


@pytest.fixture
def sync(parsing: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:  # noqa: ARG001
    """Has Airflow read which bundles are configured."""
    kept: Any = bundles_manager.DagBundlesManager
    monkeypatch.setattr(kept, "sync_bundles_to_db", kept.sync_bundles_to_db)
    names.guard(bundles_manager)
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

    def sync(**teams: str | None) -> None:
        local = "airflow.dag_processing.bundles.local.LocalDagBundle"
        bundles = [
            {"name": f"of {name}", "classpath": local, "kwargs": {"path": "/dev"}, "team_name": team_id}
            for name, team_id in teams.items()
        ]
        monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
        with _session() as session:
            bundles_manager.DagBundlesManager().sync_bundles_to_db(session=session)
            session.commit()

    return sync


def test_a_bundle_that_is_gone_keeps_its_dags(sync: Callable[..., None]) -> None:
    assert write(rich("orphan", "mine"), bundle=ALPHA) == {}
    for _ in range(2):
        sync(beta="beta")
        assert dag_module.DagModel.get_dag_id_to_team_name_mapping(["orphan"]) == {"orphan": "alpha"}
        assert "belongs to team alpha (bundle of alpha)" in write(rich("orphan", "theirs"), bundle=BETA)["dags.py"]
    _put("alpha too", "alpha", active=True)
    assert write(rich("orphan", "mine"), bundle="alpha too") == {}


def test_the_configuration_gives_a_bundle_with_its_dags_to_another_team(sync: Callable[..., None]) -> None:
    assert write(rich("given", "mine"), bundle=ALPHA) == {}
    sync(alpha="beta", beta="beta")
    assert write(rich("given", "theirs"), bundle=BETA) == {}
    sync(alpha=None, beta="beta")
    assert dag_module.DagModel.get_dag_id_to_team_name_mapping(["alpha_daily"]) == {}


def test_a_bundle_that_is_gone_and_has_no_dags_holds_no_team_back(sync: Callable[..., None]) -> None:
    _put("of nothing", "alpha", active=True)
    sync(alpha="alpha", beta="beta")
    with _session() as session:
        assert session.get_one(DagBundleModel, "of nothing").teams == []


def test_the_team_of_a_dag_is_looked_up_whenever_it_is_asked_for(parsing: None) -> None:  # noqa: ARG001
    before = {name: vars(dag_module.DagModel)[name] for name in ("get_team_name", "get_dag_id_to_team_name_mapping")}
    names.guard(dag_module)
    try:
        assert dag_module.DagModel.get_team_name("to_come") is None
        assert write(rich("to_come", "mine"), bundle=ALPHA) == {}
        assert dag_module.DagModel.get_team_name("to_come") == "alpha"
        names.move(["to_come"], BETA, None)
        assert dag_module.DagModel.get_team_name("to_come") == "beta"
        assert dag_module.DagModel.get_dag_id_to_team_name_mapping(["to_come", "unknown"]) == {"to_come": "beta"}
        # Whoever asks: not even what narrows a person's queries hides whose it is.
        with narrowed():
            assert dag_module.DagModel.get_team_name("to_come") == "beta"
            assert dag_module.DagModel.get_dag_id_to_team_name_mapping(["to_come"]) == {"to_come": "beta"}
    finally:
        for name, function in before.items():
            setattr(dag_module.DagModel, name, function)


@contextmanager
def narrowed() -> Iterator[None]:
    """A person's request, in which queries see no Dag."""

    def narrow(state: Any) -> None:
        if state.is_select and not requests.is_unfiltered():
            state.statement = state.statement.options(with_loader_criteria(DagModel, false()))

    event.listen(Session, "do_orm_execute", narrow)
    try:
        with _session() as session:
            assert session.scalars(select(DagModel.dag_id)).all() == []
        yield
    finally:
        event.remove(Session, "do_orm_execute", narrow)


def move(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["dags", "move", *arguments])


def test_the_platform_moves_dags(parsing: None) -> None:  # noqa: ARG001
    assert write(rich("first", "mine"), rich("second", "mine", file="second.py"), bundle=ALPHA) == {}
    done = move("first", "second", "--to", BETA, "--output", "json")
    assert done.exit_code == 0, done.output
    alpha, beta = ({"bundle": f"of {team_id}", "team_id": team_id} for team_id in ("alpha", "beta"))
    assert json.loads(done.stdout) == [
        {"dag_id": dag_id, "from": alpha, "to": beta, "result": "moved"} for dag_id in ("first", "second")
    ]
    # Nothing runs until a file of the new bundle declares it, and the old one's file is an import error.
    assert not runs("first")
    assert "Dag first belongs to team beta" in write(rich("first", "mine"), bundle=ALPHA)["dags.py"]
    assert not runs("first")
    assert write(rich("first", "theirs"), bundle=BETA) == {}
    assert runs("first")
    with _session() as session:
        told = session.scalars(select(Log.extra).where(Log.event == names.MOVED, Log.dag_id == "first")).all()
    assert told == ["from team alpha (bundle of alpha) to team beta (bundle of beta)"]
    again = move("first", "--to-team", "beta")
    assert again.exit_code == 0
    assert "unchanged" in again.stdout
    assert runs("first")


def test_a_dag_of_a_bundle_that_is_gone_is_moved(sync: Callable[..., None]) -> None:
    assert write(rich("left", "mine"), bundle=ALPHA) == {}
    sync(beta="beta")
    done = move("left", "--to-team", "beta")
    assert done.exit_code == 0, done.output
    assert "from team alpha (bundle of alpha)" in done.stdout
    assert write(rich("left", "theirs"), bundle=BETA) == {}


def test_all_dags_of_a_bundle_are_moved(parsing: None) -> None:  # noqa: ARG001
    _put("of old", None, active=False)
    assert write(rich("old_one", "mine"), rich("old_two", "mine", file="two.py"), bundle="of old") == {}
    done = move("--from", "of old", "--to", BETA, "--output", "json")
    assert done.exit_code == 0, done.output
    assert [row["dag_id"] for row in json.loads(done.stdout)] == ["old_one", "old_two"]
    assert everything("old_two")["bundle_name"] == BETA


CANNOT: dict[str, tuple[list[str], str]] = {
    "a Dag that is not there": (["known", "unknown", "--to", BETA], "no Dag unknown"),
    "a bundle that is not there": (["known", "--to", "nowhere"], "No bundle nowhere is configured"),
    "a team that is not there": (["known", "--to-team", "nobody"], "Team nobody has no bundle"),
    "a team with several bundles": (["known", "--to-team", "beta"], "several bundles"),
    "no Dag": (["--to", BETA], "either their ids or --from BUNDLE"),
    "a Dag and a bundle": (["known", "--from", ALPHA, "--to", BETA], "either their ids or --from BUNDLE"),
    "a bundle without Dags": (["--from", "nowhere", "--to", BETA], "Bundle nowhere has no Dags"),
    "nowhere": (["known"], "either --to BUNDLE or --to-team TEAM"),
    "both": (["known", "--to", BETA, "--to-team", "beta"], "either --to BUNDLE or --to-team TEAM"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_nothing_is_moved_if_not_all_can_be(parsing: None, case: str) -> None:  # noqa: ARG001
    _put("beta too", "beta", active=True)
    arguments, told = CANNOT[case]
    assert write(rich("known", "mine"), bundle=ALPHA) == {}
    before = everything("known")
    done = move(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert everything("known") == before | {"last_parsed_time": everything("known")["last_parsed_time"]}
    _put("beta too", None, active=False)
