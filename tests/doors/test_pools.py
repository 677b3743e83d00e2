"""Parsed Dags enter the database only if they may use their pools; without a decision what ran runs on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from airflow import settings
from airflow.dag_processing import collection
from airflow.models import DagModel, Pool
from airflow.models.dagwarning import DagWarning
from airflow.models.errors import ParseImportError
from airflow.models.serialized_dag import SerializedDagModel
from airflow.sdk import DAG, BaseOperator, TaskGroup
from airflow.sdk.bases.operator import OPERATOR_DEFAULTS
from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
from sqlalchemy import select

from airflow_team_authz.doors import decision_point, pools
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Decision, UnreachableError
from tests.conftest import eventually, log_without_sinks
from tests.decision_log.conftest import Made
from tests.doors.conftest import Recording

BUNDLE = "of alpha"


class Work(BaseOperator):
    """A task that may be mapped."""

    def __init__(self, *, number: int = 0, **named: Any) -> None:
        super().__init__(**named)
        self.number = number


def made(dag_id: str, *used: str | None, mapped: str | None = None, file: str = "dags.py") -> LazyDeserializedDAG:
    """A parsed Dag with a task for each pool; ``None`` where the author names none."""
    with DAG(dag_id, schedule=None) as dag:
        for number, pool in enumerate(used):
            Work(task_id=f"t{number}", **({"pool": pool} if pool else {}))
        if mapped:
            Work.partial(task_id="mapped", pool=mapped).expand(number=[1, 2])
    # Airflow keeps the source of a Dag, so there must be some.
    dag.fileloc, dag.relative_fileloc = __file__, file
    return LazyDeserializedDAG.from_dag(dag)


@pytest.fixture(scope="module")
def engine(bundles: dict[str, Path]) -> Iterator[Recording]:
    recording = Recording(bundles["example"])
    yield recording
    recording.close()


@pytest.fixture
def parsing(
    database: None, engine: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path  # noqa: ARG001
) -> Recording:  # fmt: skip
    """Airflow's function with the door in it, and nothing known from before."""
    monkeypatch.setattr(collection, "update_dag_parsing_results_in_db", collection.update_dag_parsing_results_in_db)
    pools.guard(collection)
    point = DecisionPoint(engine, log_without_sinks())
    monkeypatch.setattr(pools, "decision_point", lambda: point)
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__STATE", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    _forget()
    engine.asked.clear()
    return engine


def _forget() -> None:
    decision_point.forget()
    pools._known.clear()
    pools._directory.cache_clear()


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch, parsing: Recording) -> Iterator[Any]:  # noqa: ARG001
    """Nobody answers, from when this is called."""

    class Gone:
        def decide(self, _: Any) -> Any:
            raise UnreachableError("nobody answers at unix:///x")

        whoami = decide_by_owner = decide

    return lambda: monkeypatch.setattr(pools, "decision_point", Gone)


def write(*dags: LazyDeserializedDAG, bundle: str = BUNDLE) -> dict[str, str]:
    """The import errors by file, as the database has them afterwards."""
    assert settings.Session is not None
    files = {(bundle, str(dag.relative_fileloc)) for dag in dags}
    with settings.Session() as session:
        collection.update_dag_parsing_results_in_db(
            bundle, None, list(dags), {}, None, set(), session, files_parsed=files
        )
        session.commit()
        rows = session.scalars(select(ParseImportError).where(ParseImportError.bundle_name == bundle))
        parsed = {file for _, file in files}
        return {str(row.filename): str(row.stacktrace) for row in rows if row.filename in parsed}


def runs(dag_id: str) -> bool:
    """Whether the scheduler would start the Dag."""
    assert settings.Session is not None
    with settings.Session() as session:
        dag = session.get(DagModel, dag_id)
        return dag is not None and not dag.is_stale and not dag.has_import_errors


def pools_of(dag_id: str) -> set[str]:
    """The pools that the scheduler takes slots of."""
    assert settings.Session is not None
    with settings.Session() as session:
        dag = SerializedDagModel.get_dag(dag_id, session=session)
        assert dag is not None
        return {task.pool for task in dag.tasks}


