"""Answers that take their time: withdrawn when the client goes, and ended when the API does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api import errors
from app.api.deps import Parts
from app.domain.errors import LoradError, Unavailable
from app.domain.inference import Began, InferenceRequest
from app.services import inference
from app.services.inference import Answer, Conversation, Line

Result = TypeVar("Result")
Whole = TypeVar("Whole", covariant=True)


def line_of(request: Request) -> Line:
    """Return what it takes to reach a model."""
    parts: Parts = request.app.state.parts
    return Line(
        db=parts.db,
        settings=parts.settings,
        doorbell=parts.outside.doorbell,
        asker=parts.asker,
        closing=request.app.state.closing,
    )


class Writer(Protocol[Whole]):
    """Writes answers in the shape of one endpoint."""

    def whole(self, began: Sequence[Began], found: Sequence[Sequence[Answer]]) -> Whole:
        """Return complete answers: those of each request, in their order."""
        ...

    def chunks(self, began: Sequence[Began], conversation: Conversation) -> AsyncIterator[str]:
        """Yield the data of each event of a stream."""
        ...


async def respond(
    request: Request,
    questions: Sequence[InferenceRequest],
    writer: Writer[Whole],
    *,
    is_streamed: bool,
) -> Response | Whole:
    """Answer a client, whole or in a stream; a stream begins when every prompt was read.

    Raises:
        LoradError: There is no answer.
    """
    line = line_of(request)
    if not is_streamed:
        began, found = await while_connected(request, inference.answer(line, questions))
        return writer.whole(began, found)
    conversation = Conversation(line, questions)
    try:
        began = await while_connected(request, conversation.begin())
    except BaseException:
        conversation.close()
        raise
    events = writer.chunks(began, conversation)
    return EventStream(events, path=request.url.path, on_end=conversation.close)


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do something for a client; it is cancelled at once when the client goes away.

    Raises:
        Unavailable: The client went; nobody reads this.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Unavailable("the client closed the connection", code="client_gone")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


class EventStream(StreamingResponse):
    """Server-sent events, each the JSON of `data:`; an error on the way is the last of them.

    Args:
        path: Where it was asked for, which decides how errors are worded.
        on_end: Called when the stream ends, however it does.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[str], *, path: str, on_end: Callable[[], None]
    ) -> None:
        super().__init__(_lines(events, path), headers={"x-accel-buffering": "no"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _lines(events: AsyncIterator[str], path: str) -> AsyncIterator[str]:
    try:
        async for event in events:
            yield f"data: {event}\n\n"
    except LoradError as error:
        # The status is sent already; clients of OpenAI's look for this in the stream.
        yield f"data: {bytes(errors.refusal(error, path).body).decode()}\n\n"


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
