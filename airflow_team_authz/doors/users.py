"""The users door: the auth manager. Another manager logs people in, and the policy makes every decision."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow.api_fastapi.auth.managers.base_auth_manager import BaseAuthManager
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.models import Connection, DagModel, Pool, Variable
from airflow.models.asset import AssetModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team, dag_bundle_team_association_table
from airflow.utils.session import NEW_SESSION, create_session, provide_session
from fastapi import HTTPException
from msgspec import UNSET, UnsetType
from sqlalchemy import select

from airflow_team_authz import airflow_compat, questions
from airflow_team_authz.decision_log import origin
from airflow_team_authz.doors import decisions, disclosure, wall
from airflow_team_authz.doors.bodies import TeamChanges, team_change
from airflow_team_authz.doors.decision_point import decision_point, records_are_kept
from airflow_team_authz.doors.disclosure import no_decision
from airflow_team_authz.doors.refusals import RefusalReasons, remember_refusal
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.escaping import logger
from airflow_team_authz.identities import Identity, identity_for, requests, unreviewed
from airflow_team_authz.identities.machines import teams_of_dags
from airflow_team_authz.model import Context, Decision, EngineError, Evaluations, Resource, Subject
from airflow_team_authz.settings import SettingsError, read_settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

log = logger(__name__)

_OWNERS: dict[str, Any] = {
    "connection": Connection.get_team_name,
    "pool": Pool.get_team_name,
    "variable": Variable.get_team_name,
}
DECISION_PREFIXES = ("is_authorized", "get_authorized", "filter_authorized", "batch_is_authorized")


class TeamAuthorization(Identity, BaseAuthManager[Any]):
    """The decision methods of ``BaseAuthManager``, each phrased as a question to the policy.

    ``**_`` in every signature takes what coming Airflow versions add. A failing engine is an
    ``HTTPException`` 503, never ``False``.
    """

    def init(self) -> None:
        """Load the policy when the API server starts, so that a broken one is noticed then.

        ``RuntimeError`` if a door is missing: a server that lets tasks or users through unasked must not serve.
        """
        super().init()
        refuse_unguarded_tasks()
        wall.install()
        refuse_unguarded_users()
        log.info("decisions are made by %s", self._policy)

    def get_fastapi_middlewares(self) -> list[Any]:
        """The login manager's, one that adds the reasons of refusals, and one that sees changes of teams."""
        return [*airflow_compat.login_middlewares(super()), (RefusalReasons, {}), (TeamChanges, {})]

    def get_fastapi_app(self) -> Any:
        """The login manager's, with the route that shows decisions."""
        return decisions.add_route(super().get_fastapi_app(), decisions.Asker(self._subject, lambda: self._policy))

    async def get_user_from_token(self, token: str, *arguments: Any, **named: Any) -> Any:
        """As the login manager has it. The request keeps the user, for routes about which Airflow asks nothing."""
        user = await super().get_user_from_token(token, *arguments, **named)
        requests.remember_login(lambda: self._subject(user))
        return user

    # One resource

    def is_authorized_configuration(self, *, method: Any, user: Any, details: Any = None, **_: Any) -> bool:
        return self._may("configuration", method, user, details)

    def is_authorized_connection(self, *, method: Any, user: Any, details: Any = None, **_: Any) -> bool:
        return self._may("connection", method, user, details)

    def is_authorized_dag(
        self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None, **_: Any
    ) -> bool:
        return self._may("dag", method, user, details, access_entity)

    def is_authorized_backfill(self, *, user: Any, **_: Any) -> bool:
        """Deprecated by Airflow, which asks about the Dag's runs instead; no backfill tells its Dag here."""
        return self._refuse(f"user {self._subject(user).id}: ask about the runs of the backfill's Dag instead", user)

    def is_authorized_asset(self, *, method: Any, user: Any, details: Any = None, **_: Any) -> bool:
        return self._may("asset", method, user, details)

    def is_authorized_asset_alias(self, *, method: Any, user: Any, details: Any = None, **_: Any) -> bool:
        return self._may("asset_alias", method, user, details)

    def is_authorized_pool(self, *, method: Any, user: Any, details: Any = None, **_: Any) -> bool:
        return self._may("pool", method, user, details)

    def is_authorized_team(self, *, method: Any, user: Any, details: Any = None, **_: Any) -> bool:
        return self._may("team", method, user, details)

    def is_authorized_variable(self, *, method: Any, user: Any, details: Any = None, **_: Any) -> bool:
        return self._may("variable", method, user, details)

    def is_authorized_view(self, *, access_view: Any, user: Any, **_: Any) -> bool:
        try:
            return self._decide(user, "read", [questions.view(access_view)])
        except questions.UnknownQuestionError as unknown:
            return self._refuse(str(unknown), user)

    def is_authorized_custom_view(self, *, method: Any, resource_name: str, user: Any, **_: Any) -> bool:
        action, resource = questions.custom_view(method, resource_name)
        return self._decide(user, action, [resource])

    def is_authorized_hitl_task(self, *, assigned_users: set[str], user: Any, **_: Any) -> bool:
        context = Context(str(user.get_id()), tuple(sorted(map(str, assigned_users))))
        return self._decide(user, "update", [Resource("hitl_task")], context)

    def require(self, user: Any, action: str, resources: list[Resource]) -> None:
        """Ask what Airflow does not; ``HTTPException`` 403 unless the policy allows the action on all of them."""
        if resources and not self._decide(user, action, resources):
            raise HTTPException(403, "Forbidden")

    # Several resources, all or nothing

    def batch_is_authorized_connection(self, requests: Sequence[Any], *, user: Any, **_: Any) -> bool:
        return self._may_all("connection", requests, user)

    def batch_is_authorized_dag(self, requests: Sequence[Any], *, user: Any, **_: Any) -> bool:
        return self._may_all("dag", requests, user)

    def batch_is_authorized_pool(self, requests: Sequence[Any], *, user: Any, **_: Any) -> bool:
        return self._may_all("pool", requests, user)

    def batch_is_authorized_variable(self, requests: Sequence[Any], *, user: Any, **_: Any) -> bool:
        return self._may_all("variable", requests, user)

    # Those of a set that are allowed

    def filter_authorized_connections(
        self, *, conn_ids: set[str], user: Any, method: Any = "GET", team_name: str | None = None, **_: Any
    ) -> set[str]:
        return self._filter("connection", ((id_, team_name) for id_ in conn_ids), user, method)

    def filter_authorized_dag_ids(
        self, *, dag_ids: set[str], user: Any, method: Any = "GET", team_name: str | None = None, **_: Any
    ) -> set[str]:
        return self._filter("dag", ((id_, team_name) for id_ in dag_ids), user, method)

    def filter_authorized_pools(
        self, *, pool_names: set[str], user: Any, method: Any = "GET", team_name: str | None = None, **_: Any
    ) -> set[str]:
        return self._filter("pool", ((id_, team_name) for id_ in pool_names), user, method)

    def filter_authorized_teams(self, *, teams_names: set[str], user: Any, method: Any = "GET", **_: Any) -> set[str]:
        return self._filter("team", ((name, name) for name in teams_names), user, method)

    def filter_authorized_variables(
        self, *, variable_keys: set[str], user: Any, method: Any = "GET", team_name: str | None = None, **_: Any
    ) -> set[str]:
        return self._filter("variable", ((key, team_name) for key in variable_keys), user, method)

    def filter_authorized_assets(self, *, asset_ids: set[int], user: Any, method: Any = "GET", **_: Any) -> set[int]:
        return {int(id_) for id_ in self._filter("asset", ((str(id_), None) for id_ in asset_ids), user, method)}

    def filter_authorized_menu_items(self, menu_items: list[Any], *, user: Any, **_: Any) -> list[Any]:
        leads_to = {item: target for item in menu_items if (target := questions.menu_item(item)) is not None}
        listed = set(self._allowed(user, "list", list(leads_to.values())))
        refused = [target for target in dict.fromkeys(leads_to.values()) if target not in listed]
        listed.update(self._listed_in_part(user, refused))
        return [item for item in menu_items if leads_to.get(item) in listed]

    # Those of all that are allowed: Airflow's own loops ask once per team, these once

    @provide_session
    def get_authorized_connections(
        self, *, user: Any, method: Any = "GET", session: Session = NEW_SESSION, **_: Any
    ) -> set[str]:
        return self._named("connection", select(Connection.conn_id, Connection.team_name), user, method, session)

    @provide_session
    def get_authorized_dag_ids(
        self, *, user: Any, method: Any = "GET", session: Session = NEW_SESSION, **_: Any
    ) -> set[str]:
        # The same list as what the second wall narrows queries by, which looks it up once for a request.
        if method == "GET" and (readable := wall.readable_by(self._subject(user), session)) is not None:
            return set(readable.all_dags(UNSET).ids)
        team = dag_bundle_team_association_table.c
        statement = (
            select(DagModel.dag_id, team.team_name)
            .join(DagBundleModel, DagModel.bundle_name == DagBundleModel.name)
            .join(dag_bundle_team_association_table, DagBundleModel.name == team.dag_bundle_name, isouter=True)
        )
        return self._filter("dag", _rows(session, statement), user, method)

    @provide_session
    def get_authorized_pools(
        self, *, user: Any, method: Any = "GET", session: Session = NEW_SESSION, **_: Any
    ) -> set[str]:
        return self._named("pool", select(Pool.pool, Pool.team_name), user, method, session)

    @provide_session
    def get_authorized_teams(
        self, *, user: Any, method: Any = "GET", session: Session = NEW_SESSION, **_: Any
    ) -> set[str]:
        return self._filter("team", _rows(session, select(Team.name, Team.name)), user, method)

    @provide_session
    def get_authorized_variables(
        self, *, user: Any, method: Any = "GET", session: Session = NEW_SESSION, **_: Any
    ) -> set[str]:
        return self._named("variable", select(Variable.key, Variable.team_name), user, method, session)

    @provide_session
    def get_authorized_assets(
        self, *, user: Any, method: Any = "GET", session: Session = NEW_SESSION, **_: Any
    ) -> set[int]:
        ids = set(session.scalars(select(AssetModel.id)))
        return self.filter_authorized_assets(asset_ids=ids, user=user, method=method)

    def get_authorized_menu_items(self, *, user: Any, **_: Any) -> list[Any]:
        """Airflow's way, whatever the login manager's is."""
        return BaseAuthManager.get_authorized_menu_items(self, user=user)

    def get_extra_menu_items(self, *, user: Any, **_: Any) -> list[Any]:
        """The login manager's own pages, as far as policy lets the user see them, and everybody's: decisions."""
        items = super().get_extra_menu_items(user=user)
        allowed = set(self._allowed(user, "menu", [Resource("custom_view", id=item.text) for item in items]))
        shown = [item for item in items if Resource("custom_view", id=item.text) in allowed]
        return [*shown, decisions.menu_item()] if records_are_kept() else shown

    # What all of them come down to

    @cached_property
    def _policy(self) -> DecisionPoint:
        return decision_point()

    def _subject(self, user: Any) -> Subject:
        if user is None:
            # Keycloak's manager makes nobody of a session whose cookies do not belong together.
            raise HTTPException(401, "Not authenticated")
        try:
            subject = self.subject(user)
        except EngineError as error:
            raise no_decision(error) from None
        if not isinstance(subject, Subject):
            raise no_decision(EngineError("[team_authz] identity must make a Subject of a user, and has not"))
        requests.remember(subject)
        return subject

    def _may(self, type_: str, method: Any, user: Any, details: Any, entity: Any = None) -> bool:
        try:
            resource = questions.resource(type_, details, entity)
            action = questions.action(method, resource)
        except questions.UnknownQuestionError as unknown:
            return self._refuse(str(unknown), user)
        return self._decide(user, action, _with_destinations(action, [resource]))

    def _may_all(self, type_: str, requests: Sequence[Mapping[str, Any]], user: Any) -> bool:
        """Whether all of Airflow's requests about one type are allowed; one question per action among them."""
        by_action: dict[str, list[Resource]] = {}
        try:
            for request in requests:
                resource = questions.resource(type_, request.get("details"), request.get("access_entity"))
                by_action.setdefault(questions.action(request["method"], resource), []).append(resource)
        except questions.UnknownQuestionError as unknown:
            return self._refuse(str(unknown), user)
        return all(
            self._decide(user, action, _with_destinations(action, resources)) for action, resources in by_action.items()
        )

    def _decide(self, user: Any, action: str, resources: list[Resource], context: Context | UnsetType = UNSET) -> bool:
        question = Evaluations(self._subject(user), action, resources, context)
        try:
            answer, how = self._policy.weigh(question)
            if action == "list" and self._lists_a_part(question, answer.decisions):
                return True
            told = self._refusal(question, answer.decisions)
            # Only before the handler a refusal is always an answer; what a handler asks about, nobody has named.
            is_answered = told is not None and requests.is_before_handler()
            answer = self._policy.settle(question, answer, how._replace(told=told or "") if is_answered else how)
        except EngineError as error:
            raise no_decision(error) from None
        if told is not None:
            remember_refusal(told, answer.decision_id)
            return False
        for resource, decision in zip(resources, answer.decisions, strict=True):
            if decision.allow is True:
                requests.remember_allowed(action, resource)
        return True

    def _refusal(self, question: Evaluations, decisions: Sequence[Decision]) -> str | None:
        """The visible reason of the first refusal; ``None`` if all is allowed, or Airflow is to look for the rest."""
        for resource, decision in zip(question.resources, decisions, strict=True):
            if decision.allow is not True and (reason := self._reason(question, resource, decision)) is not None:
                return reason
        return None

    def _reason(self, question: Evaluations, resource: Resource, refused: Decision) -> str | None:
        """The visible reason of a refusal; ``None`` if Airflow is to look for the resource, and find nothing."""
        told = disclosure.visible_reason(self._policy, question, resource, refused)
        # What is created, Airflow does not look for, but for the Dag of which it becomes a part. A handler that asks
        # does not look either: it has found it already.
        is_looked_for = question.action != "create" or resource.entity is not UNSET
        if told.as_missing and is_looked_for and requests.is_before_handler() and requests.conceal(resource):
            return None
        return told.reason

    def _named(self, type_: str, statement: Any, user: Any, method: Any, session: Session) -> set[str]:
        """Names of those that are allowed; for reading, by the list that the second wall has of this request, too."""
        if method == "GET" and (readable := wall.readable_by(self._subject(user), session)) is not None:
            return {name for name, _ in readable.all_named(type_).ids}
        return self._filter(type_, _rows(session, statement), user, method)

    def _filter(self, type_: str, owned: Iterable[tuple[str, str | None]], user: Any, method: Any) -> set[str]:
        """Ids of those that are allowed, each as if it had been asked for alone."""
        resources = [Resource(type_, team, id_) for id_, team in owned]
        if not resources:
            return set()
        try:
            action = questions.action(method, resources[0])
        except questions.UnknownQuestionError as unknown:
            self._refuse(str(unknown), user)
            return set()
        return {str(resource.id) for resource in self._allowed(user, action, resources)}

    def _allowed(self, user: Any, action: str, resources: list[Resource]) -> list[Resource]:
        try:
            return self._policy.allowed(Evaluations(self._subject(user), action, resources)) if resources else []
        except EngineError as error:
            raise no_decision(error) from None

    def _listed_in_part(self, user: Any, refused: list[Resource]) -> list[Resource]:
        """Those of refused lists of which Airflow shows a part; nobody is refused anything by this."""
        subject = self._subject(user)
        lists = _readable_in_part(subject, refused)
        try:
            why = self._policy.decide(Evaluations(subject, "list", lists), aside=True).decisions if lists else []
        except EngineError as error:
            raise no_decision(error) from None
        return [resource for resource, decision in zip(lists, why, strict=True) if decision.layer == "default"]

    def _lists_a_part(self, question: Evaluations, decisions: Sequence[Decision]) -> bool:
        """Whether Airflow shows a list that nothing allows as a whole, since the subject may read a part of it.

        A team's rule gives rights on single Dags, and is not asked about lists in general. Airflow asks about the list
        first, and then shows what may be read. So the answer is whether there is such a part, as FAB's auth manager has
        it, unless a rule denies the list. The observer is told of the question about the parts.
        """
        refused = [one for one in zip(question.resources, decisions, strict=True) if one[1].allow is not True]
        if not refused or any(decision.layer != "default" for _, decision in refused):
            return False
        lists = [resource for resource, _ in refused]
        return _readable_in_part(question.subject, lists) == lists

    def _refuse(self, reason: str, user: Any) -> bool:
        """``False``, for what cannot be asked; it is recorded as a refusal of the request's route."""
        here = origin.current()
        action, resource = questions.route(here.method, here.path)
        decision_id = self._policy.refuse(Evaluations(self._subject(user), action, [resource]), reason)
        remember_refusal(reason, decision_id)
        return False


