"""The datasets' door: the asset manager. Whose event may start whose Dag is two questions, each to who owns something.

Of each Dag that waits for an asset: may this event start it? Of the event: may it go to that Dag? All of one event are
asked together, inside the transaction that registers it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from airflow.assets.manager import AssetManager
from airflow.configuration import conf
from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.log import Log
from msgspec import UNSET
from sqlalchemy import delete, select

from airflow_team_authz import airflow_compat
from airflow_team_authz.decision_log import origin
from airflow_team_authz.doors.decision_point import decision_point, settings
from airflow_team_authz.escaping import logger
from airflow_team_authz.identities import requests
from airflow_team_authz.identities.machines import task_of_dag, teams_of_dags
from airflow_team_authz.model import AssetNames, Decision, Delivery, EngineError, Evaluations, Resource, Subject
from airflow_team_authz.settings import SettingsError
from airflow_team_authz.texts import TEXT_BYTES, fitting, fitting_reasons

if TYPE_CHECKING:
    # Not at run time: this is loaded while Airflow's models are.
    from airflow.models import DagModel
    from sqlalchemy.orm import Session

log = logger(__name__)

# Rows of Airflow's audit log, each with the Dag that was not started. What is held back may take several rows.
HELD_BACK = "asset event held back"
HELD_BACK_PART = "asset event held back, continued"
REFUSED = "asset event refused"
REPLAYED = "asset event replayed"


class _Change(NamedTuple):
    """Arguments of `register_asset_change` that name the source."""

    source_is_api: bool
    api_user_teams: Collection[str]


class _Consent(NamedTuple):
    """Airflow's knowledge of the authors' consent, and its own decision."""

    airflow_allows: Collection[str]
    consumer_teams: list[str] | None
    global_consumers: bool


_ERROR_BYTES = 1_000

_change: ContextVar[_Change | None] = ContextVar("team_authz_asset_change", default=None)
_consent: ContextVar[_Consent | None] = ContextVar("team_authz_asset_consent", default=None)
_watching: ContextVar[int | None] = ContextVar("team_authz_watching", default=None)


class TeamAssetManager(AssetManager):
    """Airflow's asset manager, with the policy between an event and the Dags that wait for it."""

    @classmethod
    def register_asset_change(cls, *, session: Session, **named: Any) -> AssetEvent | None:
        """See ``AssetManager``."""
        change = _Change(bool(named.get("source_is_api")), named.get("api_user_teams") or ())
        # Whoever makes the event, it is decided here about every Dag that waits for it.
        with _set(_change, change), _set(_consent, None), requests.unfiltered():
            event = super().register_asset_change(session=session, **named)
            # Written now, while it is this door's: the request may write nothing of the Dags that it starts.
            session.flush()
            return event

    @classmethod
    def _filter_dags_by_team(cls, dags_to_queue: set[DagModel], *arguments: Any, **named: Any) -> set[DagModel]:
        """Note what Airflow would do, and leave all of them to the policy."""
        allowed = super()._filter_dags_by_team(dags_to_queue, *arguments, **named)
        teams, others = named.get("allow_consumer_teams"), named.get("allow_global_consumers", True)
        _consent.set(_Consent({dag.dag_id for dag in allowed}, teams, others))
        return dags_to_queue

    @classmethod
    def _queue_dagruns(
        cls,
        *,
        asset_id: int,
        dags_to_queue: set[DagModel],
        event: AssetEvent,
        task_instance: Any = None,
        session: Session,
        **named: Any,
    ) -> None:
        source = _source(task_instance, session)
        question = _question(source, asset_id, dags_to_queue, session)
        allowed = _allowed(question, event, dags_to_queue, named.get("partition_date"), session)
        super()._queue_dagruns(
            asset_id=asset_id,
            dags_to_queue=allowed,
            event=event,
            task_instance=task_instance,
            session=session,
            **named,
        )


class _Source(NamedTuple):
    """The author of an event, and the teams of that author."""

    subject: Subject
    teams: tuple[str, ...]

    def team_for(self, consumer: str | None) -> str | None:
        """The team that an event counts for where it goes to a team's Dag: a person's is of each of the person's."""
        if self.subject.type == "user":
            return consumer if consumer in self.teams else None
        return next(iter(self.teams), None)


def _teams(team_id: str | None) -> tuple[str, ...]:
    return () if team_id is None else (team_id,)


