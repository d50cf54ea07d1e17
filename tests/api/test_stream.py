"""A stream shows every event once and in order, wherever the events are and whoever is away."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from app.cli import valkey
from app.db.keys import DEFAULT_PROJECT
from app.domain.jobs import JobState
from app.main import create_app
from app.services import jobs
from app.services.runs import Claimed
from app.settings import Settings
from app.stream import LiveStream
from tests.services.driver import Driver

pytestmark = pytest.mark.services
ONE_DATABASE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
_ROOT = Path(__file__).parent.parent.parent
_SECONDS = 20.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def valkey_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Socket of a real Valkey; jobs of all tests have keys of their own in it."""
    folder = tmp_path_factory.mktemp("v")
    path = folder / "s"
    command = valkey.command(valkey.find_binary(), folder=folder, socket_path=path)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: valkey.answers(path), "Valkey")
    yield path
    process.terminate()
    process.wait()


@pytest.fixture
def online(settings: Settings, valkey_socket: Path) -> Settings:
    """Settings with a Redis that answers."""
    return Settings.model_validate(
        {**settings.model_dump(), "redis_url": f"unix://{valkey_socket}"}
    )


@pytest.fixture
def live(online: Settings) -> Iterator[LiveStream]:
    """The live stream as a worker writes it."""
    live = LiveStream(online.broker_url)
    yield live
    live.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Settings], str]]:
    """Return a function that serves the API on a free port of loopback and returns its URL."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(settings: Settings) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(settings), log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        wait_for(lambda: server.started, "uvicorn")
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.config.app.state.closing.set()  # type: ignore[union-attr]
        server.should_exit = True
        thread.join()


class Listener:
    """A client of a stream, in a thread of its own."""

    def __init__(self, url: str, job_id: str, *, last: str | None = None) -> None:
        self.events: list[dict[str, str]] = []
        headers = {} if last is None else {"last-event-id": last}
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=_SECONDS)
        self._path = f"/jobs/{job_id}/stream"
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        event: dict[str, str] = {}
        with self._client, self._client.stream("GET", self._path) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line:
                    key, _, value = line.partition(": ")
                    event[key] = value
                    continue
                self.events.append(event)
                event = {}

    def finish(self) -> None:
        """Wait until the server ends the stream."""
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive(), self.events[-3:]

    def ids(self) -> list[str]:
        return [event["id"] for event in self.events if "id" in event]

    def kinds(self) -> list[str]:
        return [event["event"] for event in self.events if "event" in event]

    def states(self) -> list[str]:
        found = [each for each in self.events if each.get("event") == "state"]
        return [json.loads(each["data"])["state"] for each in found]

    def wait_for_id(self, event_id: str) -> None:
        wait_for(lambda: event_id in self.ids(), f"{event_id}, got {self.ids()}")


def numbers(run: Claimed, first: int, last: int) -> list[str]:
    return [f"{run.fence}-{seq}" for seq in range(first, last + 1)]


def test_what_is_stored_is_replayed_and_what_comes_follows_until_the_end(
    driver: Driver, online: Settings, live: LiveStream, serve: Callable[[Settings], str]
):
    job_id, run = driver.in_state(JobState.RUNNING)
    stored = driver.sql("SELECT count(*) FROM trainer_events")[0][0]
    listener = Listener(serve(online), job_id)
    listener.wait_for_id(f"{run.fence}-{stored}")

    for step in range(6, 10):
        live.publish(job_id, run.fence, driver.steps(run, step, step))
    listener.wait_for_id(f"{run.fence}-{stored + 4}")
    driver.succeed(run)
    live.state_changed(job_id)

    listener.finish()
    assert listener.ids() == numbers(run, 1, stored + 5)
    assert listener.kinds()[-1] == "complete"
    assert listener.kinds().count("complete") == 1
    assert listener.states()[0] == "running"
    assert listener.states()[-1] == "succeeded"
    assert all("id" not in each for each in listener.events if each.get("event") == "state")


def test_a_live_event_arrives_before_the_database_has_it(
    driver: Driver, online: Settings, live: LiveStream, serve: Callable[[Settings], str]
):
    job_id, run = driver.in_state(JobState.RUNNING)
    stored = driver.sql("SELECT count(*) FROM trainer_events")[0][0]
    listener = Listener(serve(online), job_id)
    listener.wait_for_id(f"{run.fence}-{stored}")
    event = driver.step(run, 6)

    live.publish(job_id, run.fence, [event])

    listener.wait_for_id(f"{run.fence}-{stored + 1}")
    assert driver.sql("SELECT count(*) FROM trainer_events")[0][0] == stored
    driver.record(run, event)
    driver.fail(run)
    live.state_changed(job_id)
    listener.finish()
    assert listener.ids() == numbers(run, 1, stored + 1)


def test_a_live_event_that_was_lost_is_taken_from_the_database(
    driver: Driver, online: Settings, live: LiveStream, serve: Callable[[Settings], str]
):
    job_id, run = driver.in_state(JobState.RUNNING)
    stored = driver.sql("SELECT count(*) FROM trainer_events")[0][0]
    listener = Listener(serve(online), job_id)
    listener.wait_for_id(f"{run.fence}-{stored}")

    first, lost, third = driver.steps(run, 6, 8)
    live.publish(job_id, run.fence, [first])
    live.publish(job_id, run.fence, [third])

    listener.wait_for_id(f"{run.fence}-{stored + 3}")
    assert lost.seq == stored + 2
    driver.fail(run)
    live.state_changed(job_id)
    listener.finish()
    assert listener.ids() == numbers(run, 1, stored + 3)


@ONE_DATABASE
def test_a_client_that_comes_back_misses_nothing_and_gets_nothing_twice(
    driver: Driver, online: Settings, live: LiveStream, serve: Callable[[Settings], str]
):
    job_id, run = driver.in_state(JobState.RUNNING)
    url = serve(online)
    live.publish(job_id, run.fence, driver.steps(run, 6, 9))
    total = driver.sql("SELECT count(*) FROM trainer_events")[0][0]
    driver.fail(run)

    cursors = [None, f"{run.fence}-1", f"{run.fence}-{total - 1}", f"{run.fence}-{total}", "0-0"]
    listeners = [Listener(url, job_id, last=cursor) for cursor in cursors]

    for listener, first in zip(listeners, (1, 2, total, total + 1, 1), strict=True):
        listener.finish()
        assert listener.ids() == numbers(run, first, total)
        assert listener.kinds()[-2:] == ["state", "complete"]


@ONE_DATABASE
@pytest.mark.parametrize("beyond", ["{fence}-999999", "99-1"])
def test_a_cursor_that_no_event_can_have_had_is_refused(
    driver: Driver, online: Settings, serve: Callable[[Settings], str], beyond: str
):
    job_id, run = driver.in_state(JobState.RUNNING)
    stored = driver.sql("SELECT count(*) FROM trainer_events")[0][0]
    headers = {"last-event-id": beyond.format(fence=run.fence)}

    answer = httpx2.get(f"{serve(online)}/jobs/{job_id}/stream", headers=headers)

    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_cursor", "Last-Event-ID")
    assert f"newest event, {run.fence}-{stored};" in error["message"]


@ONE_DATABASE
def test_a_client_may_be_far_ahead_of_the_database(
    driver: Driver, online: Settings, live: LiveStream, serve: Callable[[Settings], str]
):
    job_id, run = driver.in_state(JobState.RUNNING)
    ahead = driver.step(run, 6).model_copy(update={"seq": 5000})
    after = driver.step(run, 7).model_copy(update={"seq": 5001})
    live.publish(job_id, run.fence, [ahead])

    listener = Listener(serve(online), job_id, last=f"{run.fence}-5000")
    live.publish(job_id, run.fence, [after])

    listener.wait_for_id(f"{run.fence}-5001")
    driver.fail(run)
    live.state_changed(job_id)
    listener.finish()
    assert listener.ids()[0] == f"{run.fence}-5001"


@ONE_DATABASE
def test_a_stream_goes_from_one_attempt_to_the_next(
    driver: Driver, online: Settings, live: LiveStream, serve: Callable[[Settings], str]
):
    job_id, first = driver.in_state(JobState.RUNNING)
    stored = driver.sql("SELECT count(*) FROM trainer_events")[0][0]
    listener = Listener(serve(online), job_id)
    listener.wait_for_id(f"{first.fence}-{stored}")
    driver.crash(first)
    live.state_changed(job_id)

    second = driver.started()
    live.publish(job_id, second.fence, driver.steps(second, 6, 8))
    listener.wait_for_id(f"{second.fence}-4")
    live.publish(job_id, first.fence, [driver.step(first, 6)])  # a writer that was replaced
    driver.fail(second)
    live.state_changed(job_id)

    listener.finish()
    assert listener.ids() == numbers(first, 1, stored) + numbers(second, 1, 4)
    assert [state for state, _ in itertools.groupby(listener.states())][-1] == "failed"


def test_without_redis_a_stream_goes_on_from_the_database(
    driver: Driver, settings: Settings, serve: Callable[[Settings], str]
):
    job_id, run = driver.in_state(JobState.RUNNING)
    stored = driver.sql("SELECT count(*) FROM trainer_events")[0][0]
    listener = Listener(serve(settings), job_id)
    listener.wait_for_id(f"{run.fence}-{stored}")

    driver.steps(run, 6, 7)
    listener.wait_for_id(f"{run.fence}-{stored + 2}")
    driver.succeed(run)

    listener.finish()
    assert listener.ids() == numbers(run, 1, stored + 3)
    assert listener.kinds()[-1] == "complete"


@ONE_DATABASE
def test_a_job_that_is_deleted_ends_its_streams(
    driver: Driver, settings: Settings, serve: Callable[[Settings], str]
):
    job_id = driver.submit()
    listener = Listener(serve(settings), job_id)
    wait_for(lambda: listener.states() == ["queued"], "the first state")

    driver.sql("DELETE FROM jobs")

    listener.finish()
    assert listener.kinds() == ["state"]


@ONE_DATABASE
def test_a_quiet_stream_stays_and_tells_of_a_state_at_once(
    driver: Driver, online: Settings, live: LiveStream, serve: Callable[[Settings], str]
):
    job_id = driver.submit()
    listener = Listener(serve(online), job_id)
    wait_for(lambda: listener.states() == ["queued"], "the first state")
    time.sleep(5.5)  # longer than one wait for Redis, which must not be taken for an outage
    started = time.monotonic()

    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    live.state_changed(job_id)

    listener.finish()
    assert listener.states() == ["queued", "cancelled"]
    assert time.monotonic() - started < 0.9


@ONE_DATABASE
def test_sigterm_ends_a_server_with_open_streams_within_two_seconds(
    driver: Driver, online: Settings
):
    job_id, run = driver.in_state(JobState.RUNNING)
    stored = driver.sql("SELECT count(*) FROM trainer_events")[0][0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start_server(online, port)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: is_up(url), "the server")
    listeners = [Listener(url, job_id) for _ in range(20)]
    for listener in listeners:
        listener.wait_for_id(f"{run.fence}-{stored}")

    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(_SECONDS)
    seconds = time.monotonic() - started

    for listener in listeners:
        listener.finish()
        assert listener.ids() == numbers(run, 1, stored)
        assert "complete" not in listener.kinds()
    assert seconds < 2, f"it took {seconds:.2f} s"


def start_server(settings: Settings, port: int) -> subprocess.Popen[bytes]:
    given: dict[str, Any] = {
        "LORAD_HOME": str(settings.home),
        "LORAD_DATABASE_URL": settings.sqlalchemy_url,
        "LORAD_REDIS_URL": settings.broker_url,
    }
    uvicorn_command = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app"]
    return subprocess.Popen(
        [*uvicorn_command, "--port", str(port)],
        cwd=_ROOT,
        env={**os.environ, **given},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def is_up(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").status_code == 200
    except httpx2.TransportError:
        return False
