"""Every kind of question about a policy: who asks, what, about what, with the names that its sources have.

For each name there is one that nobody has named: an answer about that one is about everything else of its kind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from airflow_team_authz.model import AssetNames, Context, Delivery, Resource, Subject, SubjectType
from airflow_team_authz.review import ACTIONS, FREE_VERBS, Asked, Who, fits
from airflow_team_authz.review.names import PLATFORM, Names, Package, Sources, joined
from airflow_team_authz.team_ids import is_team_id

# What no policy names.
OTHER = "any-other"
ANOTHER = f"{OTHER}-team"
# What things are called that no policy has a name for.
NOT_NAMED: set[object] = {UNSET, OTHER, "1", "asset", "any-dag"}
_MACHINES: tuple[SubjectType, ...] = ("dag_processor", "triggerer", "watcher")
# What cannot be found by asking these, however many there are.
UNSEEN = (
    "people who need two of a directory's names at once, such as two groups, are not tried together",
    "a person whom one rule names is tried with a thing only if the same rule, data or a helper names it",
    "a rule that computes a name, or compares its length or order, is tried with the names as they are written only",
    "questions hold no runs; a task that waits for people is asked about with one who is assigned, and with nobody",
)
UNSEEN_PATTERNS = "regular expressions are not solved: a name that only a pattern fits is tried if it is written down"
UNSEEN_MANY = "of {0} {1}, the first {2} are tried"
# More of one sort nobody waits for; it is told.
_MOST_NAMES = 400


class _Block(NamedTuple):
    """Questions about the resources of one owner."""

    owner: str | None
    own: str
    others: tuple[str, ...]
    packages: tuple[Package, ...]
    names: Names
    # Ids that somebody wants to know about, whatever the policies name.
    asked: frozenset[str] = frozenset()

    def types_of(self, word: str) -> set[str]:
        """The types of what may have this name, for every rule that names it; empty for any type."""
        types: set[str] = set()
        for names in (names for package in self.packages for names in package.together()):
            if any(word in values for values in names.values.values()):
                if not names.types:
                    return set()
                types |= names.types
        return types

    def beside(self, word: str) -> set[str]:
        """Every name that a rule may look at together with this one."""
        found: set[str] = {*self.asked}
        for names in (names for package in self.packages for names in package.together()):
            values = set().union(*names.values.values())
            if word in values:
                found |= values
        return found


class Kinds:
    """The questions about one or two policies, and what they cannot show.

    ``teams`` and ``ids`` are asked about too, whatever the policies name. ``only``: about this team's resources alone,
    and then each person is tried with each of them.
    """

    def __init__(
        self, *policies: Sources, teams: Collection[str] = (), ids: Collection[str] = (), only: str | None = None
    ) -> None:
        self._policies, self._wanted_teams, self._wanted_ids, self._only = policies, {*teams}, frozenset(ids), only
        self.unseen = list(UNSEEN)
        # Names that are not tried, since there are too many.
        self.left_out: list[str] = []
        self.roles = sorted(
            {role for policy in policies for role in policy.roles.get("includes", {})}
            | {role for policy in policies for _, _, entry in policy.entries() if (role := entry.get("role"))}
        )
        self._teams = sorted(set().union(*(policy.teams for policy in policies), teams) - {OTHER})
        self._directory = list(self._people_of_directory())
        self._has_memberships = any("role" not in entry for policy in policies for _, _, entry in policy.entries())
        if any(
            names.patterns
            for policy in policies
            for package in policy.packages.values()
            for names in package.together()
        ):
            self.unseen.append(UNSEEN_PATTERNS)

    def questions(self) -> Iterator[Asked]:
        """All of them, by owner, subject and action."""
        for block in self._blocks():
            everything = self._resources(block)
            of_word: dict[str | None, dict[str, list[Resource]]] = {None: everything}
            for who, word in self._whos(block):
                if word not in of_word:
                    narrow = self._only is None
                    of_word[word] = _narrowed(everything, block.beside(str(word))) if narrow else everything
                by_action = of_word[word]
                yield from (Asked(who, action, resources) for action, resources in by_action.items() if resources)
                waiting = [resource for resource in by_action.get("update", ()) if resource.type == "hitl_task"]
                yield Asked(who, "update", waiting, Context("1", ("1",)))

    def of_roles(self) -> Iterator[Asked]:
        """Questions of each role, and of a task, about unnamed resources: own ones, another team's, common ones."""
        whos = [who for who in self._members([OTHER]) if who.kind == "role"]
        whos += [self._with_role(role) for role in self.roles]
        machines = _Block(None, OTHER, (), (), Names())
        whos += [who for who, _ in self._machines(machines, [OTHER]) if who.kind == "task"]
        for owner in (OTHER, ANOTHER, None):
            by_action = self._resources(_Block(owner, OTHER, (), (), Names()))
            yield from (Asked(who, action, resources) for who in whos for action, resources in by_action.items())

    def _blocks(self) -> Iterator[_Block]:
        platform = self._packages(PLATFORM)
        for owner in [None, *self._teams, OTHER] if self._only is None else [self._only]:
            packages = (*platform, *(self._packages(owner) if owner in self._teams else ()))
            names = joined(*(names for package in packages for names in package.together()))
            named = names.of("subject.team_ids") if owner in self._teams else ()
            others = self._few({name for name in named if is_team_id(name)} - {owner} - self._wanted_teams, "teams")
            others = [*others, *sorted(self._wanted_teams - {owner}), *([] if owner is None else [ANOTHER])]
            yield _Block(owner, owner or OTHER, tuple(others), packages, names, self._wanted_ids)

    def _packages(self, owner: str | None) -> tuple[Package, ...]:
        return tuple(policy.packages[owner] for policy in self._policies if owner in policy.packages)

    # Who asks

    def _whos(self, block: _Block) -> Iterator[tuple[Who, str | None]]:
        """Everybody, and the name of a policy that somebody is asked for, if there is one."""
        names = block.names
        teams = [block.own, *block.others]
        yield Who("anybody", "anybody who is logged in", Subject("user", OTHER, (), ())), None
        for who in (*self._members(teams), *map(self._with_role, self.roles), *self._directory):
            yield who, None
        for table in ("groups", "roles"):
            for name in self._few(names.of(f"subject.{table}"), table):
                yield from ((who, name) for who in self._holders(table, name))
        for claim, values in names.claims().items():
            for value in self._few(values, "values of claims"):
                yield holder(f"claims.{claim}", value), value
        for id_ in self._few(names.of("subject.id"), "people"):
            yield from ((who, id_) for who in self._called(id_, block))
        yield from self._machines(block, teams)

    def _called(self, id_: str, block: _Block) -> Iterator[Who]:
        yield Who("person", f"user {id_}", Subject("user", id_, (), ()))
        for team in [block.own, *block.others]:
            for role in [None, *self.roles] if team == block.own else [None]:
                held = "a member" if role is None else role
                roles = () if role is None else (role,)
                yield Who("person", f"user {id_} as {held} in {team_words(team)}", Subject("user", id_, (team,), roles))

    def _members(self, teams: Iterable[str]) -> Iterator[Who]:
        for team in teams:
            yield Who("team", f"a member of {team_words(team)} without a role", Subject("user", OTHER, (team,), ()))
            # What may be a team, and nobody has a role there, needs no role.
            for role in self.roles if team in {*self._teams, OTHER, ANOTHER} else []:
                yield Who("role", f"{role} in {team_words(team)}", Subject("user", OTHER, (team,), (role,)))

    def _with_role(self, role: str) -> Who:
        return Who("role", f"{role} without a team", Subject("user", OTHER, (), (role,)))

    def _people_of_directory(self) -> Iterator[Who]:
        """Subjects with one name of the directory, and with each role of the login if an entry needs that."""
        named = dict.fromkeys((table, name) for policy in self._policies for table, name, _ in policy.entries())
        for policy in self._policies:
            named |= dict.fromkeys(_filled(policy, self.roles, sorted(policy.teams)))
        for table, name in named:
            yield holder(table, name)
            if any(
                "role" not in entry
                for policy in self._policies
                for of_table, of_name, entry in policy.entries()
                if (of_table, of_name) == (table, name)
            ):
                for role in self.roles:
                    who = holder(table, name)
                    roles = (*(who.subject.roles or ()), role)
                    yield Who(who.kind, f"{who.name} with the role {role}", _replaced(who.subject, roles))

    def _holders(self, table: str, name: str) -> Iterator[Who]:
        if not any(who.subject == holder(table, name).subject for who in self._directory):
            yield holder(table, name)

    def _machines(self, block: _Block, teams: Iterable[str]) -> Iterator[tuple[Who, str | None]]:
        dags = self._few(block.names.of("subject.dag_id"), "Dags of tasks")
        tasks = self._few(block.names.of("subject.task_id"), "tasks")
        runs = self._few(block.names.of("subject.run_id"), "runs")
        ids = self._few(block.names.of("subject.id"), "people")
        named = [(dag, dag, "any-task", "any-run") for dag in dags]
        named += [(task, "any-dag", task, "any-run") for task in tasks]
        named += [(run, "any-dag", "any-task", run) for run in runs]
        # The id of a task has two halves.
        named += [(id_, *_halves(id_), "any-run") for id_ in ids if "." in id_]
        for team in [None, *teams]:
            held, of = (
                (() if team is None else (team,)),
                " without a team" if team is None else f" of {team_words(team)}",
            )
            yield Who("task", f"a task{of}", _task("any-dag", "any-task", "any-run", held)), None
            for word, dag, task, run in named:
                yield Who("task", f"task {dag}.{task}{of} in {run}", _task(dag, task, run, held)), word
            for type_ in _MACHINES:
                yield Who("machine", f"a {type_}{of}", Subject(type_, OTHER, held)), None
                if team in {None, block.own, *self._teams}:
                    yield from ((Who("machine", f"{type_} {id_}{of}", Subject(type_, id_, held)), id_) for id_ in ids)

    # About what

    def _resources(self, block: _Block) -> dict[str, list[Resource]]:
        """Resources of each action."""
        named = {id_: block.types_of(id_) for id_ in self._few(block.names.of("resource.id") - block.asked, "ids")}
        named |= {id_: set() for id_ in sorted(block.asked)}
        found: dict[str, dict[Resource, None]] = {}
        for kind, actions in ACTIONS.items():
            type_, _, entity = kind.partition(".")
            about = list(
                self._of_kind(block, type_, entity, [id_ for id_, of in named.items() if not of or type_ in of])
            )
            # Of the actions that rules name, no door asks any other about this type.
            free = sorted(block.names.values["action"]) if type_ in FREE_VERBS else []
            for action in dict.fromkeys([*actions, *self._verbs(kind), *free]):
                if action != "*":
                    found.setdefault(action, {}).update((one, None) for one in about if fits(action, one))
        found.setdefault("trigger", {}).update((one, None) for one in self._deliveries(block))
        return {action: list(resources) for action, resources in found.items()}

    def _verbs(self, kind: str) -> Iterator[str]:
        """Actions that role tables have for this kind."""
        for policy in self._policies:
            for table in ("permissions", "common"):
                yield from (policy.roles.get(table) or {}).get(kind, {})

    def _of_kind(self, block: _Block, type_: str, entity: str, named: list[str]) -> Iterator[Resource]:
        part = entity or UNSET
        yield Resource(type_, block.owner, entity=part)
        for id_ in [OTHER, *named]:
            yield Resource(type_, block.owner, id_, part)
        if type_ == "asset":
            for field in ("name", "uri", "group"):
                for word in self._few(block.names.of(f"resource.{field}"), f"{field}s of assets"):
                    asset = Resource(type_, block.owner, "1", part, OTHER, OTHER, "asset")
                    yield msgspec.structs.replace(asset, **{field: word})

    def _deliveries(self, block: _Block) -> Iterator[Resource]:
        words = self._few(block.names.of("resource.delivery"), "assets of events")
        for name in [OTHER, *words]:
            asset = AssetNames(name, name, "asset")
            for id_ in dict.fromkeys(["any-dag", *words]):
                for consent in (False, True):
                    delivery = Delivery(
                        id_,
                        block.owner,
                        asset,
                        consent,
                        consent,
                        consent,
                        (block.own, *block.others) if consent else (),
                    )
                    yield Resource("dag", block.owner, id_, "run", delivery=delivery)
            for to in dict.fromkeys([None, block.own, *block.others]):
                for teams in ((), UNSET):
                    delivery = Delivery("any-dag", to, asset, False, teams is UNSET, False, (), teams)
                    yield Resource("asset", block.owner, "1", "event", name, name, "asset", delivery)

    def _few(self, values: Iterable[str], what: str) -> list[str]:
        found = sorted(value for value in values if value and value != OTHER and not _is_half(value))
        if len(found) > _MOST_NAMES:
            told = UNSEEN_MANY.format(len(found), what, _MOST_NAMES)
            if told not in self.left_out:
                self.left_out.append(told)
                self.unseen.append(told)
        return found[:_MOST_NAMES]