def _readable_in_part(subject: Subject, lists: list[Resource]) -> list[Resource]:
    """Those of the lists that have a part which the subject may read."""
    with create_session(scoped=False) as session:
        return [resource for resource in lists if wall.has_readable(subject, resource, session)]


@cache
def build_manager() -> type[TeamAuthorization]:
    """The class that Airflow instantiates: our decisions over the configured manager's login.

    A subclass rather than a wrapper: FAB's pages and Airflow's login routes test ``isinstance``. Raises
    ``SettingsError`` for a bad setting, and ``TypeError`` if a decision would stay with the login manager.
    """
    settings = read_settings()
    name = settings.authn_manager
    module, _, attribute = name.rpartition(".")
    try:
        # Our own is made here: to ask the package for it would never end.
        login = TeamAuthorization if module == "airflow_team_authz" else getattr(import_module(module), attribute)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        raise SettingsError(f"[team_authz] authn_manager: {name} cannot be imported: {error}") from error
    if not (isinstance(login, type) and issubclass(login, BaseAuthManager)) or issubclass(login, TeamAuthorization):
        raise SettingsError(f"[team_authz] authn_manager: {name} is not an auth manager that logs people in")
    own: dict[str, Any] = {"__module__": "airflow_team_authz", "__doc__": TeamAuthorization.__doc__}
    if login._get_teams is not SimpleAuthManager._get_teams:
        # Airflow compares the login manager's teams with its own at start. Here teams come from the directory; only
        # SimpleAuthManager's users are in teams, by their setting.
        own["_get_teams"] = lambda _: set()
    try:
        identity = identity_for(login, settings.identity)
    except ValueError as error:
        raise SettingsError(f"[team_authz] identity: {error}") from error
    bases = (TeamAuthorization, identity, login)
    manager: type[TeamAuthorization] = type("TeamAuthManager", bases, own)
    refuse_foreign_decisions(manager)
    refuse_unreviewed_methods(login)
    return manager


