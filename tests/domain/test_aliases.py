"""Aliases: other tools' names reach our keys, wherever they are written, and never contradict."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.aliases import ALIASES, of_group
from app.domain.spec import GROUPS, JobSpec

DATASET_ID = "ds-" + "0123456789ab" * 2
# Our key -> a value that the key takes, is not its default, and is no preset's.
SAMPLES: dict[str, Any] = {
    "base_model": "some-model",
    "dataset.id": DATASET_ID,
    "lora.r": 7,
    "lora.lora_alpha": 9,
    "lora.lora_dropout": 0.25,
    "lora.target_modules": ["q_proj"],
    "lora.use_rslora": False,
    "lora.use_dora": False,
    "lora.modules_to_save": None,
    "quantization.load_in_4bit": False,
    "quantization.bnb_4bit_quant_type": "nf4",
    "quantization.bnb_4bit_use_double_quant": True,
    "dataset.max_length": 100,
    "dataset.chat_template": None,
    "dataset.val_size": None,
    "dataset.train_on_inputs": True,
    "training.num_train_epochs": 3,
    "training.per_device_train_batch_size": 2,
    "training.gradient_accumulation_steps": 5,
    "training.learning_rate": 1e-3,
    "training.lr_scheduler_type": "linear",
    "training.warmup_steps": 0.1,
    "training.optim": "adamw_torch",
    "training.max_grad_norm": 0.5,
    "training.packing": False,
    "training.save_steps": 11,
    "training.save_total_limit": 4,
    "training.eval_steps": None,
}
OTHER = {True: False, False: True, None: 1}


def minimal(path: str) -> dict[str, Any]:
    """Return the smallest spec that leaves `path` to be given."""
    raw: dict[str, Any] = {"base_model": "m", "dataset": {"id": DATASET_ID}}
    if path == "base_model":
        del raw["base_model"]
    if path == "dataset.id":
        raw["dataset"] = {}
    return raw


def put(raw: dict[str, Any], group: str, key: str, value: Any) -> dict[str, Any]:
    if not group:
        return {**raw, key: value}
    return {**raw, group: {**raw.get(group, {}), key: value}}


def value_at(spec: JobSpec, path: str) -> Any:
    group, _, key = path.rpartition(".")
    return getattr(getattr(spec, group) if group else spec, key)


def other_than(value: Any) -> Any:
    match value:
        case bool() | None:
            return OTHER[value]
        case str():
            return f"{value}-x"
        case list():
            return [*value, "x"]
        case _:
            return value * 2


def test_every_alias_is_the_name_of_an_existing_key_and_of_no_key_itself():
    for alias, path in ALIASES.items():
        group, _, key = path.rpartition(".")
        model = GROUPS[group] if group else JobSpec
        assert key in model.model_fields
        assert alias not in model.model_fields
        assert alias not in JobSpec.model_fields


@pytest.mark.parametrize(("alias", "path"), ALIASES.items())
def test_an_alias_at_the_top_reaches_its_key(alias: str, path: str):
    spec = JobSpec.model_validate({**minimal(path), alias: SAMPLES[path]})

    assert value_at(spec, path) == SAMPLES[path]


@pytest.mark.parametrize(("alias", "path"), [(a, p) for a, p in ALIASES.items() if "." in p])
def test_an_alias_in_its_group_reaches_its_key(alias: str, path: str):
    group = path.rpartition(".")[0]

    spec = JobSpec.model_validate(put(minimal(path), group, alias, SAMPLES[path]))

    assert value_at(spec, path) == SAMPLES[path]


@pytest.mark.parametrize(("alias", "path"), ALIASES.items())
def test_an_alias_may_repeat_its_key(alias: str, path: str):
    group, _, key = path.rpartition(".")
    raw = put(minimal(path), group, key, SAMPLES[path])

    spec = JobSpec.model_validate(put({**raw, alias: SAMPLES[path]}, group, alias, SAMPLES[path]))

    assert value_at(spec, path) == SAMPLES[path]


@pytest.mark.parametrize("at_top", [True, False], ids=["at the top", "in the group"])
@pytest.mark.parametrize(("alias", "path"), ALIASES.items())
def test_an_alias_that_contradicts_its_key_is_an_error(alias: str, path: str, at_top: bool):
    group, _, key = path.rpartition(".")
    raw = put(minimal(path), group, key, other_than(SAMPLES[path]))

    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(put(raw, "" if at_top else group, alias, SAMPLES[path]))

    [error] = caught.value.errors()
    assert error["type"] == "alias_conflict"
    assert alias in error["msg"]
    assert key in error["msg"]


def test_two_aliases_of_one_key_that_disagree_are_an_error():
    raw = {**minimal(""), "lora_rank": 8, "lora": {"rank": 4}}

    with pytest.raises(ValidationError, match=r"rank is another name of lora\.r"):
        JobSpec.model_validate(raw)


def test_an_alias_of_another_group_is_unknown_in_this_one():
    with pytest.raises(ValidationError, match="unknown key lr"):
        JobSpec.model_validate({**minimal(""), "lora": {"lr": 1e-4}})


@pytest.mark.parametrize("value", [1, 1.0, 100])
def test_a_warmup_ratio_of_one_or_more_is_an_error(value: float):
    with pytest.raises(ValidationError, match="warmup_ratio must be below 1"):
        JobSpec.model_validate({**minimal(""), "warmup_ratio": value})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("all", "all-linear"),
        ("mlp", "mlp"),
        ("q_proj", ["q_proj"]),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
    ],
)
def test_a_list_of_targets_may_be_written_as_one_text(given: str, expected: Any):
    spec = JobSpec.model_validate({**minimal(""), "lora_target": given})

    assert spec.lora.target_modules == expected


def test_modules_to_save_may_be_written_as_one_text():
    spec = JobSpec.model_validate({**minimal(""), "additional_target": "norm, lm_head"})

    assert spec.lora.modules_to_save == ["norm", "lm_head"]


@pytest.mark.parametrize(
    "raw", [{"quantization_bit": 4}, {"quantization": {"quantization_bit": 4}}]
)
def test_4_quantization_bits_are_qlora(raw: dict[str, Any]):
    spec = JobSpec.model_validate({**minimal(""), **raw})

    assert (spec.adapter, spec.quantization.load_in_4bit) == ("qlora", True)


def test_8_quantization_bits_are_an_error():
    with pytest.raises(ValidationError, match="quantization_bit must be 4, got 8"):
        JobSpec.model_validate({**minimal(""), "quantization_bit": 8})


def test_no_quantization_bits_are_plain_lora():
    spec = JobSpec.model_validate({**minimal(""), "quantization_bit": None})

    assert spec.adapter == "lora"


def test_aliases_are_echoed_under_our_names():
    spec = JobSpec.model_validate({**minimal(""), "lora_rank": 8, "training": {"lr": 1e-4}})

    echoed = spec.model_dump(mode="json")

    assert echoed["lora"]["r"] == 8
    assert echoed["training"]["learning_rate"] == 1e-4
    assert not set(ALIASES) & {*echoed, *echoed["lora"], *echoed["training"]}


def test_of_group_gives_each_alias_to_one_group_only():
    groups = [of_group(group) for group in ["", *GROUPS]]

    assert sum(map(len, groups)) == len(ALIASES)
