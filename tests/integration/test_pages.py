"""Airflow's own pages in a real browser, as four people: each opens without an error, and shows what is theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

import pytest
from playwright.sync_api import BrowserContext, Error, Locator, Page, Response, TimeoutError

from demo.site import USERS, Site
from tests.integration.rows import SHARED_ASSET, fill
from tests.keycloak.conftest import require
from tests.support.browser import browser, chromium

pytestmark = [pytest.mark.timeout(600), pytest.mark.parametrize("site", ["in process"], indirect=True)]

# Where the menu leads to, and what has to be seen there; {team} and so on are the person's own.
_MENU = {
    "/": "{dag_id}",
    "/dags": "{dag_id}",
    "/assets": SHARED_ASSET,
    "/required_actions": "{team}_question",
    "/xcoms": "{team}_key",
    "/events": "{team}_extra",
    "/deadlines": "{dag_id}",
    "/jobs": "No Jobs found",
    "/pools": "{team}_pool",
    "/providers": "apache-airflow-providers-standard",
    "/plugins": "No Plugins found",
    "/configs": "Airflow Configuration",
    "/security/policy:decisions": "What was refused to you",
}
# The auth manager's own page, which the UI shows in a frame.
_FRAMED = "/security/policy:decisions"
_MENU_OF_OPS = {"/connections": "{team}_db", "/variables": "{team}_config"}
# Where links on these lead to.
_RUN = "/dags/{dag_id}/runs/{run_id}"
_TASK = f"{_RUN}/tasks/work"
_BELOW = {
    "/dag_runs": "{dag_id}",
    "/task_instances": "{dag_id}",
    "/assets/{shared_id}": "Source:",
    "/assets/{asset_id}/asset-state-store": "{team}_key",
    "/dags/{dag_id}": "Created Asset Events",
    "/dags/{dag_id}/runs": "Success",
    "/dags/{dag_id}/tasks": "@task",
    "/dags/{dag_id}/calendar": "Daily",
    "/dags/{dag_id}/backfills": "Backfill in progress",
    "/dags/{dag_id}/events": "{team}_extra",
    "/dags/{dag_id}/code": "{dag_id}.py",
    "/dags/{dag_id}/details": "{team}-dags",
    _RUN: "Deferred",
    f"{_RUN}/events": "{team}_extra",
    f"{_RUN}/details": "{team}-dags",
    f"{_RUN}/asset_events": "No Asset Events found",
    _TASK: "Log message source details",
    f"{_TASK}/events": "{team}_extra",
    f"{_TASK}/task-state-store": "{team}_key",
    f"{_TASK}/xcom": "{team}_key",
    f"{_TASK}/code": "{dag_id}.py",
    f"{_TASK}/details": "{team}-dags",
    f"{_TASK}/rendered_templates": "{team}_argument",
    f"{_TASK}/task_instances": "Deferred",
    f"{_TASK}/asset_events": SHARED_ASSET,
    f"{_TASK}/required_actions": "{team}_question",
    "/dags/{dag_id}/tasks/work": "Last Task Instance",
    "/dags/{dag_id}/tasks/work/events": "{team}_extra",
}
# Answers that say no and are as they should be, each with its reason; {} is an id.
_RIGHTLY_REFUSED = {
    # Airflow tells nobody its configuration unless [api] expose_config is set; the page says so.
    (403, "/api/v2/config"),
    # Airflow's package lacks this file.
    (404, "/static/wasm/sqlparser_rs_wasm.js"),
    # The page of a task without a run asks for one nevertheless.
    (404, "/api/v2/dags/{}/dagRuns//taskInstances/work/-1"),
}
# Alpha lends it to beta.
_LENT = {"alpha_warehouse"}
_SAYS_NO = "/configs"
_ALERTS = "[data-testid=error-alert], [data-scope=toast][data-part=root][data-type=error]"
_PATIENCE_MS = 60_000
# The browser has nothing left to do.
_IDLE = "() => new Promise(done => requestIdleCallback(() => requestIdleCallback(() => done())))"
# What a click on a link does in the UI, which need not load all of it again.
_GO = """path => {
    history.pushState({}, "", path);
    dispatchEvent(new PopStateEvent("popstate", {state: {}}));
}"""


class Visitor:
    """A person who looks at pages, and notes what is wrong with them."""

    def __init__(self, page: Page, site: Site, name: str, assets: dict[str, int]) -> None:
        (user,) = [user for user in USERS if user.name == name]
        team = user.team_id or "alpha"
        (run,) = site.client(name).get(f"/api/v2/dags/{team}_daily/dagRuns").json()["dag_runs"]
        self.own = {
            "team": team,
            "dag_id": f"{team}_daily",
            "run_id": run["dag_run_id"],
            "shared_id": str(assets[SHARED_ASSET]),
            "asset_id": str(assets[f"{team}_asset"]),
        }
        self.name = name
        self.wrong: list[str] = []
        self.asked = 0
        # Names of the other team's that the browser got to know, and by which answers.
        self.strange: dict[str, set[str]] = {}
        self._answers: list[Response] = []
        self._other = "alpha" if team == "beta" else "beta"
        self._page, self._site, self._path, self._awaited = page, site, "/", 0
        page.on("request", lambda _: self._awaits(1))
        page.on("requestfinished", lambda _: self._awaits(-1))
        page.on("requestfailed", lambda _: self._awaits(-1))
        page.on("response", self._answered)
        page.on("pageerror", lambda error: self._note(f"fails: {error}"))

    def menu(self) -> set[str]:
        """Open the home page; where its menu leads to."""
        self._page.goto(self._site.airflow.url)
        self._settle()
        links = self._links(self._page.locator("[data-testid^=nav-]"))
        for opener in self._page.locator("button[aria-haspopup=menu]").all():
            opener.click()
            opened = self._page.locator("[data-scope=menu][data-part=content][data-state=open]")
            opened.wait_for()
            links |= self._links(opened.locator("a"))
            # Airflow's UI shows the key of a word that it does not know.
            self.wrong += [text for text in opened.locator("a").all_inner_texts() if text.startswith("security.")]
            self._page.keyboard.press("Escape")
            opened.wait_for(state="hidden")
        return links

    def visit(self, path: str, shows: str) -> None:
        """Open a page, and look whether it shows this and no error."""
        self._path = path
        self._page.evaluate(_GO, path.format_map(self.own))
        try:
            shown = self._page.frame_locator("iframe") if path == _FRAMED else self._page
            shown.get_by_text(shows.format_map(self.own)).first.wait_for()
        except TimeoutError:
            self._note(f"does not show {shows.format_map(self.own)}")
        self._settle()
        alerts = self._page.locator(_ALERTS).all_inner_texts()
        if path != _SAYS_NO:
            for alert in alerts:
                self._note(f"shows the error {alert}")

    @staticmethod
    def _links(found: Locator) -> set[str]:
        targets = {str(link.get_attribute("href")) for link in found.all()}
        return {target for target in targets if target.startswith("/")}

    def _settle(self) -> None:
        """Until nothing is awaited, and nothing is left to do that could ask more."""
        while True:
            self._page.evaluate(_IDLE)
            if not self._awaited:
                self._page.evaluate(_IDLE)
                if not self._awaited:
                    return self._read()

    def _read(self) -> None:
        """Look for the other team's names in what has been answered."""
        answers, self._answers = self._answers, []
        for answer in answers:
            for name in re.findall(rf"\b{self._other}[_-]\w+", self._text(answer)):
                self.strange.setdefault(name, set()).add(answer.url.removeprefix(self._site.airflow.url))

    def _text(self, answer: Response) -> str:
        try:
            return answer.text()
        except Error:
            # The browser drops the answers of a frame together with the frame. This asks the same again.
            return self._page.request.fetch(answer.request).text()

    def _awaits(self, more: int) -> None:
        self._awaited += more

    def _answered(self, answer: Response) -> None:
        self.asked += 1
        if "json" in answer.headers.get("content-type", "") or "/auth/" in answer.url:
            self._answers.append(answer)
        path = unquote(answer.url).removeprefix(self._site.airflow.url).partition("?")[0]
        for id_ in self.own.values():
            path = path.replace(f"/{id_}/", "/{}/")
        if answer.status >= 400 and (answer.status, path) not in _RIGHTLY_REFUSED:
            self._note(f"{answer.status} {answer.request.method} {answer.url}")

    def _note(self, wrong: str) -> None:
        self.wrong.append(f"{self._path} {wrong}")


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    """One browser for all, which keeps the UI's own files."""
    require("" if chromium() else "Chromium is not on this machine: apt-get install chromium")
    with browser() as page:
        started = page.context.browser
        assert started is not None
        yield started.new_context()


