"""The one table of the Execution API: from its routes to actions and resources."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from airflow.configuration import ensure_secrets_loaded
from airflow.models import Connection, DagModel, Pool, Variable
from airflow.models.asset import AssetAliasModel, AssetModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.team import Team
from airflow.secrets.metastore import MetastoreBackend
from airflow.utils.session import create_session
from msgspec import UNSET
from msgspec.structs import replace
from sqlalchemy import select

from airflow_team_authz.doors import DoorError
from airflow_team_authz.doors.asset_owners import NamedAsset, owner_for, owning_teams
from airflow_team_authz.identities import requests
from airflow_team_authz.identities.machines import teams_of_dags
from airflow_team_authz.model import Resource, Subject

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class Request(NamedTuple):
    """Parts of a request that name a resource: parameters of path and query, the subject, and a database session."""

    path: Mapping[str, Any]
    query: Mapping[str, str]
    subject: Subject
    session: Session


class MissingError(DoorError):
    """The resource to change does not exist, or the answer has to be the same."""


def _common(_: Request, resource: Resource) -> Resource:
    return replace(resource, team_id=None)


def _nothing(_: Request, __: Resource) -> None:
    return None


def _never(_: Request, __: Resource) -> bool:
    return False


class Route(NamedTuple):
    """The action of a route, and the resource of a request to it; ``None`` for what a task reports of itself.

    Without an action it depends on whether the resource is there: update, or else create. The others are for
    ``[team_authz] refusals``: whether Airflow's route will find nothing of a resource that is to be answered as if it
    were not there (or it raises ``MissingError``), and what would be asked about if it were not: ``None`` for nothing.
    """

    action: str | None
    resource: Callable[[Request], Resource | None]
    finds_nothing: Callable[[Request, Resource], bool] = _never
    missing: Callable[[Request, Resource], Resource | None] = _common


def _in_own_team(_: Request, __: Resource) -> bool:
    # Airflow looks among what is common and what is the task's team's.
    return True


def _of_own_team(request: Request, resource: Resource) -> Resource:
    return replace(resource, team_id=next(iter(request.subject.team_ids or ()), None))


def _hidden(_: Request, __: Resource) -> bool:
    # A task's request sees what it was allowed, and its own Dag.
    return requests.rows_are_hidden()


def _no_dag(_: Request, resource: Resource) -> bool:
    raise MissingError(f"Dag with dag_id: '{resource.id}' not found")


class UnansweredError(DoorError):
    """The resource of a request is unknown, because a secrets backend does not answer."""


class AmbiguousError(DoorError):
    """The resource may belong to one team or another one, so no team gets it."""


def _connection(request: Request) -> Resource:
    id_ = str(request.path["connection_id"])
    return Resource("connection", _readable_owner(request, Connection.team_name, Connection.conn_id, id_), id_)


def _variable(request: Request) -> Resource:
    key = str(request.path["variable_key"])
    return Resource("variable", _readable_owner(request, Variable.team_name, Variable.key, key), key)


def _readable_owner(request: Request, team: Any, key: Any, id_: str) -> str | None:
    """The owner of what Airflow would hand out: what a secrets backend has goes before the database, and is common."""
    owner = _owner(request.session, team, key, id_)
    own = request.subject.team_ids or ()
    # Of the subject's own team, or of no team: then the answer is the same whoever has it.
    if owner is not None and owner not in own and _in_a_backend(request.subject, key, id_):
        owner = None
    if (looked_in := owner or next(iter(own), None)) is not None:
        _refuse_shared_name(looked_in, "VAR" if key is Variable.key else "CONN", id_, request.session)
    return owner


def _refuse_shared_name(team_id: str, kind: str, id_: str, session: Session) -> None:
    """``AmbiguousError`` if a team's variable of the environment may be meant for another team: capitals hide which."""
    name = f"AIRFLOW_{kind}__{team_id}___{id_}".upper()
    if name not in os.environ:
        return
    meant = [
        other for other in session.scalars(select(Team.name)) if name.startswith(f"AIRFLOW_{kind}__{other}___".upper())
    ]
    if len(meant) > 1:
        raise AmbiguousError(
            f"the environment variable {name} may be meant for team {' or '.join(sorted(meant))}, so no task gets it: "
            "these teams' names are the same in capitals, or but for underscores at the end"
        )