@pytest.mark.parametrize("used", [["alpha_pool"], ["pool"], [None], ["alpha_pool", "pool", None]], ids=str)
def test_own_and_common_pools_pass(parsing: Recording, used: list[str | None]) -> None:
    assert write(made("fine", *used)) == {}
    assert runs("fine")
    asked = [question for entrypoint, question in parsing.asked if entrypoint == "decisions"]
    assert len(asked) == 1
    assert (asked[0]["action"], asked[0]["subject"]) == (
        "use", {"type": "dag_processor", "id": BUNDLE, "team_ids": ["alpha"]},
    )  # fmt: skip


def test_another_teams_pool_is_an_import_error(parsing: Recording) -> None:  # noqa: ARG001
    errors = write(made("greedy", "alpha_pool", "beta_pool"), made("other", "alpha_pool", file="other.py"))
    assert errors == {"dags.py": "Dag greedy, task t1: pool beta_pool may not be used: it belongs to another team"}
    assert not runs("greedy")
    assert runs("other")
    assert write(made("greedy", "alpha_pool")) == {}
    assert runs("greedy")


def test_the_import_error_names_no_owner_and_the_log_does(
    parsing: Recording, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture  # noqa: ARG001
) -> None:  # fmt: skip
    told = "may not use pool beta_pool of team beta: that takes a dag_processor of team beta"
    for refusals in ("explain", "conceal"):
        monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", refusals)
        decision_point.forget()
        with caplog.at_level("INFO"):
            (error,) = write(made("greedy", "beta_pool")).values()
            eventually(lambda: told in caplog.text)
        assert "team beta" not in error
        caplog.clear()
    assert write(made("greedy", "alpha_pool")) == {}


