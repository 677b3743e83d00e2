"""The second wall: in a request, every query of owned rows is narrowed to what the subject may read.

Airflow's routes ask their own questions first, and those give the reasons. This stands behind them, where everything
passes: SQLAlchemy's session. A route that asks nothing, or about something else than it reads, finds no row of another
team. A row that is written must have been decided about in the same request; otherwise the policy is asked now.

A statement on an owned table that goes past this (Core, text, bulk methods of the session) is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache, lru_cache, partial, wraps
from inspect import iscoroutinefunction
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from fastapi import HTTPException
from sqlalchemy import (
    BindParameter,
    BooleanClauseList,
    Column,
    Executable,
    Integer,
    case,
    event,
    literal_column,
    select,
)
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Mapper, Session, with_loader_criteria
from sqlalchemy.sql.operators import eq, in_op, or_

from airflow_team_authz.doors import disclosure
from airflow_team_authz.doors.decision_point import decision_point
from airflow_team_authz.doors.owned_rows import OF_THE_PERSON, OWNED, Named, mapped_classes, owned_tables
from airflow_team_authz.doors.readable import Readable
from airflow_team_authz.identities import requests
from airflow_team_authz.model import READS, EngineError, Evaluations, Resource, Subject
from airflow_team_authz.settings import SettingsError

_NARROWED = "team_authz_narrowed"
# Each name after FROM, JOIN or a comma, without its schema.
_NAME = r'\s+["`]?(?:\w+["`]?\.["`]?)?(\w+)'
_READ_TABLES = re.compile(r"(?:\bFROM|\bJOIN|,)" + _NAME, re.IGNORECASE)
_WRITTEN_TABLE = re.compile(r"\b(?:INTO|UPDATE|DELETE\s+FROM)" + _NAME, re.IGNORECASE)
_ZERO, _ONE = (literal_column(digit, Integer) for digit in "01")
_WITHOUT_PARTS = {"bindparam", "column", "table"}
_LOADED_AT_ONCE = {"joined", "selectin", "subquery", "immediate", False}


class NotNarrowedError(RuntimeError):
    """A statement reads or writes rows that teams own, in a way that cannot be narrowed to what the subject may."""


def install() -> None:
    """Put the wall up in this process. Once: a second call changes nothing."""
    if not event.contains(Session, "do_orm_execute", _narrow):
        event.listen(Session, "do_orm_execute", _narrow)
        event.listen(Session, "before_flush", _check_writes)
        for after in ("after_flush", "after_soft_rollback"):
            event.listen(Session, after, _end_of_checked_writes)
        event.listen(Engine, "before_cursor_execute", _check_statement)
        for name, look_ups in _OWNER_LOOK_UPS.items():
            for look_up in look_ups:
                entity = mapped_classes()[name]
                if found := getattr(entity, look_up, None):
                    setattr(entity, look_up, staticmethod(_within(requests.unfiltered, found)))
        dag = mapped_classes()["DagModel"]
        dag.get_team_name = staticmethod(_looks_up_what_is_not_known(dag.get_team_name))
        requests.hide_rows()


def readable_by(subject: Subject, session: Session) -> Readable | None:
    """The readable rows of this subject, if it makes the present request; ``None`` if queries are not narrowed."""
    request = requests.current()
    return _readable(session) if request is not None and request.subject == subject else None


def has_readable(subject: Subject, listed: Resource, session: Session) -> bool:
    """Whether a list of Dags has a part that this subject may read, if it makes the present request.

    ``False`` for other lists. The answer is the same before the handler runs and in it.
    """
    request = requests.current()
    if request is None or not request.is_narrowed or request.subject != subject:
        return False
    if request.readable is None:
        request.readable = Readable(request)
    return bool(request.readable.using(session).has_some(listed))


def _readable(session: Session) -> Readable | None:
    """The readable rows of the present request's subject; ``None`` if queries are not narrowed."""
    request = requests.current()
    if request is None or not request.is_narrowed or requests.is_unfiltered():
        return None
    if request.readable is None:
        request.readable = Readable(request)
    return request.readable.using(session)  # type: ignore[no-any-return]


# Reading


