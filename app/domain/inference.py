"""Questions to a model and the pieces of its answers, as they travel between API, worker and host.

The API puts a request where workers find it. A worker hands it to its model host, a process that
keeps a base model loaded, and passes back what the host reports.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.domain.options import QuantizationSpec

FinishReason = Literal["stop", "length"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HostKey(_Frozen):
    """What a host loads once: a base model in one data type and quantization."""

    model_folder: Path
    """Folder of the base model."""
    dtype: str = "auto"
    """`training.dtype` of the job whose adapter is asked; `auto` for the base model."""
    quantization: QuantizationSpec = QuantizationSpec()
    """How the base model was quantized for the job, so that the adapter meets the same one."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the key."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class Adapter(_Frozen):
    """A PEFT adapter."""

    name: str
    """Name that no other adapter has, whatever becomes of its files: the id of a checkpoint, or
    `<job id>-final-<attempt>`."""
    folder: Path
    """Folder with adapter_config.json and adapter_model.safetensors."""


class Sampling(_Frozen):
    """How tokens are chosen, in OpenAI's terms."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer in tokens; null is what is left of the model's context."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 takes the most likely token each time."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Least probability mass that is sampled from."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    seed: int | None = None
    """Seed of the choices; null takes one at random."""
    n: int = Field(default=1, ge=1, le=8)
    """Answers to each prompt."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Alternatives to report for each token; 0 reports the token's own logprob alone, null none."""


class ChatPrompt(_Frozen):
    """A conversation to continue with an assistant turn."""

    kind: Literal["chat"] = "chat"
    """Always `chat`."""
    messages: tuple[dict[str, Any], ...] = Field(min_length=1)
    """Turns as chat templates take them, in the shape that training renders."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tools that the model is told of."""
    chat_template: str | None = None
    """`dataset.chat_template` of the job; null is that of the tokenizer."""


class TextPrompt(_Frozen):
    """Plain text to continue."""

    kind: Literal["text"] = "text"
    """Always `text`."""
    text: str
    """The text; no template, special tokens as the tokenizer adds them."""


class InferenceRequest(_Frozen):
    """One question to one model."""

    id: str
    """`inf-...`"""
    host: HostKey
    """The base model."""
    adapter: Adapter | None = None
    """The adapter; null asks the base model alone."""
    prompt: Annotated[ChatPrompt | TextPrompt, Field(discriminator="kind")]
    """What to continue."""
    sampling: Sampling = Sampling()
    """How."""


class TokenLogprob(_Frozen):
    """A token and how likely it was, in nats."""

    token: str
    """Text of the token."""
    logprob: float
    """Natural logarithm of its probability, before temperature and top_p."""
    token_bytes: tuple[int, ...]
    """UTF-8 bytes of the token's text."""
    top: tuple[tuple[str, float], ...] = ()
    """Most likely tokens at this place with their logprobs, best first."""


class Taken(_Frozen):
    """A worker has the request."""

    kind: Literal["taken"] = "taken"
    """Always `taken`."""
    worker_id: str
    """Which worker."""


class Began(_Frozen):
    """The prompt was read."""

    kind: Literal["began"] = "began"
    """Always `began`."""
    num_prompt_tokens: int
    """Length of the prompt in tokens."""


class Piece(_Frozen):
    """More text of one answer."""

    kind: Literal["piece"] = "piece"
    """Always `piece`."""
    index: int
    """Which of the n answers, from 0."""
    text: str
    """Complete characters; empty when there are only logprobs to tell."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """The tokens of this text, when they were asked for."""


class Finished(_Frozen):
    """One answer is complete."""

    kind: Literal["finished"] = "finished"
    """Always `finished`."""
    index: int
    """Which of the n answers, from 0."""
    reason: FinishReason
    """`stop`: the turn ended, or a stop text came; `length`: max_tokens or the context."""
    num_tokens: int
    """Tokens that were generated, the ending one included."""


class Failed(_Frozen):
    """There is no answer, or no more of it."""

    kind: Literal["failed"] = "failed"
    """Always `failed`."""
    code: str
    """Stable name of the failure."""
    message: str
    """What failed and what to do."""
    param: str | None = None
    """Field of the request at fault."""
    is_input_at_fault: bool = False
    """Whether the same request fails again wherever it is answered."""


Event = Annotated[Taken | Began | Piece | Finished | Failed, Field(discriminator="kind")]
"""In order: Taken, Began, pieces of all answers mixed, one Finished for each; or Failed at any
point, which is the last."""
EVENT: TypeAdapter[Taken | Began | Piece | Finished | Failed] = TypeAdapter(Event)