def test_a_refused_pool_is_recorded_with_its_door(parsing: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Made("denied")
    monkeypatch.setattr(pools, "decision_point", lambda: DecisionPoint(parsing, recorded.log))
    write(made("refused", "beta_pool", "alpha_pool"))
    (record,) = recorded.records()
    assert record["custom"]["door"] == "pools"
    assert record["input"]["subject"]["type"] == "dag_processor"
    said = dict(zip([pool["id"] for pool in record["input"]["resources"]], record["result"], strict=True))
    assert {pool: decision["allow"] for pool, decision in said.items()} == {"alpha_pool": True, "beta_pool": False}


def test_what_a_dags_author_writes_makes_no_line_of_its_own(parsing: Recording) -> None:  # noqa: ARG001
    odd = "beta\n\x1b[32mall is well\u202e"
    assert settings.Session is not None
    with settings.Session() as session:
        session.add(Pool(pool=odd, team_name="beta", slots=1, include_deferred=False))
        session.commit()
    (error,) = write(made("odd", odd)).values()
    assert error.isprintable()
    assert "pool beta\\n\\x1b[32mall is well\\u202e may not be used" in error


def test_a_mapped_tasks_pool_counts(parsing: Recording) -> None:  # noqa: ARG001
    assert "task mapped: pool beta_pool" in write(made("many", "pool", mapped="beta_pool"))["dags.py"]
    assert write(made("many", "pool", mapped="alpha_pool")) == {}


def written(dag: LazyDeserializedDAG, change: Callable[[dict[str, Any]], None]) -> LazyDeserializedDAG:
    """A Dag as the process that runs its file may hand it over, whatever that file has done in there."""
    change(dag.data)
    return dag


def _default(data: dict[str, Any]) -> None:
    data.setdefault("client_defaults", {}).setdefault("tasks", {})["pool"] = "beta_pool"


def _above(data: dict[str, Any]) -> None:
    (mapped,) = (task["__var"] for task in data["dag"]["tasks"] if task["__var"].get("_is_mapped"))
    del mapped["partial_kwargs"]["pool"]
    mapped["pool"] = "beta_pool"


def _in_groups(dag_id: str) -> LazyDeserializedDAG:
    with (
        DAG(dag_id, schedule=None, default_args={"pool": "pool"}) as dag,
        TaskGroup("g", default_args={"pool": "beta_pool"}),
    ):
        Work(task_id="t0")
    dag.fileloc, dag.relative_fileloc = __file__, "dags.py"
    return LazyDeserializedDAG.from_dag(dag)


def _in_a_dags_defaults(dag_id: str) -> LazyDeserializedDAG:
    with DAG(dag_id, schedule=None, default_args={"pool": "beta_pool"}) as dag:
        Work(task_id="t0")
    dag.fileloc, dag.relative_fileloc = __file__, "dags.py"
    return LazyDeserializedDAG.from_dag(dag)


def _as_setup(dag_id: str) -> LazyDeserializedDAG:
    with DAG(dag_id, schedule=None) as dag:
        Work(task_id="t0", pool="beta_pool").as_setup() >> Work(task_id="t1").as_teardown()
    dag.fileloc, dag.relative_fileloc = __file__, "dags.py"
    return LazyDeserializedDAG.from_dag(dag)


# Wherever the scheduler takes a task's pool from.
HIDDEN: dict[str, Callable[[str], LazyDeserializedDAG]] = {
    "the operators' defaults": lambda dag_id: written(made(dag_id, None), _default),
    "the operators' defaults, of a mapped task": lambda dag_id: written(made(dag_id, mapped="default_pool"), _default),
    "a mapped task, beside what it makes": lambda dag_id: written(made(dag_id, mapped="pool"), _above),
    "the defaults of a group": _in_groups,
    "the defaults of a Dag": _in_a_dags_defaults,
    "a setup task": _as_setup,
}


@pytest.mark.parametrize("place", HIDDEN)
def test_wherever_a_pool_is_named_it_is_asked_about(parsing: Recording, place: str) -> None:  # noqa: ARG001
    dag_id = f"hidden_{len(place)}"
    dag = HIDDEN[place](dag_id)
    # As the scheduler reads it.
    read = {task.pool for task in DagSerialization.from_dict(copy.deepcopy(dag.data)).tasks}
    errors = write(dag)
    assert ("beta_pool" in read) == ("pool beta_pool may not be used" in errors.get("dags.py", ""))
    assert runs(dag_id) == ("beta_pool" not in read)
    if "mapped" not in place:
        assert "beta_pool" in read


def test_a_file_that_changes_the_operators_defaults_is_seen(
    parsing: Recording, monkeypatch: pytest.MonkeyPatch  # noqa: ARG001
) -> None:  # fmt: skip
    """As a Dag file does it: no task names the pool, and the scheduler takes slots of it."""
    monkeypatch.setitem(OPERATOR_DEFAULTS, "pool", "beta_pool")
    errors = write(made("changed", None, mapped="beta_pool"))
    assert "task t0, mapped: pool beta_pool may not be used" in errors["dags.py"]
    assert not runs("changed")


@pytest.mark.parametrize("pool", [["beta_pool"], 7, None, {"__type": "dict", "__var": {}}], ids=str)
def test_what_is_no_name_of_a_pool_is_an_import_error(parsing: Recording, pool: Any) -> None:  # noqa: ARG001
    def change(data: dict[str, Any]) -> None:
        data["dag"]["tasks"][0]["__var"]["pool"] = pool

    errors = write(written(made("odd", "pool"), change), made("beside", "pool", file="beside.py"))
    assert set(errors) == {"dags.py"}
    assert "is no name of a pool" in errors["dags.py"]
    assert not runs("odd")


def test_what_cannot_be_deserialized_is_an_import_error(parsing: Recording) -> None:  # noqa: ARG001
    def change(data: dict[str, Any]) -> None:
        data["dag"]["tasks"][0]["__var"]["retry_delay"] = "soon"

    errors = write(written(made("broken", "pool"), change), made("beside", "pool", file="beside.py"))
    assert errors == {"dags.py": "Dag broken cannot be deserialized: DeserializationError"}


def test_many_tasks_are_told_in_short(parsing: Recording) -> None:  # noqa: ARG001
    assert "task t0, t1, t2, t3, t4 and 15 more tasks:" in write(made("huge", *["beta_pool"] * 20))["dags.py"]


@pytest.mark.parametrize("reason", ["r" * 200_000, "\0" * 100_000, "ß🚀" * 50_000], ids=["long", "NUL", "wide"])
@pytest.mark.parametrize("answered", [True, False])
def test_no_text_is_too_long_for_an_import_error(
    parsing: Recording, monkeypatch: pytest.MonkeyPatch, reason: str, answered: bool  # noqa: ARG001
) -> None:  # fmt: skip
    class Talking:
        def decide_by_owner(self, question: Any) -> Any:
            if not answered:
                raise UnreachableError(reason)
            return [Decision(False, (reason,), "default")] * len(question.resources)

    monkeypatch.setattr(pools, "decision_point", Talking)
    told = write(made("greedy", "unknown_pool"))["dags.py"]
    assert told.startswith("Dag greedy, task t0: pool unknown_pool")
    # MySQL's TEXT takes no more, and PostgreSQL no NUL.
    assert len(told.encode()) <= 65_535
    assert "\0" not in told


def test_common_dags_use_common_pools(parsing: Recording) -> None:  # noqa: ARG001
    errors = write(made("shared", "pool", None), made("wrong", "alpha_pool", file="wrong.py"), bundle="of None")
    assert list(errors) == ["wrong.py"]


def test_a_teams_rule_opens_its_pool(bundles: dict[str, Path], parsing: Recording) -> None:  # noqa: ARG001
    """The example's alpha keeps its interns out of a pool; nobody parses as one of them."""
    assert write(made("prod", "alpha_production")) == {}


def warnings(*dag_ids: str) -> dict[str, str]:
    """What Airflow tells the readers of these Dags about pools that do not exist."""
    assert settings.Session is not None
    with settings.Session() as session:
        wanted = (DagWarning.dag_id.in_(dag_ids), DagWarning.warning_type == "non-existent pool")
        return {row.dag_id: row.message for row in session.scalars(select(DagWarning).where(*wanted))}


WAITS = "does not exist, so what uses it waits for ever."


def test_a_pool_that_does_not_exist_is_a_warning_of_the_dag(parsing: Recording) -> None:  # noqa: ARG001
    assert write(made("lonely", "nowhere", "pool", mapped="not here"), made("well", "pool")) == {}
    assert runs("lonely")
    told = (
        f"Dag lonely, task mapped: pool not here {WAITS} Create the pool, or name another one",
        f"Dag lonely, task t0: pool nowhere {WAITS} Create the pool, or name another one",
    )
    assert warnings("lonely", "well") == {"lonely": "\n".join(told)}
    with created("nowhere", "alpha"), created("not here", None):
        assert write(made("lonely", "nowhere", "pool", mapped="not here")) == {}
        assert warnings("lonely") == {}
    # They are gone since.
    assert write(made("lonely", "pool", mapped="not here")) == {}
    assert warnings("lonely") == {"lonely": told[0]}
    assert write(made("lonely", "pool")) == {}
    assert warnings("lonely") == {}


@contextmanager
def created(name: str, team_id: str | None) -> Iterator[None]:
    assert settings.Session is not None
    with settings.Session() as session:
        pool = Pool(pool=name, team_name=team_id, slots=1, include_deferred=False)
        session.add(pool)
        session.commit()
        yield
        session.delete(pool)
        session.commit()


@pytest.mark.parametrize("gone", [False, True], ids=["decided", "nobody answers"])
def test_a_teams_default_pool_that_does_not_exist_is_a_warning(
    parsing: Recording, monkeypatch: pytest.MonkeyPatch, outage: Any, gone: bool  # noqa: ARG001
) -> None:  # fmt: skip
    point = with_default(pools.decision_point(), "alpha_slots")
    monkeypatch.setattr(pools, "decision_point", lambda: point)
    assert write(made("unslotted", None, "pool"), made("named", "pool")) == {}
    if gone:
        outage()
        assert write(made("unslotted", None, "pool"), made("named", "pool")) == {}
    assert pools_of("unslotted") == {"alpha_slots", "pool"}
    told = (
        f"Dag unslotted, task t0: pool alpha_slots {WAITS} It is the default_pool in the data of the team's policy: "
        "create the pool, or correct the data"
    )
    assert warnings("unslotted", "named") == {"unslotted": told}
    with created("alpha_slots", None):
        assert write(made("unslotted", None, "pool")) == {}
        assert warnings("unslotted") == {}


def test_default_pools_that_do_not_exist_are_found(parsing: Recording) -> None:  # noqa: ARG001
    point = pools.decision_point()
    assert pools.missing_default_pools(point) == {}
    assert pools.missing_default_pools(with_default(point, "alpha_slots")) == {"alpha": "alpha_slots"}
    assert pools.missing_default_pools(with_default(point, "alpha_pool")) == {}


def test_no_warning_about_pools_is_too_long_or_makes_a_line_of_its_own(
    parsing: Recording, strict: set[str]  # noqa: ARG001
) -> None:  # fmt: skip
    odd = [f"n\x1b{number}🚀" * 20 for number in range(1000)]
    assert write(made("talkative", *odd)) == {}
    assert "DagWarning.message" in strict
    assert all(line.isprintable() for line in warnings("talkative")["talkative"].split("\n"))
    assert write(made("talkative", "pool")) == {}


def with_default(point: Any, pool: str) -> Any:
    """The decision point, with this pool for alpha's tasks whose author names none."""

    class WithDefault:
        decide, decide_by_owner = point.decide, point.decide_by_owner

        def whoami(self, subject: Any) -> Any:
            standing, revision = point.whoami(subject)
            return msgspec.structs.replace(standing, default_pools={"alpha": pool}), revision

    return WithDefault()


@pytest.fixture
def default_pool(monkeypatch: pytest.MonkeyPatch, parsing: Recording) -> None:  # noqa: ARG001
    point = with_default(pools.decision_point(), "alpha_pool")
    monkeypatch.setattr(pools, "decision_point", lambda: point)


def test_a_teams_default_pool_is_for_who_names_none(default_pool: None) -> None:  # noqa: ARG001
    assert write(made("quiet", None, "pool", mapped="alpha_production")) == {}
    assert pools_of("quiet") == {"alpha_pool", "pool", "alpha_production"}
    assert write(made("common_quiet", None), bundle="of None") == {}
    assert pools_of("common_quiet") == {"default_pool"}


def test_an_outage_removes_no_dag(parsing: Recording, outage: Any) -> None:  # noqa: ARG001
    assert write(made("steady", "alpha_pool", None)) == {}
    outage()
    assert write(made("steady", "alpha_pool", None)) == {}
    assert runs("steady")
    # Also after a restart: the last answers are on disk.
    _forget()
    assert write(made("steady", "alpha_pool", None)) == {}
    assert runs("steady")


def test_a_new_question_waits_and_its_dag_stays_as_it_was(parsing: Recording, outage: Any) -> None:  # noqa: ARG001
    assert write(made("growing", "alpha_pool")) == {}
    outage()
    errors = write(made("growing", "alpha_pool", "alpha_production"), made("new", "pool", file="new.py"))
    assert set(errors) == {"dags.py", "new.py"}
    for error in errors.values():
        assert "no decision can be had (nobody answers at unix:///x)" in error
    assert runs("growing")
    assert pools_of("growing") == {"alpha_pool"}
    assert not runs("new")


def test_an_outage_allows_nothing_that_was_denied(parsing: Recording, outage: Any) -> None:  # noqa: ARG001
    denied = write(made("denied", "beta_pool"))
    outage()
    assert write(made("denied", "beta_pool")) == denied
    assert not runs("denied")


def test_a_pool_that_goes_to_another_team_is_another_question(parsing: Recording, outage: Any) -> None:  # noqa: ARG001
    assert settings.Session is not None
    assert write(made("moved", "pool", file="moved.py")) == {}
    outage()
    with settings.Session() as session:
        session.scalars(select(Pool).where(Pool.pool == "pool")).one().team_name = "beta"
        session.commit()
    try:
        assert "no decision can be had" in write(made("moved", "pool", file="moved.py"))["moved.py"]
        assert not write(made("elsewhere", "alpha_production", file="e.py")).get("e.py", "").startswith("Dag moved")
    finally:
        with settings.Session() as session:
            session.scalars(select(Pool).where(Pool.pool == "pool")).one().team_name = None
            session.commit()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"decisions": {"/pool": {"allow": "yes"}}}', b"\xff\xfe"], ids=repr
)
def test_what_is_on_disk_may_be_anything(
    parsing: Recording, outage: Any, content: bytes, caplog: pytest.LogCaptureFixture  # noqa: ARG001
) -> None:  # fmt: skip
    pools._file(BUNDLE).write_bytes(content)
    outage()
    assert "no decision can be had" in write(made("lost", "pool", file="lost.py"))["lost.py"]
    assert "cannot be read" in caplog.text


def test_what_cannot_be_kept_is_told(
    parsing: Recording, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture  # noqa: ARG001
) -> None:  # fmt: skip
    monkeypatch.setattr(pools, "_file", lambda _: Path("/proc/team_authz.json"))
    assert write(made("fine", "pool")) == {}
    assert "cannot be kept" in caplog.text
