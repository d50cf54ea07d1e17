"""Completions: plain texts go on with a base model, a tuned one, or any checkpoint."""

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
from app.api.v1.shapes import TextChoice, TextCompletion, Usage, text_logprobs, usage_of
from app.domain import ids
from app.domain.groups import Label
from app.domain.inference import Began, InferenceRequest, Piece, TextPrompt
from app.services import inference, named_models
from app.services.inference import Answer, Conversation
from app.services.named_models import NamedModel

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute)

_MOST_PROMPTS = 16
# What OpenAI's clients expect when they do not say.
_MAX_TOKENS = 16

Prompt = Annotated[Label, Field(min_length=1)]


class CompletionBody(SamplingBody):
    """Texts to continue."""

    prompt: Prompt | list[Prompt] = Field(min_length=1)
    """A text, or up to 16; token ids are not taken."""
    max_tokens: int | None = Field(default=_MAX_TOKENS, ge=1, le=2**31 - 1)
    """Longest answer in tokens."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Tell how likely each token was, and this many of the most likely ones at its place."""
    best_of: int | None = None
    """Not available: only the value of `n`."""
    echo: Annotated[Any, Only(False)] = None
    """Not available: the prompt is not repeated."""
    suffix: Annotated[Any, Only("")] = None
    """Not available: texts are continued at their end."""

    @model_validator(mode="after")
    def _is_within_bounds(self) -> Self:
        if isinstance(self.prompt, list) and len(self.prompt) > _MOST_PROMPTS:
            raise PydanticCustomError(
                "too_many_prompts",
                "prompt has {count} texts; give up to {most}",
                {"key": "prompt", "count": len(self.prompt), "most": _MOST_PROMPTS},
            )
        if self.best_of not in (None, self.n):
            raise PydanticCustomError(
                "unsupported_parameter",
                "best_of = {value} is not available in this version; leave it out, or give n",
                {"key": "best_of", "value": self.best_of},
            )
        return self

    @property
    def prompts(self) -> Sequence[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def requests_to(self, model: NamedModel) -> list[InferenceRequest]:
        """Return the questions as workers get them."""
        sampling = self.sampling(max_tokens=self.max_tokens, top_logprobs=self.logprobs)
        return [
            inference.request_of(model, TextPrompt(text=text), sampling) for text in self.prompts
        ]


@router.post("/completions", response_model=TextCompletion, responses=answers(404, 409, 429))
async def create_completion(
    body: CompletionBody, request: Request, db: Db, config: Config, project: Project
) -> Response | TextCompletion:
    """Continue texts without a chat template; with `stream`, as server-sent events of chunks."""
    model = await to_thread.run_sync(named_models.resolve, db, config, project, body.model)
    fingerprint = await to_thread.run_sync(lambda: model.fingerprint)
    questions = body.requests_to(model)
    return await respond(request, questions, _Writer(body, fingerprint), is_streamed=body.stream)


class _Writer:
    """Writes the answers to one request; choices are numbered prompt by prompt."""

    def __init__(self, body: CompletionBody, fingerprint: str) -> None:
        self._body = body
        self._fingerprint = fingerprint
        self._id = ids.new("cmpl")
        self._created = int(time.time())
        self._is_with_logprobs = body.logprobs is not None

    def whole(self, began: Sequence[Began], found: Sequence[Sequence[Answer]]) -> TextCompletion:
        choices: list[TextChoice] = []
        for prompt, each_n in zip(self._body.prompts, found, strict=True):
            for each in each_n:
                logprobs = text_logprobs(
                    each.pieces, offset=len(prompt), wanted=self._is_with_logprobs
                )
                choices.append(
                    TextChoice(
                        index=len(choices),
                        text=each.text,
                        logprobs=logprobs,
                        finish_reason=each.finished.reason,
                    )
                )
        num_tokens = sum(each.finished.num_tokens for each_n in found for each in each_n)
        return self._completion(choices, usage=_usage(began, num_tokens))

    async def chunks(
        self, began: Sequence[Began], conversation: Conversation
    ) -> AsyncIterator[str]:
        num_tokens = 0
        offsets = {
            number: len(prompt)
            for i, prompt in enumerate(self._body.prompts)
            for number in range(i * self._body.n, (i + 1) * self._body.n)
        }
        async for i, event in conversation.events():
            number = i * self._body.n + event.index
            if isinstance(event, Piece):
                logprobs = text_logprobs(
                    (event,), offset=offsets[number], wanted=self._is_with_logprobs
                )
                offsets[number] += sum(len(token.token) for token in event.logprobs)
                yield self._json(TextChoice(index=number, text=event.text, logprobs=logprobs))
            else:
                num_tokens += event.num_tokens
                yield self._json(TextChoice(index=number, text="", finish_reason=event.reason))
        if self._body.includes_usage:
            yield self._completion([], usage=_usage(began, num_tokens)).model_dump_json()
        yield "[DONE]"

    def _json(self, choice: TextChoice) -> str:
        chunk = self._completion([choice])
        return chunk.model_dump_json(exclude=None if self._body.includes_usage else {"usage"})

    def _completion(
        self, choices: list[TextChoice], *, usage: Usage | None = None
    ) -> TextCompletion:
        return TextCompletion(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage,
            system_fingerprint=self._fingerprint,
        )


def _usage(began: Sequence[Began], num_tokens: int) -> Usage:
    return usage_of(sum(each.num_prompt_tokens for each in began), num_tokens)