def _source(task_instance: Any, session: Session) -> _Source:
    if task_instance is not None:
        dag_id = str(task_instance.dag_id)
        team_id = teams_of_dags([dag_id], session)[dag_id]
        task = task_of_dag(dag_id, str(task_instance.task_id), str(task_instance.run_id), team_id)
        return _Source(task, _teams(team_id))
    if (trigger_id := _watching.get()) is not None:
        from airflow.models.trigger import Trigger

        trigger = session.get(Trigger, trigger_id)
        of_trigger = _teams(airflow_compat.team_of_trigger(trigger))
        names = sorted({watcher.name for watcher in getattr(trigger, "asset_watchers", ())})
        return _Source(Subject("watcher", ", ".join(names) or "unnamed", of_trigger), of_trigger)
    change = _change.get()
    # Airflow knows the teams that a person is in.
    teams = tuple(sorted(change.api_user_teams)) if change else ()
    return _Source(requests.remembered() or Subject("user", "unknown", teams), teams)


def _question(source: _Source, asset_id: int, dags: Iterable[DagModel], session: Session) -> Evaluations:
    """Two resources for each Dag, in order: its run, which the event would start, and the event that would go there."""
    ordered = sorted(dags, key=lambda dag: dag.dag_id)
    asset = session.get_one(AssetModel, asset_id)
    names = AssetNames(asset.name, asset.uri, asset.group or "")
    consent = _consent.get() or _Consent({dag.dag_id for dag in ordered}, None, True)
    references = {reference.dag_id: reference for reference in asset.scheduled_dags}
    teams = teams_of_dags([dag.dag_id for dag in ordered], session)
    resources = []
    for dag in ordered:
        producers = airflow_compat.producers(references.get(dag.dag_id))
        delivery = Delivery(
            dag.dag_id,
            teams[dag.dag_id],
            names,
            producers.from_common_dags,
            consent.global_consumers,
            dag.dag_id in consent.airflow_allows,
            producers.from_teams,
            UNSET if consent.consumer_teams is None else tuple(consent.consumer_teams),
        )
        resources.append(Resource("dag", delivery.team_id, dag.dag_id, "run", delivery=delivery))
        producer = source.team_for(delivery.team_id)
        resources.append(
            Resource("asset", producer, str(asset.id), "event", names.name, names.uri, names.group, delivery)
        )
    return Evaluations(source.subject, "trigger", resources)


def _allowed(
    question: Evaluations,
    event: AssetEvent,
    dags: Collection[DagModel],
    partition_date: datetime | None,
    session: Session,
) -> set[DagModel]:
    """The Dags that the event may start. What it may not is in the audit log of the Dag, with the reason."""
    if not dags:
        return set()
    by_id = {dag.dag_id: dag for dag in dags}
    try:
        with origin.at("datasets"):
            answers = decision_point().decide_by_owner(question)
    except (EngineError, SettingsError) as error:
        return _without_decision(question, event, by_id, partition_date, str(error), session)
    allowed = set()
    # Two resources for each Dag: its run, and the event that goes there.
    for place in range(0, len(answers), 2):
        resources, pair = question.resources[place : place + 2], answers[place : place + 2]
        dag_id = str(resources[0].id)
        if failed := [answer for answer in pair if isinstance(answer, EngineError)]:
            # Of one owner: the others' Dags do not wait for that one's rules.
            part = msgspec.structs.replace(question, resources=resources)
            allowed |= _without_decision(part, event, by_id, partition_date, str(failed[0]), session)
        elif reasons := _against([answer for answer in pair if isinstance(answer, Decision)]):
            session.add(_row(REFUSED, dag_id, question.subject, _told(event.id, reasons)))
        else:
            allowed.add(by_id[dag_id])
    return allowed


def _against(decisions: Sequence[Decision]) -> list[str]:
    """The reasons against a delivery; none if both its owners allow it."""
    refused = [decision for decision in decisions if decision.allow is not True]
    reasons = [reason for decision in refused for reason in decision.reasons]
    return reasons or (["no reason given"] if refused else [])


