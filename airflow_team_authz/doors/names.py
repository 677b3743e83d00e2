"""The names' door: what a Dag file names belongs to the team of the bundle that declared it first.

Airflow takes a Dag for whichever bundle has parsed it last, with its runs and XComs. Here another team's file that uses
the id is an import error, and moving a Dag to another team is the platform's act (``team-authz dags move``). Likewise
an asset's watchers are left alone, and a Dag whose file is gone is still known as an asset's producer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import wraps
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import exists, insert, or_, select, update

from airflow_team_authz import airflow_compat
from airflow_team_authz.doors import DoorError
from airflow_team_authz.escaping import logger
from airflow_team_authz.identities import requests
from airflow_team_authz.settings import SettingsError
from airflow_team_authz.texts import with_lines

if TYPE_CHECKING:
    from types import ModuleType

    from airflow.models import DagModel
    from sqlalchemy.orm import Session

log = logger(__name__)

# The row of Airflow's audit log that tells of a Dag which has been moved.
MOVED = "dag moved"


class NotMovedError(DoorError):
    """Dags cannot be moved as it was asked; none of them has been. The message says why, and what to do."""


class TakenMeanwhileError(DoorError):
    """Another team's bundle has declared a Dag id while a file with it was written: nothing of that file is written."""


class Home(NamedTuple):
    """Where a Dag is: its bundle, and the team of that, ``None`` for a bundle that is common to all teams."""

    bundle: str
    team_id: str | None

    def __str__(self) -> str:
        owner = "all teams" if self.team_id is None else f"team {self.team_id}"
        return f"{owner} (bundle {self.bundle})"


class Moved(NamedTuple):
    """A Dag with where it was and where it is now."""

    dag_id: str
    old: Home
    new: Home


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``."""
    put_in: dict[str, Callable[[Any], None]] = {
        "airflow.dag_processing.bundles.manager": _guard_bundles,
        "airflow.dag_processing.collection": _guard_parsing,
        "airflow.dag_processing.manager": _guard_references,
        "airflow.models.dag": _guard_cache,
    }
    put_in[module.__name__](module)


def _guard_parsing(module: Any) -> None:
    """Make Airflow leave out Dags of other teams when it writes parsed Dags into the database."""
    write = module.update_dag_parsing_results_in_db

    def write_own(
        bundle_name: str,
        bundle_version: str | None,
        dags: Collection[Any],
        import_errors: dict[tuple[str, str], str],
        parse_duration: float | None,
        warnings: Collection[Any],
        session: Session,
        **named: Any,
    ) -> None:
        # A warning comes from the process that runs the file's code, and may name any Dag.
        dag_ids = {dag.dag_id for dag in dags} | {warning.dag_id for warning in warnings}
        others = _others(bundle_name, dag_ids, session)
        for dag in dags:
            if dag.dag_id in others:
                file = (bundle_name, str(dag.relative_fileloc))
                told = _refusal(dag.dag_id, others[dag.dag_id], bundle_name)
                import_errors[file] = with_lines(import_errors.get(file), told)
        own = [dag for dag in dags if dag.dag_id not in others]
        own_warnings = {warning for warning in warnings if warning.dag_id not in others}
        try:
            write(bundle_name, bundle_version, own, import_errors, parse_duration, own_warnings, session, **named)
        except Exception:
            # The Dag processor tells it and goes on, and would commit what is there.
            session.rollback()
            raise

    module.update_dag_parsing_results_in_db = write_own

    # Airflow tries again after an error, and has the rows locked only once it writes: so they are looked at then too.
    add = module.DagModelOperation.add_dags

    def add_own(self: Any, *, session: Session) -> dict[str, DagModel]:
        found: dict[str, DagModel] = add(self, session=session)
        if others := _others(self.bundle_name, self.dags, session, locked=True):
            raise TakenMeanwhileError("; ".join(_refusal(*other, self.bundle_name) for other in others.items()))
        return found

    module.DagModelOperation.add_dags = add_own
    _guard_watchers(module)


def _guard_watchers(module: Any) -> None:
    """Keep another team's watchers of an asset: each description of the asset would replace them."""
    if airflow_compat.team_of_trigger(module.Trigger) is None:
        return
    add = module.AssetModelOperation.add_asset_trigger_references

    def add_own(self: Any, assets: dict[Any, Any], *, team_name: str | None = None, session: Session) -> None:
        others = {
            name
            for name, asset in assets.items()
            if any(watcher.trigger and watcher.trigger.team_name != team_name for watcher in asset.watchers)
        }
        for name in others:
            if self.assets[name].watchers:
                log.warning("asset %s keeps its watchers: they are another team's than that of the parsed bundle", name)
        own = self._replace(assets={name: asset for name, asset in self.assets.items() if name not in others})
        add(own, assets, team_name=team_name, session=session)

    module.AssetModelOperation.add_asset_trigger_references = add_own


