"""Hosts of a worker with real processes: answers, crashes, cancels, swaps, and their ends."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from app.domain.inference import Event, Failed, Finished, HostKey, InferenceRequest, Taken
from app.domain.workers import Device
from tests.worker.inference.conftest import LONG, SHORT, Answers, ask
from worker.hosts import Hosts
from worker.launcher import Entry, Launched, WarmLauncher

pytestmark = pytest.mark.services

SLOW = {"LORAD_FAILPOINTS": "host.step=sleep:0.05"}


class FakeQueue:
    """The worker's side of the queue, in memory."""

    def __init__(self) -> None:
        self.answers = Answers()
        self.kept: list[tuple[str, float]] = []
        self.gone: set[str] = set()
        self._waiting: dict[str, deque[InferenceRequest]] = {}
        self._changed = threading.Condition()

    def put(self, *requests: InferenceRequest) -> None:
        with self._changed:
            for request in requests:
                self._waiting.setdefault(request.host.digest, deque()).append(request)
            self._changed.notify_all()

    def next(self, digest: str, seconds: float) -> InferenceRequest | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting.get(digest), seconds)
            line = self._waiting.get(digest)
            return line.popleft() if line else None

    def report(self, request_id: str, events: Sequence[Event]) -> None:
        with self._changed:
            self.answers.take(request_id, events)
            self._changed.notify_all()

    def keep(self, request_ids: Iterable[str], seconds: float) -> None:
        self.kept += [(each, seconds) for each in request_ids]

    def cancelled(self, request_ids: Iterable[str]) -> set[str]:
        return self.gone & set(request_ids)

    def waiting(self) -> dict[str, int]:
        with self._changed:
            return {digest: len(line) for digest, line in self._waiting.items() if line}

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 40) -> None:
        with self._changed:
            is_so = self._changed.wait_for(condition, seconds)
        assert is_so, f"waited in vain for {what}: {self.answers.events}"

    def wait_for_end(self, *request_ids: str) -> None:
        events = self.answers.events
        self.wait_for(
            lambda: all(
                any(isinstance(each, Finished | Failed) for each in events.get(request_id, ()))
                for request_id in request_ids
            ),
            f"the end of {request_ids}",
        )


