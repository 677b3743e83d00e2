"""Identities: from the user object of a login manager to a ``Subject``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from msgspec import UNSET

from airflow_team_authz.model import Subject


class Identity:
    """Reads what a login manager's user object offers. A base of the built manager, so subclasses may hook into login.

    This one knows the users of Airflow's ``SimpleAuthManager`` and of the ``AwsAuthManager``, and any class that names
    things as they do. For another login manager write a subclass with a ``subject`` of its own, and name it in
    ``[team_authz] identity``.
    """

    def subject(self, user: Any) -> Subject:
        """The subject that a user object means, unchanged: no role or team is added or renamed here."""
        role = getattr(user, "role", None)
        groups = getattr(user, "groups", None)
        return Subject(
            "user",
            str(getattr(user, "username", None) or user.get_name()),
            _texts(getattr(user, "teams", None)),
            (str(role),) if isinstance(role, str) else (),
            UNSET if groups is None else _texts(groups),
        )

    def later(self, user: Any) -> Callable[[], Subject]:
        """A function that makes the subject of a user in another thread, where the user's request may have ended."""
        subject = self.subject(user)
        return lambda: subject

    def verifies(self) -> str:
        """The end of a sentence about what is verified here; an ``EngineError`` if that cannot be done."""
        return ""

    def find(self, name: str) -> Any:
        """The user object of a person who is not logged in; ``None`` if there is no such person.

        ``LookupError`` if this login manager cannot be asked.
        """
        known = getattr(self, "get_users", None)
        if known is None:
            raise LookupError("the login manager knows only people who log in")
        return next((user for user in known() if user.username == name), None)

    def everybody(self) -> Sequence[Any]:
        """The user objects of all people whom this login manager knows; ``LookupError`` if it cannot be asked."""
        known = getattr(self, "get_users", None)
        if known is None:
            raise LookupError("the login manager tells of nobody who does not log in")
        return list(known())


def _amazon() -> type[Identity]:
    from airflow_team_authz.identities.amazon import AmazonIdentity

    return AmazonIdentity


def _fab() -> type[Identity]:
    from airflow_team_authz.identities.fab import FabIdentity

    return FabIdentity


def _keycloak() -> type[Identity]:
    from airflow_team_authz.identities.keycloak import KeycloakIdentity

    return KeycloakIdentity


# By where the login manager's code is. Each is imported only where its provider is installed.
_KNOWN: dict[str, Callable[[], type[Identity]]] = {
    "airflow.providers.amazon.": _amazon,
    "airflow.providers.fab.": _fab,
    "airflow.providers.keycloak.": _keycloak,
}


# What Airflow calls of each login manager beside decisions, when it starts, around each request and when somebody logs
# out: that each of them has been read, and needs nothing that may be away. An ``Identity`` replaces those that did.
_LOGIN = {"deserialize_user", "serialize_user", "get_fastapi_app", "get_url_login"}
REVIEWED: dict[str, set[str]] = {
    "airflow.api_fastapi.auth.managers.simple.": _LOGIN | {"_get_teams", "get_fastapi_middlewares", "init"},
    "airflow.providers.amazon.": _LOGIN | {"get_cli_commands", "init"},
    "airflow.providers.fab.": _LOGIN | {
        "get_cli_commands", "get_db_manager", "get_extra_menu_items", "get_fastapi_middlewares", "get_url_logout",
    },
    "airflow.providers.keycloak.": _LOGIN | {
        "_get_teams", "get_cli_commands", "get_fastapi_middlewares", "get_url_logout", "get_user_from_token",
        "refresh_user",
    },
}  # fmt: skip


def unreviewed(manager: type, base: type) -> list[str]:
    """Methods of ``base`` that one of the known login managers has of its own, and nobody has read for this version."""
    called = {name for name in vars(base) if not name.startswith("__") and name != "_abc_impl"}
    return sorted(
        name
        for parent in manager.__mro__
        for where, reviewed in REVIEWED.items()
        if parent.__module__.startswith(where)
        for name in called & vars(parent).keys() - reviewed
    )


def identity_for(manager: type, named: str | None = None) -> type[Identity]:
    """The ``Identity`` that knows the users of an auth manager class, or the one that a site has ``named``.

    ``ValueError`` if that cannot be imported or is no ``Identity``.
    """
    if named:
        return _imported(named)
    for parent in manager.__mro__:
        for where, known in _KNOWN.items():
            if parent.__module__.startswith(where):
                return known()
    return Identity


def _imported(name: str) -> type[Identity]:
    module, _, attribute = name.rpartition(".")
    try:
        identity = getattr(import_module(module), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error
    if not (isinstance(identity, type) and issubclass(identity, Identity)):
        raise ValueError(f"{name} is not a subclass of airflow_team_authz.identities.Identity")
    return identity


def _texts(values: Any) -> tuple[str, ...]:
    """The texts of a list, a set or none at all; Airflow's roles are enumerations of texts."""
    if not values or not isinstance(values, (list, tuple, set, frozenset)):
        return ()
    # A list in between: a generator takes three times as long, for each question.
    return tuple([str(value) for value in values if isinstance(value, str)])