def _in_a_backend(subject: Subject, key: Any, id_: str) -> bool:
    team_id = next(iter(subject.team_ids or ()), None)
    for backend in ensure_secrets_loaded():
        if isinstance(backend, MetastoreBackend):
            continue
        find = backend.get_variable if key is Variable.key else backend.get_connection
        try:
            found = find(id_, **({"team_name": team_id} if "team_name" in signature(find).parameters else {}))
        except PermissionError:
            # That backend's answer, which the subject gets too.
            return True
        except Exception as error:
            raise UnansweredError(
                f"The secrets backend {type(backend).__name__} fails: {type(error).__name__}"
            ) from error
        if found is not None:
            return True
    return False


def _written_variable(request: Request) -> Resource:
    key = str(request.path["variable_key"])
    if variable_exists(request.session, key):
        return Resource("variable", _owner(request.session, Variable.team_name, Variable.key, key), key)
    # Airflow creates it for the team of the task.
    team_ids = request.subject.team_ids or (None,)
    return Resource("variable", team_ids[0], key)


def dag_exists(session: Session, dag_id: str) -> bool:
    """Whether Airflow has this Dag: a question takes one that is gone for a common Dag."""
    return session.scalar(select(DagModel.dag_id).where(DagModel.dag_id == dag_id)) is not None


def variable_exists(session: Session, key: str) -> bool:
    """Whether there is such a row."""
    return session.scalar(select(Variable.key).where(Variable.key == key)) is not None


def _dag(entity: str | None = None, written: bool = False, in_query: bool = False) -> Callable[[Request], Resource]:
    def resource(request: Request) -> Resource:
        dag_id = str(request.query.get("dag_id", "") if in_query else request.path["dag_id"])
        # Who only looks gets Airflow's own answer about what is not there: a sensor waits for a Dag to come.
        if written and not dag_exists(request.session, dag_id):
            _no_dag(request, Resource("dag", None, dag_id))
        team_id = teams_of_dags([dag_id], request.session)[dag_id]
        return Resource("dag", team_id, dag_id, UNSET if entity is None else entity)

    return resource


def _written_xcom(request: Request) -> Resource | None:
    named = tuple(request.path[part] for part in ("dag_id", "run_id", "task_id"))
    subject = request.subject
    return None if named == (subject.dag_id, subject.run_id, subject.task_id) else _dag("xcom", written=True)(request)


def _asset(*parameters: str, entity: str | None = None) -> Callable[[Request], Resource]:
    """The asset that the handler finds: by the parameters that it takes, and among the active ones by only one."""

    def resource(request: Request) -> Resource:
        named = {name: value for name in parameters if (value := request.query.get(name))}
        wanted = [getattr(AssetModel, name) == value for name, value in named.items()]
        if len(wanted) == 1:
            wanted.append(AssetModel.active.has())
        columns = (AssetModel.id, AssetModel.name, AssetModel.uri, AssetModel.group)
        row = request.session.execute(select(*columns).where(*wanted).limit(1)).one_or_none() if wanted else None
        part = UNSET if entity is None else entity
        if row is not None:
            if entity == "state":
                # What is kept with an asset belongs to one team, whoever else uses it.
                team_id = owning_teams(request.session, [row.id]).get(row.id)
            else:
                team_id = owner_for(request.subject, NamedAsset(row.id, row.name, row.uri), request.session)
            return Resource("asset", team_id, str(row.id), part, row.name, row.uri, row.group)
        if entity == "state":
            raise _no_asset(named)
        return _unknown_asset(parameters, entity)(request)

    return resource


def _unknown_asset(parameters: Collection[str], entity: str | None) -> Callable[..., Resource]:
    """The resource of a question about an asset that does not exist."""

    def resource(request: Request, *_: Resource) -> Resource:
        named = {name: value for name in parameters if (value := request.query.get(name))}
        part = UNSET if entity is None else entity
        return Resource("asset", None, UNSET, part, named.get("name", UNSET), named.get("uri", UNSET))

    return resource


