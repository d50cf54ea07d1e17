"""Streams of pages: what is shown is looked at every second, and what changed is sent."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from anyio import to_thread
from fastapi import Request
from fastapi.sse import ServerSentEvent

from app.domain.errors import Unavailable
from app.web import render

_SECONDS = 1.0


class Told:
    """What one browser was told, so that nothing is said twice."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def once(self, event: str, *, id: str = "", **data: object) -> list[ServerSentEvent]:
        """Return what to say of a thing; nothing when just that was said of it last."""
        digest = hashlib.sha256(repr(data).encode("utf-8", "backslashreplace")).digest()
        key = f"{event} {id}"
        if self._digests.get(key) == digest:
            return []
        self._digests[key] = digest
        return [ServerSentEvent(event=event, data={"id": id, **data})]

    def part(self, id: str, template: str, **context: Any) -> list[ServerSentEvent]:
        """Return the new content of the element with an id, if it has changed."""
        return self.once("part", id=id, html=render.fragment(template, **context))


async def follow(
    request: Request, news: Callable[[Told], Sequence[ServerSentEvent]]
) -> AsyncIterator[ServerSentEvent]:
    """Send what `news` returns, every second; it runs in a thread, and at first says all."""
    told = Told()
    closing: asyncio.Event = request.app.state.closing
    yield ServerSentEvent(comment="connected")
    while not closing.is_set():
        try:
            found = await to_thread.run_sync(news, told)
        except Unavailable:
            return  # the page says that it tries again
        for event in found:
            yield event
        if not found:
            yield ServerSentEvent(comment="alive")  # so that a browser that left is noticed
        try:
            await asyncio.wait_for(closing.wait(), timeout=_SECONDS)
        except TimeoutError:
            continue
