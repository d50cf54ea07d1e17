"""Requests in OpenAI's words: how a job, an upload and a resume are asked for."""

from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from app.domain import aliases
from app.domain.groups import (
    Group,
    Label,
    as_mapping,
    canonical,
    nearest,
    resolve_alias,
    shown,
)
from app.domain.options import TrainingSpec
from app.domain.spec import JobSpec, MetadataKey, MetadataValue

AUTO = "auto"
AUTO_EPOCHS = 3.0
BASE_LEARNING_RATE = 2e-4
ONLY_PURPOSE = "fine-tune"
MIN_FILE_SECONDS, MAX_FILE_SECONDS = 3600, 2_592_000
# Field of a job's spec -> the name that the client gave it by.
NAMES = {
    "base_model": "model",
    "dataset.id": "training_file",
    "dataset.eval_id": "validation_file",
    "name": "suffix",
}


# Name -> kinds, least, most. The multiplier's bounds keep the learning rate within ours.
_RANGES: dict[str, tuple[tuple[type[int] | type[float], ...], float, float]] = {
    "n_epochs": ((int,), 1, 50),
    "batch_size": ((int,), 1, 256),
    "learning_rate_multiplier": ((int, float), 1e-9, 50_000),
}


class _Request(Group):
    """Base of requests and their parts: null means not given."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_null(cls, raw: Any) -> Any:
        given = as_mapping(raw)
        if given is None:
            return raw
        return {name: value for name, value in given.items() if value is not None}


class Hyperparameters(_Request):
    """Hyperparameters of the supervised method."""

    group_name: ClassVar[str] = "hyperparameters"

    n_epochs: Literal["auto"] | int = "auto"
    """Passes over the data, 1 to 50; `auto` is 3."""
    batch_size: Literal["auto"] | int = "auto"
    """Rows in an optimizer step, 1 to 256; `auto` is 4."""
    learning_rate_multiplier: Literal["auto"] | float = "auto"
    """Factor of the learning rate 2e-4, above 0; `auto` is 1."""

    @field_validator("n_epochs", "batch_size", "learning_rate_multiplier", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: object, info: ValidationInfo) -> object:
        name = str(info.field_name)
        kinds, least, most = _RANGES[name]
        if value == AUTO:
            return value
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if is_number and least <= cast(float, value) <= most:
            return value
        raise PydanticCustomError(
            "out_of_range",
            "{name} must be 'auto' or {kind} from {least} to {most}, got {value}",
            {
                "key": "",
                "name": name,
                "kind": "a whole number" if kinds == (int,) else "a number",
                "least": f"{least:g}",
                "most": f"{most:g}",
                "value": shown(repr(value)),
            },
        )


class Supervised(_Request):
    """Settings of the supervised method."""

    group_name: ClassVar[str] = "supervised"

    hyperparameters: Hyperparameters = Hyperparameters()
    """Its hyperparameters."""


class Method(_Request):
    """How to train."""

    group_name: ClassVar[str] = "method"

    type: Literal["supervised"]
    """Only `supervised` is available."""
    supervised: Supervised | None = None
    """Settings of the supervised method."""

    @model_validator(mode="before")
    @classmethod
    def _only_supervised(cls, raw: Any) -> Any:
        given = as_mapping(raw)
        for name in ("dpo", "reinforcement"):
            if given is not None and (given.get("type") == name or given.get(name) is not None):
                raise PydanticCustomError(
                    "not_available",
                    "the method {name} is not available in this version; use supervised",
                    {"name": name, "key": "type" if given.get("type") == name else name},
                )
        return raw


class CreateJob(_Request):
    """A training job in OpenAI's words; lora, quantization, training and so on are ours."""

    group_name: ClassVar[str] = "fine_tuning.job"

    model: Annotated[Label, Field(min_length=1, max_length=400)]
    """Base model (see `GET /v1/models`)."""
    training_file: Annotated[Label, Field(min_length=1, max_length=100)]
    """Id of the file to train on."""
    validation_file: Annotated[Label, Field(min_length=1, max_length=100)] | None = None
    """Id of a file to evaluate on."""
    suffix: Annotated[Label, Field(min_length=1, max_length=64)] | None = None
    """Becomes a part of the fine-tuned model's name."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    """Seed of weights, order and dropout."""
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)
    """Up to 16 pairs of text that travel with the job."""
    method: Method | None = None
    """How to train."""
    hyperparameters: Hyperparameters | None = None
    """The same as method.supervised.hyperparameters; OpenAI's older place for them."""
    integrations: list[Any] | None = None
    """Not available: only an empty list."""
    adapter: Literal["lora", "qlora"] | None = None
    """Ours: kind of adapter."""
    preset: str | None = None
    """Ours: fills the lora group."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Ours: higher runs first."""
    lora: dict[str, Any] | None = None
    """Ours: the adapter, as in `POST /jobs`."""
    quantization: dict[str, Any] | None = None
    """Ours: the quantization, as in `POST /jobs`."""
    dataset: dict[str, Any] | None = None
    """Ours: how rows become tokens, as in `POST /jobs` without the ids."""
    training: dict[str, Any] | None = None
    """Ours: the optimization, as in `POST /jobs`."""
    resources: dict[str, Any] | None = None
    """Ours: what it needs of a machine, as in `POST /jobs`."""
    monitoring: dict[str, Any] | None = None
    """Ours: what else is measured, as in `POST /jobs`."""

    @model_validator(mode="before")
    @classmethod
    def _canonical_keys(cls, raw: Any) -> Any:
        given = as_mapping(raw)
        if given is None:
            return raw
        result = {name: value for name, value in given.items() if value is not None}
        if "from_checkpoint" in result:
            raise PydanticCustomError(
                "not_available",
                "a new job cannot start {key} yet; resume the job that the checkpoint is of:"
                " jobs.resume(JOB, extra_body=...) takes from_checkpoint",
                {"key": "from_checkpoint"},
            )
        for name in [name for name in result if name not in cls.model_fields]:
            result = _moved(result, name)
        return result

    @field_validator("model")
    @classmethod
    def _only_base_models(cls, model: str) -> str:
        if model.startswith("ft:"):
            raise PydanticCustomError(
                "not_available",
                "a job cannot start from a fine-tuned model yet, got {model}; give its base model,"
                " or resume the job that made it",
                {"model": shown(model)},
            )
        return model

    @field_validator("integrations")
    @classmethod
    def _no_integrations(cls, integrations: list[Any] | None) -> list[Any] | None:
        if integrations:
            kind = (as_mapping(integrations[0]) or {}).get("type", "?")
            raise PydanticCustomError(
                "not_available",
                "{kind} is not available in this version; leave integrations out",
                {"kind": shown(kind), "key": ""},
            )
        return integrations

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        for name in ("id", "eval_id"):
            if name in (self.dataset or {}):
                other = "training_file" if name == "id" else "validation_file"
                raise PydanticCustomError(
                    "contradiction",
                    "{key} is given as {other} here; leave {key} out",
                    {"key": f"dataset.{name}", "other": other},
                )
        newer = self.method and self.method.supervised and self.method.supervised.hyperparameters
        if newer and self.hyperparameters and newer != self.hyperparameters:
            raise PydanticCustomError(
                "contradiction",
                "hyperparameters contradicts method.supervised.hyperparameters; give one of them",
                {"key": "hyperparameters"},
            )
        return self

    @property
    def asked(self) -> Hyperparameters:
        """The hyperparameters, wherever they were given."""
        if self.hyperparameters is not None:
            return self.hyperparameters
        supervised = self.method.supervised if self.method else None
        return supervised.hyperparameters if supervised else Hyperparameters()

    def spec(self, *, dataset_id: str, eval_id: str | None) -> JobSpec:
        """Return the job in our words.

        Raises:
            ValidationError: A value of one of our groups is none, or two of them contradict.
            PydanticCustomError: A hyperparameter contradicts the training group.
        """
        groups = ("adapter", "preset", "lora", "quantization", "resources", "monitoring")
        given = {name: getattr(self, name) for name in groups if getattr(self, name) is not None}
        rows = {**(self.dataset or {}), "id": dataset_id}
        if eval_id is not None:
            rows["eval_id"] = eval_id
        return JobSpec.model_validate(
            {
                **given,
                "base_model": self.model,
                "name": self.suffix,
                "seed": self.seed,
                "metadata": self.metadata,
                "priority": self.priority,
                "dataset": rows,
                "training": _training(self.asked, self.training or {}),
            }
        )


