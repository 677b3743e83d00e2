"""The pools door: Dags enter Airflow's database here. A Dag that uses another team's pool is an import error.

A pool that does not exist is a warning of the Dag.

This runs in the Dag processor itself, which no Dag's code can reach, and not in the child that has parsed the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from airflow.configuration import AIRFLOW_HOME
from airflow.models import DagModel, Pool
from airflow.models.dagwarning import DagWarning, DagWarningType
from airflow.models.team import Team
from airflow.utils.session import create_session
from sqlalchemy import select, update

from airflow_team_authz.decision_log import origin
from airflow_team_authz.doors import disclosure
from airflow_team_authz.doors.decision_point import decision_point, settings
from airflow_team_authz.escaping import escaped, logger
from airflow_team_authz.files import make_private, replace_file
from airflow_team_authz.identities.machines import dag_processor
from airflow_team_authz.model import Decision, EngineError, Evaluations, Resource, Subject
from airflow_team_authz.settings import SettingsError
from airflow_team_authz.texts import with_lines

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from airflow_team_authz.engines import DecisionPoint

log = logger(__name__)

_DEFAULT_POOL = Pool.DEFAULT_POOL_NAME
_SHOWN_TASKS = 5


class _LastAnswers(msgspec.Struct):
    """The last answers about a bundle: the team's default pool, and by each pool's name and team what was decided."""

    default_pool: str | None = None
    decisions: dict[str, Decision] = {}


class _Answers(NamedTuple):
    """Decisions about pools (``None``: no decision), the reason for a missing one, and the team's default pool."""

    decisions: dict[str, Decision | None]
    error: str
    default_pool: str | None


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``: what writes parsed Dags into the database asks about their pools first."""
    write: Any = module.update_dag_parsing_results_in_db

    def write_what_is_allowed(
        bundle_name: str,
        bundle_version: str | None,
        dags: Collection[Any],
        import_errors: dict[tuple[str, str], str],
        parse_duration: float | None,
        warnings: Any,
        session: Session,
        **named: Any,
    ) -> None:
        unreadable = {dag.dag_id: told for dag in dags if (told := _unreadable(dag))}
        answers = _ask(bundle_name, [dag for dag in dags if dag.dag_id not in unreadable], session)
        fine, postponed = [], []
        refused_files = set()
        for dag in dags:
            against = [unreadable[dag.dag_id]] if dag.dag_id in unreadable else list(_against(dag, answers))
            file = (bundle_name, str(dag.relative_fileloc))
            if not against:
                fine.append(dag)
                continue
            import_errors[file] = with_lines(import_errors.get(file), *against)
            if dag.dag_id in unreadable:
                refused_files.add(file)
                continue
            if any(answers.decisions[pool] for pool in _pools(dag) if not _allowed(answers, pool)):
                refused_files.add(file)
            else:
                postponed.append(dag)
        waiting = {str(dag.relative_fileloc) for dag in postponed} - {file for _, file in refused_files}
        good = _good_dags(bundle_name, waiting, session)
        # Ours go before Airflow's of the same kind: there is one for each Dag, and ours are about all pools.
        warned = {*_warnings(fine, answers.default_pool, session), *warnings}
        write(bundle_name, bundle_version, fine, import_errors, parse_duration, warned, session, **named)
        _keep(good, session)

    vars(module)["update_dag_parsing_results_in_db"] = write_what_is_allowed


def missing_default_pools(point: DecisionPoint) -> dict[str, str]:
    """The default pools that do not exist, by the teams whose policy names them.

    Raises an ``EngineError``, or SQLAlchemy's errors when Airflow's database does not answer.
    """
    with create_session(scoped=False) as session:
        team_ids = tuple(session.scalars(select(Team.name).order_by(Team.name)))
        pools = set(session.scalars(select(Pool.pool)))
    standing, _ = point.whoami(Subject("dag_processor", "doctor", team_ids))
    return {team_id: pool for team_id, pool in sorted(standing.default_pools.items()) if pool not in pools}


def _ask(bundle_name: str, dags: Iterable[Any], session: Session) -> _Answers:
    """Ask one question about all pools of the Dags. Without an answer, the last one stays valid."""
    subject = dag_processor(bundle_name, session)
    known = _read(bundle_name)
    try:
        with origin.at("pools"):
            return _answered(bundle_name, subject, list(dags), known, session)
    except (EngineError, SettingsError) as error:
        _use_default_pool(dags, known.default_pool)
        owners = _owners(dags, session)
        last = {name: known.decisions.get(_key(name, team_id)) for name, team_id in owners.items()}
        return _Answers(last, str(error), known.default_pool)


def _answered(bundle_name: str, subject: Subject, dags: list[Any], known: _LastAnswers, session: Session) -> _Answers:
    default_pool = None
    if subject.team_ids and any(_DEFAULT_POOL in _pools(dag) for dag in dags):
        standing, _ = decision_point().whoami(subject)
        default_pool = standing.default_pools.get(subject.team_ids[0])
        _use_default_pool(dags, default_pool)
    owners = _owners(dags, session)
    if not owners:
        return _Answers({}, "", default_pool)
    question = Evaluations(subject, "use", [Resource("pool", team_id, name) for name, team_id in owners.items()])
    answers = dict(zip(owners.items(), decision_point().decide_by_owner(question), strict=True))
    failed = [answer for answer in answers.values() if isinstance(answer, EngineError)]
    decided = {
        _key(*owned): _as_told(question, Resource("pool", owned[1], owned[0]), answer)
        for owned, answer in answers.items()
        if isinstance(answer, Decision)
    }
    now = _LastAnswers(default_pool or known.default_pool, known.decisions | decided)
    if now != known:
        _write(bundle_name, now)
    # Of an owner whose rules fail, the last answers stay.
    last = {name: now.decisions.get(_key(name, team_id)) for name, team_id in owners.items()}
    return _Answers(last, str(failed[0]) if failed else "", default_pool)


def _as_told(question: Evaluations, resource: Resource, decision: Decision) -> Decision:
    """The decision with the reason that goes into the import error, which people read whom nobody asks about pools."""
    if decision.allow is True:
        return decision
    told = disclosure.visible_reason(decision_point(), question, resource, decision)
    reason = "it belongs to another team" if told.as_missing else told.reason
    return msgspec.structs.replace(decision, reasons=(reason,))


def _against(dag: Any, answers: _Answers) -> Iterator[str]:
    """Why a Dag cannot be imported; nothing if it can."""
    for pool, tasks in sorted(_pools(dag).items()):
        if _allowed(answers, pool):
            continue
        where = _where(dag, pool, tasks)
        decision = answers.decisions[pool]
        if decision is not None:
            yield f"{where} may not be used: {escaped('; '.join(decision.reasons))}"
        else:
            yield (
                f"{where} has not been decided about, because no decision can be had ({escaped(answers.error)}). This "
                "Dag stays as it was, and the question is asked again whenever this file is parsed"
            )


def _where(dag: Any, pool: str, tasks: list[str]) -> str:
    shown = ", ".join(tasks[:_SHOWN_TASKS])
    more = f" and {len(tasks) - _SHOWN_TASKS} more tasks" if len(tasks) > _SHOWN_TASKS else ""
    return escaped(f"Dag {dag.dag_id}, task {shown}{more}: pool {pool}")


def _warnings(dags: Iterable[Any], default_pool: str | None, session: Session) -> Iterator[DagWarning]:
    """Warnings about Dags with a pool that does not exist: the scheduler lets such tasks wait for ever."""
    used = [(dag, _pools(dag)) for dag in dags]
    names = {name for _, pools in used for name in pools}
    missing = names - set(session.scalars(select(Pool.pool).where(Pool.pool.in_(names))))
    for dag, pools in used:
        told = [
            f"{_where(dag, pool, pools[pool])} does not exist, so what uses it waits for ever. "
            + (_CORRECT_DEFAULT if pool == default_pool else "Create the pool, or name another one")
            for pool in sorted(pools.keys() & missing)
        ]
        if told:
            yield DagWarning(dag.dag_id, DagWarningType.NONEXISTENT_POOL, with_lines(None, *told))


_CORRECT_DEFAULT = "It is the default_pool in the data of the team's policy: create the pool, or correct the data"


def _allowed(answers: _Answers, pool: str) -> bool:
    decision = answers.decisions[pool]
    return decision is not None and decision.allow is True


def _unreadable(dag: Any) -> str:
    """Why nobody can say which pools a Dag uses; nothing if it is as the scheduler can read it."""
    try:
        names = [task.pool for task in dag._real_dag.tasks]
    except Exception as error:
        return f"Dag {dag.dag_id} cannot be deserialized: {type(error).__name__}"
    wrong = [name for name in names if not isinstance(name, str)]
    return f"Dag {dag.dag_id}: {wrong[0]!r} is no name of a pool" if wrong else ""


def _pools(dag: Any) -> dict[str, list[str]]:
    """Names of the pools that a Dag uses, with the tasks: as the scheduler reads it, wherever they come from."""
    used = defaultdict(list)
    for task in dag._real_dag.tasks:
        used[task.pool].append(task.task_id)
    return used


def _use_default_pool(dags: Iterable[Any], default_pool: str | None) -> None:
    """Put tasks whose author names no pool into the team's own."""
    if default_pool is None:
        return
    for dag in dags:
        if not (unnamed := set(_pools(dag).get(_DEFAULT_POOL, ()))):
            continue
        for task in dag.data["dag"]["tasks"]:
            values = task["__var"]
            if values["task_id"] in unnamed:
                # A mapped task keeps its pool for those that it makes.
                (values["partial_kwargs"] if values.get("_is_mapped") else values)["pool"] = default_pool
        # Airflow keeps what it has read.
        vars(dag).pop("_real_dag", None)