def _guard_references(module: Any) -> None:
    """A Dag whose file is gone stays the producer of an asset that keeps state, or that others produce too.

    Airflow forgets what all stale Dags produce when any file is deleted, also another team's. Once the file is back,
    the others would have produced the asset for longer, and have its state.
    """
    from sqlalchemy.orm import aliased

    if not airflow_compat.keeps_state_of_assets():
        return
    forget = module.remove_references_to_deleted_dags

    def forget_but_for_owners(session: Session) -> None:
        from airflow.models import DagModel
        from airflow.models.asset import TaskOutletAssetReference as Outlet
        from airflow.models.asset_state_store import AssetStateStoreModel

        other = aliased(Outlet)
        contested = exists().where(other.asset_id == Outlet.asset_id, other.dag_id != Outlet.dag_id)
        has_state = exists().where(AssetStateStoreModel.asset_id == Outlet.asset_id)
        statement = select(*Outlet.__table__.columns).join(DagModel, DagModel.dag_id == Outlet.dag_id)
        kept = session.execute(statement.where(DagModel.is_stale, or_(contested, has_state))).mappings().all()
        forget(session)
        if kept:
            session.execute(insert(Outlet), [dict(row) for row in kept])

    module.remove_references_to_deleted_dags = forget_but_for_owners


def _refusal(dag_id: str, home: Home, bundle_name: str) -> str:
    taken = "is taken already" if _conceals() else f"belongs to {home}, which declared it first"
    return (
        f"Dag {dag_id} {taken}; bundle {bundle_name} changes nothing of it. "
        "Use another dag_id, or ask the platform's administrators to give the Dag to this bundle: "
        f"`team-authz dags move {dag_id} --to {quote(bundle_name)}`"
    )


def _conceals() -> bool:
    """Whether nobody is told whose something is; so too when the settings cannot be read."""
    from airflow_team_authz.doors.decision_point import settings

    try:
        return settings().refusals == "conceal"
    except SettingsError:
        return True


def _others(bundle_name: str, dag_ids: Iterable[str], session: Session, locked: bool = False) -> dict[str, Home]:
    """Dags that belong to another team than the bundle."""
    if not (homes := _homes(dag_ids, session, locked)):
        return {}
    team_id = _team_of_bundle(bundle_name, session)
    return {dag_id: home for dag_id, home in homes.items() if home.team_id != team_id}


def _homes(dag_ids: Iterable[str], session: Session, locked: bool = False) -> dict[str, Home]:
    """Where Dags are."""
    from airflow.models import DagModel
    from airflow.models.team import dag_bundle_team_association_table
    from airflow.utils.sqlalchemy import with_row_locks

    of_bundle = dag_bundle_team_association_table.c
    statement: Any = (
        select(DagModel.dag_id, DagModel.bundle_name, of_bundle.team_name)
        .outerjoin(dag_bundle_team_association_table, of_bundle.dag_bundle_name == DagModel.bundle_name)
        .where(DagModel.dag_id.in_(sorted(dag_ids)))
    )
    if locked:
        statement = with_row_locks(statement, session, of=DagModel)
    return {row.dag_id: Home(row.bundle_name, row.team_name) for row in session.execute(statement)}


def _team_of_bundle(bundle_name: str, session: Session) -> str | None:
    from airflow.models.team import dag_bundle_team_association_table

    of_bundle = dag_bundle_team_association_table.c
    team_id: str | None = session.scalar(select(of_bundle.team_name).where(of_bundle.dag_bundle_name == bundle_name))
    return team_id


