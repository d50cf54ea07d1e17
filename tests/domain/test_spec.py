"""JobSpec: every key has an effect or is refused by name, and bad values name the field."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from app.domain.groups import NotBuilt
from app.domain.spec import GROUPS, JobSpec

DATASET_ID = "ds-" + "0123456789ab" * 2
OTHER_ID = "ds-" + "ba9876543210" * 2
MINIMAL = {"base_model": "smollm2-135m-instruct", "dataset": {"id": DATASET_ID}}

# Key -> values other than the default that this version honours.
ACCEPTED: dict[str, list[Any]] = {
    "base_model": ["other-model"],
    "preset": ["minimal", "standard", "full-attention", "mlp", "all-linear"],
    "name": ["my first run"],
    "priority": [-100, 100],
    "metadata": [{"team": "blue"}],
    "seed": [0, 2**31 - 1],
    "lora.r": [1, 1024],
    "lora.lora_alpha": [1, 8192],
    "lora.lora_dropout": [0.1],
    "lora.target_modules": [["q_proj"], "mlp"],
    "lora.use_rslora": [True],
    "lora.use_dora": [True],
    "lora.modules_to_save": [["lm_head"]],
    "lora.bias": ["all", "lora_only"],
    "lora.rank_pattern": [{"q_proj": 8}],
    "lora.alpha_pattern": [{"layers.0.q_proj": 8}],
    "dataset.id": [OTHER_ID],
    "dataset.format": ["chat", "sharegpt", "alpaca", "prompt-completion", "text", "tokenized"],
    "dataset.chat_template": ["{{ messages }}"],
    "dataset.field_mapping": [{"text": "body"}],
    "dataset.train_on_inputs": [True],
    "dataset.max_length": [8, 1_048_576],
    "dataset.on_too_long": ["drop", "fail"],
    "dataset.max_dropped_fraction": [0.0, 1.0],
    "training.num_train_epochs": [0.5, 3],
    "training.max_steps": [1, 20],
    "training.per_device_train_batch_size": [1, 4096],
    "training.gradient_accumulation_steps": [8],
    "training.learning_rate": [1e-5],
    "training.lr_scheduler_type": ["linear", "constant", "constant_with_warmup"],
    "training.warmup_steps": [0, 0.1, 10],
    "training.weight_decay": [0.01],
    "training.max_grad_norm": [0.3],
    "training.gradient_checkpointing": [True, False],
    "training.dtype": ["float32", "bfloat16"],
    "training.save_steps": [5],
    "training.save_total_limit": [2, None],
    "training.logging_steps": [10],
    "training.optim": ["adamw_8bit", "paged_adamw_8bit"],
    "training.packing": [True],
    "resources.device": ["cpu", "cuda"],
    "resources.max_memory_gb": [16.0],
    "monitoring.gradient_flow_steps": [0, 10],
    "monitoring.on_nonfinite": ["skip"],
    "monitoring.max_nonfinite_in_a_row": [1],
}

# Key -> values that the design knows and this version refuses by name.
REFUSED: dict[str, list[Any]] = {
    "method": ["dpo"],
    "resume_from": [{"job_id": "job-" + "0" * 24}],
    "quantization.bnb_4bit_compute_dtype": ["float16"],
    "training.dtype": ["float16"],
    "resources.num_gpus": [2],
}

# Key -> values that are honoured only together with other keys, and the other keys.
TOGETHER: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "adapter": [("qlora", {})],
    "quantization.load_in_4bit": [(True, {})],
    "quantization.bnb_4bit_quant_type": [("fp4", {"adapter": "qlora"})],
    "quantization.bnb_4bit_use_double_quant": [(False, {"adapter": "qlora"})],
    "quantization.bnb_4bit_compute_dtype": [
        ("float32", {"adapter": "qlora"}),
        ("bfloat16", {"adapter": "qlora"}),
    ],
    "dataset.val_size": [(0.1, {}), (10, {})],
    "dataset.eval_id": [(OTHER_ID, {})],
    "training.eval_on_start": [(True, {"dataset.val_size": 0.1})],
    "training.eval_steps": [(10, {"dataset.val_size": 0.1})],
    "training.early_stopping_patience": [(2, {"dataset.val_size": 0.1, "training.eval_steps": 10})],
}


def fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted path and the definition of every key of a spec."""
    for key, field in JobSpec.model_fields.items():
        if key not in GROUPS:
            yield key, field
    for group, model in GROUPS.items():
        for key, field in model.model_fields.items():
            yield f"{group}.{key}", field


