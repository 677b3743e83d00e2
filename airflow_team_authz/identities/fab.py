"""Users of the FAB auth manager: Airflow's own database, LDAP, OAuth through Flask-AppBuilder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_team_authz.identities import Identity
from airflow_team_authz.model import Subject


class FabIdentity(Identity):
    """Adds the groups to what FAB loads of a user, and the roles that follow from them.

    FAB loads ``user.roles`` with the user and keeps it for ``[fab] cache_ttl`` seconds; ``user.groups`` is not loaded
    and raises ``DetachedInstanceError`` later. So groups are read once, when FAB itself reads the user, and kept with
    it.
    """

    def deserialize_user(self, token: dict[str, Any]) -> Any:
        """See ``BaseAuthManager``; one query more when FAB had to read the user anew."""
        user = super().deserialize_user(token)  # type: ignore[misc]
        if not hasattr(user, "_team_authz_groups"):
            user._team_authz_groups = _groups(user.id)
        return user

    def subject(self, user: Any) -> Subject:
        """See ``Identity``. A group's FAB roles count like the user's own."""
        groups = getattr(user, "_team_authz_groups", None)
        if groups is None:
            # Flask's pages hand over the user of their own session.
            groups = _groups(user.id) if getattr(user, "id", None) is not None else {}
        roles = {str(role.name) for role in user.roles}.union(*groups.values())
        name = getattr(user, "username", None) or "anonymous"
        return Subject("user", str(name), (), tuple(sorted(roles)), tuple(sorted(groups)))

    def later(self, user: Any) -> Callable[[], Subject]:
        """See ``Identity``; the groups are read there, and what FAB has loaded of the user here."""
        id_, name = getattr(user, "id", None), str(getattr(user, "username", None) or "anonymous")
        roles = {str(role.name) for role in user.roles}

        def subject() -> Subject:
            groups = _groups(id_) if id_ is not None else {}
            held = tuple(sorted(roles.union(*groups.values())))
            return Subject("user", name, (), held, tuple(sorted(groups)))

        return subject

    def find(self, name: str) -> Any:
        """See ``Identity``."""
        from airflow.providers.fab.auth_manager.models import User

        with create_session(scoped=False) as session:
            user = session.scalars(select(User).where(User.username == name)).unique().one_or_none()
            if user is not None:
                user._team_authz_groups = _groups(user.id)
            return user

    def everybody(self) -> Sequence[Any]:
        """See ``Identity``; two queries."""
        from airflow.providers.fab.auth_manager.models import User

        with create_session(scoped=False) as session:
            users = session.scalars(select(User).order_by(User.username)).unique().all()
            groups = _groups_of_all()
            for user in users:
                user._team_authz_groups = groups.get(user.id, {})
            return users


def _groups(user_id: int) -> dict[str, list[str]]:
    """Names of a user's FAB groups, with the names of each group's roles; one query."""
    return _groups_of_all(user_id).get(user_id, {})


def _groups_of_all(user_id: int | None = None) -> dict[int, dict[str, list[str]]]:
    """The same for all users, or for one, by id."""
    from airflow.providers.fab.auth_manager.models import Group, Role, User

    groups: dict[int, dict[str, list[str]]] = {}
    statement = select(User.id, Group.name, Role.name).select_from(User).join(User.groups).outerjoin(Group.roles)
    if user_id is not None:
        statement = statement.where(User.id == user_id)
    # Not the thread's own session: closing that one would take its objects away from a page that is being rendered.
    with create_session(scoped=False) as session:
        for id_, group, role in session.execute(statement):
            groups.setdefault(id_, {}).setdefault(str(group), []).extend([str(role)] if role else [])
    return groups
