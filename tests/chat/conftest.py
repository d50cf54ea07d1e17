"""Fixtures: a real API and a real Valkey, and a host without a model in the place of a worker."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from app.db.engine import Database
from app.services import keys, workers
from app.services.jobs import Outside
from app.settings import Settings
from tests.chat import host as hosts
from tests.chat.host import FakeHost
from tests.fixtures.stack import Stack
from tests.services.driver import Driver, FakeDoorbell, FakeStream
from tests.services.place import write_model

# A request that nobody takes is refused after this time.
TAKEN_WITHIN_SECONDS = 1.5
MOST_WAITING = 3


@dataclass
class Place:
    """The API as users see it, and what lies behind it."""

    stack: Stack
    host: FakeHost
    driver: Driver
    worker_id: str
    api_key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.stack.port}/v1"

    def beat(self) -> None:
        self.driver.sql("UPDATE workers SET ended_at = NULL")
        workers.beat(self.driver.db, self.driver.settings, self.worker_id)

    def leave(self) -> None:
        workers.leave(self.driver.db, self.worker_id)


@pytest.fixture(scope="module")
def place_of_module(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("c")
    shutil.copyfile(sqlite_template, home / "lorad.db")
    write_model(home)
    write_model(home, "bare", template=None)
    url = f"sqlite:///{home / 'lorad.db'}"
    stack = Stack(
        home,
        url,
        LORAD_INFERENCE_QUEUE=str(MOST_WAITING),
        LORAD_INFERENCE_SECONDS=str(TAKEN_WITHIN_SECONDS),
        LORAD_LEASE_SECONDS="60",
    )
    for name in ("valkey", "api"):
        stack.start(name)
    settings = Settings.model_validate({"home": home, "database_url": url, "lease_seconds": 60})
    db = Database(url)
    driver = Driver(db, Outside(settings, FakeDoorbell(), FakeStream()))
    key = keys.create(db, settings, name="tests").secret
    host = FakeHost(settings.broker_url)
    yield Place(stack, host, driver, driver.worker(), key)
    host.close()
    db.close()
    stack.close()


@pytest.fixture
def place(place_of_module: Place) -> Place:
    """The place with everything running, whatever the test before did to it."""
    place = place_of_module
    for name in ("valkey", "api"):
        if name not in place.stack.processes:
            place.stack.start(name)
    place.beat()
    place.host.takes = True
    place.host.script = hosts.answer()
    place.host.requests.clear()
    return place


@pytest.fixture
def client(place: Place) -> Iterator[OpenAI]:
    with OpenAI(base_url=place.url, api_key=place.api_key, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def make_async_client(place: Place):
    """Return a function that makes the asynchronous client, inside the loop that uses it."""
    return lambda: AsyncOpenAI(base_url=place.url, api_key=place.api_key, max_retries=0, timeout=20)
