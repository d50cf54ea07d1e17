"""JobSpec: everything about a training run, in Hugging Face's names."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.domain import aliases, ids
from app.domain.groups import (
    Group,
    Label,
    NotBuilt,
    as_mapping,
    canonical,
    resolve_alias,
    shown,
    unknown_key,
)
from app.domain.presets import ALL_LINEAR, PRESETS

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]
MetadataKey = Annotated[Label, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[Label, Field(max_length=512)]
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


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
    use_rslora: Annotated[bool, NotBuilt()] = False
    """Scale by lora_alpha / sqrt(r) instead. Not available yet."""
    use_dora: Annotated[bool, NotBuilt()] = False
    """Weight-decomposed LoRA. Not available yet."""
    modules_to_save: Annotated[list[ModuleName] | None, NotBuilt()] = None
    """Modules to train in full beside the adapter. Not available yet."""
    bias: Annotated[Literal["none", "all", "lora_only"], NotBuilt()] = "none"
    """Which biases to train. Only `none` is available yet."""

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
    """How the frozen base model is quantized (QLoRA). Not available yet."""

    group_name: ClassVar[str] = "quantization"

    load_in_4bit: Annotated[bool, NotBuilt()] = False
    """Load the base model in 4 bits. Not available yet."""
    bnb_4bit_quant_type: Annotated[Literal["nf4", "fp4"], NotBuilt()] = "nf4"
    """Data type of the 4-bit weights. Not available yet."""
    bnb_4bit_use_double_quant: Annotated[bool, NotBuilt()] = True
    """Quantize the quantization constants too. Not available yet."""
    bnb_4bit_compute_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], NotBuilt()
    ] = "auto"
    """Data type of the matrix products. Not available yet."""


class DatasetSpec(Group):
    """Which rows to train on and how they become tokens."""

    group_name: ClassVar[str] = "dataset"

    id: str
    """Id of an uploaded data set (`POST /datasets`)."""
    format: Literal["auto", "chat", "prompt-completion", "text"] = "auto"
    """Row format; `auto` takes what the upload found. One that the rows do not have is refused."""
    chat_template: Annotated[str | None, NotBuilt()] = None
    """Jinja template to use instead of the tokenizer's own. Not available yet."""
    train_on_inputs: bool = False
    """Also train on the prompt; by default only assistant turns and completions are targets."""
    max_length: int = Field(default=2048, ge=8, le=1_048_576)
    """Longest sequence in tokens."""
    on_too_long: Literal["truncate", "drop", "fail"] = "truncate"
    """What a row of more than max_length tokens does: lose its end, be left out, fail the job."""
    max_dropped_fraction: float = Field(default=0.05, ge=0, le=1)
    """Fail before training when more than this fraction of the rows was dropped."""
    val_size: Annotated[float | None, NotBuilt()] = Field(default=None, gt=0)
    """Rows held out for evaluation: below 1 a fraction, else a number. Not available yet."""
    eval_id: Annotated[str | None, NotBuilt()] = None
    """Id of a data set to evaluate on. Not available yet."""
    field_mapping: Annotated[dict[str, str] | None, NotBuilt()] = None
    """Our column name -> the data set's. Not available yet."""

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
    def _id_is_an_id(self) -> Self:
        if not ids.is_id(self.id, "ds"):
            raise PydanticCustomError(
                "path_not_allowed", _PATH_REMEDY, {"key": "id", "value": shown(self.id)}
            )
        return self


_PATH_REMEDY = (
    "{value} is no data set id (ds-...); upload the file with POST /datasets or"
    " `lorad datasets upload` and give its id"
)


class TrainingSpec(Group):
    """The optimization."""

    group_name: ClassVar[str] = "training"

    num_train_epochs: float = Field(default=1.0, gt=0, le=10_000)
    """Passes over the data; ignored when max_steps is given."""
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
    optim: Annotated[
        Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"],
        NotBuilt("adamw_8bit", "paged_adamw_8bit"),
    ] = "adamw_torch"
    """Optimizer. Only `adamw_torch` is available yet."""
    packing: Annotated[bool, NotBuilt()] = False
    """Fill rows of max_length with several samples. Not available yet; batches hold no padding
    anyway."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass: less memory, more time. `auto` is off."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], NotBuilt("float16")] = (
        "auto"
    )
    """Data type of the base model; `auto` is bfloat16 on CUDA, float32 on CPU. float16 is not
    available yet."""
    save_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints; null saves at the end only. The last is always saved."""
    save_total_limit: int | None = Field(default=3, ge=2)
    """Checkpoints to keep, pinned ones not counted; null keeps all."""
    eval_steps: Annotated[int | None, NotBuilt()] = Field(default=None, ge=1)
    """Optimizer steps between evaluations. Not available yet."""
    logging_steps: int = Field(default=1, ge=1)
    """Optimizer steps between metric rows; the first and the last step are always logged."""
    early_stopping_patience: Annotated[int | None, NotBuilt()] = Field(default=None, ge=1)
    """Evaluations without improvement before the run ends. Not available yet."""

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
    max_memory_gb: Annotated[float | None, NotBuilt()] = Field(default=None, gt=0)
    """Memory limit of the run in GB. Not available yet."""