def _asset_route(*parameters: str, entity: str | None = None) -> Route:
    return Route("read", _asset(*parameters, entity=entity), _hidden, _unknown_asset(parameters, entity))


def _no_asset(named: Mapping[str, str]) -> MissingError:
    return MissingError(f"Asset with {' and '.join(f'{name}={value!r}' for name, value in named.items())} not found")


def _state_route(action: str, parameter: str) -> Route:
    """The state of an asset. A task that may find only the asset gets the answer of an asset without state."""

    def shared(request: Request, resource: Resource) -> bool:
        asset = NamedAsset(int(str(resource.id)), str(resource.name), str(resource.uri))
        with requests.unfiltered(), create_session(scoped=False) as session:
            return owner_for(request.subject, asset, session) is None

    def finds_nothing(request: Request, resource: Resource) -> bool:
        if not shared(request, resource):
            raise _no_asset({parameter: request.query[parameter]})
        if action == "read":
            raise MissingError(f"Asset state store key {request.query.get('key')!r} not found")
        return False

    def missing(request: Request, resource: Resource) -> Resource | None:
        return _common(request, resource) if shared(request, resource) else None

    return Route(action, _asset(parameter, entity="state"), finds_nothing, missing)


def _asset_alias(parameter: str, entity: str | None = None) -> Callable[[Request], Resource]:
    def resource(request: Request) -> Resource:
        name = request.query.get(parameter, "")
        id_ = request.session.scalar(select(AssetAliasModel.id).where(AssetAliasModel.name == name))
        part = UNSET if entity is None else entity
        return Resource("asset_alias", None, UNSET if id_ is None else str(id_), part, name)

    return resource


def _pool_of_task(request: Request) -> Resource | None:
    id_ = UUID(str(request.path["task_instance_id"]))
    columns = (TaskInstance.dag_id, TaskInstance.task_id, TaskInstance.run_id, TaskInstance.pool)
    row = request.session.execute(select(*columns).where(TaskInstance.id == id_)).one_or_none()
    subject = request.subject
    own = row is not None and row[:3] == (subject.dag_id, subject.task_id, subject.run_id)
    if subject.type == "task" and not own:
        # Airflow itself refuses, whether there is such a task or not (`ti:self`).
        return None
    if row is None:
        raise MissingError(f"Task Instance {id_} not found")
    return Resource("pool", _owner(request.session, Pool.team_name, Pool.pool, row.pool), row.pool)


def _owner(session: Session, team: Any, key: Any, id_: str) -> str | None:
    team_id: str | None = session.scalar(select(team).where(key == id_))
    return team_id


# A task about itself: Airflow sees to it that the token is that task's (`ti:self`), and what a task reports of itself
# is no decision. The same of a connection test (`ct:self`).
OWN = None

_STATE = "/store/asset/by-{}/{}"
_XCOM = "/xcoms/{dag_id}/{run_id}/{task_id}/{key:path}"