def refuse_foreign_decisions(manager: type) -> None:
    """``TypeError`` if a decision method of the class is not ours: it would let the login manager decide."""
    ours = vars(TeamAuthorization)
    foreign = sorted(name for name in dir(manager) if name.startswith(DECISION_PREFIXES) and name not in ours)
    if foreign:
        raise TypeError(
            f"{', '.join(foreign)} of {manager.__bases__[-1].__name__} would decide without the policy: "
            "this version of airflow-team-authz does not know it, so it does not start"
        )


def refuse_unreviewed_methods(login: type) -> None:
    """``TypeError`` if Airflow would call a method of a known login manager that nobody has read for this version."""
    names = [name for name in unreviewed(login, BaseAuthManager) if not name.startswith(DECISION_PREFIXES)]
    if names := [name for name in names if name not in vars(TeamAuthorization)]:
        raise TypeError(
            f"{', '.join(names)} of {login.__name__} is new: this version of airflow-team-authz does not know what "
            "Airflow does by it beside logging people in, so it does not start. Look for a newer version of "
            "airflow-team-authz, or install the provider's version from before"
        )


def refuse_unguarded_tasks() -> None:
    """``RuntimeError`` if this process would serve tasks without asking the policy."""
    execution_api = sys.modules.get("airflow.api_fastapi.execution_api.app")
    create = getattr(execution_api, "create_task_execution_api_app", None)
    if create is not None and not create.__module__.startswith("airflow_team_authz."):
        raise RuntimeError(
            "the Execution API is not guarded, so tasks would do as they like: the entry point airflow.policy of "
            "airflow-team-authz has not been loaded. Install the package with its metadata (pip install), in the "
            "environment that runs `airflow api-server`"
        )