def _without_decision(
    question: Evaluations,
    event: AssetEvent,
    dags: dict[str, DagModel],
    partition_date: datetime | None,
    error: str,
    session: Session,
) -> set[DagModel]:
    """Hold back what cannot be decided; `team-authz assets replay` asks again."""
    own_start = _own_dags_start() and question.subject.type != "user"
    own = {None, *(question.subject.team_ids or ())}
    started = set()
    for run, sent in zip(question.resources[::2], question.resources[1::2], strict=True):
        dag_id = str(run.id)
        if own_start and run.team_id in own and run.delivery and run.delivery.airflow_allows:
            started.add(dags[dag_id])
            continue
        held = HeldDelivery(
            event.id, event.asset_id, question.subject, (run, sent), partition_date, fitting(error, _ERROR_BYTES)
        )
        _hold_back(held, dag_id, session)
    log.error(
        "an event of asset %s starts %d of %d Dags, because no decision can be had (%s): "
        "`team-authz assets replay` asks again for the others",
        event.asset_id, len(started), len(dags), error,
    )  # fmt: skip
    return started


def _own_dags_start() -> bool:
    try:
        return settings().own_dags_without_decision == "start"
    except SettingsError:
        return False


class HeldDelivery(msgspec.Struct, frozen=True):
    """A delivery that waits for a decision, as the audit log keeps it."""

    event_id: int
    asset_id: int
    subject: Subject
    resources: tuple[Resource, Resource]
    partition_date: datetime | None
    error: str

    @property
    def asset(self) -> str:
        """The asset's name."""
        delivery = self.resources[0].delivery
        return delivery.asset.name if isinstance(delivery, Delivery) else ""


class _Parts(msgspec.Struct, frozen=True):
    """Where the rest is of what did not fit into one row."""

    parts: tuple[int, ...] = ()


class Waiting(NamedTuple):
    """A Dag that was not started, and since when (ISO 8601)."""

    dag_id: str
    since: str
    held: HeldDelivery


class ReplayResult(NamedTuple):
    """The result for a delivery that waited; ``state`` is one of the audit log's events."""

    dag_id: str
    event_id: int
    state: str
    reasons: tuple[str, ...]


def held_back() -> list[Waiting]:
    """The deliveries that wait for a decision, oldest first."""
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        return [
            Waiting(str(row.dag_id), row.dttm.isoformat() if row.dttm else "", held)
            for row, held in _held_back(session)
        ]


def replay() -> Iterator[ReplayResult]:
    """Ask again for each delivery that waits, and start the Dag if it is allowed now.

    The first ``EngineError`` ends it. Each is committed by itself: whoever is interrupted goes on where it ended.
    """
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        for row, held in _held_back(session):
            outcome = _replay(row, held, session)
            session.commit()
            yield outcome


def _held_back(session: Session) -> list[tuple[Log, HeldDelivery]]:
    rows = session.scalars(select(Log).where(Log.event == HELD_BACK).order_by(Log.id))
    return [(row, msgspec.json.decode(_held_text(row, session), type=HeldDelivery)) for row in rows]


def _replay(row: Log, held: HeldDelivery, session: Session) -> ReplayResult:
    from airflow.models import DagModel

    dag_id = str(row.dag_id)
    event, dag = session.get(AssetEvent, held.event_id), session.get(DagModel, dag_id)
    if event is None or dag is None or session.get(AssetModel, held.asset_id) is None:
        against = ["the event, its asset or the Dag does not exist any more"]
    else:
        question = _question_now(held, dag, session)
        with origin.at("datasets"):
            against = _against(decision_point().decide(question).decisions)
        if not against:
            named = {"partition_date": held.partition_date}
            AssetManager._queue_dagruns(
                asset_id=held.asset_id, dags_to_queue={dag}, event=event, partition_key=event.partition_key,
                task_instance=None, session=session,
                **airflow_compat.known_arguments(AssetManager._queue_dagruns, named),
            )  # fmt: skip
    row.event = REFUSED if against else REPLAYED
    session.execute(delete(Log).where(Log.id.in_(_parts(row))))
    row.extra = _told(held.event_id, tuple(against))
    return ReplayResult(dag_id, held.event_id, row.event, tuple(against))


def _question_now(held: HeldDelivery, dag: DagModel, session: Session) -> Evaluations:
    """The question about such an event at present: Dags move to other teams, and authors change their minds."""
    source = _source_now(held, session)
    with _set(_consent, None):
        if airflow_compat.compares_teams_of_events(AssetManager):
            asset = session.get_one(AssetModel, held.asset_id)
            of_person = source.subject.type == "user"
            consumers = _consumers_now(held, session)
            TeamAssetManager._filter_dags_by_team(
                {dag}, set(source.teams), asset, of_person, session=session, **consumers
            )
        return _question(source, held.asset_id, [dag], session)


