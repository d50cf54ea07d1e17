"""JobSpec: everything about a training run, in Hugging Face's names."""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from app.domain import aliases
from app.domain.groups import (
    Group,
    Label,
    Name,
    NotBuilt,
    as_mapping,
    canonical,
    resolve_alias,
    shown,
    unknown_key,
)
from app.domain.options import (
    DatasetSpec,
    LoraSpec,
    MonitoringSpec,
    QuantizationSpec,
    ResourceSpec,
    TrainingSpec,
)
from app.domain.presets import PRESETS

MetadataKey = Annotated[Label, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[Label, Field(max_length=512)]
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_MODEL_NAME = re.compile(rf"(?=.{{1,128}}\Z){_PART}(?:/{_PART})?")


def _model_name(name: str) -> str:
    if not _MODEL_NAME.fullmatch(name):
        raise PydanticCustomError(
            "invalid_model_name",
            "base_model {name} is no name of a model here: models are not loaded from a hub; add"
            " it once with `lorad models add`, and see GET /models for the names",
            {"name": shown(repr(name)), "key": ""},
        )
    return name


ModelName = Annotated[str, AfterValidator(_model_name)]


class ResumeFrom(Group):
    """A checkpoint of another job to start from."""

    group_name: ClassVar[str] = "resume_from"

    job_id: str
    """Id of the other job."""
    checkpoint: int | str = "latest"
    """Step of the checkpoint, `latest` or `best`."""


class JobSpec(Group):
    """A training job as the user asked for it, with every default filled in."""

    base_model: ModelName
    """Name of a folder under `models/`, such as `name` or `org/name` (see `GET /models`)."""
    method: Annotated[Literal["sft", "dpo"], NotBuilt("dpo")] = "sft"
    """Training method. Only `sft` (supervised fine-tuning) is available yet."""
    adapter: Literal["lora", "qlora"] = "lora"
    """Kind of adapter: `qlora` trains it on a base model quantized to 4 bits."""
    preset: Literal["minimal", "standard", "full-attention", "mlp", "all-linear"] | None = None
    """Fills `lora.target_modules`, `lora.r` and `lora.lora_alpha` where they are not given."""
    name: Annotated[Name, Field(max_length=200)] | None = None
    """A label for people; any text."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher runs first; equal ones run in the order they came."""
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)
    """Up to 16 pairs of text that travel with the job."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    """Seed of the adapter's initial weights, the data order and dropout."""
    resume_from: Annotated[
        ResumeFrom | None, NotBuilt(instead="POST /jobs/{id}/resume continues the same job")
    ] = None
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
        if given is None:
            return raw
        return _with_adapter(_with_preset(canonical(_grouped(given), cls)))

    @model_validator(mode="after")
    def _quantization_fits_adapter(self) -> Self:
        if (self.adapter == "qlora") != self.quantization.load_in_4bit:
            raise PydanticCustomError(
                "contradiction",
                "load_in_4bit = {value} contradicts adapter = {adapter}; leave load_in_4bit out",
                {
                    "key": "quantization.load_in_4bit",
                    "value": str(self.quantization.load_in_4bit).lower(),
                    "adapter": self.adapter,
                },
            )
        if self.adapter == "lora" and self.quantization != QuantizationSpec():
            raise PydanticCustomError(
                "contradiction",
                "quantization is for adapter = qlora; set that, or leave quantization out",
                {"key": "quantization"},
            )
        return self

    @model_validator(mode="after")
    def _evaluation_is_complete(self) -> Self:
        if self.training.eval_steps is not None and not self.dataset.is_evaluated:
            raise PydanticCustomError(
                "nothing_to_evaluate",
                "eval_steps needs rows to evaluate on; give dataset.val_size or dataset.eval_id",
                {"key": "training.eval_steps"},
            )
        if self.training.eval_on_start and not self.dataset.is_evaluated:
            raise PydanticCustomError(
                "nothing_to_evaluate",
                "eval_on_start needs rows to evaluate on; give dataset.val_size or dataset.eval_id",
                {"key": "training.eval_on_start"},
            )
        if self.training.early_stopping_patience is not None and self.training.eval_steps is None:
            raise PydanticCustomError(
                "nothing_to_evaluate",
                "early_stopping_patience counts evaluations; give training.eval_steps too",
                {"key": "training.early_stopping_patience"},
            )
        return self


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
    paths = {key: f"{group}.{key}" for group, model in GROUPS.items() for key in model.model_fields}
    known = [*JobSpec.model_fields, *aliases.of_group(""), *paths]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if near and near[0] in paths:
        raise unknown_key(name, [], extra_hint=f"did you mean {paths[near[0]]}?")


def _with_preset(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill the lora group from the preset; what the user gave wins."""
    preset = PRESETS.get(raw["preset"]) if isinstance(raw.get("preset"), str) else None
    given = as_mapping(raw.get("lora", {}))
    if preset is None or given is None:
        return raw
    filled = preset.model_dump(include={"target_modules", "r", "lora_alpha"}, exclude_none=True)
    return {**raw, "lora": {**filled, **canonical(given, LoraSpec)}}


def _with_adapter(raw: dict[str, Any]) -> dict[str, Any]:
    """Let `adapter: qlora` and `load_in_4bit: true` follow from each other where one is missing."""
    written = as_mapping(raw.get("quantization", {}))
    if written is None:
        return raw
    given = canonical(written, QuantizationSpec)
    if raw.get("adapter") == "qlora" and "load_in_4bit" not in given:
        return {**raw, "quantization": {**given, "load_in_4bit": True}}
    if "adapter" not in raw and given.get("load_in_4bit") is True:
        return {**raw, "adapter": "qlora"}
    return raw


GROUPS: dict[str, type[Group]] = {
    "lora": LoraSpec,
    "quantization": QuantizationSpec,
    "dataset": DatasetSpec,
    "training": TrainingSpec,
    "resources": ResourceSpec,
    "monitoring": MonitoringSpec,
}
