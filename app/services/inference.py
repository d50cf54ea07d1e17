"""Questions to models, from the user's side: sent to a worker, and answered while it writes."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from anyio import to_thread

from app.asking import Asker
from app.db.engine import Database
from app.domain import ids
from app.domain.errors import InvalidInput, LoradError, NoWorker, Unavailable
from app.domain.inference import (
    Began,
    ChatPrompt,
    Event,
    Failed,
    Finished,
    InferenceRequest,
    Piece,
    Sampling,
    TextPrompt,
)
from app.queue import Doorbell
from app.services import catalog
from app.services.named_models import NamedModel
from app.settings import Settings


@dataclass(frozen=True)
class Line:
    """What it takes to reach a model.

    Args:
        closing: Set when this process is to end; then answers end too.
    """

    db: Database
    settings: Settings
    doorbell: Doorbell
    asker: Asker
    closing: asyncio.Event


@dataclass(frozen=True)
class Answer:
    """A complete answer; its pieces hold the text and, when asked for, the logprobs."""

    pieces: tuple[Piece, ...]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def request_of(
    model: NamedModel, prompt: ChatPrompt | TextPrompt, sampling: Sampling
) -> InferenceRequest:
    """Make the request that a worker gets.

    Raises:
        InvalidInput: It is a conversation, and the model has no chat template.
    """
    if isinstance(prompt, ChatPrompt) and not model.has_chat_template:
        raise InvalidInput(
            f"model {model.base_model} has no chat template, so conversations cannot be written for"
            " it; use POST /v1/completions, or train with dataset.chat_template",
            param="model",
            code="no_chat_template",
        )
    return InferenceRequest(
        id=ids.new("inf"), host=model.host, adapter=model.adapter, prompt=prompt, sampling=sampling
    )


class Conversation:
    """One or several requests that are answered together; their answers come mixed.

    Call `begin` first, and `close` whatever happens: it withdraws what is not answered.
    """

    def __init__(self, line: Line, requests: Sequence[InferenceRequest]) -> None:
        self._line = line
        self._requests = requests
        self._arrived: asyncio.Queue[tuple[int, Event | BaseException]] = asyncio.Queue()
        self._early: list[tuple[int, Piece | Finished]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> list[Began]:
        """Wait until every prompt was read; from then on only the model can fail.

        Raises:
            LoradError: A request is refused, or cannot be answered.
        """
        await _require_worker(self._line)  # before anything is sent: it says best what to do
        for index, request in enumerate(self._requests):
            task = asyncio.create_task(self._follow(index, request))
            task.add_done_callback(partial(self._on_end, index))
            self._tasks.append(task)
        began: dict[int, Began] = {}
        while len(began) < len(self._requests):
            index, event = await self._next()
            if isinstance(event, Began):
                began[index] = event
            elif isinstance(event, Piece | Finished):
                self._early.append((index, event))
        return [began[index] for index in range(len(self._requests))]

    async def events(self) -> AsyncGenerator[tuple[int, Piece | Finished]]:
        """Yield what comes after `begin`, each with the number of its request.

        Raises:
            LoradError: An answer fails; none goes on then.
        """
        left = sum(request.sampling.n for request in self._requests)
        while left:
            index, event = self._early.pop(0) if self._early else await self._next()
            if isinstance(event, Piece | Finished):
                left -= isinstance(event, Finished)
                yield index, event

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _follow(self, index: int, request: InferenceRequest) -> None:
        asked = self._line.asker.ask(
            request, wake=lambda: _wake(self._line, request), closing=self._line.closing
        )
        async with aclosing(asked) as events:
            async for event in events:
                self._arrived.put_nowait((index, event))

    def _on_end(self, index: int, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._arrived.put_nowait((index, error))

    async def _next(self) -> tuple[int, Event]:
        index, event = await self._arrived.get()
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Failed):
            raise self._error_of(index, event)
        return index, event

    def _error_of(self, index: int, failed: Failed) -> LoradError:
        param = failed.param
        if param == "messages" and isinstance(self._requests[index].prompt, TextPrompt):
            param = "prompt"
        if param is not None and len(self._requests) > 1:
            param = f"{param}.{index}"
        kind = InvalidInput if failed.is_input_at_fault else Unavailable
        return kind(failed.message, param=param, code=failed.code)


async def answer(
    line: Line, requests: Sequence[InferenceRequest]
) -> tuple[list[Began], list[list[Answer]]]:
    """Return complete answers: for each request its n, in their order.

    Raises:
        LoradError: A request is refused or cannot be answered.
    """
    conversation = Conversation(line, requests)
    pieces: dict[tuple[int, int], list[Piece]] = {}
    ends: dict[tuple[int, int], Finished] = {}
    try:
        began = await conversation.begin()
        async for index, event in conversation.events():
            if isinstance(event, Piece):
                pieces.setdefault((index, event.index), []).append(event)
            else:
                ends[index, event.index] = event
    finally:
        conversation.close()
    return began, [
        [Answer(tuple(pieces.get((i, n), ())), ends[i, n]) for n in range(request.sampling.n)]
        for i, request in enumerate(requests)
    ]


async def _wake(line: Line, request: InferenceRequest) -> None:
    """Tell workers of a waiting request.

    Raises:
        NoWorker: There is none to tell any more.
        Unavailable: The message cannot be sent.
    """
    await _require_worker(line)
    if not await to_thread.run_sync(line.doorbell.wake_host, request.host.digest):
        raise Unavailable("the broker (Redis) is away; try again", code="broker_unavailable")


async def _require_worker(line: Line) -> None:
    if not await to_thread.run_sync(catalog.list_workers, line.db, line.settings):
        raise NoWorker(
            "no worker is running; start one with `lorad worker` (or everything with `lorad up`)"
        )