def _narrow(state: Any) -> None:
    """``do_orm_execute``: adds the criteria of each owned class that the statement involves."""
    if not state.is_orm_statement or (readable := _readable(state.session)) is None:
        return
    state.update_execution_options(**{_NARROWED: True})
    # A column load completes an object that has been found already.
    if state.is_column_load:
        return
    if state.is_insert:
        _check_insert(state.statement, state.session)
        return
    writes = bool(state.is_update or state.is_delete)
    made = {} if writes else _made(readable)
    # What loads more rows of a result has the options of that already.
    narrowed = {made.get(id(option)) for option in state.statement._with_options}
    options = [
        option
        for entity, by_key in _owned_classes(state.statement).items()
        if entity not in narrowed and (option := _criteria(entity, readable, writes, by_key))
    ]
    state.statement = state.statement.options(*options)


def _criteria(entity: Any, readable: Readable, writes: bool, by_key: bool) -> Any:
    """The option that narrows a class, ``None`` if nothing is to be narrowed; made once, until something is decided.

    What is found ``by_key`` has its parent's key, or is of the Dags that the statement itself wants. There the ids of
    Dags must not lead the database to another plan: PostgreSQL multiplies how rare both are, expects few rows, and
    compares each with each. Of a comparison with a number it expects that it is nearly always true.
    """

    def make() -> Any:
        criteria = OWNED[entity.__name__].criteria(entity, readable, writes)
        if criteria is None:
            return None
        checked = case((criteria, _ONE), else_=_ZERO) != _ZERO if by_key else criteria
        option = with_loader_criteria(entity, checked, include_aliases=True, propagate_to_loaders=True)
        if not writes:
            _made(readable)[id(option)] = entity
        return option

    return readable.kept(("criteria", entity, writes, by_key, readable.decided()), make)


def _made(readable: Readable) -> dict[int, Any]:
    """The class that each option narrows, by the option's ``id``: those of reading that hold what is decided now."""
    return readable.kept(("made", readable.decided()), dict)  # type: ignore[no-any-return]


def _owned_classes(statement: Any) -> dict[Any, bool]:
    """The owned classes that a statement reads, in subqueries too; true for what it finds by a key of its own."""
    itself, along, chosen = set[str](), set[str](), set[str]()
    alternatives = set[int]()
    for element in _elements(statement):
        kind = element.__visit_name__
        if kind == "table":
            itself.add(element.name)
        elif isinstance(element, BooleanClauseList) and element.operator is or_:
            alternatives.update(map(id, _elements(element)))
        elif kind == "binary" and id(element) not in alternatives:
            chosen.update(_chosen(element))
        # Of anything else SQLAlchemy looks long for what is not there.
        elif isinstance(element, Executable):
            along.update(_joined_or_loaded(element))
    along |= {loaded for table in itself | along for loaded in _with_loaded_along(table)}
    tables = owned_tables()
    # A table that the statement reads itself, too, does not only come along.
    return {tables[name]: name not in itself or name in chosen for name in itself | along if name in tables}


def _elements(statement: Any) -> Iterator[Any]:
    """The parts of a statement, itself among them: each before its own parts."""
    waiting = [statement]
    for element in waiting:
        yield element
        # Half of all, and SQLAlchemy looks long for parts that these do not have.
        if element.__visit_name__ not in _WITHOUT_PARTS:
            waiting.extend(element.get_children())


def _chosen(comparison: Any) -> Iterator[str]:
    """The table of a comparison that says whose rows the statement wants."""
    for column, value in ((comparison.left, comparison.right), (comparison.right, comparison.left)):
        is_given = isinstance(value, BindParameter) and comparison.operator in {eq, in_op}
        if is_given and isinstance(column, Column) and column.name in _owner_columns():
            yield getattr(column.table, "element", column.table).name


@cache
def _owner_columns() -> frozenset[str]:
    return frozenset({"dag_id", *(owner.column for owner in OWNED.values() if hasattr(owner, "column"))})


def _joined_or_loaded(element: Any) -> Iterator[str]:
    """Names of the tables of relationships that a statement, or a part of one, joins or loads along."""
    for target, *_ in getattr(element, "_setup_joins", ()):
        mapper = getattr(target, "entity", None) if not hasattr(target, "mapper") else target.mapper
        if isinstance(mapper, Mapper):
            yield _table(mapper)
    for option in getattr(element, "_with_options", ()):
        for loaded in getattr(option, "context", ()):
            yield from (_table(step) for step in loaded.path.path if isinstance(step, Mapper))


