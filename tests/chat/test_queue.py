"""The way through Redis keeps what falls off it, tells once what comes twice, and never hangs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from app import asking
from app.asking import Asker
from app.domain import ids
from app.domain.errors import RateLimited, Unavailable
from app.domain.inference import Finished, HostKey, InferenceRequest, Piece, TextPrompt
from app.inference_queue import KEEP_SECONDS, PREFIX, InferenceQueue
from tests.chat import host as hosts
from tests.chat.conftest import Place

pytestmark = pytest.mark.services

KEY = HostKey(model_folder=Path("/models/tiny"))
END = Finished(index=0, reason="stop", num_tokens=1)


@pytest.fixture
def url(place: Place) -> str:
    place.host.takes = False
    return place.driver.settings.broker_url


@pytest.fixture
def worker(url: str) -> Iterator[InferenceQueue]:
    queue = InferenceQueue(url, "worker-1", lease_seconds=60)
    yield queue
    queue.close()


def request() -> InferenceRequest:
    return InferenceRequest(id=ids.new("inf"), host=KEY, prompt=TextPrompt(text="Why?"))


def run(url: str, act: Callable[[Asker], Awaitable[Any]], **limits: Any) -> Any:
    async def whole() -> Any:
        options: dict[str, Any] = {"most_waiting": 3, "taken_within_seconds": 10}
        asker = Asker(url, **{**options, "silent_seconds": 10, **limits})
        try:
            return await asyncio.wait_for(act(asker), 15)
        finally:
            await asker.close()

    return asyncio.run(whole())


async def events(asker: Asker, asked: InferenceRequest) -> list[Any]:
    async def wake() -> None:
        return

    answer = asker.ask(asked, wake=wake, closing=asyncio.Event())
    return [event async for event in answer]


async def until_waiting(worker: InferenceQueue) -> None:
    while worker.waiting() != {KEY.digest: 1}:
        await asyncio.sleep(0.02)


def test_a_request_that_fell_out_of_its_list_is_put_back(
    url: str, worker: InferenceQueue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asking, "_RING_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(asking, "_LOOK_SECONDS", 0.1)
    asked = request()

    async def act(asker: Asker) -> list[Any]:
        answer = asyncio.create_task(events(asker, asked))
        await until_waiting(worker)
        # A worker that died between taking it off the list and making it its own.
        with redis.Redis.from_url(url) as connection:
            assert connection.lpop(f"{PREFIX}waiting:{KEY.digest}") == asked.id.encode()
        taken = await asyncio.to_thread(worker.next, KEY.digest, 5)
        assert taken == asked
        worker.report(asked.id, [END])
        return await answer

    assert run(url, act) == [END]
    assert worker.waiting() == {}


def test_a_message_that_was_sent_twice_is_told_once(url: str, worker: InferenceQueue):
    asked = request()

    async def act(asker: Asker) -> list[Any]:
        answer = asyncio.create_task(events(asker, asked))
        await asyncio.to_thread(worker.next, KEY.digest, 5)
        worker.report(asked.id, [Piece(index=0, text="a")])
        with redis.Redis.from_url(url, decode_responses=True) as connection:
            key: Any = f"{PREFIX}answer:{asked.id}"
            ((_, fields),) = connection.xrange(key)
            connection.xadd(key, fields)
            assert 0 < connection.ttl(key) <= KEEP_SECONDS
        worker.report(asked.id, [Piece(index=0, text="a"), END])
        return await answer

    assert [event.kind for event in run(url, act)] == ["piece", "piece", "finished"]


def test_a_worker_that_keeps_a_request_and_says_nothing_is_given_up(
    url: str, worker: InferenceQueue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asking, "_LOOK_SECONDS", 0.1)
    asked = request()

    async def act(asker: Asker) -> None:
        answer = asyncio.create_task(events(asker, asked))
        await asyncio.to_thread(worker.next, KEY.digest, 5)
        worker.report(asked.id, hosts.beginning())
        await answer

    with pytest.raises(Unavailable) as caught:
        run(url, act, silent_seconds=0.3)

    assert caught.value.code == "answer_stalled"
    assert worker.cancelled([asked.id, "inf-other"]) == {asked.id}


def test_what_a_dead_api_asked_is_not_answered_and_takes_no_place(url: str, worker: InferenceQueue):
    dead, living = request(), request()

    async def act(asker: Asker) -> list[Any]:
        waiting = asyncio.create_task(events(asker, dead))
        await until_waiting(worker)
        with pytest.raises(RateLimited):
            await events(asker, request())
        with redis.Redis.from_url(url) as connection:
            connection.delete(f"{PREFIX}request:{dead.id}")  # nobody renewed it
        answer = asyncio.create_task(events(asker, living))
        taken = await asyncio.to_thread(worker.next, KEY.digest, 5)
        assert taken == living
        worker.report(living.id, [END])
        waiting.cancel()
        return await answer

    assert run(url, act, most_waiting=1) == [END]


def test_a_worker_without_redis_hears_nothing_and_gives_up_what_it_cannot_report(tmp_path: Path):
    worker = InferenceQueue(f"unix://{tmp_path}/no.sock", "worker-1", lease_seconds=1)

    worker.report("inf-1", [END])

    assert worker.next(KEY.digest, 0.05) is None
    assert worker.waiting() == {}
    assert worker.cancelled(["inf-1", "inf-2"]) == {"inf-1"}
    worker.keep(["inf-1", "inf-2"], 1)
    worker.close()