ROUTES: dict[tuple[str, str], Route | None] = {
    ("GET", "/assets/by-name"): _asset_route("name"),
    ("GET", "/assets/by-uri"): _asset_route("uri"),
    ("GET", "/assets/by-alias"): Route("read", _asset_alias("alias_name")),
    ("GET", "/asset-events/by-asset"): _asset_route("name", "uri", entity="event"),
    ("GET", "/asset-events/by-asset-alias"): Route("read", _asset_alias("name", "event")),
    ("GET", "/connection-tests/{connection_test_id}/connection"): OWN,
    ("PATCH", "/connection-tests/{connection_test_id}"): OWN,
    ("GET", "/connections/{connection_id}"): Route("read", _connection, _in_own_team),
    ("GET", "/dag-runs/{dag_id}/previous"): Route("read", _dag("run"), _hidden),
    ("GET", "/dag-runs/{dag_id}/{run_id}"): Route("read", _dag("run"), _hidden),
    ("POST", "/dag-runs/{dag_id}/{run_id}"): Route("trigger", _dag("run", written=True), _no_dag, _nothing),
    ("POST", "/dag-runs/{dag_id}/{run_id}/clear"): Route("update", _dag("run", written=True), _no_dag, _nothing),
    ("GET", "/dag-runs/{dag_id}/{run_id}/state"): Route("read", _dag("run"), _hidden),
    ("GET", "/dag-runs/count"): Route("read", _dag("run", in_query=True), _hidden),
    ("GET", "/dag-runs/previous"): Route("read", _dag("run", in_query=True), _hidden),
    ("GET", "/dags/{dag_id}"): Route("read", _dag(), _hidden),
    ("GET", "/task-instances/count"): Route("read", _dag("task_instance", in_query=True), _hidden),
    ("GET", "/task-instances/previous/{dag_id}/{task_id}"): Route("read", _dag("task_instance"), _hidden),
    ("GET", "/task-instances/states"): Route("read", _dag("task_instance", in_query=True), _hidden),
    ("GET", "/task-instances/breadcrumbs"): Route("read", _dag("task_instance", in_query=True), _hidden),
    # A task that starts takes a slot of its pool, whatever was allowed when its file was parsed.
    ("PATCH", "/task-instances/{task_instance_id}/run"): Route("use", _pool_of_task),
    ("PATCH", "/task-instances/{task_instance_id}/state"): OWN,
    ("PATCH", "/task-instances/{task_instance_id}/skip-downstream"): OWN,
    ("PUT", "/task-instances/{task_instance_id}/heartbeat"): OWN,
    ("PUT", "/task-instances/{task_instance_id}/rtif"): OWN,
    ("PATCH", "/task-instances/{task_instance_id}/rendered-map-index"): OWN,
    ("GET", "/task-instances/{task_instance_id}/previous-successful-dagrun"): OWN,
    ("GET", "/task-instances/{task_instance_id}/validate-inlets-and-outlets"): OWN,
    ("GET", "/task-reschedules/{task_instance_id}/start_date"): OWN,
    # `doors.tasks` answers this one itself.
    ("GET", "/variables/keys"): OWN,
    ("GET", "/variables/{variable_key:path}"): Route("read", _variable, _in_own_team),
    ("PUT", "/variables/{variable_key:path}"): Route(None, _written_variable),
    ("DELETE", "/variables/{variable_key:path}"): Route("delete", _written_variable, _in_own_team, _of_own_team),
    ("GET", f"{_XCOM}/item/{{offset}}"): Route("read", _dag("xcom"), _hidden),
    ("GET", f"{_XCOM}/slice"): Route("read", _dag("xcom"), _hidden),
    ("HEAD", _XCOM): Route("read", _dag("xcom"), _hidden),
    ("GET", _XCOM): Route("read", _dag("xcom"), _hidden),
    ("POST", _XCOM): Route("create", _written_xcom, _no_dag, _nothing),
    ("DELETE", _XCOM): Route("delete", _written_xcom, _no_dag, _nothing),
    ("POST", "/hitlDetails/{task_instance_id}"): OWN,
    ("PATCH", "/hitlDetails/{task_instance_id}"): OWN,
    ("GET", "/hitlDetails/{task_instance_id}"): OWN,
    ("GET", "/store/ti/{task_instance_id}/{key:path}"): OWN,
    ("PUT", "/store/ti/{task_instance_id}/{key:path}"): OWN,
    ("DELETE", "/store/ti/{task_instance_id}/{key:path}"): OWN,
    ("DELETE", "/store/ti/{task_instance_id}"): OWN,
    **{
        (method, _STATE.format(parameter, what)): _state_route(action, parameter)
        for parameter in ("name", "uri")
        for method, what, action in (
            ("GET", "value", "read"),
            ("PUT", "value", "update"),
            ("DELETE", "value", "delete"),
            ("DELETE", "clear", "delete"),
        )
    },
}
# The only ones that need no token.
PUBLIC = {"/health", "/health/ping"}
