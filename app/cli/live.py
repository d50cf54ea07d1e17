"""The live stream of a job as messages, without a gap when the connection is lost on the way."""

import time
from collections.abc import Callable, Iterator

import httpx2

from app.cli.client import Client
from app.domain.errors import Unavailable

# The API sends a comment more often than this, so a longer silence is a dead connection.
_SILENCE_SECONDS = 60.0
_SHORTEST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0


def messages(
    client: Client,
    job_id: str,
    *,
    patience_seconds: float = 120.0,
    on_lost: Callable[[str], None] = lambda _reason: None,
) -> Iterator[httpx2.ServerSentEvent]:
    """Yield what the stream of a job sends until its last message, `complete`.

    A lost connection is opened again after the last message that had an id, so none is missed
    and none comes twice.

    Args:
        client: Connection to the API.
        job_id: The job.
        patience_seconds: How long the API may be away before this gives up.
        on_lost: Told once per outage why the connection was lost.

    Raises:
        Unavailable: The API was away for longer.
        NotFound: No such job.
    """
    last_id, lost_at, pause = "", 0.0, _SHORTEST_PAUSE_SECONDS
    connected_once = False
    while True:
        try:
            for message in _read(client, job_id, last_id):
                last_id = message.id or last_id
                connected_once, lost_at, pause = True, 0.0, _SHORTEST_PAUSE_SECONDS
                yield message
                if message.event == "complete":
                    return
            reason = "the API ended the stream"
        except (httpx2.TransportError, Unavailable) as error:
            reason = str(error) or type(error).__name__
            is_over = lost_at and time.monotonic() - lost_at > patience_seconds
            if is_over or not connected_once:
                message = f"the live stream of {job_id} cannot be read: {reason}"
                raise Unavailable(message) from error
        if not lost_at:
            lost_at = time.monotonic()
            on_lost(reason)
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _read(client: Client, job_id: str, last_id: str) -> Iterator[httpx2.ServerSentEvent]:
    with client.open_stream(
        job_id, last_event_id=last_id, read_seconds=_SILENCE_SECONDS
    ) as response:
        for message in httpx2.EventSource(response):
            # What carries no data is no event: comments, and the advice when to come back.
            if message.data:
                yield message
