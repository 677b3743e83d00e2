"""The rows that a request's subject may read. It asks the policy when a query first needs them, once per request."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.models import Connection, DagModel, Pool, Variable
from airflow.models.asset import (
    AssetAliasModel,
    AssetModel,
    DagScheduleAssetAliasReference,
)
from airflow.models.dagbundle import DagBundleModel
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.team import Team, dag_bundle_team_association_table
from airflow.utils.session import create_session
from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import select

from airflow_team_authz.doors import disclosure
from airflow_team_authz.doors.asset_owners import owning_teams, references, uses
from airflow_team_authz.doors.decision_point import decision_point
from airflow_team_authz.doors.many_rows import Rows, Table, many_rows, rows_of_each
from airflow_team_authz.identities import requests
from airflow_team_authz.model import READS, EngineError, Evaluations, Resource, Resources, Subject
from airflow_team_authz.settings import SettingsError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# Types of what an audit row without a Dag can be about.
_AUDITED = ("asset", "asset_alias", "connection", "dag", "pool", "variable")


class Scope(NamedTuple):
    """Ids that are allowed; with ``everything`` there is nothing else, nor any row whose owner is gone.

    Of what has a name and a team of its own, each id is a pair of both: a name alone says nothing of who has it.
    """

    everything: bool
    ids: Collection[Any]


# The bundle and the path in it.
_File = tuple[str | None, str | None]


class _Dag(Struct, array_like=True, frozen=True, gc=False):
    id: str
    bundle: str | None


class _DagFile(Struct, array_like=True, frozen=True, gc=False):
    id: str
    bundle: str | None
    path: str | None


class _Named(Struct, array_like=True, frozen=True, gc=False):
    id: str
    team_id: str | None


class _Bundle(Struct, array_like=True, frozen=True, gc=False):
    name: str
    team_id: str | None


class _Asset(Struct, array_like=True, frozen=True, gc=False):
    id: int
    name: str
    uri: str
    group: str


class _Alias(Struct, array_like=True, frozen=True, gc=False):
    id: int


_team = dag_bundle_team_association_table.c
# Apart: joined, the database takes twice as long.
_DAGS = Table(select(DagModel.dag_id, DagModel.bundle_name), _Dag)
_TEAMS = Table(select(_team.dag_bundle_name, _team.team_name), _Bundle)
_FILES = Table(select(DagModel.dag_id, DagModel.bundle_name, DagModel.relative_fileloc), _DagFile)
_BUNDLES = Table(
    select(DagBundleModel.name, _team.team_name).outerjoin(
        dag_bundle_team_association_table, _team.dag_bundle_name == DagBundleModel.name
    ),
    _Bundle,
)
_ASSETS = Table(select(AssetModel.id, AssetModel.name, AssetModel.uri, AssetModel.group), _Asset)
# Read with assets, since who looks at these looks at their aliases too.
_SOME_ALIAS = Table(select(AssetAliasModel.id).limit(1), _Alias)
_NAMED = {
    "connection": Table(select(Connection.conn_id, Connection.team_name), _Named),
    "pool": Table(select(Pool.pool, Pool.team_name), _Named),
    "variable": Table(select(Variable.key, Variable.team_name), _Named),
}


class Readable:
    """The rows that one subject may read, or change in bulk, within one request.

    A person's is everything that the policy allows it; a task's is its own Dag, and what it was allowed by name in
    this request, since no route of tasks lists anything else. ``EngineError`` is an ``HTTPException`` 503 here.
    """

    def __init__(self, request: requests.Request) -> None:
        self._request = request
        self._session: Session | None = None
        self._memo: dict[Any, Any] = {}

    def using(self, session: Session) -> Readable:
        """Look up owners by this session from now on."""
        self._session = session
        return self

    @property
    def person(self) -> str | None:
        """The name of the person who asks; ``None`` for a task, or before the login."""
        subject = requests.remembered()
        return subject.id if subject is not None and subject.type == "user" else None

    def dags(self, entity: str | UnsetType, also: Collection[str], writes: bool) -> Scope:
        """Dags of which this part may be read; or with ``writes``, changed."""
        listed = self._listed_dags(entity, writes)
        opened = {
            str(resource.id)
            for action, resource in self._request.allowed
            if resource.type == "dag"
            and resource.id is not UNSET
            and (action not in READS or (not writes and (resource.entity in {entity, *also} or "*" in also)))
        }
        if listed.everything or opened.issubset(listed.ids):
            return listed
        return Scope(False, {*listed.ids, *self._existing(opened.difference(listed.ids))})

    def _existing(self, dag_ids: Collection[str]) -> Collection[str]:
        """Those of these Dags that exist. A question about a Dag that is gone looks like one about a common Dag."""
        statement = select(DagModel.dag_id).where(DagModel.dag_id.in_(dag_ids))
        key = ("existing", frozenset(dag_ids))
        return self.kept(key, lambda: {row.dag_id for row in self._rows(statement)})  # type: ignore[no-any-return]

    def teams(self) -> dict[str, str | None]:
        """The team of each Dag, for whoever asks; none at all if one of them has several."""
        if _TEAMS not in self._memo:
            with create_session(scoped=False) as session:
                self.using(session)._owned_dags()
        dags, bundles = self._read(_DAGS, _TEAMS)
        owned = self._owned_dags()
        teams: dict[str, str | None] = dags.once("teams", (bundles,), lambda: {dag.id: dag.team_id for dag in owned})
        return teams if len(teams) == len(owned) else {}

    def with_same_file(self, dag_ids: Collection[str]) -> Collection[str]:
        """These Dags, and those that are in one file with one of them."""
        if not self._is_task() and self._are_whole_bundles(dag_ids):
            return dag_ids
        (dags,) = self._read(_FILES)
        file_of, dags_of = dags.once("files", (), lambda: _files(dags))
        files = {file_of[dag_id] for dag_id in dag_ids if dag_id in file_of}
        # What is answered as if it did not exist must not be found by its neighbours.
        neighbours = (dag_id for file in files for dag_id in dags_of[file])
        return {*dag_ids, *(dag_id for dag_id in neighbours if not self._is_concealed("dag", dag_id))}

    def _are_whole_bundles(self, dag_ids: Collection[str]) -> bool:
        """Whether these are all the Dags of some bundles: what is in one file is in one bundle."""
        (dags,) = self._read(_DAGS)
        bundle_of, size_of = dags.once("bundles", (), lambda: _bundles(dags))
        found = Counter(bundle_of[dag_id] for dag_id in dag_ids if dag_id in bundle_of)
        return all(size_of[bundle] == count for bundle, count in found.items())

    def named(self, type_: str, writes: bool) -> Scope:
        """Connections, pools or variables that may be read; or with ``writes``, changed."""
        opened = {
            (str(resource.id), resource.team_id)
            for action, resource in self._request.allowed
            if resource.type == type_ and resource.id is not UNSET and (not writes or action not in READS)
        }
        if self._is_task():
            return Scope(False, opened)
        listed = self.all_named(type_, writes)
        return listed if listed.everything else Scope(False, {*listed.ids, *opened})

    def bundles(self, entity: str) -> Collection[str]:
        """Dag bundles of which this part may be read, for each Dag that its team has or will have."""
        return self.kept(("bundles", entity), lambda: self._readable_bundles(entity))  # type: ignore[no-any-return]

    def audited_kinds(self) -> Collection[tuple[str, str | None]]:
        """Types and teams: audit rows about a resource of such a kind may be read."""
        return self.kept("audited", self._readable_kinds)  # type: ignore[no-any-return]

    def platform(self, view: str) -> bool:
        """Whether a view of what belongs to no team in particular may be read."""
        return bool(
            self.kept(("platform", view), lambda: self._allowed("read", [Resource("platform_view", None, view)]))
        )

    def assets(self, entity: str | UnsetType, writes: bool) -> Scope:
        """Assets of which this part may be read; the asset itself also by whom may read a Dag that uses it."""
        if self._is_task():
            return self._assets_of_task(entity, writes)
        return self.kept(("assets", entity, writes), lambda: self._listed_assets(entity, writes))  # type: ignore[no-any-return]

    def aliases(self) -> Scope:
        """Names of asset aliases that a readable Dag uses, or that were allowed by name."""
        opened = {str(resource.name) for _, resource in self._request.allowed if resource.type == "asset_alias"}
        if self._is_task():
            return Scope(False, opened)
        if self.platform("rows_without_owner"):
            return Scope(True, ())
        return Scope(False, self.kept("aliases", self._used_aliases))

    def has_some(self, listed: Resource) -> bool:
        """Whether a list of Dags, or of this part of Dags, shows something that may be read; ``False`` for others."""
        is_of_dags = listed.type == "dag" and listed.id is UNSET and listed.team_id is None
        return is_of_dags and bool(self.all_dags(listed.entity).ids)

    def _is_concealed(self, type_: str, id_: str) -> bool:
        return (type_, id_) in self._request.concealed

    # What is asked

    def _is_task(self) -> bool:
        subject = requests.remembered()
        return subject is not None and subject.type != "user"

    def _allowed(self, action: str, resources: Sequence[Resource]) -> list[Resource]:
        subject: Subject | None = requests.remembered()
        if subject is None or not resources:
            return []
        try:
            return decision_point().allowed(Evaluations(subject, action, resources))
        except (EngineError, SettingsError) as error:
            raise disclosure.no_decision(error) from None

    def all_dags(self, entity: str | UnsetType, writes: bool = False) -> Scope:
        """Dags of which this part may be read, or changed, by whoever asks: a task too."""
        return self.kept(("dags", entity, writes), lambda: self._ask_dags(entity, writes))  # type: ignore[no-any-return]

    def all_named(self, type_: str, writes: bool = False) -> Scope:
        """Connections, pools or variables that may be read, or changed, by whoever asks."""
        return self.kept(("named", type_, writes), lambda: self._listed_named(type_, writes))  # type: ignore[no-any-return]

    def _listed_dags(self, entity: str | UnsetType, writes: bool) -> Scope:
        if self._is_task():
            subject = requests.remembered()
            own = subject.dag_id if subject is not None else UNSET
            return Scope(False, set() if own is UNSET else {own})
        return self.all_dags(entity, writes)

    def _ask_dags(self, entity: str | UnsetType, writes: bool) -> Scope:
        dags, bundles = self._read(_DAGS, _TEAMS)
        owned = self._owned_dags()
        resources = dags.once(
            ("dag", entity),
            (bundles,),
            lambda: Resources(Resource("dag", dag.team_id, dag.id, entity) for dag in owned),
        )
        allowed = {str(resource.id) for resource in self._allowed("update" if writes else "read", resources)}
        everything = len(allowed) == len(owned) and not writes and self.platform("rows_without_owner")
        return Scope(everything, allowed)

    def _listed_named(self, type_: str, writes: bool) -> Scope:
        (rows,) = self._read(_NAMED[type_])
        resources = rows.once(type_, (), lambda: Resources(Resource(type_, row.team_id, row.id) for row in rows))
        allowed = self._allowed("update" if writes else "read", resources)
        everything = len(allowed) == len(resources) and not writes and self.platform("rows_without_owner")
        return Scope(everything, {(str(resource.id), resource.team_id) for resource in allowed})

    def _readable_bundles(self, entity: str) -> Collection[str]:
        teams = self._teams_of_bundles()
        resources = [Resource("dag", team_id, entity=entity) for team_id in sorted(set(teams.values()), key=str)]
        allowed = {resource.team_id for resource in self._allowed("read", resources)}
        return {bundle for bundle, team_id in teams.items() if team_id in allowed}

    def _readable_kinds(self) -> Collection[tuple[str, str | None]]:
        team_ids = [None, *(name for (name,) in self._rows(select(Team.name)))]
        resources = [Resource(type_, team_id, entity="audit_log") for type_ in _AUDITED for team_id in team_ids]
        return [(resource.type, resource.team_id) for resource in self._allowed("read", resources)]

    def _listed_assets(self, entity: str | UnsetType, writes: bool) -> Scope:
        (assets, *_) = self._read(_ASSETS, references(), _DAGS, _TEAMS, _SOME_ALIAS)
        owners = self._asset_owners()
        resources = assets.once(
            ("asset", entity),
            (owners,),
            lambda: Resources(
                Resource("asset", owners.get(asset.id), str(asset.id), entity, asset.name, asset.uri, asset.group)
                for asset in assets
            ),
        )
        ids = {int(str(resource.id)) for resource in self._allowed("update" if writes else "read", resources)}
        if entity is UNSET and not writes:
            ids |= self._assets_used_by(self.all_dags(UNSET).ids)
        return Scope(not writes and len(ids) == len(assets), ids)

    def _assets_of_task(self, entity: str | UnsetType, writes: bool) -> Scope:
        """Assets that the policy allowed by name, and assets of the task's own Dag."""
        ids = {
            int(resource.id)
            for action, resource in self._request.allowed
            if resource.type == "asset"
            and resource.id is not UNSET
            and entity in {resource.entity, UNSET}
            and (not writes or action not in READS)
        }
        if entity is UNSET and not writes:
            ids |= self._assets_used_by(self._listed_dags(UNSET, writes=False).ids)
        return Scope(False, ids)

    # What is there

    def decided(self) -> tuple[int, int]:
        """Another value whenever something more was decided in the request, since that opens or hides rows too."""
        return len(self._request.allowed), len(self._request.concealed)

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value that ``make`` returned for this key in this request."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def _rows(self, statement: Any) -> Sequence[Any]:
        assert self._session is not None  # noqa: S101
        # By the connection: no objects are wanted, and a session takes twice as long for rows.
        with requests.unfiltered():
            return self._session.connection().execute(statement).all()

    def _read(self, *tables: Table[Any]) -> list[Rows[Any]]:
        """The rows of each table, which the request reads once."""
        assert self._session is not None  # noqa: S101
        if missing := tuple(table for table in tables if table not in self._memo):
            self._memo.update(zip(missing, rows_of_each(self._session, missing), strict=True))
        return [self._memo[table] for table in tables]

    def _owned_dags(self) -> Sequence[_Owned]:
        dags, bundles = self._read(_DAGS, _TEAMS)
        return dags.once("owned", (bundles,), lambda: _owned(dags, bundles))

    def _teams_of_bundles(self) -> dict[str, str | None]:
        (bundles,) = self._read(_BUNDLES)
        return {bundle.name: bundle.team_id for bundle in bundles}

    def _assets_used_by(self, dag_ids: Collection[str]) -> set[int]:
        (found,) = self._read(references())
        used = found.once("uses", (), lambda: uses(found))
        return set().union(*(used[dag_id] for dag_id in dag_ids if dag_id in used))

    def _asset_owners(self) -> dict[int, str | None]:
        """The database finds them anew when a reference, or the team of a Dag, is another one."""
        found, dags, bundles = self._read(references(), _DAGS, _TEAMS)
        return found.once("owners", (dags, bundles), self._find_asset_owners)

    def _find_asset_owners(self) -> dict[int, str | None]:
        assert self._session is not None  # noqa: S101
        with requests.unfiltered(), self._session.no_autoflush:
            return owning_teams(self._session)

    def _used_aliases(self) -> set[str]:
        """Names of aliases that readable Dags wait for or produce; no table but that of whole Dags has the latter."""
        # Most sites have none, and then there is no need to read whole Dags.
        (some_alias,) = self._read(_SOME_ALIAS)
        if not some_alias:
            return set()
        dag_ids = self.all_dags(UNSET).ids
        whole = select(SerializedDagModel._data["dag"]["dag_dependencies"], SerializedDagModel._data_compressed)
        found = self._rows(whole.where(SerializedDagModel.dag_id.in_(dag_ids)))
        waiting = select(AssetAliasModel.name).join(
            DagScheduleAssetAliasReference, AssetAliasModel.id == DagScheduleAssetAliasReference.alias_id
        )
        names = self._rows(waiting.where(DagScheduleAssetAliasReference.dag_id.in_(dag_ids)))
        return {name for (name,) in names} | {
            dependency["dependency_id"]
            for dependencies, compressed in found
            for dependency in dependencies or _dependencies(compressed)
            if dependency["dependency_type"] == "asset-alias"
        }


