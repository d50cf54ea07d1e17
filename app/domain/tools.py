"""Short tasks beside training, each in a process of its own: what goes in and what comes out."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.domain.rows import Message

REQUEST_FILE = "request.json"
RESULT_FILE = "result.json"


class Request(BaseModel):
    """What every task is told; the worker fills in its device and threads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_threads: int = Field(default=1, ge=1)
    """CPU threads to compute with."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to compute on."""
    deadline_seconds: float | None = None
    """Time the task may take in seconds; null is the worker's own limit."""


class GenerateRequest(Request):
    """Answer chat prompts with a base model, or with one of its adapters."""

    kind: Literal["generate"] = "generate"
    """Always `generate`."""
    model_folder: Path
    """Folder of the base model."""
    adapter_folder: Path | None = None
    """Folder of a PEFT adapter; null answers with the base model alone."""
    prompts: Annotated[
        tuple[Annotated[tuple[Message, ...], Field(min_length=1)], ...], Field(min_length=1)
    ]
    """Conversations to continue with an assistant turn."""
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    """Longest answer in tokens."""
    temperature: Literal[0] = 0
    """Only 0, the most likely token each time, is available."""


class GenerateResult(BaseModel):
    """The answers, in the order of the prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["generated"] = "generated"
    """Always `generated`."""
    answers: tuple[str, ...]
    """Text of each answer, without special tokens."""
    seconds: float
    """Time from the request to the last answer, loading included, in seconds."""


class ToolFailure(BaseModel):
    """The task could not be done."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["failed"] = "failed"
    """Always `failed`."""
    code: str
    """Stable name of the failure."""
    message: str
    """What failed and what to do."""
    is_input_at_fault: bool = False
    """Whether the same request fails again wherever it is done."""
    param: str | None = None
    """Dotted path of the request field at fault."""


ToolRequest = GenerateRequest
ToolResult = Annotated[GenerateResult | ToolFailure, Field(discriminator="kind")]
TOOL_REQUEST: TypeAdapter[ToolRequest] = TypeAdapter(ToolRequest)
TOOL_RESULT: TypeAdapter[GenerateResult | ToolFailure] = TypeAdapter(ToolResult)
