# pyright: basic
"""The API's side of the inference queue: a request goes out, its events come back, or an error."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Self

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.domain.errors import RateLimited, Unavailable
from app.domain.inference import EVENT, Event, Failed, Finished, InferenceRequest
from app.inference_queue import (
    DIGESTS,
    KEEP_SECONDS,
    PREFIX,
    PUSH,
    REVIVE,
    TIMEOUT_SECONDS,
    key,
    waiting_key,
)
from app.settings import Settings

_log = logging.getLogger(__name__)

# Between looks at whether the worker still has a request whose answer does not move.
_LOOK_SECONDS = 0.5
_RING_AGAIN_SECONDS = 5.0
# Life of a waiting request without a ring: what a killed API asked is answered to nobody.
_WAITING_SECONDS = 30


class Asker:
    """The side of the API, on its event loop.

    Args:
        most_waiting: Requests that may wait to be taken, all hosts together.
        taken_within_seconds: Time until a worker has to take a request.
        silent_seconds: Time that a worker may renew a request without any event of it.
    """

    def __init__(
        self, url: str, *, most_waiting: int, taken_within_seconds: float, silent_seconds: float
    ) -> None:
        self._redis = redis.asyncio.Redis.from_url(
            url,
            socket_connect_timeout=TIMEOUT_SECONDS,
            socket_timeout=None,  # it waits on purpose; every call has a deadline of its own
            retry=Retry(NoBackoff(), 1),
            decode_responses=True,
        )
        self._most_waiting = most_waiting
        self.taken_within_seconds = taken_within_seconds
        self.silent_seconds = silent_seconds
        self._cancelling: set[asyncio.Task[None]] = set()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            settings.broker_url,
            most_waiting=settings.inference_queue,
            taken_within_seconds=settings.inference_seconds,
            silent_seconds=settings.hang_seconds,
        )

    async def ask(
        self,
        request: InferenceRequest,
        *,
        wake: Callable[[], Awaitable[None]],
        closing: asyncio.Event,
    ) -> AsyncGenerator[Event]:
        """Yield the events of an answer until it is complete or failed.

        A generator that is closed or cancelled before that withdraws its request at once.

        Args:
            request: What is asked.
            wake: Tells workers that something waits; called again every few seconds until it is
                taken. What it raises ends the request.
            closing: Set when this process is to end.

        Raises:
            RateLimited: As many as may wait do (`queue_full`).
            Unavailable: Redis is away (`broker_unavailable`), no worker took it in time
                (`not_taken`), the worker that did is gone (`worker_lost`) or reports nothing
                (`answer_stalled`), or this process is to end (`api_stopping`).
        """
        is_over = False
        try:
            await self._push(request)
            asking = _Asking(self, request, wake, closing)
            async with aclosing(asking.events()) as events:
                async for event in events:
                    is_over = asking.is_over
                    yield event
        finally:
            if not is_over:
                # A task of its own: whatever cancels this one must not cancel the cancelling.
                task = asyncio.create_task(self._cancel(request))
                self._cancelling.add(task)
                task.add_done_callback(self._cancelling.discard)

    async def close(self) -> None:
        if self._cancelling:
            await asyncio.wait(self._cancelling, timeout=TIMEOUT_SECONDS)
        await asyncio.shield(self._redis.aclose())

    async def call(self, sending: Awaitable[Any], seconds: float = 0.0) -> Any:
        """Return Redis's answer.

        Raises:
            Unavailable: There is none.
        """
        try:
            async with asyncio.timeout(seconds + 2 * TIMEOUT_SECONDS):
                return await sending
        except (redis.RedisError, OSError, TimeoutError) as error:
            raise Unavailable(
                "the broker (Redis) is away; try again", code="broker_unavailable"
            ) from error

    async def withdraw(self, request: InferenceRequest) -> bool:
        """Take a request back; False when somebody has it."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.lrem(waiting_key(request.host.digest), 0, request.id)
        pipe.delete(key("request", request.id))
        _, was_there = await self.call(pipe.execute())
        return bool(was_there)

    async def is_owned(self, request: InferenceRequest) -> bool:
        return bool(await self.call(self._redis.exists(key("owner", request.id))))

    async def revive(self, request: InferenceRequest) -> None:
        """Keep a request waiting, also when it fell out of its list without being taken."""
        digest, seconds = request.host.digest, str(_WAITING_SECONDS)
        await self.call(self._redis.eval(REVIVE, 1, DIGESTS, PREFIX, request.id, digest, seconds))

    async def read(self, request: InferenceRequest, cursor: str, *, seconds: float) -> list[Any]:
        """Wait for entries of the answer's stream behind a cursor."""
        answer = key("answer", request.id)
        milliseconds = int(seconds * 1000) or None
        reading = self._redis.xread({answer: cursor}, block=milliseconds)
        found = dict(await self.call(reading, seconds) or [])
        entries = found.get(answer) or []
        # RESP3 answers nest the entries of a stream one list deeper than RESP2 does.
        return list(entries[0]) if entries and isinstance(entries[0], list) else list(entries)

    async def _push(self, request: InferenceRequest) -> None:
        waiting = await self.call(
            self._redis.eval(
                PUSH,
                1,
                DIGESTS,
                PREFIX,
                str(self._most_waiting),
                request.id,
                request.host.digest,
                request.model_dump_json(),
                str(_WAITING_SECONDS),
            )
        )
        if waiting < 0:
            raise RateLimited(
                f"{self._most_waiting} requests are waiting to be answered already; try again in a"
                " moment, or raise LORAD_INFERENCE_QUEUE",
                code="queue_full",
            )

    async def _cancel(self, request: InferenceRequest) -> None:
        try:
            pipe = self._redis.pipeline(transaction=True)
            pipe.set(key("cancelled", request.id), "1", ex=KEEP_SECONDS)
            pipe.lrem(waiting_key(request.host.digest), 0, request.id)
            pipe.delete(key("request", request.id))
            await self.call(pipe.execute())
        except Unavailable as error:
            _log.warning("cannot cancel %s: %s", request.id, error)


