"""Actions and resources as people name them in commands: ``read``, ``connection/alpha_db``, ``dag.code/daily``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from airflow_team_authz.cli.support.console import UserError, talking_to_stderr
from airflow_team_authz.cli.support.vocabulary import nearest

if TYPE_CHECKING:
    from airflow_team_authz.model import Resource


class Kind(NamedTuple):
    """A type of resource, and the part of it that is meant, if any."""

    type: str
    entity: str


def kind_named(word: str) -> Kind:
    """The kind that is called so; ``UserError`` if there is none."""
    from airflow_team_authz.review import ACTIONS

    if word not in ACTIONS:
        raise UserError(f"{word!r} is not a type of resource: {nearest(word, ACTIONS)}")
    type_, _, entity = word.partition(".")
    return Kind(type_, entity)


def resource_named(action: str, word: str, team: str | None) -> Resource:
    """The resource of ``TYPE/ID``, or of ``TYPE`` to list such, with the owner that Airflow's database has for it.

    ``team`` is the owner of what is not there yet. ``UserError`` if nobody asks this about such a resource.
    """
    from msgspec import UNSET

    from airflow_team_authz.model import Resource

    name, separator, id_ = word.partition("/")
    kind = kind_named(name)
    _check_action(action, kind)
    if (action == "list") == bool(separator):
        raise UserError(
            f"write {name} to list resources of that type, and {name}/ID to {action} one"
            if separator
            else f"write {name}/ID: the id is missing"
        )
    part = kind.entity or UNSET
    if not separator:
        return Resource(kind.type, team, entity=part)
    return Resource(kind.type, team if team is not None else _owner(kind.type, id_), id_, part)


def _check_action(word: str, kind: Kind) -> None:
    from airflow_team_authz.review import ACTIONS, FREE_VERBS

    known = ACTIONS[".".join(filter(None, kind))]
    if word not in known and kind.type not in FREE_VERBS:
        raise UserError(f"no door asks about {word} of a {'.'.join(filter(None, kind))}: {nearest(word, known)}")


def _owner(type_: str, id_: str) -> str | None:
    from airflow_team_authz.review.inventory import OWNED

    if type_ not in OWNED:
        return None
    with talking_to_stderr():
        from sqlalchemy.exc import SQLAlchemyError

        from airflow_team_authz.doors.users import owner_of

        try:
            return owner_of(type_, id_)
        except LookupError as error:
            raise UserError(f"{error}: name its owner by --team") from None
        except SQLAlchemyError as error:
            raise unreadable(error) from None


def unreadable(error: Exception) -> UserError:
    """The mistake to tell when Airflow's database does not answer. Not its address, which may have a password."""
    return UserError(f"Airflow's database cannot be read: {getattr(error, 'orig', None) or type(error).__name__}")
