"""The groups of a JobSpec: lora, quantization, dataset, training, resources, monitoring."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.domain import ids
from app.domain.groups import Group, Label, NotBuilt, as_mapping, shown
from app.domain.presets import ALL_LINEAR, PRESETS
from app.domain.rows import RowFormat

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]
ColumnName = Annotated[Label, Field(min_length=1, max_length=200)]


class LoraSpec(Group):
    """The adapter: a low-rank update of some linear layers."""

    group_name: ClassVar[str] = "lora"

    r: int = Field(default=16, ge=1, le=1024)
    """Rank of the update matrices."""
    lora_alpha: int = Field(default=32, ge=1, le=8192)
    """Scale: the update is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping an input of the adapter while training."""
    target_modules: Annotated[list[ModuleName], Field(min_length=1, max_length=256)] | str = (
        ALL_LINEAR
    )
    """Names of the linear layers to adapt, a preset (see `GET /presets`), or `all-linear`."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (rank-stabilized LoRA)."""
    use_dora: bool = False
    """Train the length of each weight's columns beside their direction (DoRA)."""
    modules_to_save: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = None
    """Modules to train in full and to save beside the adapter, such as `lm_head`."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the model are trained too: none, all, or those of the adapted layers."""
    rank_pattern: dict[ModuleName, Annotated[int, Field(ge=1, le=1024)]] = Field(
        default_factory=dict, max_length=256
    )
    """Layer name (or ending of one) -> rank, for layers that need another rank than `r`."""
    alpha_pattern: dict[ModuleName, Annotated[int, Field(ge=1, le=8192)]] = Field(
        default_factory=dict, max_length=256
    )
    """Layer name (or ending of one) -> lora_alpha, for layers that need another one."""

    @model_validator(mode="after")
    def _known_preset(self) -> Self:
        if isinstance(self.target_modules, str) and self.target_modules not in PRESETS:
            raise PydanticCustomError(
                "unknown_preset",
                "target_modules {given} is no preset; give a list of layers or one of: {presets}",
                {
                    "key": "target_modules",
                    "given": repr(self.target_modules),
                    "presets": ", ".join(PRESETS),
                },
            )
        return self


class QuantizationSpec(Group):
    """How the frozen base model is quantized; for `adapter: qlora` only."""

    group_name: ClassVar[str] = "quantization"

    load_in_4bit: bool = False
    """Load the base model in 4 bits. Follows from `adapter: qlora`."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Data type of the 4-bit weights."""
    bnb_4bit_use_double_quant: bool = True
    """Quantize the quantization constants too."""
    bnb_4bit_compute_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], NotBuilt("float16")
    ] = "auto"
    """Data type of the matrix products; `auto` is that of the model. float16 is not available: the
    gradients of small adapters vanish in it."""


class DatasetSpec(Group):
    """Which rows to train on and how they become tokens."""

    group_name: ClassVar[str] = "dataset"

    id: str
    """Id of an uploaded data set (`POST /datasets`)."""
    format: Literal["auto"] | RowFormat = "auto"
    """Row format; `auto` takes what the upload found by the columns."""
    chat_template: Annotated[Label, Field(min_length=1, max_length=65_536)] | None = None
    """Jinja template to use instead of the tokenizer's own."""
    train_on_inputs: bool = False
    """Also train on the prompt; by default only assistant turns and completions are targets."""
    max_length: int = Field(default=2048, ge=8, le=1_048_576)
    """Longest sequence in tokens."""
    on_too_long: Literal["truncate", "drop", "fail"] = "truncate"
    """What a row of more than max_length tokens does: lose its end, be left out, fail the job."""
    max_dropped_fraction: float = Field(default=0.05, ge=0, le=1)
    """Fail before training when more than this fraction of the rows was dropped."""
    val_size: float | None = Field(default=None, gt=0)
    """Rows held out for evaluation: below 1 a fraction of the rows, else a number of them."""
    eval_id: str | None = None
    """Id of an uploaded data set to evaluate on, instead of val_size."""
    field_mapping: dict[ColumnName, ColumnName] | None = Field(default=None, max_length=32)
    """Our column name -> the data set's, where they differ: {"prompt": "question"}."""

    @model_validator(mode="before")
    @classmethod
    def _no_path(cls, raw: Any) -> Any:
        given = as_mapping(raw) or {}
        for key in ("path", "file"):
            if key in given:
                raise PydanticCustomError(
                    "path_not_allowed", _PATH_REMEDY, {"key": key, "value": shown(given[key])}
                )
        return raw

    @model_validator(mode="after")
    def _ids_are_ids(self) -> Self:
        for key, value in (("id", self.id), ("eval_id", self.eval_id)):
            if value is not None and not ids.is_id(value, "ds"):
                raise PydanticCustomError(
                    "path_not_allowed", _PATH_REMEDY, {"key": key, "value": shown(value)}
                )
        return self

    @model_validator(mode="after")
    def _one_kind_of_evaluation(self) -> Self:
        if self.val_size is not None and self.eval_id is not None:
            raise PydanticCustomError(
                "contradiction",
                "val_size holds rows of this data set out and eval_id names another one; give one",
                {"key": "eval_id"},
            )
        if self.val_size is not None and self.val_size >= 1 and self.val_size % 1:
            raise PydanticCustomError(
                "invalid_val_size",
                "val_size must be below 1 (a fraction) or a whole number of rows, got {value}",
                {"key": "val_size", "value": self.val_size},
            )
        return self

    @property
    def is_evaluated(self) -> bool:
        """Whether there are rows to evaluate on."""
        return self.val_size is not None or self.eval_id is not None