class Watched(WarmLauncher):
    """Remembers the hosts that were launched."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: list[Launched] = []

    def launch(self, entry: Entry, folder: Path, log: Path) -> Launched:
        self.hosts.append(super().launch(entry, folder, log))
        return self.hosts[-1]


@pytest.fixture(scope="module")
def launcher() -> Iterator[Watched]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SLOW.items():
            patch.setenv(name, value)
        # A secret that no host may have.
        patch.setenv("LORAD_DATABASE_URL", "postgresql://secret")
        launcher = Watched()
        assert launcher.is_ready(within_seconds=100)
    yield launcher
    launcher.close()


class Service:
    """Hosts on a queue."""

    def __init__(self, home: Path, launcher: Watched, **settings: Any) -> None:
        self.queue = FakeQueue()
        self.launcher = launcher
        launcher.hosts.clear()
        given = {
            "home": home,
            "lease_seconds": 3.0,
            "inference_batch": 4,
            "inference_adapters": 2,
            "inference_idle_seconds": 60.0,
            **settings,
        }
        context: Any = SimpleNamespace(
            worker_id="worker-1",
            launcher=launcher,
            settings=SimpleNamespace(**given),
            devices=(Device(kind="cpu", index=0, name="cpu", memory_bytes=1),),
        )
        queue: Any = self.queue
        self.hosts = Hosts(context, queue)
        self.hosts.open()

    def ask(self, *requests: InferenceRequest) -> Answers:
        self.queue.put(*requests)
        self.hosts.wake()
        return self.queue.answers


@pytest.fixture
def serve(launcher: Watched, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def make(**settings: Any) -> Service:
        services.append(Service(tmp_path, launcher, **settings))
        return services[-1]

    yield make
    for each in services:
        each.hosts.close()


def test_a_host_answers_and_stays_and_ends_with_its_worker(
    serve: Callable[..., Service], talker: Path, tmp_path: Path
):
    service, key = serve(), HostKey(model_folder=talker)

    answers = service.ask(ask("a", key=key), ask("b", LONG, key=key))
    service.queue.wait_for_end("a", "b")
    service.ask(ask("c", key=key))
    service.queue.wait_for_end("c")

    assert answers.events["a"][0] == Taken(worker_id="worker-1")
    assert answers.text("a") == answers.text("c") != answers.text("b")
    (host,) = service.launcher.hosts
    process = psutil.Process(host.pid)
    assert not any("LORAD_DATABASE_URL" in name for name in process.environ())
    assert process.nice() == psutil.Process().nice() + 5
    session = Path(f"/proc/{host.pid}/autogroup")
    assert not session.exists() or session.read_text().strip().endswith("nice 5")
    assert ("c", 3.0) in service.queue.kept or ("a", 3.0) in service.queue.kept
    service.hosts.close()
    assert not psutil.pid_exists(host.pid)
    assert not list((tmp_path / "hosts").iterdir())


def test_a_host_that_is_killed_fails_its_requests_once_and_the_next_one_goes_on(
    serve: Callable[..., Service], talker: Path
):
    service, key = serve(inference_batch=1), HostKey(model_folder=talker)
    answers = service.ask(ask("hit", key=key, max_tokens=200), ask("waiting", key=key))
    service.queue.wait_for(lambda: answers.events.get("hit", [])[2:], "the answer to begin")

    service.launcher.hosts[0].signal(signal.SIGKILL)
    service.queue.wait_for_end("hit", "waiting")

    failed = answers.failed("hit")
    assert (failed.code, failed.is_input_at_fault) == ("worker_failed", False)
    assert "killed" in failed.message
    assert sum(isinstance(each, Failed) for each in answers.events["hit"]) == 1
    assert answers.finished("waiting").num_tokens == 12
    assert len(service.launcher.hosts) == 2


def test_a_cancelled_request_makes_place_for_the_next(serve: Callable[..., Service], talker: Path):
    service, key = serve(inference_batch=1), HostKey(model_folder=talker)
    answers = service.ask(ask("long", key=key, max_tokens=400), ask("next", key=key))
    service.queue.wait_for(lambda: answers.events.get("long", [])[2:], "the answer to begin")

    service.queue.gone.add("long")
    service.queue.wait_for_end("long", "next")

    assert answers.failed("long").code == "cancelled"
    assert answers.finished("next").num_tokens == 12
    assert len(service.launcher.hosts) == 1


def test_another_base_model_gets_its_turn_beside_one_that_is_always_asked(
    serve: Callable[..., Service], talker: Path, tiny_llama: Path
):
    service = serve(inference_batch=1)
    busy, other = HostKey(model_folder=talker), HostKey(model_folder=tiny_llama)
    requests = [ask(f"busy-{n}", key=busy, max_tokens=25) for n in range(4)]

    answers = service.ask(*requests)
    service.queue.wait_for(lambda: answers.events, "the busy host to begin")
    service.ask(ask("other", key=other))
    service.queue.wait_for_end("other", *(each.id for each in requests))

    ends = list(dict.fromkeys(reversed(answers.order)))[::-1]
    assert ends.index("other") < len(ends) - 1, ends
    assert answers.finished("other").num_tokens == 12
    # One at a time: each host had ended before the next began.
    assert [host.ended.is_set() for host in service.launcher.hosts] == [True, True, False]


def test_a_host_that_nobody_asks_ends_and_comes_back(serve: Callable[..., Service], talker: Path):
    service = serve(inference_idle_seconds=0.1)
    key = HostKey(model_folder=talker)
    service.ask(ask("a", key=key))
    service.queue.wait_for_end("a")

    (host,) = service.launcher.hosts
    assert host.ended.wait(10)
    service.ask(ask("b", key=key))
    service.queue.wait_for_end("b")

    assert service.queue.answers.text("a") == service.queue.answers.text("b")


def test_a_model_that_does_not_load_fails_all_who_wait_for_it(
    serve: Callable[..., Service], tmp_path: Path
):
    service, key = serve(inference_batch=1), HostKey(model_folder=tmp_path / "nothing")

    answers = service.ask(ask("a", key=key), ask("b", key=key))
    service.queue.wait_for_end("a", "b")

    for name in ("a", "b"):
        assert answers.failed(name).code == "invalid_model"
        assert answers.failed(name).is_input_at_fault
    assert len(service.launcher.hosts) == 1


def test_a_worker_that_stops_ends_the_answers_under_way_with_an_error(
    serve: Callable[..., Service], talker: Path
):
    service, key = serve(), HostKey(model_folder=talker)
    answers = service.ask(ask("a", SHORT, key=key, max_tokens=400))
    service.queue.wait_for(lambda: answers.events.get("a", [])[2:], "the answer to begin")
    began = time.monotonic()

    service.hosts.close()

    assert time.monotonic() - began < 10
    assert answers.failed("a").code == "worker_stopping"
