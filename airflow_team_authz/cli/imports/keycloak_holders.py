"""The roles and groups to which Keycloak grants something. Separate from the reader, which takes longer to import."""

from __future__ import annotations

from typing import NamedTuple


class Holder(NamedTuple):
    """A person with all of these roles, and in all of these groups.

    A role is called as in the export: ``Op`` is the realm's, ``airflow/Op`` the client's.
    """

    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    def includes(self, other: Holder) -> bool:
        """Whether whoever is this one is the other too."""
        return other.roles <= self.roles and other.groups <= self.groups

    def __str__(self) -> str:
        """In words."""
        roles, groups = (" and ".join(sorted(names)) for names in self)
        return ", ".join(part for part in (roles and f"role {roles}", groups and f"group {groups}") if part)


Holders = frozenset[Holder]