class Expiry(_Request):
    """When the file is removed."""

    group_name: ClassVar[str] = "expires_after"

    anchor: Literal["created_at"]
    """Always `created_at`."""
    seconds: int = Field(ge=MIN_FILE_SECONDS, le=MAX_FILE_SECONDS)
    """Life of the file in seconds."""


class CreateUpload(_Request):
    """A file that will come in parts."""

    group_name: ClassVar[str] = "upload"

    bytes: int = Field(ge=1, le=2**62)
    """Size of the whole file in bytes."""
    filename: Annotated[Label, Field(min_length=1, max_length=255)]
    """Name of the file."""
    mime_type: Annotated[Label, Field(max_length=255)]
    """Kind of the file; its content decides."""
    purpose: Annotated[Label, Field(max_length=64)]
    """Only `fine-tune` is available."""
    expires_after: Expiry | None = None
    """When the file is removed; never when not given."""


class CompleteUpload(_Request):
    """The parts in their order."""

    group_name: ClassVar[str] = "complete"

    part_ids: list[Annotated[Label, Field(max_length=100)]] = Field(max_length=10_000)
    """Ids of all parts in the order of the file."""
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None
    """MD5 of the whole file, hexadecimal."""


class ResumeJob(_Request):
    """Where to continue from."""

    group_name: ClassVar[str] = "resume"

    from_checkpoint: int | Annotated[Label, Field(min_length=1, max_length=400)] | None = None
    """A checkpoint's id (ftckpt_...), its model name, a step, `latest` or `best`."""
    training: dict[str, Any] = Field(default_factory=dict)
    """New values for max_steps, num_train_epochs, learning_rate, save_steps, eval_steps or
    logging_steps."""


