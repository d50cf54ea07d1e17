"""Fixtures of these tests: the real client of OpenAI's, on the API alone and on the whole service.

The API alone takes its requests inside the test process, on each database, with Redis away and the
worker in the hand of the test. The whole service has real processes and a model of two layers.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.fixtures.stack import Stack, link_model
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

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(24)]


def lines(rows: list[dict[str, Any]] | None = None) -> bytes:
    """Return rows as JSONL."""
    return "".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows)).encode()


class Wire:
    """Counts requests on their way, and can cut the answer to one off.

    Args:
        inner: What answers.
    """

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self._inner = inner
        self.requests: list[httpx2.Request] = []
        self.cuts = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._inner.handle_request(request)
        if self.cuts:
            # The server has done it, and the client does not hear of it.
            self.cuts -= 1
            answer.read()
            raise httpx2.ReadError("cut off")
        return answer

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def http(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture
def wire(http: TestClient) -> Wire:
    # A client takes a transport only when it is made, and the test client makes its own.
    wire = Wire(http._transport)  # pyright: ignore[reportPrivateUsage]
    http._transport = wire  # type: ignore[assignment]
    return wire


@pytest.fixture
def client(http: TestClient, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> openai.OpenAI:
    """OpenAI's client, unchanged but for the time that it waits before it asks again."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    return openai.OpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key="lorad-needs-none", http_client=http
    )


@pytest.fixture
def make_job(client: openai.OpenAI) -> Callable[..., Any]:
    """Return a function that uploads rows and creates a job with them."""

    def make(**changes: Any) -> Any:
        if "training_file" not in changes:
            file = client.files.create(file=("rows.jsonl", lines()), purpose="fine-tune")
            changes["training_file"] = file.id
        arguments: dict[str, Any] = {"model": "tiny", **changes}
        return client.fine_tuning.jobs.create(**arguments)

    return make


@pytest.fixture
def succeeded(driver: Driver, make_job: Callable[..., Any]) -> Callable[..., str]:
    """Return a function that makes a job and does its steps by hand; it returns the job's id."""

    def make(**changes: Any) -> str:
        job = make_job(**changes)
        run = driver.started()
        driver.train(run, 1, 4, save_every=2)
        driver.evaluation(run, 4, 1.5, is_best=True, saves=False)
        driver.succeed(run, 4)
        return job.id

    return make


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, tiny_llama: Path
) -> Iterator[Stack]:
    """The whole service; its model has a name with a slash."""
    home = tmp_path_factory.mktemp("o")
    shutil.copyfile(sqlite_template, home / "lorad.db")
    # The API starts again while a job trains, which takes some time.
    slow = {"LORAD_FAILPOINTS": "trainer.step=sleep:0.2"}
    stack = Stack(home, f"sqlite:///{home / 'lorad.db'}", **slow)
    (home / "models" / "org").mkdir(parents=True)
    link_model(home, tiny_llama, "org/tiny")
    for name in ("valkey", "api", "worker"):
        stack.start(name)
    yield stack
    stack.close()