class _Owned(NamedTuple):
    """A Dag with its team, if any; twice if it has two."""

    id: str
    team_id: str | None


def _owned(dags: Collection[_Dag], bundles: Collection[_Bundle]) -> Sequence[_Owned]:
    teams_of: dict[str | None, list[str | None]] = {}
    for bundle in bundles:
        teams_of.setdefault(bundle.name, []).append(bundle.team_id)
    return [_Owned(dag.id, team_id) for dag in dags for team_id in teams_of.get(dag.bundle, (None,))]


def _bundles(dags: Collection[_Dag]) -> tuple[dict[str, str], Counter[str]]:
    """The bundle of each Dag that has one, and how many Dags each bundle has."""
    bundle_of = {dag.id: dag.bundle for dag in dags if dag.bundle is not None}
    return bundle_of, Counter(bundle_of.values())


def _files(dags: Collection[_DagFile]) -> tuple[dict[str, _File], dict[_File, list[str]]]:
    """The file of each Dag that has one, and the Dags of each file."""
    file_of = {dag.id: (dag.bundle, dag.path) for dag in dags if None not in (dag.bundle, dag.path)}
    dags_of: dict[_File, list[str]] = {}
    for dag_id, file in file_of.items():
        dags_of.setdefault(file, []).append(dag_id)
    return file_of, dags_of


def existing() -> list[Resource]:
    """Everything of Airflow's database that questions name, with its owner: Dags, assets, connections and so on."""
    with create_session(scoped=False) as session:
        dags, bundles, assets = rows_of_each(session, (_DAGS, _TEAMS, _ASSETS))
        found = [
            Resource(type_, row.team_id, row.id) for type_, table in _NAMED.items() for row in many_rows(session, table)
        ]
        found += [Resource("dag", dag.team_id, dag.id) for dag in _owned(dags, bundles)]
        # As the API's questions name them.
        found += [Resource("asset", None, str(asset.id)) for asset in assets]
        with requests.unfiltered():
            teams = session.connection().execute(select(Team.name)).scalars().all()
        return [*found, *(Resource("team", name, name) for name in teams)]


def _dependencies(compressed: bytes | None) -> Sequence[dict[str, Any]]:
    """Dependencies of a Dag that is stored compressed (``[core] compress_serialized_dags``)."""
    return json.loads(zlib.decompress(compressed))["dag"]["dag_dependencies"] if compressed else ()
