"""``[team_authz] mode = observe``: Airflow's own auth manager decides, and the policy is asked afterwards.

Airflow's auth manager stays what it is, and so do its answers. Its decision methods note what they were asked and what
they answered; a thread phrases that as the users' door would, asks the policy, and has the differences recorded.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

from msgspec import UNSET, UnsetType

from airflow_team_authz import questions
from airflow_team_authz.decision_log import DecisionLog, origin
from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.record import Listed
from airflow_team_authz.doors import decision_point
from airflow_team_authz.doors.users import DECISION_PREFIXES, TeamAuthorization
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.choice import open_engine
from airflow_team_authz.escaping import logger
from airflow_team_authz.identities import Identity, identity_for
from airflow_team_authz.model import Context, Evaluations, Resource, Subject
from airflow_team_authz.shadow import Candidate, Difference, Question, Queue

log = logger(__name__)

# Deprecated by Airflow, and the policy is asked about the runs of the Dag instead.
_NOT_COMPARED = {"is_authorized_backfill"}
# Airflow's own managers answer one question by asking themselves others: only the first one is somebody's.
_is_inside: ContextVar[bool] = ContextVar("team_authz_observed", default=False)


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``: the module that starts the auth manager of an API server.

    Commands make a manager too, and print what programs read: they are left alone.
    """
    start: Callable[..., Any] = module.init_auth_manager

    @functools.wraps(start)
    def start_and_observe(*arguments: Any, **named: Any) -> Any:
        manager = start(*arguments, **named)
        observe(manager)
        return manager

    module.init_auth_manager = start_and_observe  # type: ignore[attr-defined]


def observe(manager: Any, queue: Queue | None = None) -> None:
    """Have a manager's decisions noted from now on. Once; what fails is told, and the manager stays as it is.

    ``queue``: where they wait for the policy; by default that of the settings.
    """
    if "_team_authz_observed" in vars(manager):
        return
    try:
        settings = decision_point.settings()
        identity = identity_for(type(manager), settings.identity)()
        if queue is None:
            queue = _opened_queue()
        noting = _Noting(identity, queue)
        methods = {
            name: getattr(manager, name)
            for name in dir(type(manager))
            if name.startswith((*DECISION_PREFIXES, "get_extra_menu_items")) and name not in _NOT_COMPARED
        }
    except Exception:
        log.exception("[team_authz] mode is observe, but the decisions of this process cannot be observed")
        return
    for name, method in methods.items():
        setattr(manager, name, _noted(name, method, noting))
    vars(manager)["_team_authz_observed"] = noting
    _tell_people(type(manager).__name__)
    log.warning(
        "OBSERVING: %s decides, and nothing of this package is enforced: [team_authz] mode = observe has the policy "
        "say afterwards what it would have answered. `team-authz observe report` shows the differences",
        type(manager).__name__,
    )


def _tell_people(manager: str) -> None:
    """A line at the top of Airflow's home page."""
    from airflow import settings
    from airflow.api_fastapi.common.types import UIAlert

    told = f"{manager} decides. The policy of [team_authz] only observes: nothing of it is enforced."
    settings.DASHBOARD_UIALERTS.append(UIAlert(text=told, category="warning"))


def _noted(name: str, method: Callable[..., Any], noting: _Noting) -> Callable[..., Any]:
    """The same method, whose outermost calls are noted after they have answered."""

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        if _is_inside.get() or noting.is_part(named):
            return method(*arguments, **named)
        token = _is_inside.set(True)
        user = noting.begin(named)
        try:
            answer = method(*arguments, **named)
        finally:
            noting.end(user)
            _is_inside.reset(token)
        noting.note(name, method, arguments, named, answer)
        return answer

    return call


class Noted(NamedTuple):
    """A call of a decision method with its answer, as it waits for the policy."""

    at: int
    origin: Origin
    method: str
    named: Mapping[str, Any]
    user_id: str
    subject: Callable[[], Subject]
    answer: Any
    size: int


class _Noting:
    """Puts calls into the queue. Never raises: whoever asks gets the manager's answer, whatever happens here."""

    def __init__(self, identity: Identity, queue: Queue) -> None:
        self._identity, self._queue = identity, queue
        # Whose calls are under way, by the ids of their user objects.
        self._under_way: set[int] = set()

    def begin(self, named: Mapping[str, Any]) -> int:
        """Note that a call about a user begins; what to end it by."""
        user = id(named.get("user"))
        self._under_way.add(user)
        return user

    def end(self, user: int) -> None:
        """The call has ended."""
        self._under_way.discard(user)

    def is_part(self, named: Mapping[str, Any]) -> bool:
        """Whether a call is part of another one: Keycloak's manager asks itself in a pool of threads."""
        in_pool = threading.current_thread().name.startswith("ThreadPoolExecutor")
        return in_pool and id(named.get("user")) in self._under_way

    def note(
        self, name: str, method: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any], answer: Any
    ) -> None:
        try:
            if not self._queue.takes():
                return
            given = dict(inspect.signature(method).bind_partial(*arguments).arguments) if arguments else {}
            given |= named
            user = given.pop("user", None)
            # Of the request, which ends before the policy is asked.
            given.pop("session", None)
            if user is None:
                return
            # A page of Flask hands over a proxy, which means somebody else in another thread.
            user = getattr(user, "_get_current_object", lambda: user)()
            copied = {key: _copied(value) for key, value in given.items()}
            size = max([1, *(len(value) for value in copied.values() if isinstance(value, set | list | tuple))])
            user_id = str(user.get_id()) if name == "is_authorized_hitl_task" else ""
            later = self._identity.later(user)
            here = origin.current()._replace(door="users")
            noted = Noted(time.time_ns(), here, name, copied, user_id, later, _copied(answer), size)
            self._queue.put(noted)
        except Exception:
            log.exception("an answer could not be observed")


