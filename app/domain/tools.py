"""Short tasks beside training, each in a process of its own: what goes in and what comes out."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.domain.datasets import DataFile
from app.domain.exports import BaseUsed, ExportFile, ExportFormat, Parity
from app.domain.metrics import StepMetrics
from app.domain.options import DatasetSpec
from app.domain.plans import PlanFacts
from app.domain.previews import PreviewRow
from app.domain.runs import RunFile
from app.domain.spec import JobSpec

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


class ExportRequest(Request):
    """Write an adapter in another form, and prove that it is the same model."""

    kind: Literal["export"] = "export"
    """Always `export`."""
    export_id: str
    """The export."""
    name: str
    """Name that the files give the model."""
    format: ExportFormat
    """What to write."""
    dtype: str
    """Data type of the files, or `auto`."""
    base: BaseUsed
    """Weights to merge into."""
    spec: JobSpec
    """The job."""
    trained_on: Literal["cpu", "cuda"]
    """Device of the training, which decides what its `dtype: auto` was."""
    model_folder: Path
    """Folder of the base model."""
    adapter_folder: Path
    """Folder of the checkpoint or final adapter."""
    adapter_manifest_sha256: str
    """Recorded hash of its manifest."""
    cache_folder: Path
    """Where hashes of base models are remembered."""

    @property
    def live_dtype(self) -> str:
        """Data type that training computed in."""
        automatic = "bfloat16" if self.trained_on == "cuda" else "float32"
        wanted = self.spec.training.dtype
        return automatic if wanted == "auto" else wanted

    @property
    def base_differs(self) -> bool:
        """Whether the adapter is merged into other weights than it was trained on."""
        return self.spec.quantization.load_in_4bit and self.base == "original"


class ExportResult(BaseModel):
    """What was written, if the proof succeeded, and the proof."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["exported"] = "exported"
    """Always `exported`."""
    parity: Parity
    """The proof."""
    files: tuple[ExportFile, ...]
    """The files; none when the proof failed."""
    dtype: str
    """Data type of the weights."""
    seconds: float
    """Time from the request to the proof in seconds."""


class ExportProgress(BaseModel):
    """How far an export is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    phase: str
    """What is being done."""
    progress: float
    """Share of the work that is done."""


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
    ExportRequest | PlanRequest | PreviewRequest | ReplayRequest,
    Field(discriminator="kind"),
]
ToolResult = Annotated[
    ExportResult | PlanResult | PreviewResult | ReplayResult | ToolFailure,
    Field(discriminator="kind"),
]
TOOL_REQUEST: TypeAdapter[ToolRequest] = TypeAdapter(ToolRequest)
TOOL_RESULT: TypeAdapter[ToolResult] = TypeAdapter(ToolResult)
