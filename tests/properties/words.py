"""Questions of every kind, in every spelling that may go wrong, as hypothesis strategies."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from msgspec import UNSET, UnsetType

from airflow_team_authz.model import Context, Evaluations, Resource, Subject, SubjectType

# fmt: off
# Case that is not one to one (İ, ß, ς), look-alikes (the Kelvin sign), composed and combined characters, the end of a
# text in C, what is syntax in JSON, Rego and paths, and what sorts differently in UTF-8 and UTF-16 (\uffff, emoji).
NAMES = (
    "", " ", "a", "A", "pg", "İ", "i\u0307", "\u0131", "I", "i", "Straße", "STRASSE", "STRAẞE", "ß", "ẞ", "ss",
    "Σίσυφος", "ΣΊΣΥΦΟΣ", "ς", "\u03c3", "Σ", "\u212a", "K", "k", "é", "e\u0301", "😀", "👩\u200d👩\u200d👧",
    "\uffff", "\U0010ffff", "\x00", "a\x00", "a\x00b", "x" * 250, "ß" * 250, "😀" * 250, "dag.with.dots", ".", "..",
    "/", "a/b", "../a", "a//b", "%2F", '"', "\\", "\\u0041", "`", "'", "{", "}}", "{input}", "$", "*", "a*", "[a]",
    "<b>&", "\n", "\t", "\x7f", "\u2028", "\ufeff", "\u202e", "null", "true", "0", "-0", "1e3", "resource", "team_id",
    "<undefined>",
)
TYPES = (
    "asset", "asset_alias", "configuration", "connection", "custom_view", "dag", "hitl_task", "pool", "route", "team",
    "variable", "view",
)
ENTITIES = (
    "audit_log", "code", "dependencies", "hitl_detail", "run", "task", "task_instance", "task_logs", "version",
    "warning", "xcom",
)
ACTIONS = ("list", "read", "create", "update", "delete", "use", "trigger", "menu", "can_edit", "*")
# Users most of the time: to the others, guardrails have an answer to most questions.
SUBJECT_TYPES: tuple[SubjectType, ...] = ("user", "user", "user", "user", "task", "dag_processor", "triggerer")
# Airflow's roles, and such as a site may add: some have small letters that not every engine knows the capitals of.
ROLES = ("viewer", "user", "op", "admin", "king", "prüfer", "straße", "σοφός", "\u2c5f", "\U00010597", "\ua7c1")
GROUPS = ("engineers", "platform", "Auditors", "auditors", "", "a/b", "\U0001f600", "a\x00b", "admin")
# fmt: on

# Teams that all sites have: two that differ in case, one that is no word in Rego, one that is a number, our own words.
TEAMS = ("alpha", "Alpha", "team-b", "123", "allow", "airflow")
# Teams without a package, and what is no team but might lead elsewhere if it were put together to a path.
STRANGERS = ("ghost", "ALPHA", "alpha.allow", "alpha/allow", "alpha\x00", "", "null", 'x"]', "*", "teams", "site", "é")
LOOKALIKES = (
    *("ADMİN", "adm\u0131n", "ADM\u0130N", "\uff21\uff24\uff2d\uff29\uff2e", "V\u0130EWER", "\u212aing", "\u212aING"),
    *("admin ", " admin", "admin\x00", "admin\u200b", "a\u0300dmin", "STRASSE", "ΣΟΦΌΣ", "PRÜFER", "\u1e9e", "Σ"),
    *("\u2c2f", "\U00010570", "\ua7c0", "\ua7c7", "\ua7f5"),
)


def spellings(role: str) -> tuple[str, ...]:
    """As Airflow's managers and people write a role."""
    return role, role.upper(), role.title(), role[:1] + role[1:].upper()


ROLE_SPELLINGS = tuple(sorted({spelling for role in ROLES for spelling in spellings(role)} | set(LOOKALIKES)))

names: SearchStrategy[str] = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.text(max_size=12),
    st.characters(codec="utf-8").map(lambda letter: letter * 250),
)
absent: SearchStrategy[UnsetType] = st.just(UNSET)
actions: SearchStrategy[str] = st.one_of(st.sampled_from(ACTIONS), st.sampled_from(ACTIONS), names)
contexts: SearchStrategy[Context | UnsetType] = absent | st.builds(
    Context, user_id=absent | names, assigned_users=absent | st.lists(names, max_size=3).map(tuple)
)


def texts(*pools: tuple[str, ...]) -> SearchStrategy[tuple[str, ...] | UnsetType]:
    """Nothing, or up to three of these and of any names."""
    listed = st.one_of(*(st.sampled_from(pool) for pool in pools), names)
    return absent | st.lists(listed, max_size=3).map(tuple)


def subjects(teams: tuple[str, ...]) -> SearchStrategy[Subject]:
    """Anybody, with roles, groups and teams of the site's and of none."""
    return st.builds(
        Subject,
        type=st.sampled_from(SUBJECT_TYPES),
        id=names,
        team_ids=texts(teams, teams, STRANGERS),
        roles=texts(ROLES[:4], ROLE_SPELLINGS),
        groups=texts(GROUPS, GROUPS),
    )


# Who has neither a role nor a group nor a team: absent and empty mean the same.
nobodies: SearchStrategy[Subject] = st.builds(
    Subject,
    type=st.sampled_from(SUBJECT_TYPES),
    id=names,
    team_ids=absent | st.just(()),
    roles=absent | st.just(()),
    groups=absent | st.just(()),
)


def resources(teams: tuple[str, ...]) -> SearchStrategy[Resource]:
    """Anything: of the site's teams most of the time."""
    return st.builds(
        Resource,
        type=st.sampled_from((*TYPES, *TYPES, "dag.run", "", "*")),
        team_id=st.sampled_from((None, None, *teams, *teams, *STRANGERS)),
        id=absent | names,
        entity=absent | st.sampled_from((*ENTITIES, "", "a.b")),
    )


def questions(teams: tuple[str, ...], size: int, asking: SearchStrategy[Subject]) -> SearchStrategy[Evaluations]:
    """Questions about exactly ``size`` resources, in which equal ones may come more than once."""
    return st.builds(
        Evaluations,
        subject=asking,
        action=actions,
        resources=st.lists(resources(teams), min_size=size, max_size=size),
        context=contexts,
    )
