"""Short tasks beside training, each in a process of its own: what goes in and what comes out."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.domain.datasets import DataFile
from app.domain.metrics import StepMetrics
from app.domain.options import DatasetSpec, QuantizationSpec
from app.domain.plans import PlanFacts
from app.domain.previews import PreviewRow
from app.domain.rows import Message
from app.domain.runs import RunFile

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
    dtype: str = "auto"
    """`training.dtype` of the job."""
    quantization: QuantizationSpec = QuantizationSpec()
    """How the base model was quantized for the job, so that the adapter meets the same one."""
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


class ReplayRequest(Request):
    """Do the steps that follow a checkpoint again, and save nothing."""

    kind: Literal["replay"] = "replay"
    """Always `replay`."""
    run: RunFile
    """What the trainer was told that did the steps, with the checkpoint to resume from."""
    num_steps: int = Field(ge=1)
    """Steps to do."""


class ReplayResult(BaseModel):
    """What the steps measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["replayed"] = "replayed"
    """Always `replayed`."""
    steps: tuple[StepMetrics, ...]
    """Measurements of every step."""
    tensors_sha256: str
    """SHA-256 over adapter, optimizer and generator state after the last step, hexadecimal."""
    notices: tuple[str, ...]
    """What the trainer noted."""
    seconds: float
    """Time from the request to the last step, loading included, in seconds."""


class PreviewRequest(Request):
    """Show rows of a data set as text and tokens."""

    kind: Literal["preview"] = "preview"
    """Always `preview`."""
    model_folder: Path
    """Folder of the base model; only its tokenizer is loaded."""
    dataset: DataFile
    """The data set."""
    options: DatasetSpec
    """How its rows become tokens."""
    offset: int = Field(default=0, ge=0)
    """Rows to pass over."""
    num_rows: int = Field(default=5, ge=1, le=50)
    """Rows to show."""


class PreviewResult(BaseModel):
    """The rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["previewed"] = "previewed"
    """Always `previewed`."""
    rows: tuple[PreviewRow, ...]
    """The rows, those that cannot be used included."""
    has_more: bool
    """Whether there are rows behind the last one."""


class PlanRequest(Request):
    """Find out what a job would do and need, without training."""

    kind: Literal["plan"] = "plan"
    """Always `plan`."""
    run: RunFile
    """The job as a trainer would be told; its attempt folder holds nothing afterwards."""


class PlanResult(BaseModel):
    """What was found out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["planned"] = "planned"
    """Always `planned`."""
    facts: PlanFacts
    """Work, memory and sizes."""


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


ToolRequest = Annotated[
    GenerateRequest | PlanRequest | PreviewRequest | ReplayRequest, Field(discriminator="kind")
]
ToolResult = Annotated[
    GenerateResult | PlanResult | PreviewResult | ReplayResult | ToolFailure,
    Field(discriminator="kind"),
]
TOOL_REQUEST: TypeAdapter[ToolRequest] = TypeAdapter(ToolRequest)
TOOL_RESULT: TypeAdapter[ToolResult] = TypeAdapter(ToolResult)
