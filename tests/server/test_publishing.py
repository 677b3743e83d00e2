"""Publishing: who may, what is refused, and what becomes of what was there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_team_authz.bundles.aggregate import scope
from airflow_team_authz.bundles.artifact import PLATFORM, Artifact, build_artifact
from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys
from airflow_team_authz.opa.archive import read_manifest, unpack
from tests.server.conftest import Server, good, newest, of_platform, told


def teams_in(server: Server, name: str = "production") -> dict[str, int]:
    """The versions in a bundle, whose signature is checked."""
    answer = server.bundle(name)
    assert answer.status_code == 200
    files = unpack(answer.content)
    TrustedKeys.of([server.key.public]).verify(files, scope(name))
    return {team_id: said["version"] for team_id, said in read_manifest(files)["metadata"]["teams"].items()}


def published(server: Server, team_id: str, connection: str = "pg", environment: str = "production") -> int:
    version = newest(server, team_id)
    answer = server.publish(good(team_id, version, connection), environment=environment)
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == version
    return version


def in_force(server: Server, team_id: str, version: int, environment: str = "production") -> None:
    from tests.conftest import eventually

    # The process takes it from the database, where it is already; before that, it may serve nothing.
    eventually(lambda: server.bundle(environment).status_code == 200)
    eventually(lambda: teams_in(server, environment).get(team_id) == version)


def test_published_is_served_to_all(server: Server) -> None:
    version = published(server, "alpha")
    in_force(server, "alpha", version)
    assert teams_in(server, "production.team.alpha") == {"alpha": version}
    assert teams_in(server, "production.wasm")["alpha"] == version
    assert server.bundle("production.tar.gz").content == server.bundle("production").content


@pytest.mark.parametrize("who", ["beta", "reader", "narrow", "", "taz_x_y", "nonsense", None])
def test_nobody_publishes_for_another_team(server: Server, who: str | None) -> None:
    content = build_artifact(good("alpha", 2**40), server.keys["alpha"])
    for path in ("/teams/alpha/package", "/platform/package"):
        answer = server.ask("PUT", path, who, content=content)
        assert answer.status_code == (403 if who in {"beta", "reader", "narrow"} else 401), answer.text
    assert server.ask("PUT", "/platform/package", "alpha", content=content).status_code == 403


def test_an_older_version_is_refused_also_when_replayed(server: Server) -> None:
    version = published(server, "alpha")
    for older in {version, max(version - 1, 1), 1}:
        answer = server.publish(good("alpha", older, "another"))
        assert answer.status_code == 409
        assert f"is not above {version}, which is published already" in told(answer)


def test_wrong_scope_key_and_form_are_refused(server: Server) -> None:
    version = newest(server, "alpha")
    right = build_artifact(good("alpha", version), server.keys["alpha"])
    wrong = {
        "not trusted here": build_artifact(good("alpha", version), SigningKey.new()),
        "signed for 'beta', not for 'alpha'": build_artifact(good("beta", version), server.keys["alpha"]),
        "cannot be read": right[:-40],
        "it cannot be read": b"nonsense",
        "is not a file of alpha": build_artifact(
            Artifact("alpha", version, {"teams/beta/x.rego": b""}), server.keys["alpha"]
        ),
    }
    for reason, content in wrong.items():
        answer = server.ask("PUT", "/teams/alpha/package", "alpha", content=content)
        assert (answer.status_code, reason in told(answer)) == (422, True), answer.text
    large = server.ask("PUT", "/teams/alpha/package", "alpha", content=b"x" * (5 << 20))
    assert (large.status_code, "larger than" in told(large)) == (413, True)


def test_the_gate_answers_with_its_findings(server: Server) -> None:
    version = newest(server, "alpha")
    hostile = {**good("alpha", version).files, "teams/alpha/x.rego": b"package teams.alpha\n\nx := data.teams.beta.y\n"}
    answer = server.publish(Artifact("alpha", version, hostile))
    assert answer.status_code == 422
    assert [(f["rule"], f["file"], f["line"]) for f in answer.json()["findings"] if f["rule"] == "foreign-data"] == [
        ("foreign-data", "teams/alpha/x.rego", 3)
    ]
    content = build_artifact(Artifact("alpha", version, hostile), server.keys["alpha"])
    report = server.ask(
        "PUT", "/teams/alpha/package", "alpha", content=content, headers={"Accept": "application/sarif+json"}
    )
    assert report.json()["version"] == "2.1.0"
    places = [result["locations"][0]["physicalLocation"] for result in report.json()["runs"][0]["results"]]
    assert {place["artifactLocation"]["uri"] for place in places} <= hostile.keys()
    assert newest(server, "alpha") == version


def test_two_keys_are_valid_while_one_is_replaced_and_a_retired_one_is_not(server: Server) -> None:
    old, new = server.keys["beta"], SigningKey.new()
    both = (new.public.pem() + old.public.pem()).decode()
    assert server.register("beta", both).json() == sorted([old.public.id, new.public.id])
    for key in (old, new):
        assert server.publish(good("beta", newest(server, "beta")), key=key).status_code == 200
    assert server.register("beta", new.public.pem().decode()).json() == [new.public.id]
    answer = server.publish(good("beta", newest(server, "beta")), key=old)
    assert (answer.status_code, "not trusted here (any more)" in told(answer)) == (422, True)
    assert "beta" in teams_in(server)
    server.keys["beta"] = new
    third = SigningKey.new().public.pem().decode()
    assert server.register("beta", both + third).status_code == 422
    assert server.register("beta", "nonsense").status_code == 422
    assert server.ask("PUT", "/teams/beta/keys", "beta", json={"pem": third}).status_code == 403


def test_rollback_is_a_newer_serial_of_an_older_version(server: Server) -> None:
    first = published(server, "alpha", "one")
    second = published(server, "alpha", "two")
    answer = server.ask("POST", "/teams/alpha/rollback", "alpha", json={"version": first, "environment": "production"})
    assert answer.json()["version"] == first
    in_force(server, "alpha", first)
    history = server.ask("GET", "/teams/alpha/history", "alpha").json()
    assert [(entry["action"], entry["version"]) for entry in history[:3]] == [
        ("rollback", first), ("publish", second), ("publish", first),
    ]  # fmt: skip
    assert history[0]["serial"] > history[1]["serial"] > history[2]["serial"]
    assert history[0]["actor"].startswith("token ")
    assert server.ask("POST", "/teams/alpha/rollback", "beta", json={"version": first}).status_code == 403
    assert server.ask("POST", "/teams/alpha/rollback", "alpha", json={"version": 2**50}).status_code == 404
    diff = server.ask("GET", f"/teams/alpha/diff?from={first}&to={second}", "alpha").text
    assert '-allow contains "alpha lends one" if {' in diff
    assert '+allow contains "alpha lends two" if {' in diff
    files = server.ask("GET", f"/teams/alpha/package?version={second}", "alpha").json()
    assert "alpha lends two" in files["teams/alpha/alpha.rego"]


def test_promotion_from_staging_to_production(server: Server) -> None:
    version = published(server, "alpha", "tried", environment="staging")
    in_force(server, "alpha", version, "staging")
    assert teams_in(server).get("alpha") != version
    back = {"version": version, "environment": "production"}
    answer = server.ask("POST", "/teams/alpha/rollback", "alpha", json=back)
    assert (answer.status_code, "was never in force in production: promote it" in told(answer)) == (404, True)
    answer = server.ask("POST", "/teams/alpha/promote", "alpha", json={"from": "staging", "to": "production"})
    assert (answer.status_code, answer.json()["environment"]) == (200, "production")
    in_force(server, "alpha", version)
    nothing = server.ask("POST", "/teams/gamma/promote", "platform", json={"from": "staging", "to": "production"})
    assert nothing.status_code == 404
    wrong = server.ask("POST", "/teams/alpha/promote", "alpha", json={"from": "staging", "to": "moon"})
    assert (wrong.status_code, "there are staging, production" in told(wrong)) == (404, True)


@pytest.mark.parametrize("what", ["*", "team:alpha", "environment:production"])
def test_what_is_frozen_stays(server: Server, what: str) -> None:
    version = published(server, "alpha")
    assert server.ask("POST", "/freeze", "alpha", json={"scope": what, "reason": "x"}).status_code == 403
    assert server.ask("POST", "/freeze", json={"scope": what, "reason": "an audit"}).status_code == 200
    try:
        answer = server.publish(good("alpha", version + 1))
        assert (answer.status_code, "an audit" in told(answer)) == (423, True)
        again = {"version": version, "environment": "production"}
        assert server.ask("POST", "/teams/alpha/rollback", "alpha", json=again).status_code == 423
        promoted = server.ask("POST", "/teams/alpha/promote", "alpha", json={"from": "staging", "to": "production"})
        assert promoted.status_code == 423
        assert server.ask("POST", "/teams/alpha/rollback", "platform", json=again).status_code == 200
        assert {"scope": what, "reason": "an audit"} in server.ask("GET", "/freeze", "alpha").json()
    finally:
        assert server.ask("DELETE", f"/freeze?scope={what}").status_code == 200
    assert server.ask("DELETE", f"/freeze?scope={what}").status_code == 404
    unknown = server.ask("POST", "/freeze", json={"scope": "environment:prodution", "reason": "x"})
    assert (unknown.status_code, "there is no environment prodution" in told(unknown)) == (404, True)
    published(server, "alpha")


def test_the_platforms_part_reaches_every_bundle(server: Server) -> None:
    published(server, "alpha")
    before = read_manifest(unpack(server.bundle("production.team.alpha").content))["metadata"]["platform"]
    platform = of_platform(before["version"] + 1)
    rule = b'package airflow.site\n\ndeny contains "nobody" if input.subject.id == "nobody"\n'
    answer = server.publish(Artifact(PLATFORM, platform.version, {**platform.files, "airflow/site/nobody.rego": rule}))
    assert answer.status_code == 200, answer.text
    assert "production.team.alpha" in answer.json()["bundles"]

    def reached() -> bool:
        return b"nobody" in unpack(server.bundle("production.team.alpha").content).get("airflow/site/nobody.rego", b"")

    from tests.conftest import eventually

    eventually(reached)
    history = server.ask("GET", "/platform/history").json()
    assert [entry["version"] for entry in history[:2]] == [platform.version, before["version"]]
    span = f"from={before['version']}&to={platform.version}"
    assert '+deny contains "nobody"' in server.ask("GET", f"/platform/diff?{span}").text
    assert "airflow/site/nobody.rego" in server.ask("GET", f"/platform/package?version={platform.version}").json()
    promotion = {"from": "production", "to": "staging"}
    assert server.ask("POST", "/platform/promote", json=promotion).json()["environment"] == "staging"
    back = {"version": before["version"], "environment": "production"}
    for path in ("history", f"diff?{span}", "package?version=1"):
        assert server.ask("GET", f"/platform/{path}", "alpha").status_code == 403
    for path, wanted in (("rollback", back), ("promote", promotion)):
        assert server.ask("POST", f"/platform/{path}", "alpha", json=wanted).status_code == 403
    assert server.ask("POST", "/platform/rollback", json=back).json()["version"] == before["version"]
    eventually(lambda: not reached())
    bad = {**platform.files, "airflow/site/x.rego": b"package airflow.authz\n"}
    refused = server.publish(Artifact(PLATFORM, platform.version + 1, bad))
    assert refused.status_code == 422
    assert "declares package airflow.authz" in refused.json()["findings"][0]["message"]


def test_the_platforms_own_tests_pass_in_what_all_teams_have(own_server: Server) -> None:
    test = b"""package airflow.site_whole_test

