"""The dashboard and the alert rules name metrics and labels that there are, and leave none out."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from types import SimpleNamespace

import yaml

from airflow_team_authz.decision_log import DecisionLog
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.metrics import Metrics
from airflow_team_authz.decision_log.record import Form
from airflow_team_authz.decision_log.sinks import StandardLog
from airflow_team_authz.model import Decision, Evaluations, Provenance, Resource, Subject, UnreachableError
from airflow_team_authz.server import metrics
from tests.conftest import REPOSITORY

PLACE = REPOSITORY / "docs/monitoring"
DASHBOARD = json.loads((PLACE / "dashboard.json").read_text())
ALERTS = [rule for group in yaml.safe_load((PLACE / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
SHOWN = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
RUNG = [rule["expr"] for rule in ALERTS]


class Meter:
    """Notes the metrics that it is told, with the names of their tags, as a StatsD exporter names them."""

    def __init__(self) -> None:
        self.known: dict[str, set[str]] = defaultdict(set)

    def _keep(self, stat: str, _: float, *, tags: dict[str, str]) -> None:
        self.known[f"airflow_{stat.replace('.', '_')}"] |= tags.keys()

    incr = gauge = _keep

    def timing(self, stat: str, dt: float, *, tags: dict[str, str]) -> None:
        self._keep(stat, dt, tags={**tags, "quantile": ""})


def known() -> dict[str, set[str]]:
    """All metrics of Airflow's processes and of the bundle server, with their labels."""
    meter = Meter()
    counted = Metrics(DecisionLog([StandardLog()], Levels("none"), Form()), meter)
    question = Evaluations(Subject("user", "bob"), "read", [Resource("dag", "alpha", "d")])
    for revision in ("1", "2"):
        counted.decided(question, [Decision(True, (), "team")], Provenance(revision, 1))
    counted.listed(question, [], Provenance("2", 1))
    counted.failed(question, UnreachableError("x"), 1)
    counted.beside("same")
    counted.breaker = SimpleNamespace(is_open=True, openings=1)
    (writer,) = counted._log.writers
    writer.written = writer.lost = 1
    counted.close()
    ours = {f"team_authz_server_{name}": set(labels) for name, (_, labels, _) in metrics.METRICS.items()}
    return meter.known | ours


KNOWN = known()


def named(expressions: list[str]) -> set[str]:
    return {name for text in expressions for name in re.findall(r"\b(?:airflow_)?team_authz_\w+", text)}


def test_every_metric_that_is_shown_or_rings_is_there() -> None:
    assert named(SHOWN + RUNG) - KNOWN.keys() == set()
    assert named(SHOWN) == KNOWN.keys()


def test_every_label_that_is_used_is_one_of_its_metric() -> None:
    for text in SHOWN + RUNG:
        labels = set(re.findall(r"(\w+)=\"", text))
        for by in re.findall(r"by \(([^)]*)\)", text):
            labels |= set(by.split(", "))
        for name in named([text]):
            assert labels <= KNOWN[name], (name, text)
    for rule in ALERTS:
        labels = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert all(labels <= set(re.findall(r"\w+", by)) for by in re.findall(r"by \(([^)]*)\)", rule["expr"]))


def test_they_have_the_form_that_grafana_and_prometheus_read() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        assert {"title", "type", "gridPos", "targets"} <= panel.keys()
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for rule in ALERTS:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_the_pages_tell_of_every_metric() -> None:
    page = (REPOSITORY / "docs/bundle-server.md").read_text()
    assert [name for name in metrics.METRICS if f"`team_authz_server_{name}`" not in page] == []


def test_texts_in_labels_break_nothing() -> None:
    counting = metrics.Counting()
    counting.note("findings_total", 'a"b\\c\nd')
    told = metrics.render(counting, metrics.Counts(1, 2, 3), [], 0, 4, "")
    assert 'team_authz_server_findings_total{rule="a\\"b\\\\c\\nd"} 1\n' in told
    assert "team_authz_server_decisions_dropped_total 3\n" in told
    lines = [line for line in told.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z_]+(\{[^}]*\})? [0-9.e+]+", line) for line in lines)