def _moved(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """Put a key that another trainer has at the top where it belongs here.

    Raises:
        PydanticCustomError: Nobody has such a key, or it contradicts another one.
    """
    group, _, key = aliases.ALIASES.get(name, "").rpartition(".")
    known = [
        *CreateJob.model_fields,
        *(alias for alias, at in aliases.ALIASES.items() if "." in at),
    ]
    if not group or (group, key) == ("dataset", "id"):
        raise PydanticCustomError(
            "unknown_key",
            "unknown key {key}; {hint}",
            {"key": shown(name), "hint": nearest(name, known)},
        )
    members = as_mapping(raw.get(group) or {})
    if members is None:
        return raw
    value = resolve_alias(name, raw[name], key, members)
    return {**{each: raw[each] for each in raw if each != name}, group: {**members, key: value}}


def _training(asked: Hyperparameters, written: dict[str, Any]) -> dict[str, Any]:
    """Return the training group with the hyperparameters in it."""
    ours = canonical(written, TrainingSpec)
    result = dict(ours)
    if asked.n_epochs != AUTO:
        _require_none(ours, "max_steps", "n_epochs", asked.n_epochs)
        _require_equal(ours, "num_train_epochs", asked.n_epochs, "n_epochs", asked.n_epochs)
        result["num_train_epochs"] = float(asked.n_epochs)
    elif ours.get("max_steps") is None:
        result.setdefault("num_train_epochs", AUTO_EPOCHS)
    if asked.learning_rate_multiplier != AUTO:
        rate = asked.learning_rate_multiplier * BASE_LEARNING_RATE
        multiplier = asked.learning_rate_multiplier
        _require_equal(ours, "learning_rate", rate, "learning_rate_multiplier", multiplier)
        result["learning_rate"] = rate
    if asked.batch_size != AUTO:
        result |= _batches(ours, asked.batch_size)
    return result


def _batches(ours: dict[str, Any], batch_size: int) -> dict[str, int]:
    """Return micro-batches that make a batch of the size that was asked for."""
    accumulated = ours.get("gradient_accumulation_steps", 1)
    rows = ours.get("per_device_train_batch_size")
    if not isinstance(accumulated, int) or accumulated < 1 or not isinstance(rows, int | None):
        return {}  # the training group refuses it by name
    if rows is None and batch_size % accumulated == 0:
        return {"per_device_train_batch_size": batch_size // accumulated}
    if rows is not None and rows * accumulated == batch_size:
        return {}
    key = "gradient_accumulation_steps" if rows is None else "per_device_train_batch_size"
    raise _contradiction(key, ours[key], "batch_size", batch_size)


def _require_none(ours: dict[str, Any], key: str, name: str, value: object) -> None:
    if ours.get(key) is not None:
        raise _contradiction(key, ours[key], name, value)


def _require_equal(ours: dict[str, Any], key: str, wanted: float, name: str, value: object) -> None:
    if key in ours and ours[key] != wanted:
        raise _contradiction(key, ours[key], name, value)


def _contradiction(key: str, given: object, name: str, value: object) -> PydanticCustomError:
    return PydanticCustomError(
        "contradiction",
        "training.{name} = {given} contradicts hyperparameters.{other} = {value}; give one of them",
        {
            "key": f"hyperparameters.{name}",
            "name": key,
            "given": shown(repr(given)),
            "other": name,
            "value": shown(repr(value)),
        },
    )
