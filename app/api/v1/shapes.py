"""Shapes of completions as OpenAI's clients read them, whole and in chunks."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from app.domain.inference import FinishReason, Piece, TokenLogprob


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Usage(_Shape):
    """How many tokens were read and written."""

    prompt_tokens: int
    """Tokens of the prompts."""
    completion_tokens: int
    """Tokens that were generated."""
    total_tokens: int
    """Both together."""


class TopLogprob(_Shape):
    """One of the most likely tokens at a place."""

    token: str
    """Text of the token."""
    logprob: float
    """Natural logarithm of its probability."""
    bytes: list[int] | None
    """UTF-8 bytes of its text; null when it is a part of a character."""


class ChatLogprob(TopLogprob):
    """A token of an answer, and how likely it was."""

    top_logprobs: list[TopLogprob]
    """The most likely tokens at its place, as many as were asked for."""


class ChatLogprobs(_Shape):
    """Logprobs of an answer's tokens."""

    content: list[ChatLogprob]
    """Each token."""
    refusal: None = None
    """Always null."""


class ChatMessage(_Shape):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    """Always `assistant`."""
    content: str
    """Its text."""
    refusal: None = None
    """Always null."""


class ChatChoice(_Shape):
    """One of the n answers."""

    index: int
    """Which one, from 0."""
    message: ChatMessage
    """The answer."""
    logprobs: ChatLogprobs | None
    """Logprobs of its tokens, when they were asked for."""
    finish_reason: FinishReason
    """`stop`: the turn ended, or a stop text came; `length`: max_tokens or the context."""


class ChatCompletion(_Shape):
    """Answers to a conversation."""

    id: str
    """`chatcmpl-...`"""
    object: Literal["chat.completion"] = "chat.completion"
    """Always `chat.completion`."""
    created: int
    """Unix time in seconds."""
    model: str
    """The model as it was asked for."""
    choices: list[ChatChoice]
    """The answers."""
    usage: Usage
    """Tokens."""
    system_fingerprint: str | None
    """What answered: the base model and how it is loaded, and the adapter."""


class ChatDelta(_Shape):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] | None = None
    """`assistant` in the first chunk of an answer."""
    content: str | None = None
    """More text."""

    @model_serializer(mode="wrap")
    def _what_is_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Clients add deltas up by their keys; null would be a value.
        return {name: value for name, value in handler(self).items() if value is not None}


class ChatChunkChoice(_Shape):
    """A part of one of the n answers."""

    index: int
    """Which one, from 0."""
    delta: ChatDelta
    """What is new."""
    logprobs: ChatLogprobs | None = None
    """Logprobs of the new tokens, when they were asked for."""
    finish_reason: FinishReason | None = None
    """Set in the last chunk of an answer."""


class ChatChunk(_Shape):
    """A part of a streamed answer."""

    id: str
    """`chatcmpl-...`, the same in all chunks."""
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    """Always `chat.completion.chunk`."""
    created: int
    """Unix time in seconds."""
    model: str
    """The model as it was asked for."""
    choices: list[ChatChunkChoice]
    """Parts of answers; empty in the chunk that counts the tokens."""
    usage: Usage | None = None
    """Tokens, in the last chunk when `include_usage` was given."""
    system_fingerprint: str | None
    """What answers."""


class TextLogprobs(_Shape):
    """Logprobs of an answer's tokens; the lists have one entry per token."""

    tokens: list[str]
    """Texts of the tokens."""
    token_logprobs: list[float]
    """Natural logarithms of their probabilities."""
    top_logprobs: list[dict[str, float]]
    """The most likely tokens at each place, as many as were asked for."""
    text_offset: list[int]
    """Where each token begins, in characters from the beginning of the prompt."""


class TextChoice(_Shape):
    """One answer, or a part of one."""

    index: int
    """Which one, from 0: those of the first prompt come first."""
    text: str
    """Its text."""
    logprobs: TextLogprobs | None = None
    """Logprobs of its tokens, when they were asked for."""
    finish_reason: FinishReason | None = None
    """`stop` or `length`; null in all chunks but the last of an answer."""


class TextCompletion(_Shape):
    """Continuations of texts, or a chunk of them."""

    id: str
    """`cmpl-...`"""
    object: Literal["text_completion"] = "text_completion"
    """Always `text_completion`."""
    created: int
    """Unix time in seconds."""
    model: str
    """The model as it was asked for."""
    choices: list[TextChoice]
    """The answers."""
    usage: Usage | None = None
    """Tokens; in a stream only in the last chunk, when `include_usage` was given."""
    system_fingerprint: str | None
    """What answered: the base model and how it is loaded, and the adapter."""


def usage_of(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


def chat_logprobs(pieces: tuple[Piece, ...], *, wanted: bool) -> ChatLogprobs | None:
    """Return the logprobs of an answer's pieces; None when they were not asked for."""
    if not wanted:
        return None
    tokens = [token for piece in pieces for token in piece.logprobs]
    return ChatLogprobs(content=[_chat_logprob(token) for token in tokens])


def text_logprobs(pieces: tuple[Piece, ...], *, offset: int, wanted: bool) -> TextLogprobs | None:
    """Do the same in the older shape; `offset` is the length of the text before the pieces."""
    if not wanted:
        return None
    tokens = [token for piece in pieces for token in piece.logprobs]
    offsets = [offset]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + len(token.token))
    return TextLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[dict(token.top) for token in tokens],
        text_offset=offsets[: len(tokens)],
    )


def _chat_logprob(token: TokenLogprob) -> ChatLogprob:
    return ChatLogprob(
        token=token.token,
        logprob=token.logprob,
        bytes=list(token.token_bytes),
        top_logprobs=[
            TopLogprob(token=text, logprob=logprob, bytes=_bytes_of(text))
            for text, logprob in token.top
        ],
    )


def _bytes_of(text: str) -> list[int] | None:
    # A token may be a part of a character; its text says no more than that.
    return None if "\ufffd" in text else list(text.encode())