def refuse_unguarded_users() -> None:
    """``RuntimeError`` if this process would serve users' routes without the questions that Airflow leaves out."""
    views = sys.modules.get("airflow.api_fastapi.core_api.app")
    init = getattr(views, "init_views", None)
    if init is not None and not init.__module__.startswith("airflow_team_authz."):
        raise RuntimeError(
            "users' routes are not guarded: the entry point airflow.policy of airflow-team-authz has not been loaded. "
            "Install the package with its metadata (pip install), in the environment that runs `airflow api-server`"
        )


def _with_destinations(action: str, resources: list[Resource]) -> list[Resource]:
    """The resources, with the teams that they really go to where Airflow does not tell (see ``doors.bodies``)."""
    if action not in {"create", "update"}:
        return resources
    change = team_change()
    if action == "update" and change.keeps_team:
        return [resource if resource.team_id else _where_it_is(resource) for resource in resources]
    if action == "update" and change.to_common:
        return resources + [
            Resource(resource.type, None, resource.id) for resource in resources if resource.id in change.to_common
        ]
    if action == "create":
        # In bulk, Airflow asks about what is to be created for a team as if it were common as well, once for each.
        placed = Counter(
            resource.id
            for resource in resources
            if resource.team_id is not None and resource.id not in change.new_to_common
        )
        asked = [resource for resource in resources if resource.team_id is not None]
        for resource in resources:
            if resource.team_id is None and placed[resource.id] > 0:
                placed[resource.id] -= 1
            elif resource.team_id is None:
                asked.append(resource)
        return asked
    return resources


def owner_of(type_: str, id_: str) -> str | None:
    """The team of something in Airflow's database; ``None`` for what is common. ``LookupError`` if it is not there."""
    keys = {
        "connection": Connection.conn_id,
        "dag": DagModel.dag_id,
        "pool": Pool.pool,
        "team": Team.name,
        "variable": Variable.key,
    }
    if type_ not in keys:
        raise LookupError(f"Airflow's database does not say whose a {type_} is")
    with create_session(scoped=False) as session:
        if session.scalar(select(keys[type_]).where(keys[type_] == id_)) is None:
            raise LookupError(f"there is no {type_} {id_}")
        if type_ == "team":
            return id_
        team_id: str | None = teams_of_dags([id_], session)[id_] if type_ == "dag" else _OWNERS[type_](id_)
        return team_id


def _where_it_is(resource: Resource) -> Resource:
    owner = _OWNERS.get(resource.type)
    if owner is None or resource.id is UNSET:
        return resource
    return Resource(resource.type, owner(resource.id), resource.id, resource.entity)


def _rows(session: Session, statement: Any) -> Iterable[tuple[str, str | None]]:
    with requests.unfiltered():
        return [(id_, team) for id_, team in session.execute(statement)]
