"""The event stream of a job: replayed from SQL, then followed live; no gap and nothing twice."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.deps import JobId, Parts, Project
from app.api.errors import answers_beside_text
from app.api.strict import StrictRoute
from app.domain.errors import InvalidInput, NotFound, Unavailable
from app.domain.jobs import Job
from app.services import jobs, metrics
from app.stream import LiveEvent

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)

_CURSOR = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_RECONNECT_MS = 3_000
_LIVE_WAIT_SECONDS = 5.0
_AWAY_SECONDS = 1.0
# Time that the batch behind a live entry needs to reach the database.
_GAP_SECONDS = 0.2
# Events of a batch that reached clients before the database; Redis may have lost them since.
_MOST_AHEAD = 100

Cursor = tuple[int, int]


def _cursor(
    last_event_id: Annotated[
        str | None,
        Header(description="Id of the last event received; the stream goes on after it."),
    ] = None,
) -> Cursor:
    if not last_event_id:
        return 0, 0
    match = _CURSOR.fullmatch(last_event_id)
    if match is None:
        raise InvalidInput(
            f"Last-Event-ID {last_event_id[:60]!r} is none of this stream's ids (<fence>-<seq>)",
            param="Last-Event-ID",
            code="invalid_cursor",
        )
    return int(match.group(1)), int(match.group(2))


def _streamable(job_id: JobId, project: Project, request: Request) -> Job:
    # Checked before the stream starts: an error inside it could not change its status any more.
    parts: Parts = request.app.state.parts
    return jobs.get(parts.db, parts.settings, project, job_id)


async def _place(
    request: Request,
    job: Annotated[Job, Depends(_streamable)],
    cursor: Annotated[Cursor, Depends(_cursor)],
) -> Cursor:
    """Refuse a cursor that no event can have had: behind it the stream would stay silent.

    A client may be ahead of the database, by a batch, or by an outage of it; Redis then has the id.
    """
    parts: Parts = request.app.state.parts
    fence, seq = await to_thread.run_sync(metrics.newest, parts.db, job.id)
    if cursor <= (fence, seq + _MOST_AHEAD):
        return cursor
    live = await parts.reader.newest(job.id)
    if live is None or cursor <= live:
        return cursor
    newest = "-".join(map(str, max(live, (fence, seq))))
    raise InvalidInput(
        f"Last-Event-ID {cursor[0]}-{cursor[1]} is beyond this job's newest event, {newest}; give"
        " the id of an event that came, or leave it out to get all of them",
        param="Last-Event-ID",
        code="invalid_cursor",
    )


@router.get(
    "/{job_id}/stream", response_class=EventSourceResponse, responses=answers_beside_text(404)
)
async def stream_job(
    request: Request,
    job: Annotated[Job, Depends(_streamable)],
    cursor: Annotated[Cursor, Depends(_place)],
) -> AsyncIterator[ServerSentEvent]:
    """Follow a job live.

    Events `ready`, `receipt`, `memory`, `step`, `gradient_flow`, `evaluation`, `checkpoint`,
    `notice`, `certificate`, `finished`, `stopped` and `failed` carry an id; events `state` do not.
    `complete` is the last event of a job that has ended.
    """
    follower = Follower(request.app.state.parts, request.app.state.closing, job, cursor)
    async for event in follower.events():
        yield event


class Follower:
    """One client's way through a job's events."""

    def __init__(self, parts: Parts, closing: asyncio.Event, job: Job, cursor: Cursor) -> None:
        self._parts = parts
        self._closing = closing
        self._job_id = job.id
        self._project = job.project_id
        self._cursor = cursor
        self._state_cursor = "$"
        self._shown: Job | None = None
        self._has_all = False

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Yield what is stored, then what comes, until the job has ended or the server closes."""
        self._state_cursor = await self._parts.reader.state_cursor(self._job_id)
        yield ServerSentEvent(comment="connected", retry=_RECONNECT_MS)
        while not self._closing.is_set():
            # The row is read before the events: when it says "ended", every event is stored.
            try:
                job = await self._look()
            except NotFound:
                return  # deleted meanwhile; to come again is answered with 404
            async for event in self._replay():
                yield event
            if job is not None and self._has_news(job):
                self._shown = job
                yield ServerSentEvent(event="state", data=job)
            if job is not None and job.is_terminal and self._has_all:
                yield ServerSentEvent(event="complete", data=job)
                return
            async for event in self._follow_live():
                yield event

    async def _look(self) -> Job | None:
        try:
            return await to_thread.run_sync(
                jobs.get, self._parts.db, self._parts.settings, self._project, self._job_id
            )
        except Unavailable:
            await self._pause(_AWAY_SECONDS)
            return None

    def _has_news(self, job: Job) -> bool:
        def face(one: Job) -> tuple[object, ...]:
            return one.state, one.desired, one.attempt, one.waiting_for, one.updated_at

        return self._shown is None or face(job) != face(self._shown)

    async def _replay(self) -> AsyncIterator[ServerSentEvent]:
        self._has_all = False
        while not self._closing.is_set():
            try:
                piece = await to_thread.run_sync(self._next_piece)
            except Unavailable:
                return
            for event in piece.events:
                yield ServerSentEvent(event=event.kind, raw_data=event.body, id=event.cursor)
            # Past superseded events too: Redis still has them, and they are not to be sent.
            self._cursor = piece.end
            if not piece.events:
                self._has_all = True
                return

    def _next_piece(self) -> metrics.Replay:
        return metrics.replay(self._parts.db, self._job_id, after=self._cursor)

    async def _follow_live(self) -> AsyncIterator[ServerSentEvent]:
        """Yield live entries while they join on without a gap; then SQL must be asked again."""
        while not self._closing.is_set():
            entries, is_nudged = await self._next_entries()
            for entry in entries:
                if not self._joins(entry):
                    await self._pause(_GAP_SECONDS)
                    return
                self._cursor = entry.fence, entry.seq
                entry_id = f"{entry.fence}-{entry.seq}"
                yield ServerSentEvent(event=entry.kind, raw_data=entry.body, id=entry_id)
            if is_nudged or not entries:
                return

    async def _next_entries(self) -> tuple[list[LiveEvent], bool]:
        reading = asyncio.ensure_future(
            self._parts.reader.read(
                self._job_id,
                after=self._cursor,
                state_cursor=self._state_cursor,
                seconds=_LIVE_WAIT_SECONDS,
            )
        )
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return [], False
            entries, nudge = reading.result()
        except ConnectionError:
            await self._pause(_AWAY_SECONDS)
            return [], False
        finally:
            reading.cancel()
            closing.cancel()
        if nudge is not None:
            self._state_cursor = nudge
        return entries, nudge is not None

    def _joins(self, entry: LiveEvent) -> bool:
        return (entry.fence, entry.seq - 1) == self._cursor

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), timeout=seconds)
        except TimeoutError:
            return
