"""Who asks: from the user object of whoever logged the person in to a ``Subject``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import UNSET

from airflow_team_authz.model import Subject


class Identity:
    """Reads what a login manager's user object offers. A base of the built manager, so subclasses may hook into login.

    This one knows Airflow's ``SimpleAuthManagerUser``, and any class that names things as it does.
    """

    def subject(self, user: Any) -> Subject:
        """The subject that a user object means, unchanged: no role or team is added or renamed here."""
        role = getattr(user, "role", None)
        return Subject(
            "user",
            str(getattr(user, "username", None) or user.get_name()),
            _texts(getattr(user, "teams", None) or ()),
            _texts([role] if role else ()),
            UNSET,
        )


def identity_for(manager: type) -> type[Identity]:
    """The ``Identity`` that knows the users of an auth manager class."""
    for parent in manager.__mro__:
        if parent.__module__.startswith("airflow.providers.fab."):
            from airflow_team_authz.identities.fab import FabIdentity

            return FabIdentity
    return Identity


def _texts(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