class _Asking:
    """One request on its way."""

    def __init__(
        self,
        asker: Asker,
        request: InferenceRequest,
        wake: Callable[[], Awaitable[None]],
        closing: asyncio.Event,
    ) -> None:
        self._asker = asker
        self._request = request
        self._wake = wake
        self._closing = closing
        self._cursor = "0"
        self._mark = ""
        self._num_finished = 0
        self._is_taken = False
        self._rings_at = self._asked_at = self._heard_at = time.monotonic()
        self.is_over = False

    async def events(self) -> AsyncGenerator[Event]:
        while not self.is_over:
            if not self._is_taken and time.monotonic() >= self._rings_at:
                await self._ring()
            events = await self._next(_LOOK_SECONDS) or await self._look()
            for event in events:
                self._note(event)
                yield event

    async def _ring(self) -> None:
        if self._rings_at > self._asked_at:
            await self._asker.revive(self._request)
        await self._wake()
        self._rings_at = time.monotonic() + _RING_AGAIN_SECONDS

    async def _next(self, seconds: float) -> list[Event]:
        """Wait for events, as long as this process goes on."""
        reading = asyncio.ensure_future(
            self._asker.read(self._request, self._cursor, seconds=seconds)
        )
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise Unavailable("the API is being stopped; ask again", code="api_stopping")
            return self._events_of(reading.result())
        finally:
            reading.cancel()
            closing.cancel()

    def _events_of(self, entries: list[Any]) -> list[Event]:
        events: list[Event] = []
        for entry_id, fields in entries:
            self._cursor = entry_id
            if fields["mark"] == self._mark:
                continue  # the worker sent it twice over a broken connection
            self._mark = fields["mark"]
            events += [EVENT.validate_python(each) for each in json.loads(fields["events"])]
        return events

    def _note(self, event: Event) -> None:
        self._is_taken = True
        self._heard_at = time.monotonic()
        self._num_finished += isinstance(event, Finished)
        is_complete = self._num_finished == self._request.sampling.n
        self.is_over = is_complete or isinstance(event, Failed)

    async def _look(self) -> list[Event]:
        """Find out why nothing came.

        Raises:
            Unavailable: Nothing will come any more.
        """
        is_owned = await self._asker.is_owned(self._request)
        if self._is_taken and not is_owned:
            # Its last words may have come after the last look at them.
            return await self._next(0) or self._lost()
        self._is_taken = self._is_taken or is_owned
        now = time.monotonic()
        if self._is_taken and now - self._heard_at > self._asker.silent_seconds:
            raise Unavailable(
                f"the worker reported nothing for {self._asker.silent_seconds:.0f} s",
                code="answer_stalled",
            )
        waited_seconds = now - self._asked_at
        if not self._is_taken and waited_seconds > self._asker.taken_within_seconds:
            await self._expire()
        return []

    async def _expire(self) -> None:
        if await self._asker.withdraw(self._request):
            raise Unavailable(
                f"no worker took the request within {self._asker.taken_within_seconds:g} s; they"
                " are busy with others, or LORAD_INFERENCE_SECONDS is too short",
                code="not_taken",
            )
        self._is_taken = True  # this very moment; its owner is looked at next

    def _lost(self) -> list[Event]:
        raise Unavailable("the worker that was answering is gone; ask again", code="worker_lost")