@cache
def _with_loaded_along(table: str) -> frozenset[str]:
    """A table, and those of which rows are loaded with each of its own."""
    entity = _class_of(table)
    found, waiting = {table}, [] if entity is None else [entity.__mapper__]
    while waiting:
        for relationship in waiting.pop().relationships:
            name = _table(relationship.mapper)
            if relationship.lazy in _LOADED_AT_ONCE and name not in found:
                found.add(name)
                waiting.append(relationship.mapper)
    return frozenset(found)


def _table(mapper: Mapper[Any]) -> str:
    return str(mapper.local_table.description)


@cache
def _class_of(table: str) -> Any:
    return next((entity for entity in mapped_classes().values() if entity.__table__.name == table), None)


def _check_statement(_: Any, __: Any, statement: str, ___: Any, context: Any, ____: bool) -> None:
    """``before_cursor_execute``: ``NotNarrowedError`` for owned rows if nothing here has seen the statement before."""
    request = requests.current()
    if request is None or not request.is_narrowed or requests.is_unfiltered():
        return
    if context is not None and context.execution_options.get(_NARROWED):
        return
    touched = _touched(statement)
    if touched.read:
        raise NotNarrowedError(
            f"a query reads {', '.join(sorted(touched.read))} and cannot be narrowed to what {_who()} may read, so it "
            f"is not sent: {statement}"
        )
    if touched.written and not request.writes_checked:
        _check_inserted_rows(statement, context)


def _who() -> str:
    subject = requests.remembered()
    return "nobody" if subject is None else f"{subject.type} {subject.id}"


class _Touched(NamedTuple):
    """Owned tables that a statement reads, or writes."""

    read: frozenset[str]
    written: frozenset[str]


@lru_cache(1_024)
def _touched(sql: str) -> _Touched:
    # What else reads is a part of a statement that writes.
    reads = sql.lstrip().upper().startswith(("SELECT", "WITH"))
    owned = owned_tables().keys()
    return _Touched(
        frozenset(_READ_TABLES.findall(sql) if reads else ()) & owned,
        frozenset(_WRITTEN_TABLE.findall(sql)) & owned,
    )


# Writing


def _check_writes(session: Session, *_: Any) -> None:
    """``before_flush``: each owned row that is to be written was allowed in this request, or is now."""
    request = requests.current()
    if request is None or _readable(session) is None:
        return
    rows = [(row, "create") for row in session.new]
    rows += [(row, "update") for row in session.dirty if session.is_modified(row)]
    rows += [(row, "delete") for row in session.deleted]
    for row, action in rows:
        name = type(row).__name__
        if name in OWNED and name not in OF_THE_PERSON:
            with requests.unfiltered(), session.no_autoflush:
                resources = OWNED[name].resources(row, session)
            for resource in resources:
                if not _was_allowed(resource):
                    _ask(action, resource)
    request.writes_checked = True


def _end_of_checked_writes(*_: Any) -> None:
    """``after_flush``, or after a flush that has failed: what is written from now on was not checked."""
    if (request := requests.current()) is not None:
        request.writes_checked = False


def _was_allowed(resource: Resource) -> bool:
    """Whether this request may write what belongs to the resource: it was asked, or it is a task's own."""
    request, subject = requests.current(), requests.remembered()
    if subject is not None and resource.type == "dag" and subject.dag_id == resource.id:
        return True
    return request is not None and any(
        action not in READS and (about.type, about.id, about.team_id) == (resource.type, resource.id, resource.team_id)
        for action, about in request.allowed
    )


def _ask(action: str, resource: Resource) -> None:
    subject = requests.remembered()
    if subject is None:
        raise HTTPException(401, "Not authenticated")
    question = Evaluations(subject, action, [resource])
    try:
        policy = decision_point()
        answer, how = policy.weigh(question)
        (decision,) = answer.decisions
        if decision.allow is not True:
            told = disclosure.visible_reason(policy, question, resource, decision).reason
            decision_id = policy.settle(question, answer, how._replace(told=told)).decision_id
            raise HTTPException(403, f"Forbidden: {told}{disclosure.told_record(decision_id)}")
        policy.settle(question, answer, how)
    except (EngineError, SettingsError) as error:
        raise disclosure.no_decision(error) from None
    requests.remember_allowed(action, resource)


