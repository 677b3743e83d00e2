"""Records what Airflow's UI asks for when somebody opens a page in Chromium: ``python -m benchmarks.recording``."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import httpx
from playwright.sync_api import Request

from benchmarks.site import Size, fill
from demo.airflow import Airflow

FILE = Path(__file__).with_name("pages.json")
DAG = "team0_dag0"
# The path of each page, and what it shows when it is there.
_PAGES = {
    "home": ("/", "Import Errors"),
    "Dags": ("/dags", "team0_dag0"),
    "connections": ("/connections", "team0_connection0"),
    "a Dag's grid": (f"/dags/{DAG}", "extract"),
}
_SIZE = Size(dags_of_a_team=1, runs_of_a_dag=10, runs_with_tasks=10, audit_rows_of_a_dag=1, import_errors=10, assets=10)
_SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
# The browser has nothing left to do.
_IDLE = "() => new Promise(done => requestIdleCallback(() => requestIdleCallback(() => done())))"
# The end of a time, and its beginning.
_MOMENTS = {
    "{now}": re.compile(r"(?<=_lt=)\d{4}-\d\d-\d\dT[^&]*|(?<=_lte=)\d{4}-\d\d-\d\dT[^&]*"),
    "{day_ago}": re.compile(r"\d{4}-\d\d-\d\dT[^&]*"),
}


def main() -> None:
    """Write the requests of each page into ``pages.json``."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        users = {"simple_auth_manager_all_admins": "True"}
        airflow = Airflow(Path(home), {"core": {"multi_team": "True", "auth_manager": _SIMPLE, **users}})
        url = f"sqlite:///{home}/airflow.db"
        fill(
            _SIZE,
            {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url, "AIRFLOW_HOME": home, "PATH": os.environ["PATH"]},
        )
        airflow.run("db", "migrate")
        with airflow:
            recorded = {name: _requests(airflow.url, *page) for name, page in _PAGES.items()}
    FILE.write_text(json.dumps(recorded, indent=2) + "\n")


def _requests(url: str, path: str, shown: str) -> list[str]:
    """Method, path and query of each request to the API until the page is there and asks for nothing any more."""
    from tests.support.browser import browser

    asked: list[str] = []
    waiting = set[Request]()

    def note(request: Request) -> None:
        waiting.add(request)
        target = urlsplit(request.url)
        if target.path.startswith(("/ui/", "/api/")):
            query = unquote(target.query)
            for name, moment in _MOMENTS.items():
                query = moment.sub(name, query)
            asked.append(f"{request.method} {target.path}?{quote(query, safe='=&{}~-')}".rstrip("?"))

    def end(request: Request) -> None:
        waiting.discard(request)

    with browser() as page:
        token = httpx.get(f"{url}/auth/token", trust_env=False).json()["access_token"]
        page.context.add_cookies([{"name": "_token", "value": token, "url": url}])
        page.on("request", note)
        for ended in ("requestfinished", "requestfailed"):
            page.on(ended, end)  # type: ignore[call-overload]
        page.goto(f"{url}{path}")
        page.get_by_text(shown).first.wait_for()
        seen = -1
        while waiting or seen < len(asked):
            seen = len(asked)
            page.evaluate(_IDLE)
    return asked


if __name__ == "__main__":
    main()