def _owners(dags: Iterable[Any], session: Session) -> dict[str, str | None]:
    """The pools that Dags use, with the teams that own them; ``None`` for a common pool, or one that does not exist."""
    names = sorted({name for dag in dags for name in _pools(dag)})
    statement = select(Pool.pool, Pool.team_name).where(Pool.pool.in_(names))
    return dict.fromkeys(names) | {row.pool: row.team_name for row in session.execute(statement)}


def _good_dags(bundle_name: str, files: Collection[str], session: Session) -> list[str]:
    """Ids of the Dags of these files that run now."""
    of_files = (DagModel.bundle_name == bundle_name, DagModel.relative_fileloc.in_(files))
    good = (DagModel.is_stale.is_(False), DagModel.has_import_errors.is_(False))
    return list(session.scalars(select(DagModel.dag_id).where(*of_files, *good))) if files else []


def _keep(dag_ids: Collection[str], session: Session) -> None:
    """Have Dags run on, though their file could not be decided about this time."""
    from airflow._shared.timezones import timezone

    if dag_ids:
        values = {"is_stale": False, "has_import_errors": False, "last_parsed_time": timezone.utcnow()}
        session.execute(update(DagModel).where(DagModel.dag_id.in_(dag_ids)).values(**values))


def _key(name: str, team_id: str | None) -> str:
    # The owner is a part of the question: a pool that goes to another team is another question.
    return f"{team_id or ''}/{name}"


@cache
def _directory() -> Path:
    directory = settings().state or Path(AIRFLOW_HOME) / "team_authz"
    make_private(directory / "pools")
    return directory / "pools"


def _file(bundle_name: str) -> Path:
    return _directory() / f"{sha256(bundle_name.encode()).hexdigest()[:16]}.json"


# What is on disk, by bundle: read once.
_known: dict[str, _LastAnswers] = {}


def _read(bundle_name: str) -> _LastAnswers:
    if bundle_name not in _known:
        try:
            _known[bundle_name] = msgspec.json.decode(_file(bundle_name).read_bytes(), type=_LastAnswers)
        except FileNotFoundError:
            _known[bundle_name] = _LastAnswers()
        except (OSError, SettingsError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("the last answers about pools of bundle %s cannot be read: %s", bundle_name, error)
            _known[bundle_name] = _LastAnswers()
    return _known[bundle_name]


def _write(bundle_name: str, now: _LastAnswers) -> None:
    _known[bundle_name] = now
    try:
        replace_file(_file(bundle_name), msgspec.json.encode(now))
    except (OSError, SettingsError) as error:
        log.warning("the last answers about pools of bundle %s cannot be kept: %s", bundle_name, error)
