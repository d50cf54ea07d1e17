"""Chat completions: conversations go on with a base model, a tuned one, or any checkpoint."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Self

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.api.answering import respond
from app.api.deps import Config, Db, Project
from app.api.errors import answers
from app.api.strict import StrictRoute
from app.api.v1.bodies import Only, SamplingBody
from app.api.v1.shapes import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    Usage,
    chat_logprobs,
    usage_of,
)
from app.domain import chat, ids
from app.domain.errors import InvalidInput
from app.domain.groups import Label
from app.domain.inference import Began, ChatPrompt, InferenceRequest, Piece
from app.domain.rows import BadRow
from app.services import inference, named_models
from app.services.inference import Answer, Conversation
from app.services.named_models import NamedModel

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute)

_MOST_MESSAGES = 10_000
_MOST_TOOLS = 128


class ChatBody(SamplingBody):
    """A conversation to continue."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=_MOST_MESSAGES)
    """Turns of system, developer, user, assistant or tool; contents are text."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """The newer name of `max_tokens`."""
    tools: list[dict[str, Any]] = Field(default=[], max_length=_MOST_TOOLS)
    """Functions that the model is told of, as its chat template does."""
    tool_choice: Annotated[Any, Only("auto", "none")] = None
    """`none` tells the model of no tools; nothing but `auto` and `none` is available."""
    logprobs: bool = False
    """Tell how likely each token was."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Most likely tokens to name at each place; needs `logprobs`."""
    metadata: dict[Label, Label] | None = Field(default=None, max_length=16)
    """Notes of your own; nothing is stored, so they change nothing."""
    safety_identifier: Label | None = Field(default=None, max_length=512)
    """Like `user`: it changes nothing."""
    store: Annotated[Any, Only(False)] = None
    """Not available: answers are not stored."""
    response_format: Annotated[Any, Only({"type": "text"})] = None
    """Not available: answers are text."""
    parallel_tool_calls: Annotated[Any, Only(True)] = None
    """Not available: an answer is text, calls in it included."""
    functions: Annotated[Any, Only([])] = None
    """Not available; give `tools`."""
    function_call: Annotated[Any, Only("auto", "none")] = None
    """Not available; give `tools`."""
    service_tier: Annotated[Any, Only("auto", "default")] = None
    """Not available: there is one tier."""
    modalities: Annotated[Any, Only(["text"])] = None
    """Not available: answers are text."""
    audio: Annotated[Any, Only()] = None
    """Not available."""
    prediction: Annotated[Any, Only()] = None
    """Not available."""
    moderation: Annotated[Any, Only()] = None
    """Not available."""
    reasoning_effort: Annotated[Any, Only("none")] = None
    """Not available."""
    verbosity: Annotated[Any, Only("medium")] = None
    """Not available."""
    web_search_options: Annotated[Any, Only()] = None
    """Not available."""
    prompt_cache_key: Annotated[Any, Only()] = None
    """Not available."""
    prompt_cache_options: Annotated[Any, Only()] = None
    """Not available."""
    prompt_cache_retention: Annotated[Any, Only()] = None
    """Not available."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        newer, older = self.max_completion_tokens, self.max_tokens
        if newer is not None and older is not None and newer != older:
            raise PydanticCustomError(
                "contradiction",
                "max_tokens is {older} and max_completion_tokens {newer}; give one of them",
                {"key": "max_tokens", "older": older, "newer": newer},
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError(
                "without_logprobs",
                "top_logprobs needs logprobs true; give both, or leave it out",
                {"key": "top_logprobs"},
            )
        return self

    def request_to(self, model: NamedModel) -> InferenceRequest:
        """Return the question as a worker gets it.

        Raises:
            InvalidInput: A message or a tool is malformed, or the model has no chat template.
        """
        sampling = self.sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )
        is_told_of_tools = self.tool_choice != "none"
        prompt = ChatPrompt(
            messages=tuple(_turns(self.messages)),
            tools=_tools(self.tools) if is_told_of_tools else (),
            chat_template=model.chat_template,
        )
        return inference.request_of(model, prompt, sampling)


def _turns(messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return messages in the shape that chat templates get in training.

    Raises:
        InvalidInput: One is malformed.
    """
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        param = f"messages.{index}"
        if message.get("weight") is not None:
            raise InvalidInput(
                f"messages[{index}].weight is for training; leave it out",
                param=f"{param}.weight",
                code="unsupported_parameter",
            )
        try:
            turns.append(chat.parse_turn(message, f"messages[{index}]").for_template())
        except BadRow as error:
            raise InvalidInput(error.message, param=param, code=error.reason) from error
    return turns


def _tools(tools: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    try:
        return tuple(dict(tool) for tool in chat.parse_tools(list(tools)))
    except BadRow as error:
        raise InvalidInput(error.message, param="tools", code=error.reason) from error


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses=answers(404, 409, 429),
)
async def create_chat_completion(
    body: ChatBody, request: Request, db: Db, config: Config, project: Project
) -> Response | ChatCompletion:
    """Continue a conversation; with `stream`, as server-sent events of chunks."""
    model = await to_thread.run_sync(named_models.resolve, db, config, project, body.model)
    question = body.request_to(model)
    fingerprint = await to_thread.run_sync(lambda: model.fingerprint)
    writer = _Writer(body, question, fingerprint)
    return await respond(request, [question], writer, is_streamed=body.stream)


class _Writer:
    """Writes the answers to one request."""

    def __init__(self, body: ChatBody, question: InferenceRequest, fingerprint: str) -> None:
        self._body = body
        self._num_answers = question.sampling.n
        self._fingerprint = fingerprint
        self._id = ids.new("chatcmpl")
        self._created = int(time.time())

    def whole(self, began: Sequence[Began], found: Sequence[Sequence[Answer]]) -> ChatCompletion:
        num_tokens = sum(each.finished.num_tokens for each in found[0])
        choices = [
            ChatChoice(
                index=index,
                message=ChatMessage(content=each.text),
                logprobs=chat_logprobs(each.pieces, wanted=self._body.logprobs),
                finish_reason=each.finished.reason,
            )
            for index, each in enumerate(found[0])
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage_of(began[0].num_prompt_tokens, num_tokens),
            system_fingerprint=self._fingerprint,
        )

    async def chunks(
        self, began: Sequence[Began], conversation: Conversation
    ) -> AsyncIterator[str]:
        num_tokens = 0
        for index in range(self._num_answers):
            yield self._chunk(index, ChatDelta(role="assistant", content=""))
        async for _, event in conversation.events():
            if isinstance(event, Piece):
                logprobs = chat_logprobs((event,), wanted=self._body.logprobs)
                yield self._chunk(event.index, ChatDelta(content=event.text), logprobs=logprobs)
            else:
                num_tokens += event.num_tokens
                yield self._chunk(event.index, ChatDelta(), finish_reason=event.reason)
        if self._body.includes_usage:
            yield self._json([], usage=usage_of(began[0].num_prompt_tokens, num_tokens))
        yield "[DONE]"

    def _chunk(self, index: int, delta: ChatDelta, **more: Any) -> str:
        return self._json([ChatChunkChoice(index=index, delta=delta, **more)])

    def _json(self, choices: list[ChatChunkChoice], *, usage: Usage | None = None) -> str:
        chunk = ChatChunk(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage,
            system_fingerprint=self._fingerprint,
        )
        # Without the option no chunk has the key, as with OpenAI.
        return chunk.model_dump_json(exclude=None if self._body.includes_usage else {"usage"})
