# pyright: basic
"""Questions to models on their way through Redis: asked by the API, answered by workers.

Keys, all under `lorad:inference:`: `waiting:<host digest>` is a list of request ids and `digests`
the set of digests that may have one; `request:<id>` holds a request until it is taken;
`owner:<id>` names the worker that has it, as long as that worker renews it; `answer:<id>` is a
stream with one entry per batch of events; `cancelled:<id>` says that nobody waits any more.
"""

import json
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.domain.inference import Event, InferenceRequest

_log = logging.getLogger(__name__)

PREFIX = "lorad:inference:"
DIGESTS = f"{PREFIX}digests"
KEEP_SECONDS = 600
TIMEOUT_SECONDS = 2.0
_AWAY_SECONDS = 0.5
_MOST_LOST = 1000

# Puts a request at the end of its list, unless as many as may wait do; those whose request is gone
# (its API died) do not count and are removed. Returns the number that wait, or -1.
PUSH = """
local waiting = 0
for _, digest in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local list = ARGV[1] .. 'waiting:' .. digest
  for _, id in ipairs(redis.call('LRANGE', list, 0, -1)) do
    if redis.call('EXISTS', ARGV[1] .. 'request:' .. id) == 1 then
      waiting = waiting + 1
    else
      redis.call('LREM', list, 0, id)
    end
  end
  if redis.call('EXISTS', list) == 0 then redis.call('SREM', KEYS[1], digest) end
end
if waiting >= tonumber(ARGV[2]) then return -1 end
redis.call('SET', ARGV[1] .. 'request:' .. ARGV[3], ARGV[5], 'EX', ARGV[6])
redis.call('RPUSH', ARGV[1] .. 'waiting:' .. ARGV[4], ARGV[3])
redis.call('SADD', KEYS[1], ARGV[4])
return waiting + 1
"""

# Makes a popped request somebody's; nothing when it was withdrawn or nobody waits for it.
_CLAIM = """
local body = redis.call('GETDEL', ARGV[1] .. 'request:' .. ARGV[2])
if not body or redis.call('EXISTS', ARGV[1] .. 'cancelled:' .. ARGV[2]) == 1 then return false end
redis.call('SET', ARGV[1] .. 'owner:' .. ARGV[2], ARGV[3], 'PX', ARGV[4])
return body
"""
# Keeps a waiting request, and puts it back if it was popped by somebody who died before it was
# theirs.
REVIVE = """
local list = ARGV[1] .. 'waiting:' .. ARGV[3]
if redis.call('EXPIRE', ARGV[1] .. 'request:' .. ARGV[2], ARGV[4]) == 1 and
   not redis.call('LPOS', list, ARGV[2]) then
  redis.call('LPUSH', list, ARGV[2])
  redis.call('SADD', KEYS[1], ARGV[3])
end
"""


def waiting_key(digest: str) -> str:
    return f"{PREFIX}waiting:{digest}"


def key(kind: str, request_id: str) -> str:
    return f"{PREFIX}{kind}:{request_id}"


class InferenceQueue:
    """The side of a worker; one object serves all its threads.

    No method raises while Redis is away: then nothing waits, and what could not be reported counts
    as cancelled, because an answer with a hole is none. The one who asked learns of it by the owner
    key, which is not renewed any more.

    Args:
        worker_id: Who takes requests.
        lease_seconds: Life of an owner key from the moment a request is taken.
    """

    def __init__(self, url: str, worker_id: str, *, lease_seconds: float) -> None:
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds
        retry = Retry(NoBackoff(), 1)
        options: dict[str, Any] = {"socket_connect_timeout": TIMEOUT_SECONDS, "retry": retry}
        self._redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, decode_responses=True, **options
        )
        # It waits on purpose, for as long as `next` is told.
        self._blocking = redis.Redis.from_url(
            url, socket_timeout=None, decode_responses=True, **options
        )
        self._lost: dict[str, None] = {}

    def next(self, digest: str, seconds: float) -> InferenceRequest | None:
        """Take the oldest request for a host; its owner key is set when this returns.

        Take no more than can be begun: what is left waiting is what the limit of the queue counts.

        Args:
            digest: `HostKey.digest` of the host that is to answer.
            seconds: Longest time to wait for one; 0 does not wait.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            try:
                request_id = self._pop(digest, left)
                request = None if request_id is None else self._claim(request_id)
            except (redis.RedisError, OSError) as error:
                _log.warning("cannot take requests: %s", error)
                time.sleep(min(max(left, 0.0), _AWAY_SECONDS))
                return None
            if request is not None or request_id is None:
                return request

    def report(self, request_id: str, events: Sequence[Event]) -> None:
        """Send events of an answer on; a batch is one message, so batch what comes together."""
        if not events or request_id in self._lost:
            return
        body = json.dumps([event.model_dump(mode="json") for event in events])
        # A message that is sent again after a broken connection is told by its mark.
        entry: Any = {"events": body, "mark": secrets.token_hex(6)}
        try:
            pipe = self._redis.pipeline(transaction=False)
            pipe.xadd(key("answer", request_id), entry)
            pipe.expire(key("answer", request_id), KEEP_SECONDS)
            pipe.execute()
        except (redis.RedisError, OSError) as error:
            _log.warning("cannot report on %s, it is given up: %s", request_id, error)
            self._lost[request_id] = None
            while len(self._lost) > _MOST_LOST:
                self._lost.pop(next(iter(self._lost)))

    def keep(self, request_ids: Iterable[str], seconds: float) -> None:
        """Say that these requests are still worked on, for `seconds` from now."""
        kept = [each for each in request_ids if each not in self._lost]
        if not kept:
            return
        with suppress(redis.RedisError, OSError):
            pipe = self._redis.pipeline(transaction=False)
            for request_id in kept:
                pipe.set(key("owner", request_id), self._worker_id, px=int(seconds * 1000))
            pipe.execute()

    def cancelled(self, request_ids: Iterable[str]) -> set[str]:
        """Return those of the requests that nobody waits for any more."""
        asked = list(request_ids)
        lost = {each for each in asked if each in self._lost}
        if not asked:
            return lost
        try:
            found = self._redis.mget([key("cancelled", each) for each in asked])
        except (redis.RedisError, OSError):
            return lost
        return lost | {each for each, mark in zip(asked, found, strict=True) if mark is not None}

    def waiting(self) -> dict[str, int]:
        """Return how many requests wait for each host, by digest; no host with none of them."""
        try:
            digests: list[Any] = sorted(self._redis.smembers(DIGESTS))
            pipe = self._redis.pipeline(transaction=False)
            for digest in digests:
                pipe.llen(waiting_key(digest))
            counts = pipe.execute()
        except (redis.RedisError, OSError):
            return {}
        return {each: int(count) for each, count in zip(digests, counts, strict=True) if count}

    def close(self) -> None:
        self._redis.close()
        self._blocking.close()

    def _pop(self, digest: str, seconds: float) -> str | None:
        if seconds <= 0:
            return self._redis.lpop(waiting_key(digest))  # type: ignore[return-value]
        found: Any = self._blocking.blpop([waiting_key(digest)], timeout=max(seconds, 0.01))
        return None if found is None else found[1]

    def _claim(self, request_id: str) -> InferenceRequest | None:
        milliseconds = int(self._lease_seconds * 1000)
        body: Any = self._redis.eval(
            _CLAIM, 0, PREFIX, request_id, self._worker_id, str(milliseconds)
        )
        return None if body is None else InferenceRequest.model_validate_json(body)
