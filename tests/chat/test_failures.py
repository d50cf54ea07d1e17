"""Whatever breaks on the way of an answer, whoever waits for it hears of it soon."""

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import APIError, OpenAI

from app.domain.inference import Failed, Piece
from tests.chat import host as hosts
from tests.chat.conftest import MOST_WAITING, TAKEN_WITHIN_SECONDS, Place

pytestmark = pytest.mark.services

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Why?"}]}
# Looks at owner keys, and the slowness of a busy machine.
SLACK_SECONDS = 2.0


def refused(ask: Callable[[], object]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        ask()
    return caught.value


def said_before(stream: Any) -> tuple[str, APIError]:
    """Read a stream to its error; return what came before and the error."""
    said: list[str] = []
    parts = (chunk.choices[0].delta.content or "" for chunk in stream)
    with pytest.raises(APIError) as caught:
        said.extend(parts)
    return "".join(said), caught.value


def wait_until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_beyond_the_limit_is_429_and_what_nobody_takes_is_withdrawn(
    make_async_client: Any, place: Place
):
    place.host.takes = False

    async def ask_all() -> list[Any]:
        async with make_async_client() as client:
            asked = [client.chat.completions.create(**ASK) for _ in range(MOST_WAITING + 1)]
            return await asyncio.gather(*asked, return_exceptions=True)

    began = time.monotonic()
    errors = asyncio.run(ask_all())

    assert time.monotonic() - began < TAKEN_WITHIN_SECONDS + SLACK_SECONDS
    (full,) = [each for each in errors if isinstance(each, openai.RateLimitError)]
    late = [each for each in errors if isinstance(each, openai.InternalServerError)]
    assert (full.code, full.response.headers["retry-after"]) == ("queue_full", "2")
    assert [each.code for each in late] == ["not_taken"] * MOST_WAITING
    assert place.host.queue.waiting() == {}
    place.host.takes = True
    assert asyncio.run(ask_one(make_async_client)) == "".join(hosts.WORDS)


async def ask_one(make_async_client: Any) -> str:
    async with make_async_client() as client:
        done = await client.chat.completions.create(**ASK)
        return done.choices[0].message.content


def test_without_a_worker_the_answer_says_what_to_start(client: OpenAI, place: Place):
    place.host.takes = False
    place.leave()

    error = refused(lambda: client.chat.completions.create(**ASK))

    assert (error.status_code, error.code) == (503, "no_worker")
    assert "`lorad worker`" in error.message
    wait_until(lambda: place.host.queue.waiting() == {})


def test_a_worker_that_dies_before_the_prompt_is_read_is_noticed_within_its_lease(
    client: OpenAI, place: Place
):
    place.host.script = hosts.vanish(hosts.beginning()[0])
    began = time.monotonic()

    error = refused(lambda: client.chat.completions.create(**ASK, stream=True))

    assert (error.status_code, error.code) == (503, "worker_lost")
    assert time.monotonic() - began < hosts.LEASE_SECONDS + SLACK_SECONDS


def test_a_worker_that_dies_mid_answer_ends_the_stream_with_an_error(client: OpenAI, place: Place):
    place.host.script = hosts.vanish(*hosts.beginning(), Piece(index=0, text="Well"))
    began = time.monotonic()

    said, error = said_before(client.chat.completions.create(**ASK, stream=True))

    assert (said, error.code) == ("Well", "worker_lost")
    assert time.monotonic() - began < hosts.LEASE_SECONDS + SLACK_SECONDS


def test_a_fault_of_the_request_is_400_and_one_of_the_worker_is_503(client: OpenAI, place: Place):
    place.host.script = hosts.fail(
        Failed(
            code="context_length_exceeded",
            message="9000 tokens, 8192 fit",
            param="messages",
            is_input_at_fault=True,
        )
    )
    at_fault = refused(lambda: client.chat.completions.create(**ASK, stream=True))
    of_text = refused(lambda: client.completions.create(model="tiny", prompt=["a", "b"]))
    place.host.script = hosts.fail(Failed(code="no_memory", message="12 bytes are missing"))
    failed = refused(lambda: client.chat.completions.create(**ASK))

    assert isinstance(at_fault, openai.BadRequestError)
    assert (at_fault.code, at_fault.param) == ("context_length_exceeded", "messages")
    assert (of_text.param or "").startswith("prompt.")
    assert (failed.status_code, failed.code) == (503, "no_memory")
    assert "12 bytes" in failed.message


def test_a_failure_inside_a_stream_is_its_last_event(client: OpenAI, place: Place):
    failed = Failed(code="worker_failed", message="the host died")
    first = (*hosts.beginning(), Piece(index=0, text="Well"))
    place.host.script = hosts.fail(failed, after=first)

    said, error = said_before(client.chat.completions.create(**ASK, stream=True))

    assert (said, error.code, error.message) == ("Well", "worker_failed", "the host died")


def test_a_client_that_leaves_a_stream_cancels_its_request(client: OpenAI, place: Place):
    place.host.script = hosts.begin_and_wait

    with client.chat.completions.create(**ASK, stream=True) as stream:
        said = [next(stream).choices[0].delta.content for _ in range(2)]
    (request,) = place.host.requests

    assert said == ["", "Well"]
    wait_until(lambda: request.id in place.host.cancelled, seconds=1.0)


def test_a_client_that_gives_up_waiting_cancels_its_request(place: Place):
    impatient = OpenAI(base_url=place.url, api_key=place.api_key, max_retries=0, timeout=0.3)
    place.host.script = hosts.begin_and_wait

    with impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(**ASK)
    (request,) = place.host.requests

    wait_until(lambda: request.id in place.host.cancelled, seconds=1.0)


def test_what_was_not_taken_yet_is_withdrawn_when_the_client_gives_up(place: Place):
    impatient = OpenAI(base_url=place.url, api_key=place.api_key, max_retries=0, timeout=0.3)
    place.host.takes = False

    with impatient, pytest.raises(openai.APITimeoutError):
        impatient.completions.create(model="tiny", prompt="Why?")

    wait_until(lambda: place.host.queue.waiting() == {}, seconds=1.0)


def test_when_redis_goes_answers_end_and_new_ones_are_refused_until_it_is_back(
    client: OpenAI, place: Place
):
    place.host.script = hosts.begin_and_wait
    stream = client.chat.completions.create(**ASK, stream=True)
    next(stream)

    place.stack.stop("valkey", signal.SIGKILL)
    _, broken = said_before(stream)
    error = refused(lambda: client.chat.completions.create(**ASK))

    assert broken.code == "broker_unavailable"
    assert (error.status_code, error.code) == (503, "broker_unavailable")
    place.stack.start("valkey")
    place.host.script = hosts.answer()
    assert client.chat.completions.create(**ASK).choices[0].finish_reason == "stop"


def test_an_api_that_is_told_to_stop_ends_its_answers_first(client: OpenAI, place: Place):
    place.host.script = hosts.begin_and_wait
    stream = client.chat.completions.create(**ASK, stream=True)
    next(stream)
    began = time.monotonic()

    place.stack.processes["api"].send_signal(signal.SIGTERM)
    _, error = said_before(stream)
    place.stack.processes.pop("api").wait(timeout=10)

    assert error.code == "api_stopping"
    assert time.monotonic() - began < SLACK_SECONDS
    (request,) = place.host.requests
    wait_until(lambda: request.id in place.host.cancelled, seconds=1.0)