test_only_one_of_them_lends if not both

both if {
	data.teams.alpha.allow
	data.teams.beta.allow
}
"""
    platform = of_platform()
    tested = Artifact(PLATFORM, 1, {**platform.files, "airflow/site/whole_test.rego": test})
    assert own_server.publish(tested).status_code == 200
    assert own_server.publish(good("alpha", 1)).status_code == 200
    refused = own_server.publish(good("beta", 1))
    assert [finding["rule"] for finding in refused.json()["findings"]] == ["platform-tests"]
    assert "whole_test.rego:3: test_only_one_of_them_lends fails" in refused.json()["findings"][0]["message"]
    assert own_server.publish(Artifact(PLATFORM, 2, platform.files)).status_code == 200
    assert own_server.publish(good("beta", 1)).status_code == 200
    assert own_server.publish(Artifact(PLATFORM, 3, tested.files)).status_code == 422


def test_many_publish_at_once_and_nothing_is_lost(server: Server) -> None:
    names = [f"many_{i}" for i in range(6)]
    for name in names:
        server.keys[name] = SigningKey.new()
        server.register(name, server.keys[name].public.pem().decode())
    with ThreadPoolExecutor(6) as pool:
        versions = dict(zip(names, [newest(server, name) for name in names], strict=True))
        answers = list(pool.map(lambda name: server.publish(good(name, versions[name]), who="platform"), names))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.json()["serial"] for answer in answers}) == 6
    for name in names:
        in_force(server, name, versions[name])
    version = newest(server, "alpha")
    with ThreadPoolExecutor(4) as pool:
        same = list(pool.map(lambda i: server.publish(good("alpha", version, f"c{i}")), range(4)))
    assert sorted(answer.status_code for answer in same) == [200, 409, 409, 409]
