"""Fixtures of these tests: a real service with finished jobs, and a browser that hides nothing."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    sync_playwright,
)

from tests.api.conftest import client, documented, make_client
from tests.e2e.rows import ROWS, spec
from tests.fixtures.stack import Stack, link_model
from tests.services.place import (
    database,
    driver,
    home,
    outside,
    postgres_url,
    settings,
    shelf,
    tmp_path,
)

__all__ = [
    "client",
    "database",
    "documented",
    "driver",
    "home",
    "make_client",
    "outside",
    "postgres_url",
    "settings",
    "shelf",
    "tmp_path",
]

_VIOLATIONS = """
document.addEventListener('securitypolicyviolation', (event) => console.error(
  `violation of ${event.violatedDirective} by ${event.blockedURI} at ${event.sourceFile}`));
"""


class Site(Stack):
    """A service on the tiny model, with two finished jobs that were evaluated and saved."""

    jobs: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def train(self, *, steps: int = 12, name: str | None = None, **training: Any) -> str:
        """Submit a job that is evaluated, saved and looked into at every fourth step."""
        choices = {"max_steps": steps, "save_steps": 4, "eval_steps": 4, **training}
        asked = spec(self, self.upload(ROWS), **choices)
        asked["dataset"]["val_size"] = 4
        asked["monitoring"] = {"gradient_flow_steps": 4}
        return self.submit(asked if name is None else {**asked, "name": name})


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite; a test about what PostgreSQL does differently asks for `postgres_url`."""
    return sqlite_url


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, tiny_llama: Path
) -> Iterator[Site]:
    """One service for a module; `site.jobs` are the ids of its finished jobs."""
    home = tmp_path_factory.mktemp("w")
    shutil.copyfile(sqlite_template, home / "lorad.db")
    service = Site(home, f"sqlite:///{home / 'lorad.db'}")
    link_model(home, tiny_llama)
    try:
        for name in ("valkey", "api", "worker"):
            service.start(name)
        service.jobs = (
            service.train(name="first"),
            service.train(name="second", learning_rate=5e-3),
        )
        for job_id in service.jobs:
            service.wait_for_state(job_id, "succeeded", seconds=120)
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium; Playwright's event loop runs as long, in which no other one can."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        assert os.environ.get("LORAD_REQUIRE_BROWSER") != "1", "chromium is not installed"
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        # Without a sandbox of its own: it opens nothing but pages of this service.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


class Watched:
    """What a page complains about: an error of any kind fails the test that opened it."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.complaints: list[str] = []
        self.allowed: tuple[str, ...] = ()

    def watch(self, page: Page) -> None:
        page.add_init_script(_VIOLATIONS)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", self._on_request)

    def unexpected(self) -> list[str]:
        return [each for each in self.complaints if not any(part in each for part in self.allowed)]

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text} {message.location}")

    def _on_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.netloc != self._host:
            self.complaints.append(f"request to another host: {request.url}")


@pytest.fixture
def watched(site: Site) -> Watched:
    """Complaints of the test's pages; a test names what it provokes in `watched.allowed`."""
    return Watched(f"127.0.0.1:{site.port}")


@pytest.fixture
def visit(site: Site, browser: Browser, watched: Watched) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a path in a fresh profile, or with the options of a context.

    At the end no page may have logged an error, violated its policy or asked another host.
    """
    contexts: list[BrowserContext] = []

    def open_page(path: str, **options: Any) -> Page:
        context = browser.new_context(base_url=site.url, **options)
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        watched.watch(page)
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not watched.unexpected()