def _check_insert(statement: Any, session: Session) -> None:
    """An ``INSERT`` of one row, which may replace what is there: Airflow writes variables and states so.

    ``HTTPException`` 409 if another team has the name: only that it is taken can be told.
    """
    entity = _class_of(statement.table.name)
    if entity is None or entity.__name__ not in OWNED or entity.__name__ in OF_THE_PERSON:
        return
    owner = OWNED[entity.__name__]
    values = {column.key: bound.value for column, bound in (statement._values or {}).items()}
    if not values:
        raise NotNarrowedError(f"rows are inserted into {statement.table.name} in a way that cannot be checked")
    there = None
    with requests.unfiltered(), session.no_autoflush:
        if isinstance(owner, Named):
            there = session.scalar(select(entity).where(getattr(entity, owner.column) == values[owner.column]))
        asked = owner.resources(SimpleNamespace(**values) if there is None else there, session)
    for resource in asked:
        if not _was_allowed(resource):
            if there is not None:
                raise HTTPException(409, f"The {resource.type} {resource.id} already exists")
            _ask("create", resource)


def _check_inserted_rows(statement: str, context: Any) -> None:
    """Rows that are inserted by no session's flush: Airflow inserts the task instances of a run so.

    ``NotNarrowedError`` for every other write, and for rows that may replace others or that the database makes itself.
    """
    insert = context.compiled.statement if context is not None and context.compiled and context.isinsert else None
    unchecked = NotNarrowedError(
        f"a statement writes rows that cannot be checked for {_who()}, so it is not sent: {statement}"
    )
    if insert is None or insert.select is not None or insert._post_values_clause is not None or insert._prefixes:
        raise unchecked
    owner = OWNED[owned_tables()[insert.table.name].__name__]
    rows = [SimpleNamespace(**values) for values in context.compiled_parameters]
    try:
        with requests.unfiltered(), Session(bind=context.root_connection) as session:
            resources = set().union(*(owner.resources(row, session) for row in rows))
    except AttributeError:
        # The owner's column is an expression.
        raise unchecked from None
    for resource in sorted(resources, key=str):
        if not _was_allowed(resource):
            _ask("create", resource)


# What finds the owner of what a question is about


# Those of Dags are the names' door's, too, which keeps no team that Airflow would keep.
_OWNER_LOOK_UPS = {
    "Connection": ("get_team_name", "get_conn_id_to_team_name_mapping"),
    "DagBundleModel": ("get_team_name", "get_team_names"),
    "Pool": ("get_team_name", "get_name_to_team_name_mapping"),
    "Variable": ("get_team_name", "get_key_to_team_name_mapping"),
}


def _within(context: Callable[[], AbstractContextManager[None]], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, each call of which runs within a new ``context()``."""
    if iscoroutinefunction(function):

        @wraps(function)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            with context():
                return await function(*arguments, **named)

        return awaited

    @wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        with context():
            return function(*arguments, **named)

    return called


def _looks_up_what_is_not_known(look_up: Callable[..., str | None]) -> Callable[..., str | None]:
    """``DagModel.get_team_name``; in a person's request by the list of all Dags, which narrows its queries anyway."""

    @wraps(look_up)
    def get_team_name(dag_id: str, **named: Any) -> str | None:
        known = _known_teams()
        return known[dag_id] if dag_id in known else look_up(dag_id, **named)

    return get_team_name


def _known_teams() -> Mapping[str, str | None]:
    request, subject = requests.current(), requests.remembered()
    if request is None or subject is None or not request.is_narrowed or subject.type != "user":
        return {}
    if request.readable is None:
        request.readable = Readable(request)
    return request.readable.teams()  # type: ignore[no-any-return]


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``: the module is one of those whose questions come before what they are about."""
    if service := vars(module).get("BulkTaskInstanceService"):
        # The handler of a bulk change asks about each Dag, and looks for its task instances after that.
        service._categorize_entities = asked_before_handler(service._categorize_entities)
    for name, make in vars(module).copy().items():
        if name.startswith("requires_access_"):
            setattr(module, name, _asking_before_handler(make))


# These look for rows by a number or a file's token, which says nothing of them: a person who may not see a row finds
# none. A refusal would tell that there is one, and what Dag it belongs to.
FOUND_BY_HANDLE = {"requires_access_backfill", "requires_access_dag_from_file_token", "requires_access_event_log"}


def asked_before_handler(ask: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """One of Airflow's questions, each call of which sees what it has to; ``name`` is that of its maker, if any."""
    return _within(partial(requests.before_handler, sees_everything=name not in FOUND_BY_HANDLE), ask)


def _asking_before_handler(make: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    @wraps(make)
    def made(*arguments: Any, **named: Any) -> Callable[..., Any]:
        return asked_before_handler(make(*arguments, **named), make.__name__)

    return made
