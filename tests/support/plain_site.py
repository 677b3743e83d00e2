"""A site whose own auth manager decides, with and without a policy that observes it."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import UNSET

from airflow_team_authz.decision_log.reading import InFile, Wanted
from airflow_team_authz.model import Resource
from airflow_team_authz.review import recorded
from airflow_team_authz.review.changes import Difference
from airflow_team_authz.review.proposal import FOLDER, propose
from airflow_team_authz.review.recorded import LogDifferences
from demo.airflow import Settings
from demo.site import Site
from tests.conftest import write
from tests.integration.routes import routes

_OBSERVING = """
[team_authz]
mode = observe
policy = {policy}
decision_log = file
decision_log_file = {log}
"""
# What tells the time, how often something was asked, or which process answers.
_PASSING = re.compile(
    r"\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|\+00:00)?|(?<=\"id\": )\d+|(?<=\"id\":)\d+|csrf_token[^>]*>|nonce-\S+"
)
_BANNER = re.compile(r'\{"text":"\w+ decides\. [^}]*\}')
_GROWING = ("/eventLogs", "/jobs", "/monitor", "/event")
_THINGS = (
    ("connections", {"connection_id": "alpha_db", "conn_type": "sqlite"}),
    ("variables", {"key": "alpha_config", "value": "1"}),
    ("pools", {"name": "alpha_production", "slots": 4}),
)
Answers = dict[tuple[str, str, str], tuple[int, str]]


class PlainSite(Site):
    """``manager`` decides, and this package is not configured. ``admin`` may do everything, ``strangers`` nothing."""

    manager = ""
    admin = "pat"
    strangers: tuple[str, ...] = ()
    has_teams = False

    def guarding_settings(self) -> Settings:
        """See ``Site``."""
        return {"core": {"auth_manager": self.manager, "multi_team": str(self.has_teams)}}

    def prepare(self) -> None:
        """Make the database, the people and what there is."""
        self.airflow.run_all(*(words for words in self.commands if self.has_teams or words[0] != "teams"))
        self.create_people()
        self.begin()
        for path, body in _THINGS:
            assert self.client(self.admin).post(f"/api/v2/{path}", json=body).status_code == 201

    def begin(self) -> None:
        """Start the server, and log everybody in."""
        self.airflow.start()
        self._clients = {name: self.airflow.login(name, password) for name, password in self.passwords.items()}

    def end(self) -> None:
        """Stop the server."""
        for client in self._clients.values():
            client.close()
        self.airflow.stop()

    def answers(self) -> Answers:
        """What everybody gets by every reading route, what those who may nothing get by any, and what changes say."""
        found: Answers = {}
        asked = routes(self.client(self.admin))
        for name in self.passwords:
            for route in asked:
                if route.method == "GET" or name in self.strangers:
                    answer = self.client(name).request(route.method, route.path, json=route.body)
                    is_same = not any(part in route.path for part in _GROWING)
                    text = _PASSING.sub("…", _in_order(answer.text)) if is_same else ""
                    found[name, route.method, route.path] = answer.status_code, text
            of_it = f"/api/v2/variables/of_{name}"
            body = {"key": f"of_{name}", "value": "1"}
            for method, path in (("POST", "/api/v2/variables"), ("PATCH", of_it), ("DELETE", of_it)):
                answer = self.client(name).request(method, path, json=None if method == "DELETE" else body)
                found[name, method, path] = answer.status_code, _PASSING.sub("…", answer.text)
            # Who may create one need not be one who may delete it.
            self.client(self.admin).delete(of_it)
        return found

    def observed(self, log: Path) -> tuple[Answers, LogDifferences]:
        """The answers while the policy observes, and the differences in the log. Afterwards the server is stopped."""
        configuration = self.airflow.home / "airflow.cfg"
        before = configuration.read_text().partition("\n[team_authz]\n")[0]
        configuration.write_text(before + _OBSERVING.format(policy=self.policy, log=log))
        self.begin()
        try:
            answers, count = self.answers(), -1
            while (now := sum(1 for _ in InFile(log).each(Wanted(shadow=True))) if log.exists() else 0) != count:
                count = now
                threading.Event().wait(5)
        finally:
            self.end()
        records = list(InFile(log).each(Wanted(shadow=True)))
        assert {record["custom"]["outcome"] for record in records} == {"observe"}
        found = recorded.beside(iter(records), "observe", by_person=True)
        assert not found.failed
        assert not found.left_out
        assert "OBSERVING: " in self.airflow.log()
        assert not re.findall("could not be (?:asked|observed|recorded)", self.airflow.log())
        return answers, found


def _in_order(text: str) -> str:
    """Some managers keep the items of the menu in a set."""
    if not text.startswith('{"authorized_menu_items":'):
        return text
    told = json.loads(text)
    return json.dumps(told | {"authorized_menu_items": sorted(told["authorized_menu_items"])})


def check_that_only_observes(site: PlainSite, home: Path) -> LogDifferences:
    """No answer differs, and with the rules that the report proposes, the policy answers alike. The first report."""
    try:
        site.prepare()
        without = site.answers()
        site.end()
        observed, found = site.observed(home / "observed.ndjson")
        assert Counter(status for status, _ in without.values()).keys() >= {200, 403}
        # The one line that tells people so.
        told = {asked for asked, (_, text) in observed.items() if _BANNER.search(text)}
        assert {path for _, _, path in told} == {"/ui/config"}
        check_same(without, observed)
        proposal = propose(_every(found), by_person=True)
        write(site.policy, {f"{FOLDER}/observed.rego": proposal.text})
        again, remaining = site.observed(home / "with_rules.ndjson")
        check_same(without, again)
        assert set(differing(_every(remaining))) <= set(differing(proposal.remaining))
        assert {(one.gained, one.asked.action, one.resource.id) for one in proposal.remaining} <= {
            (True, "list", UNSET)
        }
    finally:
        site.end()
    return found


def differing(differences: Iterable[Difference]) -> Iterator[tuple[str, str, Resource]]:
    """Who, what, and about which resource."""
    for one in differences:
        yield one.question.subject.id, one.asked.action, one.resource


def _every(found: LogDifferences) -> Iterator[Difference]:
    return (one for change in found.found.changes for one in change.every)


def check_same(one: Answers, other: Answers) -> None:
    """The answers are the same, but for the banner."""
    assert one.keys() ^ other.keys() == set(), one.keys() ^ other.keys()
    differing = [
        (asked, answer, other[asked])
        for asked, answer in one.items()
        if answer != (other[asked][0], _BANNER.sub("", other[asked][1]))
    ]
    assert not differing, f"{len(differing)}, such as {differing[:5]}"