_PATH_REMEDY = (
    "{value} is no data set id (ds-...); upload the file with POST /datasets or"
    " `lorad datasets upload` and give its id"
)


class TrainingSpec(Group):
    """The optimization."""

    group_name: ClassVar[str] = "training"

    num_train_epochs: float = Field(default=1.0, gt=0, le=10_000)
    """Passes over the data; not together with max_steps."""
    max_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimizer steps to run; null derives it from num_train_epochs."""
    per_device_train_batch_size: int = Field(default=4, ge=1, le=4096)
    """Rows in a micro-batch."""
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=65_536)
    """Micro-batches per optimizer step."""
    learning_rate: float = Field(default=2e-4, gt=0, le=10)
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup_steps: float = Field(default=0.03, ge=0)
    """Optimizer steps of linear warm-up; below 1 it is a fraction of all steps."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of the adapter weights."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this L2 norm."""
    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    """Optimizer; the 8-bit ones keep their moments in 8 bits. `paged` needs a device with paging
    and says so where there is none."""
    packing: bool = False
    """Fill rows of max_length with several samples each; none sees another. Batches hold no padding
    without it too: packing makes them equally long."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass: less memory, more time. `auto` is off."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], NotBuilt("float16")] = (
        "auto"
    )
    """Data type of the base model; `auto` is bfloat16 on CUDA, float32 on CPU. float16 is not
    available yet."""
    save_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimizer steps between checkpoints; null saves at the end only. The last is always saved."""
    save_total_limit: int | None = Field(default=3, ge=2, le=1_000_000)
    """Checkpoints to keep, pinned ones not counted; null keeps all."""
    eval_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimizer steps between evaluations; null evaluates at the end only. Needs rows to evaluate
    on (`dataset.val_size` or `dataset.eval_id`)."""
    eval_on_start: bool = False
    """Also evaluate before the first step: the loss of the base model, to compare with."""
    logging_steps: int = Field(default=1, ge=1, le=100_000_000)
    """Optimizer steps between metric rows; the first and the last step are always logged."""
    early_stopping_patience: int | None = Field(default=None, ge=1, le=1_000_000)
    """Evaluations in a row without a lower eval loss after which the run ends. Needs eval_steps."""

    @model_validator(mode="after")
    def _whole_warmup(self) -> Self:
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise PydanticCustomError(
                "invalid_warmup",
                "warmup_steps must be below 1 (a fraction) or a whole number of steps, got {value}",
                {"key": "warmup_steps", "value": self.warmup_steps},
            )
        return self


class ResourceSpec(Group):
    """What the run needs of a machine."""

    group_name: ClassVar[str] = "resources"

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; `auto` takes what the worker has."""
    num_gpus: Annotated[int, NotBuilt()] = Field(default=1, ge=1)
    """GPUs for this run. Only 1 is available yet."""
    max_memory_gb: float | None = Field(default=None, gt=0, le=100_000)
    """Memory that the run may use, in GB (1e9 bytes): of the process on the CPU, of the GPU on
    CUDA."""


class MonitoringSpec(Group):
    """What is measured beside the step metrics."""

    group_name: ClassVar[str] = "monitoring"

    gradient_flow_steps: int = Field(default=50, ge=0, le=100_000_000)
    """Optimizer steps between gradient-flow reports, beside those of steps 1 to 3; 0 makes none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss or gradient does. The update is never applied: `stop` fails the
    job, `skip` goes on with the next step."""
    max_nonfinite_in_a_row: int = Field(default=10, ge=1, le=1_000_000)
    """Skipped steps in a row after which the job fails all the same."""