def _guard_bundles(module: Any) -> None:
    """A bundle that is no longer configured keeps its team: Airflow would make its Dags common to all teams."""
    from airflow.utils.session import NEW_SESSION, provide_session

    sync = module.DagBundlesManager.sync_bundles_to_db

    @provide_session
    def sync_bundles_to_db(self: Any, *, session: Session = NEW_SESSION, **named: Any) -> None:
        # A process that runs a task has this module, and needs no models.
        from airflow.models import DagModel
        from airflow.models.dagbundle import DagBundleModel

        owners = [(bundle, list(bundle.teams)) for bundle in session.scalars(select(DagBundleModel))]
        sync(self, session=session, **named)
        for bundle, teams in owners:
            # Without a Dag there is nothing to own, and the team can be deleted.
            has_dags = exists().where(DagModel.bundle_name == bundle.name)
            if teams and bundle.active is False and session.scalar(select(has_dags)):
                bundle.teams = teams

    module.DagBundlesManager.sync_bundles_to_db = sync_bundles_to_db


def _guard_cache(module: Any) -> None:
    """A Dag's team is looked up whenever it is asked for: Airflow keeps, for half a minute, also that there is none.

    And whoever asks: a Dag that a person may not see must not seem to be common.
    """
    get_many = module.DagModel.get_dag_id_to_team_name_mapping
    module.DagModel.get_team_name = staticmethod(_whoever_asks(airflow_compat.uncached_team_name(module)))
    module.DagModel.get_dag_id_to_team_name_mapping = staticmethod(_whoever_asks(get_many))


def _whoever_asks(find: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(find)
    def found(*arguments: Any, **named: Any) -> Any:
        with requests.unfiltered():
            return find(*arguments, **named)

    return found


def move(dag_ids: Collection[str], bundle_name: str | None, team_id: str | None) -> list[Moved]:
    """Give Dags to a bundle, or to the only bundle of a team: all of them, or none.

    They stay as they are until a file of that bundle declares them, and start no runs before. Raises ``NotMovedError``
    if a Dag, the bundle or the team does not exist, or if the team has several bundles.
    """
    from airflow.models import DagModel
    from airflow.models.log import Log
    from airflow.utils.platform import getuser
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        new = _bundle(bundle_name, session) if bundle_name is not None else _only_bundle(str(team_id), session)
        homes = _homes(dag_ids, session, locked=True)
        if unknown := sorted(set(dag_ids) - homes.keys()):
            raise NotMovedError(
                f"Airflow's database has no Dag {', '.join(unknown)}: check the ids. Nothing has been moved"
            )
        moved = [Moved(dag_id, homes[dag_id], new) for dag_id in dict.fromkeys(dag_ids)]
        for one in moved:
            if one.old == new:
                continue
            values = {"bundle_name": new.bundle, "bundle_version": None, "is_stale": True}
            session.execute(update(DagModel).where(DagModel.dag_id == one.dag_id).values(**values))
            session.add(Log(MOVED, dag_id=one.dag_id, owner=getuser(), extra=f"from {one.old} to {new}"))
    return moved


def dags_of(bundle_name: str) -> list[str]:
    """All Dags of a bundle, which need not be configured any more. ``NotMovedError`` if it has none."""
    from airflow.models import DagModel
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        of_bundle = select(DagModel.dag_id).where(DagModel.bundle_name == bundle_name).order_by(DagModel.dag_id)
        dag_ids = list(session.scalars(of_bundle))
    if not dag_ids:
        raise NotMovedError(f"Bundle {bundle_name} has no Dags: check its name. Nothing has been moved")
    return dag_ids


def _bundle(name: str, session: Session) -> Home:
    if name not in (configured := _bundles(session)):
        raise NotMovedError(f"No bundle {name} is configured. These are: {', '.join(configured) or 'none'}")
    return Home(name, _team_of_bundle(name, session))


def _only_bundle(team_id: str, session: Session) -> Home:
    of_team = [name for name in _bundles(session) if _team_of_bundle(name, session) == team_id]
    if not of_team:
        raise NotMovedError(f"Team {team_id} has no bundle: configure one in [dag_processor] dag_bundle_config_list")
    if len(of_team) > 1:
        raise NotMovedError(f"Team {team_id} has several bundles: say which by --to. They are: {', '.join(of_team)}")
    return Home(of_team[0], team_id)


def _bundles(session: Session) -> list[str]:
    from airflow.models.dagbundle import DagBundleModel

    configured = select(DagBundleModel.name).where(DagBundleModel.active.is_(True))
    return list(session.scalars(configured.order_by(DagBundleModel.name)))