class MonitoringSpec(Group):
    """What is measured beside the step metrics."""

    group_name: ClassVar[str] = "monitoring"

    gradient_flow_steps: Annotated[int, NotBuilt()] = Field(default=50, ge=0)
    """Optimizer steps between gradient-flow reports. Not available yet."""
    on_nonfinite: Annotated[Literal["stop", "skip"], NotBuilt("skip")] = "stop"
    """What a NaN or infinite loss or gradient does; the update is never applied. Only `stop` is
    available yet."""


class ResumeFrom(Group):
    """A checkpoint of another job to start from."""

    group_name: ClassVar[str] = "resume_from"

    job_id: str
    """Id of the other job."""
    checkpoint: int | str = "latest"
    """Step of the checkpoint, `latest` or `best`."""


class JobSpec(Group):
    """A training job as the user asked for it, with every default filled in."""

    base_model: Annotated[str, Field(pattern=MODEL_NAME_PATTERN)]
    """Name of a folder under `models/` (see `GET /models`)."""
    method: Annotated[Literal["sft", "dpo"], NotBuilt("dpo")] = "sft"
    """Training method. Only `sft` (supervised fine-tuning) is available yet."""
    adapter: Annotated[Literal["lora", "qlora"], NotBuilt("qlora")] = "lora"
    """Kind of adapter. Only `lora` is available yet."""
    preset: Literal["minimal", "standard", "full-attention", "mlp", "all-linear"] | None = None
    """Fills `lora.target_modules`, `lora.r` and `lora.lora_alpha` where they are not given."""
    name: Annotated[Label, Field(max_length=200)] | None = None
    """A label for people; any text."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher runs first; equal ones run in the order they came."""
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)
    """Up to 16 pairs of text that travel with the job."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    """Seed of the adapter's initial weights, the data order and dropout."""
    resume_from: Annotated[ResumeFrom | None, NotBuilt()] = None
    """Start from a checkpoint of another job. Not available yet; `POST /jobs/{id}/resume` continues
    the same job."""
    lora: LoraSpec = LoraSpec()
    quantization: QuantizationSpec = QuantizationSpec()
    dataset: DatasetSpec
    training: TrainingSpec = TrainingSpec()
    resources: ResourceSpec = ResourceSpec()
    monitoring: MonitoringSpec = MonitoringSpec()

    @model_validator(mode="before")
    @classmethod
    def _canonical_keys(cls, raw: Any) -> Any:
        given = as_mapping(raw)
        return raw if given is None else _with_preset(canonical(_grouped(given), cls))


def _grouped(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Move aliases found at the top of `raw` into the groups they belong to."""
    result = dict(raw)
    for name, value in raw.items():
        group, _, key = aliases.ALIASES.get(name, "").rpartition(".")
        if name in JobSpec.model_fields or not group:
            _suggest_group(name)
            continue
        del result[name]
        members = as_mapping(result.get(group, {}))
        if members is not None:
            result[group] = {**members, key: resolve_alias(name, value, key, members)}
    return result


def _suggest_group(name: str) -> None:
    """Raise when `name` is a key of a group that was written at the top.

    Raises:
        PydanticCustomError: The key belongs into a group.
    """
    if name in JobSpec.model_fields:
        return
    for group, model in GROUPS.items():
        if name in model.model_fields:
            raise unknown_key(name, [], extra_hint=f"did you mean {group}.{name}?")


def _with_preset(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill the lora group from the preset; what the user gave wins."""
    preset = PRESETS.get(raw["preset"]) if isinstance(raw.get("preset"), str) else None
    given = as_mapping(raw.get("lora", {}))
    if preset is None or given is None:
        return raw
    filled = preset.model_dump(include={"target_modules", "r", "lora_alpha"}, exclude_none=True)
    return {**raw, "lora": {**filled, **canonical(given, LoraSpec)}}


GROUPS: dict[str, type[Group]] = {
    "lora": LoraSpec,
    "quantization": QuantizationSpec,
    "dataset": DatasetSpec,
    "training": TrainingSpec,
    "resources": ResourceSpec,
    "monitoring": MonitoringSpec,
}