def _copied(value: Any) -> Any:
    """The same, whatever its owner does with a set or a list."""
    return type(value)(value) if type(value) in {set, list, tuple, dict} else value


# In the thread


class Observed(Candidate):
    """Asks the policy what the auth manager was asked."""

    name = "the observed policy"

    def questions(self, waiting: Any) -> Iterator[Question]:
        """See ``Candidate``."""
        if not isinstance(waiting, Noted):
            yield from super().questions(waiting)
            return
        asked = list(_phrased(waiting))
        answer = waiting.answer
        if isinstance(answer, bool):
            is_together = not answer and sum(len(one.resources) for one in asked) > 1
            for one in asked:
                said = [Listed(answer)] * len(one.resources)
                yield Question(waiting.at, waiting.origin, one, said, (), "", is_together=is_together)
            return
        allowed = _resources(waiting.method, answer)
        for one in asked:
            known = [resource for resource in one.resources if _key(waiting.method, resource) in allowed]
            yield Question(waiting.at, waiting.origin, one, None, known, "")

    def differences(self, point: DecisionPoint, question: Question) -> Iterator[Difference]:
        """See ``Candidate``. A list that nothing allows as a whole shows what the person may read, and may be shown."""
        for one in super().differences(point, question):
            is_of_all = question.asked.action == "list" and one.resource.id is UNSET
            if not (is_of_all and one.new.layer == "default"):
                yield one


def _phrased(noted: Noted) -> Iterator[Evaluations]:
    """The questions that the users' door makes of a call."""
    phrasing = _phrasing()
    user = _Asker(noted.subject(), noted.user_id)
    if noted.method == "get_extra_menu_items":
        # Only what the manager shows is known.
        items = [Resource("custom_view", id=item.text) for item in noted.answer]
        if items:
            yield Evaluations(user.subject, "menu", items)
        return
    named = dict(noted.named)
    if noted.method == "filter_authorized_assets" and "assets" in named:
        # Some providers take the details of assets.
        named["asset_ids"] = {asset.id for asset in named.pop("assets") if asset.id is not None}
    getattr(phrasing, noted.method)(user=user, **named)
    yield from phrasing.asked


def _resources(method: str, answer: Any) -> set[Any]:
    """What identifies the resources of an answer."""
    if method.endswith("_menu_items") and method != "get_extra_menu_items":
        return {questions.menu_item(item) for item in answer}
    return {str(getattr(item, "text", item)) for item in answer}


def _key(method: str, resource: Resource) -> Any:
    return resource if method.endswith("_menu_items") and method != "get_extra_menu_items" else str(resource.id)


class _Asker(NamedTuple):
    """Stands for the user object in the thread."""

    subject: Subject
    user_id: str

    def get_id(self) -> str:
        return self.user_id


class _Phrasing(TeamAuthorization):
    """The users' door without a login and without a policy: it keeps the questions, and asks nobody."""

    def __init__(self) -> None:
        self.asked: list[Evaluations] = []

    def _decide(
        self, user: _Asker, action: str, resources: list[Resource], context: Context | UnsetType = UNSET
    ) -> bool:
        self.asked.append(Evaluations(user.subject, action, resources, context))
        # Allowed, so that what is asked next is asked, too.
        return True

    def _allowed(self, user: _Asker, action: str, resources: list[Resource]) -> list[Resource]:
        if resources:
            self.asked.append(Evaluations(user.subject, action, resources))
        return resources

    def _listed_in_part(self, *_: Any) -> list[Resource]:
        return []

    def _subject(self, user: _Asker) -> Subject:
        return user.subject

    def _refuse(self, *_: Any) -> bool:
        """What cannot be asked is not compared."""
        return False


# What logs people in is the observed manager's.
_Phrasing.__abstractmethods__ = frozenset()
_phrasing: Callable[[], Any] = _Phrasing


@functools.cache
def _opened_queue() -> Queue:
    """The queue before the policy of the settings."""
    settings = decision_point.settings()
    metrics = decision_point.counting()
    decision_log: DecisionLog = decision_point.decision_log()
    candidate = Observed(
        decision_log,
        lambda: DecisionPoint(open_engine(settings, Observed.name), name=Observed.name),
        (lambda _, __: None) if metrics is None else metrics.beside,
        settings.shadow_sample,
        "observe",
    )
    return Queue(candidate, settings.shadow_sample)