def _source_now(held: HeldDelivery, session: Session) -> _Source:
    """The author of the event, and that author's present teams."""
    subject = held.subject
    if subject.type == "user":
        standing, _ = decision_point().whoami(subject)
        return _Source(subject, tuple(team_id for team_id, roles in standing.team_roles.items() if roles))
    if isinstance(subject.dag_id, str):
        from airflow.models import DagModel

        # What is left of a Dag that is gone is still its team's.
        if session.get(DagModel, subject.dag_id) is not None:
            return _Source(subject, _teams(teams_of_dags([subject.dag_id], session)[subject.dag_id]))
    return _Source(subject, _teams(held.resources[1].team_id))


def _consumers_now(held: HeldDelivery, session: Session) -> dict[str, Any]:
    """Which teams get the event: a task's author may have changed it, what a person said of the event stays."""
    from airflow.models.asset import TaskOutletAssetReference as Outlet

    subject, delivery = held.subject, held.resources[0].delivery
    if isinstance(subject.dag_id, str):
        task = (Outlet.dag_id == subject.dag_id, Outlet.task_id == subject.task_id)
        outlet = session.scalar(select(Outlet).where(Outlet.asset_id == held.asset_id, *task))
        if outlet is not None:
            teams, others = outlet.allow_consumer_teams, outlet.allow_global_consumers
            return {"allow_consumer_teams": teams, "allow_global_consumers": others}
    assert isinstance(delivery, Delivery)  # noqa: S101
    named = None if delivery.consumer_teams is UNSET else list(delivery.consumer_teams)
    return {"allow_consumer_teams": named, "allow_global_consumers": delivery.global_consumers}


def _told(event_id: int, reasons: Iterable[str]) -> str:
    return _encode({"event_id": event_id, "reasons": fitting_reasons(reasons)})


def _row(event: str, dag_id: str, subject: Subject, extra: str) -> Log:
    """A row of the audit log, which must never fail: the state of the task that made the event depends on it."""
    return Log(event, dag_id=dag_id, owner=fitting(subject.id, Log.owner.type.length), extra=extra)


def _hold_back(held: HeldDelivery, dag_id: str, session: Session) -> None:
    """Keep a delivery; what does not fit into one row goes on in others, which the first one names."""
    text = _encode(held)
    row = _row(HELD_BACK, dag_id, held.subject, text)
    if len(text.encode()) > TEXT_BYTES:
        # In characters, each of which may take four bytes.
        size = TEXT_BYTES // 4
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        parts = [_row(HELD_BACK_PART, dag_id, held.subject, piece) for piece in pieces]
        session.add_all(parts)
        session.flush()
        row.extra = _encode({"parts": [part.id for part in parts]})
    session.add(row)


def _held_text(row: Log, session: Session) -> str:
    parts = _parts(row)
    if not parts:
        return row.extra or ""
    pieces = {part.id: part.extra or "" for part in session.scalars(select(Log).where(Log.id.in_(parts)))}
    return "".join(pieces[id_] for id_ in parts)


def _parts(row: Log) -> tuple[int, ...]:
    return msgspec.json.decode(row.extra or "", type=_Parts).parts


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``: our asset manager is the default, and watchers' events reach it too."""
    {"airflow.assets.manager": _guard_manager, "airflow.models.trigger": _guard_watchers}[module.__name__](module)


def _guard_manager(module: Any) -> None:
    name = conf.get("core", "asset_manager_class", fallback="") or ""
    if type(module.asset_manager) is AssetManager:
        module.asset_manager = TeamAssetManager()  # type: ignore[no-untyped-call]
    elif not isinstance(module.asset_manager, TeamAssetManager):
        raise SettingsError(
            f"[core] asset_manager_class: {name} does not ask the policy. Make it a subclass of "
            "airflow_team_authz.TeamAssetManager, or set that"
        )


def _guard_watchers(module: Any) -> None:
    """Airflow hands a watcher's event to the base class, which would start Dags of every team."""
    from airflow.assets.manager import asset_manager

    submit = module.Trigger.submit_event.__func__

    def submit_event(cls: Any, trigger_id: int, *arguments: Any, **named: Any) -> None:
        with _set(_watching, trigger_id):
            submit(cls, trigger_id, *arguments, **named)

    module.Trigger.submit_event = classmethod(submit_event)
    module.AssetManager = type(asset_manager)
