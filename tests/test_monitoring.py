"""The dashboard and the alert rules name metrics and labels that there are, leave none out, and do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_team_authz.bundles.artifact import Artifact
from airflow_team_authz.server import metrics
from tests.conftest import REPOSITORY, eventually
from tests.server.conftest import Server, good, of_platform, running
from tests.support.monitoring import (
    PLACE,
    Prometheus,
    built,
    count_everything,
    debians,
    prometheus,
    statsd_exporter,
)

DASHBOARD = json.loads((PLACE / "dashboard.json").read_text())
ALERTS = [rule for group in yaml.safe_load((PLACE / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
SHOWN = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
RUNG = [rule["expr"] for rule in ALERTS]
METRIC = r"\b(?:airflow_)?team_authz_\w+"


class Noting:
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
    meter = Noting()
    count_everything(meter)
    ours = {f"team_authz_server_{name}": set(labels) for name, (_, labels, _) in metrics.METRICS.items()}
    return meter.known | ours


KNOWN = known()


def named(expressions: list[str]) -> set[str]:
    return {name for text in expressions for name in re.findall(METRIC, text)}


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


def test_no_panel_hides_another() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
    for panel in DASHBOARD["panels"]:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_each_alert_rings_and_is_quiet_as_prometheus_reads_it() -> None:
    done = subprocess.run(
        [debians("promtool"), "test", "rules", "alerts.test.yaml"],
        cwd=PLACE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes: dict[str, set[bool]] = defaultdict(set)
    for test in yaml.safe_load((PLACE / "alerts.test.yaml").read_text())["tests"]:
        for asked in test["alert_rule_test"]:
            outcomes[asked["alertname"]].add(bool(asked["exp_alerts"]))
            assert re.match(rf"{asked['alertname']} {'rings' if asked['exp_alerts'] else 'is quiet'}: ", test["name"])
    assert outcomes == {rule["alert"]: {True, False} for rule in ALERTS}
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning"}


# In a process of its own, with Airflow's settings alone; each line that it reads makes it count everything once more.
COUNTING = """
import sys
from airflow.observability import stats
from airflow.observability.metrics import stats_utils
stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
from airflow_team_authz import airflow_compat
from tests.support.monitoring import count_everything
for line in sys.stdin:
    count_everything(airflow_compat.stats())
"""


def cause_traffic(server: Server) -> None:
    """Let the server count each thing that it counts."""
    assert server.publish(of_platform()).status_code == 200
    assert server.publish(good("alpha", 1)).status_code == 200
    assert server.publish(Artifact("alpha", 2, {"teams/alpha/alpha.rego": b"package teams.beta\n"})).status_code == 422
    assert server.ask("POST", "/logs", "reader", json=[{"decision_id": "none"}]).status_code < 300
    assert server.publish(good("beta", 1)).status_code == 202


@contextmanager
def waiting_server(home: Path) -> Iterator[Server]:
    """A bundle server that holds each change of beta's."""
    with running(home) as server:
        server.stop()
        server.start("--approval=change:owner=beta")
        yield server


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus beside a bundle server and Airflow's own StatsD client, once both have counted everything twice."""
    home = tmp_path_factory.mktemp("monitoring")
    page = (REPOSITORY / "docs/bundle-server.md").read_text()
    (documented,) = re.findall(r"```yaml\nscrape_configs:\n(.*?)```", page, re.DOTALL)
    (job,) = yaml.safe_load(documented)
    with waiting_server(home / "server") as server, statsd_exporter(home) as (datagrams, exporter):
        (home / "token").write_text(server.tokens["reader"])
        job |= {"scheme": "http", "static_configs": [{"targets": [server.url.removeprefix("http://")]}]}
        job["authorization"]["credentials_file"] = str(home / "token")
        airflow = {"job_name": "airflow", "static_configs": [{"targets": [exporter]}]}
        with prometheus(home, job, airflow) as watching:
            settings = {
                "AIRFLOW__METRICS__STATSD_ON": "True", "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
                "AIRFLOW__METRICS__STATSD_PORT": str(datagrams), "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
                "PYTHONPATH": str(REPOSITORY),
            }  # fmt: skip
            count_again(watching, server, settings)
            yield watching


def count_again(watching: Prometheus, server: Server, settings: dict[str, str]) -> None:
    """Let Airflow's client and the server count everything twice, so that each counter has grown."""
    command = [sys.executable, "-c", COUNTING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | settings, text=True) as counting:
        assert counting.stdin is not None
        cause_traffic(server)
        for times in (1, 2):
            print("again", file=counting.stdin, flush=True)
            server.ask("POST", "/logs", "reader", json=[{"decision_id": "none"}])
            eventually(lambda times=times: value(watching, "sum(airflow_team_authz_errors)") == times)
    eventually(lambda: value(watching, "sum(team_authz_server_decisions_dropped_total)") == 3)


def value(watching: Prometheus, expression: str) -> float | None:
    found = watching.query(expression)
    return float(found[0]["value"][1]) if found else None


@pytest.mark.exhaustive
@pytest.mark.parametrize("expression", SHOWN)
def test_prometheus_answers_each_query_of_the_dashboard(watching: Prometheus, expression: str) -> None:
    assert watching.query(expression.replace("$__rate_interval", "1m")) != []


@pytest.mark.exhaustive
def test_prometheus_evaluates_each_alert(watching: Prometheus) -> None:
    rules = watching.rules()
    assert rules.keys() == {rule["alert"] for rule in ALERTS}
    eventually(lambda: all(rule["health"] != "unknown" for rule in watching.rules().values()))
    assert [rule["lastError"] for rule in watching.rules().values() if rule["health"] != "ok"] == []
    for selector in sorted({found for text in RUNG for found in re.findall(METRIC + r"(?:{[^}]*})?", text)}):
        assert watching.query(selector) != [], selector
    rings = {"DecisionsAreLost": "firing", "DecisionsAreDropped": "firing", "PolicyDoesNotDecide": "pending"}
    eventually(lambda: {name: rule["state"] for name, rule in watching.rules().items()}
               == dict.fromkeys(rules, "inactive") | rings)  # fmt: skip


@pytest.mark.exhaustive
def test_grafanas_schemas_know_all_of_the_dashboard(tmp_path: Path) -> None:
    def read(dashboard: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        (tmp_path / "dashboard.json").write_text(json.dumps(dashboard))
        command = [built("dashboard"), str(tmp_path / "dashboard.json")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = read(DASHBOARD)
    assert done.returncode == 0, done.stderr
    first, *others = DASHBOARD["panels"]
    target = first["targets"][0]
    for wrong in (
        {**DASHBOARD, "panel": []},
        {**DASHBOARD, "panels": [{**first, "type": "timeserie"}, *others]},
        {**DASHBOARD, "panels": [{**first, "fieldConfig": {"defaults": {"units": "ops"}, "overrides": []}}, *others]},
        {**DASHBOARD, "panels": [{**first, "targets": [{**target, "expression": "up"}]}, *others]},
        {**DASHBOARD, "panels": [{**first, "gridPos": {**first["gridPos"], "w": "8"}}, *others]},
    ):
        assert read(wrong).returncode == 1


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
