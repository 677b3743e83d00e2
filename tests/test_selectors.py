"""Selectors of changes: what counts, and what is misspelt."""

from __future__ import annotations

import pytest

from airflow_team_authz.model import AssetNames, Decision, Delivery, Resource, Subject
from airflow_team_authz.review import Asked, Who
from airflow_team_authz.review.changes import Difference, Found, grouped
from airflow_team_authz.review.kinds import ANOTHER, OTHER, holder
from airflow_team_authz.review.selectors import SelectorError, named_by, parse, teams_said

PRODUCTION = Resource("pool", "alpha", "production")
COMMON = Resource("variable", None, "limits")


def member(*team_ids: str) -> Subject:
    return Subject("user", OTHER, team_ids, ())


def found(subject: Subject, action: str, resource: Resource, gained: bool = True) -> Found:
    """One difference."""
    no, yes = (Decision(allow, ("lent",), "team") for allow in (False, True))
    asked = Asked(Who("x", "somebody", subject), action, [resource])
    one = Difference(asked, resource, *((no, yes) if gained else (yes, no)))
    return Found(grouped([one]), 1, 1, {})


BETAS = "gained:team=beta,owner=alpha,type=pool,id=production"
WRITES = "gained:owner=common,action=write"


@pytest.mark.parametrize(
    ("selector", "subject", "action", "resource", "counts"),
    [
        (BETAS, member("beta"), "use", PRODUCTION, True),
        (BETAS, member("gamma", "beta"), "use", PRODUCTION, True),
        (BETAS, member("gamma"), "use", PRODUCTION, False),
        (BETAS, member("beta"), "use", Resource("pool", "alpha", "night"), False),
        (BETAS, member("beta"), "use", Resource("pool", "gamma", "production"), False),
        (BETAS, member("beta"), "use", Resource("connection", "alpha", "production"), False),
        (BETAS, Subject("task", "any-dag.any-task", ("beta",)), "use", PRODUCTION, True),
        # More than what is named: everybody, any other team, a group of nobody knows whom, any pool, all teams' pools.
        (BETAS, member(), "use", PRODUCTION, True),
        (BETAS, member(ANOTHER), "use", PRODUCTION, True),
        (BETAS, holder("groups", "analysts").subject, "use", PRODUCTION, True),
        (BETAS, member("beta"), "use", Resource("pool", "alpha", OTHER), True),
        (BETAS, member("beta"), "list", Resource("pool", "alpha"), True),
        (BETAS, member("beta"), "use", Resource("pool", OTHER, OTHER), True),
        # A team that no policy names has its own pools, which are not another's.
        (BETAS, member(OTHER), "use", Resource("pool", OTHER, OTHER), False),
        (BETAS, member(OTHER), "use", Resource("pool", None, OTHER), False),
        ("gained:team=beta,owner=beta", member(OTHER), "use", Resource("pool", OTHER, OTHER), True),
        ("gained:team=alpha", member(ANOTHER), "use", PRODUCTION, False),
        (WRITES, member(), "update", COMMON, True),
        (WRITES, member(), "trigger", Resource("dag", None, OTHER, "run"), True),
        (WRITES, member(), "read", COMMON, False),
        (WRITES, member(), "list", COMMON, False),
        (WRITES, member("alpha"), "update", Resource("variable", "alpha", "limits"), False),
        (WRITES, member("alpha"), "update", Resource("variable", OTHER, OTHER), False),
        ("gained:type=dag", member(), "read", Resource("dag", "alpha", "daily", "code"), True),
        ("gained:type=dag.code", member(), "read", Resource("dag", "alpha", "daily"), False),
        ("gained:type=dag.code|dag.run", member(), "read", Resource("dag", "alpha", "daily", "code"), True),
        ("gained:id=prod*", member(), "use", PRODUCTION, True),
        ("gained:id=orders", member(), "read", Resource("asset", "alpha", "1", name="orders"), True),
        ("gained:id=orders", member(), "read", Resource("asset", "alpha", "1", name="other"), False),
        ("gained:subject=task", member(), "use", PRODUCTION, False),
        ("gained", member(), "use", PRODUCTION, True),
        ("lost", member(), "use", PRODUCTION, False),
        ("any", member(), "use", PRODUCTION, True),
    ],
)  # fmt: skip
def test_a_selector_counts_what_it_names_and_whatever_includes_that(
    selector: str, subject: Subject, action: str, resource: Resource, counts: bool
) -> None:
    assert parse(selector).finds(found(subject, action, resource), teams_said) is counts


def test_what_is_lost_counts_only_where_it_is_named() -> None:
    lost = found(member("beta"), "use", PRODUCTION, gained=False)
    conditions = BETAS.removeprefix("gained")
    assert [parse(f"{word}{conditions}").finds(lost, teams_said) for word in ("gained", "lost", "any")] == [
        False, True, True,
    ]  # fmt: skip


def test_a_change_counts_if_any_part_of_it_does() -> None:
    one, other = (found(member(team), "use", PRODUCTION).changes[0] for team in ("gamma", "beta"))
    whole = one._replace(every=(*one.every, *other.every))
    assert parse(BETAS).picks(whole, teams_said)
    assert not parse(BETAS).picks(one, teams_said)


def test_what_is_too_much_to_be_told_counts_by_what_is_known_of_it() -> None:
    many = Found((), 9, 9, {("gained", "pool", "alpha"): 9})
    assert parse(BETAS).finds(many, teams_said)
    assert not parse(WRITES).finds(many, teams_said)
    assert not parse("lost").finds(many, teams_said)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no selector"), ("gain", "is no selector"), ("gained:", "is no selector"), ("Gained", "is no selector"),
        ("gained:beta", "is no condition: write one of team, owner"), ("gained:ownr=alpha", "is no condition"),
        ("gained:owner=alpha,owner=beta", "is there twice: write its values as owner=one|other"),
        ("gained:type=pol", "there is no such type, but asset"), ("gained:action=reed", "there is no such action"),
        ("gained:subject=users", "there is no such subject"), ("gained:team=a b", "is not a team id"),
        ("gained:id=", "names nothing"), ("gained:id=a?", "only * stands for other letters"),
        ("gained:owner=", "is not a team id"), ("gained,owner=alpha", "is no selector"),
    ],
)  # fmt: skip
def test_a_misspelt_selector_is_an_error(text: str, told: str) -> None:
    with pytest.raises(SelectorError, match=r".") as raised:
        parse(text)
    assert told in str(raised.value)


def test_pages_of_plugins_have_actions_of_their_own() -> None:
    for text in ("gained:type=custom_view,action=approve", "gained:action=approve,type=custom_view"):
        assert parse(text).values["action"] == ("approve",)


def test_what_selectors_name_is_asked_about() -> None:
    assert named_by([parse(BETAS), parse(WRITES), parse("gained:id=prod*,team=g*")]) == (
        {"alpha", "beta"}, {"production", "prodx"},
    )  # fmt: skip


def test_what_an_event_starts_has_the_names_of_both() -> None:
    delivery = Delivery("daily", "alpha", AssetNames("orders", "orders", "asset"), False, False, False, ())
    started = Resource("dag", "alpha", "daily", "run", delivery=delivery)
    assert parse("gained:id=daily").finds(found(member(), "trigger", started), teams_said)