@pytest.fixture(scope="module")
def assets(site: Site) -> dict[str, int]:
    """Those of a site that has all that pages show, with their ids."""
    return fill(site)


# Each of them takes a minute of both processors.
_OTHERS = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("ann", "bob", "pat")]


@pytest.fixture(params=["vic", *_OTHERS])
def visitor(
    request: pytest.FixtureRequest, site: Site, context: BrowserContext, assets: dict[str, int]
) -> Iterator[Visitor]:
    name = request.param
    context.clear_cookies()
    token = site.client(name).headers["Authorization"].removeprefix("Bearer ")
    context.add_cookies([{"name": "_token", "value": token, "url": site.airflow.url}])
    page = context.new_page()
    page.set_default_timeout(_PATIENCE_MS)
    yield Visitor(page, site, name, assets)
    page.close()


def test_every_page_opens_without_an_error_and_shows_what_is_ones_own_only(visitor: Visitor) -> None:
    pages = _MENU | ({} if visitor.name == "vic" else _MENU_OF_OPS)
    assert visitor.menu() == set(pages)
    # Who may least and who may most of what is a team's; the other two would see the same of the other team.
    below = _BELOW if visitor.name in {"ann", "vic"} else {}
    for path, shows in (pages | below).items():
        visitor.visit(path, shows)
    assert visitor.wrong == []
    assert visitor.asked > len(pages)
    if visitor.name != "pat":
        assert set(visitor.strange) - _LENT == set(), visitor.strange
