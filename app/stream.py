# pyright: basic
"""The live Redis stream of a job, hints to workers, answers of tools: best effort, no truth."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis
import redis.asyncio

from app.domain import failpoints
from app.domain.events import TrainerEvent

_log = logging.getLogger(__name__)

_MAX_ENTRIES = 5_000
_KEEP_SECONDS = 24 * 3600
_TOOL_KEEP_SECONDS = 600
_HINTS_CHANNEL = "lorad:hints"
_TIMEOUT_SECONDS = 2.0
_HINT_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class LiveEvent:
    """One entry of a job's stream; `fence` and `seq` order it."""

    fence: int
    seq: int
    kind: str
    body: str


def _live_key(job_id: str) -> str:
    return f"lorad:live:{job_id}"


def _state_key(job_id: str) -> str:
    return f"lorad:state:{job_id}"


def _tool_key(task_id: str) -> str:
    return f"lorad:tool:{task_id}"


class LiveStream:
    """The writing side, used by workers and by endpoints; an outage is logged and forgotten."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url, socket_connect_timeout=_TIMEOUT_SECONDS, socket_timeout=_TIMEOUT_SECONDS
        )
        # Without this, the client gives up an answer that it waits for after 5 s.
        self._blocking = redis.Redis.from_url(
            url, socket_connect_timeout=_TIMEOUT_SECONDS, socket_timeout=None
        )

    def publish(self, job_id: str, fence: int, events: Sequence[TrainerEvent]) -> None:
        """Append events under ids `<fence>-<seq>`, so that Redis itself refuses a stale writer."""

        def send() -> None:
            failpoints.hit("stream.publish")
            pipe = self._redis.pipeline(transaction=False)
            for event in events:
                entry = {"kind": event.kind, "body": event.model_dump_json()}
                key = _live_key(job_id)
                pipe.xadd(key, cast(Any, entry), id=f"{fence}-{event.seq}", maxlen=_MAX_ENTRIES)
            pipe.expire(_live_key(job_id), _KEEP_SECONDS)
            pipe.execute(raise_on_error=False)

        self._try(send, "publish")

    def state_changed(self, job_id: str) -> None:
        """Nudge readers to look at the job's row."""

        def send() -> None:
            self._redis.xadd(_state_key(job_id), {"look": "1"}, maxlen=10)
            self._redis.expire(_state_key(job_id), _KEEP_SECONDS)

        self._try(send, "nudge")

    def hint(self, job_id: str) -> None:
        """Tell the worker that owns a job to look at it now; its heartbeat would, later."""
        self._try(lambda: self._redis.publish(_HINTS_CHANNEL, job_id), "hint")

    def listen_for_hints(self, on_hint: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        """Call `on_hint` with job ids until `stopped`; returns when the connection breaks."""
        with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(_HINTS_CHANNEL)
            while not stopped():
                message = channel.get_message(timeout=_HINT_POLL_SECONDS)
                if message is not None:
                    on_hint(cast(bytes, message["data"]).decode())

    def tool_done(self, task_id: str) -> None:
        """Wake whoever waits for a tool task; its answer lies in the home."""

        def send() -> None:
            self._redis.xadd(_tool_key(task_id), {"done": "1"})
            self._redis.expire(_tool_key(task_id), _TOOL_KEEP_SECONDS)

        self._try(send, "answer")

    def wait_for_tool(self, task_id: str, *, seconds: float) -> bool:
        """Wait until a tool task is done; False when the time is over or Redis is away."""
        try:
            key = _tool_key(task_id)
            return bool(self._blocking.xread({key: "0"}, block=max(1, int(seconds * 1000))))
        except redis.RedisError as error:
            _log.warning("cannot wait for a tool: %s", error)
            return False

    def is_available(self) -> bool:
        try:
            return bool(self._redis.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        self._redis.close()
        self._blocking.close()

    def _try(self, send: Callable[[], object], what: str) -> None:
        try:
            send()
        except (redis.RedisError, OSError) as error:
            _log.debug("Redis did not take a %s: %s", what, error)


class LiveReader:
    """The reading side, for streams to clients."""

    def __init__(self, url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(
            url,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            socket_timeout=None,  # it waits on purpose; `read` has a deadline of its own
            decode_responses=True,
        )

    async def state_cursor(self, job_id: str) -> str:
        """Return the place after which state nudges are new."""
        try:
            last = await self._redis.xrevrange(_state_key(job_id), count=1)
        except (redis.RedisError, OSError):
            return "$"
        return str(last[0][0]) if last else "0"

    async def newest(self, job_id: str) -> tuple[int, int] | None:
        """Return (fence, seq) of the last entry, (0, 0) without one; None when Redis is away."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                last = await self._redis.xrevrange(_live_key(job_id), count=1)
        except (redis.RedisError, OSError, TimeoutError):
            return None
        fence, _, seq = str(last[0][0]).partition("-") if last else ("0", "", "0")
        return int(fence), int(seq)

    async def read(
        self, job_id: str, *, after: tuple[int, int], state_cursor: str, seconds: float
    ) -> tuple[list[LiveEvent], str | None]:
        """Wait for entries after a cursor or for a state nudge.

        Returns:
            The entries in order, and the new state cursor when there was a nudge.

        Raises:
            ConnectionError: Redis is away.
        """
        keys = {_live_key(job_id): f"{after[0]}-{after[1]}", _state_key(job_id): state_cursor}
        try:
            async with asyncio.timeout(seconds + _TIMEOUT_SECONDS):
                found: Any = await self._redis.xread(cast(Any, keys), block=int(seconds * 1000))
        except (redis.RedisError, OSError, TimeoutError) as error:
            raise ConnectionError(str(error)) from error
        answer: dict[str, Any] = dict(found or [])
        entries = [_live_event(*entry) for entry in _flat(answer.get(_live_key(job_id)))]
        nudges = _flat(answer.get(_state_key(job_id)))
        return entries, (str(nudges[-1][0]) if nudges else None)

    async def close(self) -> None:
        await asyncio.shield(self._redis.aclose())


def _flat(entries: Any) -> list[Any]:
    # RESP3 answers nest the entries of a stream one list deeper than RESP2 does.
    if not entries:
        return []
    return list(entries[0]) if isinstance(entries[0], list) else list(entries)


def _live_event(entry_id: str, fields: dict[str, str]) -> LiveEvent:
    fence, _, seq = entry_id.partition("-")
    return LiveEvent(int(fence), int(seq), fields["kind"], fields["body"])
