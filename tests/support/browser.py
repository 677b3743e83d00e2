"""A real Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

from tests.support.keycloak import PASSWORD

_MILLISECONDS = 30_000


def chromium() -> str | None:
    """The machine's own Chromium; Playwright would bring another one along."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser() -> Iterator[Page]:
    """An empty page of a new browser, which knows nobody."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            page = started.new_page()
            page.set_default_timeout(_MILLISECONDS)
            yield page
        finally:
            started.close()


def fill_in_keycloaks_form(page: Page, name: str) -> None:
    """Log in where Keycloak asks for it."""
    page.fill("#username", name)
    page.fill("#password", PASSWORD)
    page.click("#kc-login")
