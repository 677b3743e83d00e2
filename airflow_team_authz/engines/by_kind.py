"""Asks the policy once about all resources of a kind, where no rule looks at their ids.

A kind is everything of a resource but its id. A bundle says whose resources no rule looks at the ids of
(``opa/kinds.py``). The policy itself does the same with a list, but only after it has read each resource of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import compress
from typing import NamedTuple

from msgspec import UNSET

from airflow_team_authz.model import Resource, Resources


class ByKind(NamedTuple):
    """The first resource of each kind, and for each resource of a list the index of its kind."""

    firsts: Resources
    places: list[int]

    def of_all(self, resources: Sequence[Resource], chosen: Collection[Resource]) -> list[Resource]:
        """Those of a list whose kind is chosen: one of the first resources."""
        among = set(chosen)
        is_chosen = [first in among for first in self.firsts]
        return list(compress(resources, map(is_chosen.__getitem__, self.places)))


def by_kind(resources: Sequence[Resource], is_alike: Callable[[str | None], bool]) -> ByKind | None:
    """The kinds of a list; ``None`` if there are as many as resources.

    ``is_alike``: whether an owner's resources are decided by kind. Each other resource is a kind of its own.
    """
    if not isinstance(resources, Resources):
        return _by_kind(resources, is_alike)
    return resources.once("by_kind", (is_alike,), lambda: _by_kind(resources, is_alike))


def _by_kind(resources: Sequence[Resource], is_alike: Callable[[str | None], bool]) -> ByKind | None:
    alike = {owner for owner in {resource.team_id for resource in resources} if is_alike(owner)}
    if not alike:
        return None
    firsts: list[Resource] = []
    places: list[int] = []
    place_of: dict[object, int] = {}
    for resource in resources:
        place = len(firsts)
        if resource.team_id in alike:
            # In the loop, and not in a function: a call takes as long as all the rest.
            kind = (
                resource.team_id,
                resource.type,
                resource.id is UNSET,
                resource.entity,
                resource.name,
                resource.uri,
                resource.group,
                resource.delivery,
            )
            place = place_of.setdefault(kind, place)
        if place == len(firsts):
            firsts.append(resource)
        places.append(place)
    return None if len(firsts) == len(resources) else ByKind(Resources(firsts), places)