def team_words(team: str) -> str:
    """A team as people call it, also one that no policy names."""
    if team == OTHER:
        return "its own team"
    return "another team" if team == ANOTHER else f"team {team}"


def holder(table: str, name: str) -> Who:
    """A subject with only this group, role or claim (``groups``, ``claims.unit``)."""
    nobody = Subject("user", OTHER, (), ())
    if table == "groups":
        return Who("group", f"anybody in group {name}", Subject("user", OTHER, (), (), (name,)))
    if table == "roles":
        return Who("role", f"anybody with the login's role {name}", _replaced(nobody, (name,)))
    claim = table.removeprefix("claims.")
    return Who("claim", f"anybody with claim {claim}={name}", Subject("user", OTHER, (), (), claims={claim: (name,)}))


def _replaced(subject: Subject, roles: tuple[str, ...]) -> Subject:
    return Subject("user", subject.id, subject.team_ids, roles, subject.groups, subject.claims)


def _filled(policy: Sources, roles: list[str], teams: list[str]) -> Iterator[tuple[str, str]]:
    """The names that a directory's patterns mean for the teams and roles that there are."""
    for table, pattern in policy.patterns():
        for team in teams:
            for role in roles if "<role>" in pattern else [""]:
                yield table, pattern.replace("<team>", team).replace("<role>", role)


def _task(dag_id: str, task_id: str, run_id: str, team_ids: tuple[str, ...]) -> Subject:
    return Subject("task", f"{dag_id}.{task_id}", team_ids, dag_id=dag_id, task_id=task_id, run_id=run_id)


def _narrowed(by_action: Mapping[str, list[Resource]], names: Collection[str]) -> dict[str, list[Resource]]:
    """Without what has another name than these, or none in particular."""
    known = {*names, *NOT_NAMED}
    return {
        action: [resource for resource in resources if _names_of(resource) <= known]
        for action, resources in by_action.items()
    }


def _names_of(resource: Resource) -> set[object]:
    named: set[object] = {resource.id, resource.name, resource.uri, resource.group}
    if resource.delivery is not UNSET:
        named |= {resource.delivery.dag_id, resource.delivery.asset.name}
    return named


def _halves(id_: str) -> tuple[str, str]:
    dag_id, _, task_id = id_.rpartition(".")
    return dag_id, task_id


def _is_half(text: str) -> bool:
    """Whether it is no text that a question can hold: half of a surrogate pair."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)
