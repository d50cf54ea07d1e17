"""Exports: what a job's adapter can become, and the proof that it is still the same model."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.domain.jobs import JobError
from app.domain.runs import job_folder

ExportFormat = Literal["adapter", "merged", "gguf"]
BaseChoice = Literal["auto", "original", "dequantized"]
BaseUsed = Literal["original", "dequantized"]

EXPORTS_FOLDER = "exports"
GGUF_NAME = "model.gguf"
PROGRESS_FILE = "progress.json"
FILES_FOLDER = "files"
MAX_TRIES = 3
"""Times that an export is begun; a worker that dies uses one up."""

DTYPES: dict[str, tuple[str, ...]] = {
    "adapter": ("auto",),
    "merged": ("auto", "float32", "bfloat16", "float16"),
    "gguf": ("auto", "f32", "f16", "bf16", "q8_0"),
}
GGUF_ARCHITECTURES: dict[str, str] = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""Architecture of config.json -> its name in a GGUF file; only those whose round trip is tested."""


class ExportState(StrEnum):
    """Where an export is; the last three are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = (ExportState.QUEUED, ExportState.RUNNING)


class Bounds(BaseModel):
    """What an export has to reach."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Name of the pair, by format, data type and base."""
    min_greedy_agreement: float
    """Least share of positions at which both choose the same token."""
    max_mean_kl: float
    """Most mean divergence of the next token's distribution in nats."""


class Parity(BaseModel):
    """How the export, read back from its files, compares with the live adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_prompts: int
    """Fixed prompts that were answered."""
    num_tokens: int
    """Tokens of the live adapter's own greedy answers; each is one comparison."""
    greedy_agreement: float
    """Share of these positions at which the export also finds that token the most likely one."""
    mean_kl: float | None
    """Mean divergence KL(live || export) of the next token's distribution in nats; null where it is
    not finite."""
    template_identical: bool
    """Whether the export renders fixed conversations to the same bytes as training did."""
    tokens_identical: bool
    """Whether the export's tokenizer makes the same tokens of the prompts."""
    bounds: Bounds
    """What had to be reached."""
    problems: tuple[str, ...] = ()
    """What was not reached; empty when the export is proven."""

    @property
    def is_proven(self) -> bool:
        return not self.problems


class ExportFile(BaseModel):
    """One file of an export."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """File name."""
    bytes: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the content, hexadecimal."""


class ExportManifest(BaseModel):
    """Content of MANIFEST.json of an export."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: Literal[1] = 1
    """Version of this format."""
    kind: Literal["export"] = "export"
    """Always `export`."""
    export_id: str
    """The export."""
    job_id: str
    """Job whose adapter it holds."""
    step: int
    """Optimizer steps done."""
    format: ExportFormat
    """What the files are."""
    dtype: str
    """Data type of the weights."""
    base: BaseUsed
    """Base model that the adapter was merged into, or belongs to."""
    base_model: str
    """Name of the base model."""
    base_model_sha256: str
    """Hash of the base model that the adapter was trained on."""
    adapter_sha256: str
    """SHA-256 of adapter_model.safetensors."""
    parity: Parity
    """The proof."""
    files: tuple[ExportFile, ...]
    """Every file but this one."""


class Export(BaseModel):
    """An export of a job's adapter."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["export"] = "export"
    """Always `export`."""
    id: str
    """Id of the export."""
    job_id: str
    """Job whose adapter it is."""
    format: ExportFormat
    """`adapter` (PEFT), `merged` (plain transformers) or `gguf`."""
    checkpoint: str
    """`final`, or the id of a checkpoint."""
    step: int
    """Optimizer steps of that checkpoint."""
    dtype: str
    """Data type of the weights; `auto` until it is known."""
    base: BaseUsed
    """`original` weights of the base model, or the `dequantized` ones that a QLoRA adapter saw."""
    state: ExportState
    """`queued`, `running`, `succeeded`, `failed` or `cancelled`."""
    waiting_for: str | None = None
    """Why a queued export has not started."""
    cancel_requested: bool = False
    """Whether a running export is being stopped."""
    progress: float = Field(ge=0, le=1)
    """Share of the work that is done."""
    phase: str | None = None
    """What is being done."""
    tries: int = 0
    """Times that a worker began it."""
    error: JobError | None = None
    """Why it failed; `parity_failed` when the proof did."""
    parity: Parity | None = None
    """The measured proof, also of a failed one."""
    files: list[ExportFile] = Field(default_factory=list[ExportFile])
    """Its files."""
    bytes: int = 0
    """Size of all files in bytes."""
    created_at: datetime
    """Time of the request, UTC."""
    started_at: datetime | None = None
    """Time of the first start, UTC."""
    finished_at: datetime | None = None
    """Time of its end, UTC."""


def exports_folder(home: Path, job_id: str) -> Path:
    return job_folder(home, job_id) / EXPORTS_FOLDER


def export_folder(home: Path, job_id: str, export_id: str) -> Path:
    return exports_folder(home, job_id) / export_id


def work_folder(home: Path, job_id: str, export_id: str, fence: int) -> Path:
    """Return where one try of an export works; what is in it becomes the export by a rename."""
    return exports_folder(home, job_id) / f".tmp-{export_id}-{fence}"