def literals(annotation: Any) -> set[Any]:
    """Return the values of every Literal inside a type."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return set().union(*(literals(part) for part in get_args(annotation)))


def pairs(table: dict[str, list[Any]]) -> list[Any]:
    cases = ((path, value) for path, values in table.items() for value in values)
    return [pytest.param(path, value, id=f"{path}={value}"[:60]) for path, value in cases]


def with_value(path: str, value: Any) -> dict[str, Any]:
    group, _, key = path.rpartition(".")
    if not group:
        return {**MINIMAL, key: value}
    return {**MINIMAL, group: {**MINIMAL.get(group, {}), key: value}}


def with_values(values: dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = MINIMAL
    for path, value in values.items():
        group, _, key = path.rpartition(".")
        raw = {**raw, group: {**raw.get(group, {}), key: value}} if group else {**raw, key: value}
    return raw


def value_of(spec: JobSpec, path: str) -> Any:
    value: Any = spec
    for part in path.split("."):
        value = getattr(value, part)
    return value


def errors_of(raw: Any) -> list[Any]:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(raw)
    return list(caught.value.errors())


def test_every_key_of_a_spec_is_walked():
    assert {path for path, _ in fields()} == set(ACCEPTED) | set(REFUSED) | set(TOGETHER)


def test_every_choice_of_every_key_is_walked():
    for path, field in fields():
        together = [value for value, _ in TOGETHER.get(path, [])]
        walked = {
            repr(value) for value in ACCEPTED.get(path, []) + REFUSED.get(path, []) + together
        }
        choices = {repr(value) for value in literals(field.annotation) - {field.default}}

        assert choices <= walked, path


def test_the_marked_keys_are_the_refused_ones():
    marked = {
        path
        for path, field in fields()
        if any(isinstance(marker, NotBuilt) for marker in field.metadata)
    }

    assert marked == set(REFUSED)


@pytest.mark.parametrize(
    ("path", "value", "others"),
    [(path, *case) for path, cases in TOGETHER.items() for case in cases],
)
def test_a_value_that_needs_other_keys_is_kept_with_them(
    path: str, value: Any, others: dict[str, Any]
):
    spec = JobSpec.model_validate(with_values({**others, path: value}))

    assert value_of(spec, path) == value
    assert value_of(spec, path) != value_of(JobSpec.model_validate(MINIMAL), path)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_qlora_and_load_in_4bit_follow_from_each_other():
    named = JobSpec.model_validate({**MINIMAL, "adapter": "qlora"})
    loaded = JobSpec.model_validate({**MINIMAL, "quantization": {"load_in_4bit": True}})

    assert named == loaded
    assert (named.adapter, named.quantization.load_in_4bit) == ("qlora", True)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"adapter": "lora", "quantization.load_in_4bit": True}, "quantization.load_in_4bit"),
        ({"adapter": "qlora", "quantization.load_in_4bit": False}, "quantization.load_in_4bit"),
        ({"quantization.bnb_4bit_quant_type": "fp4"}, "quantization"),
        ({"training.eval_steps": 5}, "training.eval_steps"),
        ({"training.eval_on_start": True}, "training.eval_on_start"),
        (
            {"dataset.val_size": 5, "training.early_stopping_patience": 2},
            "training.early_stopping_patience",
        ),
        ({"dataset.val_size": 0.5, "dataset.eval_id": OTHER_ID}, "dataset.eval_id"),
        ({"dataset.val_size": 2.5}, "dataset.val_size"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_by_name(values: dict[str, Any], key: str):
    [error] = errors_of(with_values(values))

    assert ".".join([*error["loc"], error["ctx"]["key"]]) == key


@pytest.mark.parametrize(("path", "value"), pairs(ACCEPTED))
def test_an_honoured_value_is_kept(path: str, value: Any):
    spec = JobSpec.model_validate(with_value(path, value))

    assert value_of(spec, path) == value
    assert value_of(spec, path) != value_of(JobSpec.model_validate(MINIMAL), path)


@pytest.mark.parametrize(("path", "value"), pairs(REFUSED))
def test_a_value_that_is_not_built_is_refused_by_name(path: str, value: Any):
    group, _, key = path.rpartition(".")

    [error] = errors_of(with_value(path, value))

    assert error["type"] == "not_available"
    assert (*error["loc"], error["ctx"]["key"]) == ((group, key) if group else (key,))
    assert key in error["msg"]
    assert "not available" in error["msg"]


@pytest.mark.parametrize("path", sorted(REFUSED))
def test_the_default_of_a_key_that_is_not_built_may_be_written_out(path: str):
    default = value_of(JobSpec.model_validate(MINIMAL), path)

    assert value_of(JobSpec.model_validate(with_value(path, default)), path) == default


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lora.r", 0),
        ("lora.r", -8),
        ("lora.r", 1025),
        ("lora.r", "8"),
        ("lora.r", 8.0),
        ("lora.r", True),
        ("lora.lora_alpha", 0),
        ("lora.lora_dropout", 1.0),
        ("lora.lora_dropout", -0.1),
        ("lora.target_modules", []),
        ("lora.target_modules", ["q proj"]),
        ("dataset.max_length", 7),
        ("dataset.max_dropped_fraction", 1.1),
        ("training.max_steps", 0),
        ("training.max_steps", -1),
        ("training.num_train_epochs", 0),
        ("training.per_device_train_batch_size", 0),
        ("training.gradient_accumulation_steps", 0),
        ("training.learning_rate", 0),
        ("training.learning_rate", float("nan")),
        ("training.learning_rate", float("inf")),
        ("training.learning_rate", "2e-4"),
        ("training.lr_scheduler_type", "polynomial"),
        ("training.warmup_steps", -1),
        ("training.weight_decay", 1.5),
        ("training.max_grad_norm", 0),
        ("training.save_steps", 0),
        ("training.save_total_limit", 1),
        ("training.logging_steps", 0),
        ("training.gradient_checkpointing", "yes"),
        ("resources.device", "tpu"),
        ("base_model", "../etc"),
        ("base_model", "org/team/model"),
        ("base_model", ""),
        ("base_model", None),
        ("priority", 101),
        ("seed", -1),
        ("seed", 2**31),
        ("name", "n" * 201),
        ("name", "a\0b"),
        ("name", "\ud800"),
        ("metadata", {"": "x"}),
        ("metadata", {"k": 1}),
        ("metadata", {"k": "v" * 513}),
        ("metadata", {str(n): "v" for n in range(17)}),
        ("metadata", {"k\0": "v"}),
        ("lora", None),
        ("training", []),
    ],
)
def test_a_value_out_of_range_or_type_names_its_key(path: str, value: Any):
    errors = errors_of(with_value(path, value))

    assert all(error["loc"][: path.count(".") + 1] == tuple(path.split(".")) for error in errors)


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("lora.target_modules", "everything", "unknown_preset"),
        ("training.warmup_steps", 1.5, "invalid_warmup"),
        ("dataset.id", "data.jsonl", "path_not_allowed"),
        ("dataset.id", DATASET_ID + "\n", "path_not_allowed"),
        ("dataset.path", "rows.jsonl", "path_not_allowed"),
        ("dataset.file", "rows.jsonl", "path_not_allowed"),
    ],
)
def test_a_rule_of_a_group_names_its_key(path: str, value: Any, kind: str):
    group, _, key = path.rpartition(".")

    [error] = errors_of(with_value(path, value))

    assert error["type"] == kind
    assert error["loc"] == (group,)
    assert error["ctx"]["key"] == key


@pytest.mark.parametrize("key", ["base_model", "dataset"])
def test_what_has_no_default_must_be_given(key: str):
    [error] = errors_of({name: value for name, value in MINIMAL.items() if name != key})

    assert (error["type"], error["loc"]) == ("missing", (key,))


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("lora.lora_aplha", "lora_alpha"),
        ("training.learning_rat", "learning_rate"),
        ("training.learning_rates", "learning_rate"),
        ("base_modell", "base_model"),
        ("max_steps", "training.max_steps"),
        ("target_modules", "lora.target_modules"),
        ("max_length", "dataset.max_length"),
        ("load_in_4bit", "quantization.load_in_4bit"),
        ("leraning_rate", "training.learning_rate"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(path: str, suggestion: str):
    [error] = errors_of(with_value(path, 1))

    assert error["type"] == "unknown_key"
    assert error["ctx"]["key"] == path.rpartition(".")[2]
    assert f"did you mean {suggestion}?" in error["msg"]


def test_an_unknown_key_unlike_any_other_is_answered_with_all_of_them():
    [error] = errors_of(with_value("resources.zzzzzz", 1))

    assert "valid keys: device, max_memory_gb, num_gpus" in error["msg"]


@given(
    st.fixed_dictionaries(
        {},
        optional={
            path: st.sampled_from(values) for path, values in ACCEPTED.items() if path != "preset"
        },
    )
)
def test_a_spec_is_read_back_from_its_json_as_it_was(chosen: dict[str, Any]):
    spec = JobSpec.model_validate(with_values(chosen))

    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert all(value_of(spec, path) == value for path, value in chosen.items())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(sorted({part for path, _ in fields() for part in path.split(".")}))


@given(st.dictionaries(KEYS | st.text(st.characters(codec=None), max_size=8), JSON_VALUES))
def test_any_json_is_a_spec_or_a_validation_error_that_can_be_answered(raw: dict[str, Any]):
    try:
        JobSpec.model_validate({**MINIMAL, **raw})
    except ValidationError as error:
        for detail in error.errors():
            detail["msg"].encode()
