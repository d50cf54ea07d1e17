"""Answers of a tool are waited for by few and not for long, and all other requests go on."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.answers import refusal
from tests.services.driver import Driver, FakeDoorbell, FakeStream

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

NUM_PLACES = 4


class CallTaker(FakeDoorbell):
    """Takes every call, so that somebody waits for the answer."""

    def call_tool(self, task_id: str) -> bool:
        return True


class Waiting(FakeStream):
    """Lets waiters wait until the test lets them go; says then that the tool is done, or not."""

    def __init__(self, *, is_done: bool) -> None:
        super().__init__()
        self.is_done = is_done
        self.waiters = threading.Semaphore(0)
        self.over = threading.Event()

    def wait_for_tool(self, task_id: str, *, seconds: float) -> bool:
        self.waiters.release()
        self.over.wait(10)
        return self.is_done


@pytest.fixture
def start(
    make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Waiting], TestClient]]:
    """Return a function that starts the API with a stream; no file of an answer ever comes."""
    monkeypatch.setattr("app.services.tools._LATE_FILE_SECONDS", 0.02)
    monkeypatch.setattr("app.services.tools._POLL_SECONDS", 0.01)
    streams: list[Waiting] = []

    def with_stream(stream: Waiting) -> TestClient:
        streams.append(stream)
        client = make_client()
        parts: Any = client.app.state.parts  # type: ignore[attr-defined]
        settings = parts.settings.model_copy(update={"tool_seconds": 0.05})
        outside = replace(parts.outside, settings=settings, doorbell=CallTaker(), stream=stream)
        client.app.state.parts = replace(parts, outside=outside)  # type: ignore[attr-defined]
        return client

    yield with_stream
    for stream in streams:
        stream.over.set()


def test_beyond_a_handful_of_calls_the_next_is_refused_at_once_and_the_api_goes_on(
    start: Callable[[Waiting], TestClient], driver: Driver
):
    driver.worker()
    stream = Waiting(is_done=True)
    client = start(stream)

    def ask() -> Any:
        return client.post("/jobs/plan", json=driver.spec())

    with ThreadPoolExecutor(NUM_PLACES) as pool:
        held = [pool.submit(ask) for _ in range(NUM_PLACES)]
        try:
            assert all(stream.waiters.acquire(timeout=10) for _ in held)
            refused = ask()
            healthy = client.get("/healthz")
        finally:
            stream.over.set()

    assert refusal(refused, 503)["code"] == "tools_busy"
    assert healthy.status_code == 200
    assert {refusal(each.result(), 503)["code"] for each in held} == {"tool_failed"}
    assert refusal(ask(), 503)["code"] == "tool_failed"  # so there is a place again


@pytest.mark.parametrize(("is_done", "code"), [(True, "tool_failed"), (False, "tool_timeout")])
def test_a_tool_that_ends_without_an_answer_is_told_from_one_that_does_not_end(
    start: Callable[[Waiting], TestClient], driver: Driver, is_done: bool, code: str
):
    driver.worker()
    stream = Waiting(is_done=is_done)
    stream.over.set()

    error = refusal(start(stream).post("/jobs/plan", json=driver.spec()), 503)

    assert error["code"] == code
