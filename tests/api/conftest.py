"""Fixtures of these tests: the whole API on each database, with Redis away as the normal case."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.services.driver import Driver
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

__all__ = ["database", "driver", "home", "outside", "postgres_url", "settings", "shelf", "tmp_path"]


class Undeclared:
    """Collects answers whose status the API document does not name for their operation."""

    def __init__(self, paths: dict[str, dict[str, Any]]) -> None:
        order = sorted(paths, key=lambda path: path.count("{"))
        self._paths = [(re.compile(re.sub(r"{\w+}", "[^/]+", path)), paths[path]) for path in order]
        self.found: list[str] = []

    def look(self, response: httpx2.Response) -> None:
        method, path = response.request.method, response.request.url.path
        for pattern, operations in self._paths:
            if pattern.fullmatch(path):
                operation = operations.get(method.lower())
                if operation and str(response.status_code) not in operation["responses"]:
                    self.found.append(f"{method} {path}: {response.status_code}")
                return


@pytest.fixture(scope="session")
def documented(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Paths of the API document, which takes long to make."""
    app = create_app(Settings(home=tmp_path_factory.mktemp("document")))
    return app.openapi()["paths"]


@pytest.fixture
def make_client(
    settings: Settings, documented: dict[str, dict[str, Any]]
) -> Iterator[Callable[..., TestClient]]:
    """Return a function that starts the API with changed settings."""
    clients: list[tuple[TestClient, Undeclared]] = []

    def make(**changes: Any) -> TestClient:
        app = create_app(settings.model_copy(update=changes))
        undeclared = Undeclared(documented)
        client = TestClient(app, base_url="http://127.0.0.1:8000")
        client.event_hooks = {"response": [undeclared.look]}
        clients.append((client.__enter__(), undeclared))
        return client

    yield make
    for client, _ in clients:
        client.__exit__(None, None, None)
    assert not [each for _, undeclared in clients for each in undeclared.found]


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@pytest.fixture
def spec(driver: Driver) -> dict[str, Any]:
    """A job that the API takes."""
    return driver.spec()
