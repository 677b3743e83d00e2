"""Held releases: what waits for whose approval, and what becomes of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.artifact import PLATFORM, Artifact, build_artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.model import Decision, Resource, Subject
from airflow_team_authz.opa.archive import BundleRefusedError, manifest_of
from airflow_team_authz.review import Asked, NotDecidedError, Who
from airflow_team_authz.review.changes import Change, Difference, Found
from airflow_team_authz.review.names import Sources
from airflow_team_authz.review.selectors import SelectorError, parse, teams_said
from airflow_team_authz.server import ServerError, access, approvals, impact
from airflow_team_authz.server.app import create_app
from airflow_team_authz.server.approvals import (
    Approval,
    ApprovalError,
    FourEyesError,
    Held,
    Rules,
    read_approvers,
    read_rules,
)
from airflow_team_authz.server.comparing import InForce
from airflow_team_authz.server.database import (
    Freeze,
    HeldRelease,
    OwnerKeys,
    Release,
    Token,
    connect,
    migrate,
)
from airflow_team_authz.server.releases import Asker, FrozenError, Published, Releases
from airflow_team_authz.server.served import Served, ServedBundle

RULE = "gained:owner=alpha,type=connection"
ENVIRONMENTS = ["staging", "production"]


class Rule(NamedTuple):
    """A rule, and a test that comes along each of its lines."""

    rego: str
    test: str


def lend(connection: str, to: str = "beta") -> Rule:
    rego = f"""allow contains "{to} reads {connection}" if {{
	input.resource.type == "connection"
	input.resource.id == "{connection}"
	input.action == "read"
	"{to}" in input.subject.team_ids
}}
"""
    question = {"action": "read", "resource": {"type": "connection", "id": connection}, "subject": {"team_ids": [to]}}
    return Rule(rego, f"count(team.allow) > 0 with input as {json.dumps(question)}")


CLOSED = Rule(
    'deny contains "closed" if input.resource.id == "closed"\n',
    'count(team.deny) == 1 with input as {"resource": {"id": "closed"}}',
)


def artifact(version: int, *rules: Rule, owner: str = "alpha") -> Artifact:
    """A package of these rules that the gate lets through."""
    rego = "\n".join([f"package teams.{owner}\n", *(rule.rego for rule in rules)])
    head = f"package teams.{owner}_test\n\nimport data.teams.{owner} as team\n"
    tests = [f"\ntest_{number} if {rule.test}\n" for number, rule in enumerate(rules)]
    place = f"teams/{owner}/{owner}"
    return Artifact(
        owner, version, {f"{place}.rego": rego.encode(), f"{place}_test.rego": "".join([head, *tests]).encode()}
    )


class Site:
    """A database, and who publishes to it."""

    def __init__(self, home: Path, database: str = "", **rules: Any) -> None:
        self.engine = connect(database or f"sqlite:///{home}/server.db")
        migrate(self.engine)
        self.key, self.keys = SigningKey.new(), {owner: SigningKey.new() for owner in (PLATFORM, "alpha", "beta")}
        with Session(self.engine) as session:
            for owner, key in self.keys.items():
                pem = key.public.pem().decode()
                session.add(OwnerKeys(owner=owner, pem=pem, actor="a test", at=datetime.now(UTC)))
            session.commit()
        self.releases = self.server(read_rules([RULE])._replace(**rules))

    def server(self, rules: Rules) -> Releases:
        return Releases(self.engine, self.key, ENVIRONMENTS, None, lambda: None, rules)

    def publish(self, wanted: Artifact, who: str = "ann", environment: str = "production") -> Published | Held:
        content = build_artifact(wanted, self.keys[wanted.owner])
        return self.releases.publish(wanted.owner, content, environment, Asker(who, who))

    def in_force(self, environment: str = "production") -> list[int]:
        rows = select(Release.version).where(Release.environment == environment).order_by(Release.id)
        with Session(self.engine) as session:
            return list(session.scalars(rows))

    def states(self) -> list[str]:
        with Session(self.engine) as session:
            return [held.state for held in approvals.of_owner(session, "alpha")]

    @staticmethod
    def rule_of_platform(version: int, rule: str) -> Artifact:
        return Artifact(PLATFORM, version, {"airflow/site/rules.rego": f"package airflow.site\n\n{rule}\n".encode()})

    def change(self, **values: Any) -> None:
        with Session(self.engine) as session:
            session.execute(update(HeldRelease).values(**values))
            session.commit()


def approval(held: Published | Held, who: str = "bob") -> Approval:
    assert isinstance(held, Held)
    return Approval(held.id, held.seen, who, who)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.engine.dispose()


def test_a_widening_waits_until_another_person_has_approved_it(site: Site) -> None:
    """By the routes, as everybody uses them."""
    with Session(site.engine) as session:
        made = {name: access.issue(session, kind, 90, team) for name, kind, team in (
            ("first", access.PLATFORM, None), ("second", access.PLATFORM, None), ("beta", access.TEAM, "beta"),
            ("reader", access.READER, None),
        )}  # fmt: skip
        session.commit()
    tokens = {name: one.secret for name, one in made.items()}

    with TestClient(create_app(site.engine, lambda _: site.releases)) as client:

        def ask(method: str, path: str, who: str, **more: Any) -> httpx.Response:
            return client.request(method, path, headers={"Authorization": f"Bearer {tokens[who]}"}, **more)  # type: ignore[return-value]

        def publish(wanted: Artifact) -> httpx.Response:
            content = build_artifact(wanted, site.keys["alpha"])
            return ask("PUT", "/teams/alpha/package?environment=production", "alpha", content=content)

        tokens["alpha"] = ask("POST", "/tokens", "first", json={"kind": "team", "team_id": "alpha"}).json()["secret"]
        tokens["third"] = ask("POST", "/tokens", "first", json={"kind": "platform"}).json()["secret"]
        first = publish(artifact(1, CLOSED))
        assert first.status_code == 200, first.text
        answer = publish(artifact(2, CLOSED, lend("alpha_db")))
        held = answer.json()
        assert (answer.status_code, held["state"], held["version"]) == (202, "waiting", 2)
        assert held["waits_for"] == [RULE]
        (line,) = held["impact"]["lines"]
        assert (line["direction"], line["approval"]) == ("gained", [RULE])
        assert line["told"].startswith("a member of team beta without a role")
        assert "read connection" in line["told"]
        assert site.in_force() == [1]

        path, seen = f"/approvals/{held['id']}", {"seen": held["seen"]}
        assert [row["id"] for row in ask("GET", "/approvals", "alpha").json()] == [held["id"]]
        assert ask("GET", "/approvals", "beta").json() == []
        assert ask("GET", path, "beta").text.replace(str(held["id"]), "9") == ask("GET", "/approvals/9", "beta").text
        assert {ask("GET", each, "reader").status_code for each in ("/approvals", path)} == {403}
        assert ask("GET", path, "second").json()["seen"] == held["seen"]
        for who, code in (("alpha", 403), ("beta", 403), ("reader", 403), ("first", 403), ("third", 403)):
            assert ask("POST", f"{path}/approve", who, json=seen).status_code == code, who
        assert ask("POST", f"{path}/refuse", "beta", json={"reason": "no"}).status_code == 404
        assert ask("POST", f"{path}/approve", "second", json={"seen": "0" * 32}).status_code == 409
        page = client.get("/", auth=("", tokens["second"])).text
        assert RULE in page.partition("Waiting for an approval")[2].partition("No longer compile")[0]
        assert site.in_force() == [1]

        done = ask("POST", f"{path}/approve", "second", json=seen)
        assert (done.status_code, done.json()["version"]) == (200, 2), done.text
        assert site.in_force() == [1, 2]
        again = ask("POST", f"{path}/approve", "second", json=seen)
        assert (again.status_code, "it was approved by" in again.text) == (409, True)
        first, second, third = ask("GET", "/teams/alpha/history", "alpha").json()
        assert (first["action"], first["version"], first["approved_by"]) == ("publish", 2, f"token {made['second'].id}")
        assert (second["action"], second["serial"], third["version"]) == ("held", 0, 1)
        assert second["actor"] == first["actor"] != first["approved_by"]


@pytest.mark.exhaustive
def test_what_has_expired_is_published_again(site: Site) -> None:
    first = site.publish(artifact(1, lend("db")))
    assert isinstance(first, Held)
    assert (site.publish(artifact(1, lend("db"))), site.states()) == (first, ["waiting"])
    site.change(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(ApprovalError, match=r"has expired at .* UTC: let ann publish again"):
        site.releases.approve(approval(first))
    assert (site.states(), site.in_force()) == (["expired"], [])
    again = site.publish(artifact(1, lend("db")))
    assert site.states() == ["waiting", "expired"]
    assert isinstance(site.releases.approve(approval(again)), Published)
    assert (site.states(), site.in_force()) == (["approved", "expired"], [1])


@pytest.mark.exhaustive
def test_what_is_newer_takes_the_place_of_what_waits(site: Site) -> None:
    first, second = (site.publish(artifact(version, lend("db"), lend("dwh"))) for version in (1, 2))
    assert site.states() == ["waiting", "replaced"]
    assert isinstance(site.publish(artifact(3, CLOSED)), Published)
    assert site.states() == ["replaced", "replaced"]
    for held in (first, second):
        with pytest.raises(ApprovalError, match="it was replaced by ann"):
            site.releases.approve(approval(held))
    assert site.in_force() == [3]


@pytest.mark.exhaustive
def test_what_has_happened_meanwhile_counts(site: Site) -> None:
    with Session(site.engine) as session:
        publisher, approver = (access.issue(session, access.PLATFORM, 90).id for _ in range(2))
        session.commit()
    held = site.publish(artifact(1, lend("db")), f"token {publisher}")
    wanted = approval(held, f"token {approver}")

    def stored(row: object, key: object, **values: Any) -> None:
        with Session(site.engine) as session:
            session.execute(update(row).where(key).values(**values))  # type: ignore[arg-type]
            session.commit()

    with Session(site.engine) as session:
        session.add(Freeze(scope="team:alpha", reason="an audit", actor="x", at=datetime.now(UTC)))
        session.commit()
    with pytest.raises(FrozenError, match="an audit"):
        site.releases.approve(wanted)
    with Session(site.engine) as session:
        session.delete(session.get_one(Freeze, "team:alpha"))
        session.commit()
    old, new = (key.public.pem().decode() for key in (site.keys["alpha"], SigningKey.new()))
    stored(OwnerKeys, OwnerKeys.owner == "alpha", pem=new)
    with pytest.raises(BundleRefusedError, match="not trusted here"):
        site.releases.approve(wanted)
    stored(OwnerKeys, OwnerKeys.owner == "alpha", pem=old)
    for token, error in ((approver, FourEyesError), (publisher, ApprovalError)):
        stored(Token, Token.id == token, revoked_at=datetime.now(UTC))
        with pytest.raises(error, match=r"not usable any more|was revoked: refuse it"):
            site.releases.approve(wanted)
        stored(Token, Token.id == token, revoked_at=None)
    for same in (wanted._replace(person=f"token {publisher}"), wanted._replace(actor=f"token {publisher}")):
        with pytest.raises(FourEyesError, match="another person has to approve"):
            site.releases.approve(same)
    assert (site.states(), site.in_force()) == (["waiting"], [])
    assert isinstance(site.releases.approve(wanted), Published)


@pytest.mark.exhaustive
def test_nothing_comes_into_force_that_the_approver_has_not_seen(site: Site) -> None:
    held = site.publish(artifact(1, lend("db")))
    # Another one than alpha's and what is common changes nothing of that; a guardrail does.
    assert isinstance(site.publish(artifact(1, CLOSED, owner="beta")), Published)
    guardrail = 'deny contains "no reader of it" if input.resource.id == "db"'
    assert isinstance(site.publish(site.rule_of_platform(1, guardrail)), Published)
    with pytest.raises(ApprovalError, match="another one than you have seen"):
        site.releases.approve(approval(held))
    with Session(site.engine) as session:
        row = session.scalars(select(HeldRelease)).one()
        now = approvals.read(row)
    assert (now.state, now.seen != approval(held).seen, site.in_force()) == ("waiting", True, [1, 1])
    assert isinstance(site.releases.approve(approval(now)), Published)


@pytest.mark.exhaustive
def test_an_impact_that_nobody_knows_is_no_approval(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise NotDecidedError("the policy fails")

    monkeypatch.setattr(impact, "compare", fails)
    held = site.publish(artifact(1, CLOSED))
    assert isinstance(held, Held)
    assert held.impact is not None
    assert tuple(held.waits_for) == (f"the impact could not be computed: {RULE}",)
    assert "the policy fails" in held.impact.unknown
    # A team whose resources no rule is about.
    assert isinstance(site.publish(artifact(1, CLOSED, owner="beta")), Published)
    with pytest.raises(ApprovalError, match="another one than you have seen"):
        site.releases.approve(approval(held))
    (row,) = approvals.listed(site.engine, access.Caller("x", access.PLATFORM))
    assert site.releases.approve(approval(row)).impact is not None
    site.releases = site.server(Rules())
    content = build_artifact(artifact(2, CLOSED, lend("db")), site.keys["alpha"])
    told = site.releases.publish("alpha", content, "production", Asker("ann", "ann", impact=True))
    assert isinstance(told, Published)
    assert told.impact is not None
    assert "the policy fails" in told.impact.unknown


@pytest.mark.exhaustive
def test_promotion_and_rollback_wait_too(tmp_path: Path) -> None:
    site = Site(tmp_path, environments=frozenset({"production"}))
    by_platform = Asker("platform", "platform", by_platform=True)
    assert isinstance(site.publish(artifact(1, lend("db")), environment="staging"), Published)
    held = site.releases.promote("alpha", "staging", "production", Asker("ann", "ann"))
    assert isinstance(held, Held)
    assert (held.action, site.in_force()) == ("promote", [])
    assert isinstance(site.releases.approve(approval(held)), Published)
    assert isinstance(site.publish(artifact(2, CLOSED)), Published)
    for asker in (Asker("ann", "ann"), by_platform):
        back = site.releases.rollback("alpha", 1, "production", asker)
        assert isinstance(back, Held)
        assert (back.action, site.in_force()) == ("rollback", [1, 2])
    assert isinstance(site.releases.approve(approval(back)), Published)
    assert isinstance(site.releases.rollback("alpha", 2, "production", Asker("ann", "ann")), Published)
    site.releases = site.server(site.releases.rules._replace(rollback_at_once=True))
    assert isinstance(site.releases.rollback("alpha", 1, "production", by_platform), Published)
    assert site.in_force() == [1, 2, 1, 2, 1]
    site.engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_only_those_whom_the_setting_names_approve(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """By the routes, which also tell how many changes wait, and since when."""
    site = Site(tmp_path, request.getfixturevalue("database") if kind == "postgresql" else "")
    with Session(site.engine) as session:
        made = [access.issue(session, access.PLATFORM, 90) for _ in range(3)]
        session.commit()
    publisher, named, other = made
    approvers = read_approvers([named.id, publisher.id, "sub:ann"], "https://issuer.example")
    site.releases.rules = site.releases.rules._replace(approvers=approvers)
    held = site.publish(artifact(1, lend("db")), f"token {publisher.id}")
    assert isinstance(held, Held)
    site.change(at=datetime.now(UTC) - timedelta(days=2))
    with TestClient(create_app(site.engine, lambda _: site.releases)) as client:

        def ask(method: str, path: str, who: access.Issued, **more: Any) -> httpx.Response:
            return client.request(method, path, headers={"Authorization": f"Bearer {who.secret}"}, **more)  # type: ignore[return-value]

        def waits() -> dict[str, float]:
            lines = [line.split() for line in ask("GET", "/metrics", other).text.splitlines()]
            prefix = "team_authz_server_approvals_"
            return {name.removeprefix(prefix): float(value) for name, value, *_ in lines if name.startswith(prefix)}

        told = ask("GET", f"/approvals/{held.id}", other).json()["approvers"]
        assert told.startswith(f"ann of https://issuer.example or token {named.id}, if that is another person than")
        about = {"waiting": 1, "oldest_seconds": 2 * 86_400, "expiry_seconds": 7 * 86_400}
        assert waits() == pytest.approx(about, abs=60)
        path, seen = f"/approvals/{held.id}/approve", {"seen": held.seen}
        # The third is made by the one that may.
        third = ask("POST", "/tokens", named, json={"kind": "platform"}).json()
        for who in (other, access.Issued(third["id"], third["secret"], datetime.now(UTC))):
            answer = ask("POST", path, who, json=seen)
            assert (answer.status_code, "--approver does not name it" in answer.text) == (403, True)
        assert "is the token that published it" in ask("POST", path, publisher, json=seen).text
        assert (site.in_force(), site.states()) == ([], ["waiting"])
        assert ask("POST", path, named, json=seen).status_code == 200
        assert waits() == {"waiting": 0}
    assert (site.in_force(), site.states()) == ([1], ["approved"])
    site.engine.dispose()


def test_a_server_with_a_slow_database_says_so_and_gives_a_publisher_the_new_bundle_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Served._look

    def slowly(served: Served) -> dict[str, ServedBundle]:
        time.sleep(1)
        return look(served)

    monkeypatch.setattr(Served, "_look", slowly)
    site.releases.rules = Rules()
    with Session(site.engine) as session:
        token = access.issue(session, access.PLATFORM, 90, None)
        session.commit()
    with TestClient(create_app(site.engine, lambda _: site.releases)) as client:
        client.headers["Authorization"] = f"Bearer {token.secret}"

        def serial() -> int:
            bundle = client.get("/bundles/production")
            assert bundle.status_code == 200, bundle.text
            return int(manifest_of(bundle.content)["metadata"]["serial"])

        answer = client.get("/bundles/production")
        assert (answer.status_code, answer.json()) == (503, {"error": "the database was not read yet"})
        for version in (1, 2):
            content = build_artifact(artifact(version, CLOSED), site.keys["alpha"])
            done = client.put("/teams/alpha/package?environment=production", content=content)
            assert (done.status_code, serial()) == (200, done.json()["serial"])
        done = client.post("/teams/alpha/rollback", json={"version": 1, "environment": "production"})
        assert (done.status_code, serial()) == (200, done.json()["serial"])
        assert client.get("/bundles/staging").status_code == 404


def test_people_of_the_issuer_are_named_as_the_server_names_them() -> None:
    assert read_approvers(["sub:ann of x", "sub:token 5f0c2b7a9e11"], "https://i") == {
        "ann of x of https://i",
        "token 5f0c2b7a9e11 of https://i",
    }
    # Longer ones are cut off, so another person may have the same name.
    with pytest.raises(ServerError, match="too long"):
        read_approvers(["sub:" + "a" * 200], "https://i")
    assert Rules(approvers=frozenset({"token 1"})).whom_to_ask("token 1").startswith("nobody")


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_of_two_approvers_at_two_servers_one_approves(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    site = Site(tmp_path, request.getfixturevalue("database") if kind == "postgresql" else "")
    replaced = site.publish(artifact(1, lend("dwh")))
    with pytest.raises(ApprovalError, match="another one than you have seen"):
        site.releases.approve(approval(replaced)._replace(seen="0" * 32))
    held = site.publish(artifact(1, lend("db")))
    servers = [site.releases, site.server(site.releases.rules)]

    def approve(number: int) -> str:
        try:
            return type(servers[number].approve(approval(held, f"approver {number}"))).__name__
        except ApprovalError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        one, other = sorted(pool.map(approve, range(2)))
    assert one == "Published"
    assert "was approved by approver" in other or "is in force in production already" in other
    assert (site.in_force(), site.states()) == ([1], ["approved", "replaced"])
    site.engine.dispose()


@pytest.mark.exhaustive
@pytest.mark.parametrize("commits", [False, True])
def test_killed_while_it_is_approved_it_waits_or_is_in_force(site: Site, commits: bool) -> None:
    held = site.publish(artifact(1, lend("db")))
    child = os.fork()
    if child == 0:
        site.engine.dispose(close=False)
        event.listen(site.engine, "commit", lambda _: commits or os._exit(1))
        site.releases._changed = lambda: os._exit(2)
        site.releases.approve(approval(held))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (code, site.states(), site.in_force()) == ((2, ["approved"], [1]) if commits else (1, ["waiting"], []))
    if not commits:
        assert isinstance(site.releases.approve(approval(held)), Published)


@pytest.mark.exhaustive
def test_rules_that_compute_names_wait_since_nobody_can_see_what_they_do(tmp_path: Path) -> None:
    rule = Rule(
        'allow contains "some" if regex.match("^s.c", input.resource.id)\n',
        'count(team.allow) == 1 with input as {"resource": {"id": "secret"}}',
    )
    site = Site(tmp_path)
    held = site.publish(artifact(1, rule))
    assert isinstance(held, Held)
    (why,) = held.waits_for
    assert why == f"rules of alpha use regex.match, so not all that changes can be seen: {RULE}"
    # What the rule of the platform names is asked about whatever the policy has.
    named = "gained:owner=alpha,id=secret"
    site.releases = site.server(read_rules([named]))
    held = site.publish(artifact(2, rule))
    assert isinstance(held, Held)
    assert held.waits_for[0] == named
    assert held.impact is not None
    assert "secret" in held.impact.lines[0].told
    site.engine.dispose()


INTO_TEAMS = {
    "by its path": "data.teams.alpha.open",
    "by another name": "alpha.open",
    "by a computed path": 'data[concat("", ["te", "ams"])].alpha.open',
}


@pytest.mark.parametrize(
    ("rule", "is_alone"),
    [
        *((text, False) for text in INTO_TEAMS.values() if "data" in text),
        ("import data.teams", False),
        ("walk(data, x)", False),
        ("data.airflow.authz.standing.team_ids", True),
        ('data . airflow.roles["x"]', True),
    ],
)
def test_rules_that_may_look_into_teams_are_seen(rule: str, is_alone: bool) -> None:
    platform = Artifact(PLATFORM, 1, {"airflow/site/rules.rego": f"package airflow.site\n\n{rule}".encode()})
    before = InForce(1, "", {PLATFORM: platform}, ())
    assert (before.decides_alone("alpha"), before.decides_alone(PLATFORM)) == (is_alone, False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("read", INTO_TEAMS)
def test_a_team_that_the_platforms_rules_look_into_decides_about_more_than_its_own(site: Site, read: str) -> None:
    site.releases = site.server(read_rules(["gained:owner=beta,type=connection"]))
    body = [
        'input.resource.type == "connection"',
        'input.resource.id == "beta_db"',
        'input.resource.team_id == "beta"',
        'input.action == "read"',
        '"gamma" in input.subject.team_ids',
        INTO_TEAMS[read],
    ]
    rule = "\n".join(['allow contains "alpha opens it" if {', *(f"\t{line}" for line in body), "}"])
    rule = f"import data.teams.alpha\n\n{rule}" if read == "by another name" else rule
    site.publish(artifact(1, CLOSED, owner="beta"))
    of_platform = site.publish(site.rule_of_platform(1, rule))
    if read == "by a computed path":
        # Nobody can see all that it does.
        assert isinstance(site.releases.approve(approval(of_platform)), Published)
    closed = artifact(1, CLOSED)
    opened = closed.files | {"teams/alpha/data.json": b'{"open": true}'}
    assert isinstance(site.publish(closed), Published)
    held = site.publish(Artifact("alpha", 2, opened))
    assert isinstance(held, Held)
    assert held.waits_for == ["gained:owner=beta,type=connection"]
    assert site.in_force()[-1] == 1


@pytest.mark.parametrize(
    ("old", "new", "hidden"),
    [
        ("allow contains 1 if x", "allow contains 2 if x", False),
        ("", 'allow contains 1 if startswith(input.resource.id, "s")', True),
        ('allow contains 1 if startswith(input.resource.id, "s")', "", True),
        ('deny contains $"{input.resource.id}"', 'deny contains $"{input.action}"', True),
        (
            "allow contains 1 if x == regex.match(p, q)",
            "allow contains 1 if x == regex.match(p, q)\n\nother if y",
            True,
        ),
        (
            'allow contains 1 if regex.match("a", input.action)\n\nallow contains 2 if x',
            'allow contains 1 if regex.match("a", input.action)\n\nallow contains 3 if x',
            False,
        ),
        # A rule or data of the same name hides no built-in function of another package.
        ("", "allow contains 1 if regex.match(p, q)\n\nregex := 1", True),
        ("", 'allow contains 1 if { "a" in input.subject.groups; "b" in input.subject.groups }', True),
        ("", 'allow contains 1 if { "a" in input.subject.groups; "b" in input.subject.team_ids }', True),
        ("", 'allow contains 1 if { mine; "b" in input.subject.claims.x }\n\nmine if input.subject.id == "bob"', True),
        ("", "allow contains 1 if count([g | some g in input.subject.groups; g == input.subject.id]) == 1", True),
        (
            "",
            'allow contains 1 if { "a" in input.subject.groups; input.resource.id == "b"; input.action == "c" }',
            False,
        ),
        ("", 'allow contains 1 if { "a" in input.subject.team_ids; "op" in input.subject.roles }', False),
        ("", 'allow contains 1 if { some g in ["a", "b"]; g in input.subject.groups }', False),
        ("", "allow contains 1 if mine(input.action)\n\nmine(x) if x == 1", False),
    ],
)
def test_what_no_name_that_is_tried_need_fit_is_hidden(old: str, new: str, hidden: bool) -> None:
    sources = [Sources({"teams/alpha/a.rego": f"package teams.alpha\n\n{text}\n".encode()}) for text in (old, new)]
    sides = impact.Sides(None, None, {}, {}, "alpha", "alpha", 1)  # type: ignore[arg-type]
    assert bool(list(impact._hidden(*sources, sides))) is hidden


@pytest.mark.parametrize("file", ["data.json", "lib/helper.rego"])
def test_what_a_computing_rule_uses_is_hidden_too(file: str) -> None:
    rule = {"teams/alpha/a.rego": b"package teams.alpha\n\nallow contains 1 if regex.match(data.teams.alpha.p, q)\n"}
    texts = {"data.json": ('{"p": "a"}', '{"p": "b"}'), "lib/helper.rego": tuple(
        f'package teams.alpha.lib\n\np := "{pattern}"\n' for pattern in "ab"
    )}[file]  # fmt: skip
    sources = [Sources({**rule, f"teams/alpha/{file}": text.encode()}) for text in texts]
    sides = impact.Sides(None, None, {}, {}, "alpha", "alpha", 1)  # type: ignore[arg-type]
    assert list(impact._hidden(*sources, sides)) != []
    assert list(impact._hidden(sources[0], sources[0], sides)) == []


def test_rules_are_for_environments_owners_and_kinds() -> None:
    rules = read_rules([RULE, "gained:owner=common,action=write", "change:owner=gamma"])
    rules = rules._replace(environments=frozenset({"production"}))
    found = {owner: rules.of("production", owner, owner != PLATFORM) for owner in ("alpha", "beta", "gamma", PLATFORM)}
    assert [len(of.kinds) for of in found.values()] == [1, 0, 0, 2]
    assert [len(of.owners) for of in found.values()] == [0, 0, 1, 0]
    assert len(rules.of("production", "beta", is_alone=False).kinds) == 2
    assert rules.of("staging", "alpha", is_alone=True).kinds == ()
    assert len(read_rules(["change"]).of("production", PLATFORM, is_alone=False).owners) == 1
    for wrong in ("change:id=x", "changed", "gained:", "gained:ownr=x", "gained:type=pol", "gained:action=reed"):
        with pytest.raises(SelectorError):
            read_rules([wrong])


def test_what_waits_is_told_first_and_long_names_hide_nothing() -> None:
    names = ["a" * 5000, "b", "c", "d", "e", "secret"]
    who, (no, yes) = (
        Who("x", "somebody", Subject("user", "x", ())),
        (Decision(one, ("r",), "team") for one in (False, True)),
    )
    asked = Asked(who, "read", [Resource("connection", "alpha", name) for name in names])
    differences = tuple(Difference(asked, resource, no, yes) for resource in asked.resources)
    change = Change((who,), ("alpha",), ("r",), differences, differences)
    for rule in ("gained:id=secret", "gained:id=a*"):
        ordered = impact._counted_first(change, [parse(rule)], teams_said)
        told = impact._cut(impact.told_of(ordered))
        assert ("secret" in told) is (rule == "gained:id=secret")
        assert "team alpha" in told
        assert len(told) < 1000


def test_a_team_is_not_told_whom_only_others_name() -> None:
    whos = [
        Who("group", f"anybody in group {name}", Subject("user", "x", (), (), (name,))) for name in ("own", "secret")
    ]
    asked = Asked(whos[0], "read", [Resource("connection", "alpha", "db")])
    no, yes = (Decision(allow, ("lent",), "team") for allow in (False, True))
    different = Difference(asked, asked.resources[0], no, yes)
    change = Change(tuple(whos), ("alpha",), ("lent",), (different,), (different,))
    told = impact.told_of(impact._for_team(change, ['allow if "own" in input.subject.groups']))
    assert told.startswith(f"anybody in group own, {impact.SOMEBODY} gain: read connection db")
    found = Found((change,), 1, 1, {("gained", "pool", "gamma"): 3})
    for owner, shown in (("alpha", True), ("beta", False)):
        sides = impact.Sides(None, None, {}, {}, owner, None, 1)  # type: ignore[arg-type]
        lines = [line.told_team for line in impact._lines(found, [(change, ())], sides)]
        assert ["connection db" in lines[0], lines[1]] == [shown, impact.OF_OTHERS]
