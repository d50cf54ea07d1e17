"""Configurations of other trainers become jobs, and each of their keys has a fate."""

import itertools
import json
from collections import Counter
from typing import Any

import pytest
import yaml

from app.cli import specs
from app.domain.converting import axolotl, axolotl_data, detect, llamafactory
from app.domain.errors import InvalidInput

# What people write for a QLoRA run, with two keys that no job has and a slip of the pen.
AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
model_type: AutoModelForCausalLM
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: ./data/support.jsonl
    type: chat_template
    field_messages: dialogue
    message_property_mappings: {role: from, content: value}
    roles_to_train: [assistant]
    train_on_eos: turn
  - path: somebody/more-rows
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/out
adapter: qlora
lora_model_dir:
sequence_len: 4096
sample_packing: true
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
wandb_project: support
wandb_name: support run
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
tf32: false
gradient_checkpointing: true
flash_attention: true
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
neftune_noise_alpha: 5
loraplus_lr_ratio: 16
special_tokens:
  pad_token: "<|end_of_text|>"
micro_batchsize: 3
"""
LLAMAFACTORY = """
model_name_or_path: /models/Meta-Llama-3-8B-Instruct
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
dataset: support
template: llama3
cutoff_len: 1024
preprocessing_num_workers: 16
output_dir: saves/out
logging_steps: 10
plot_loss: true
overwrite_output_dir: true
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
max_steps: 100
num_train_epochs: 3.0
val_size: 0.1
eval_strategy: steps
eval_steps: 0.2
ddp_timeout: 180000000
resume_from_checkpoint: null
max_samples: 1000
"""
INFO = {
    "support": {
        "file_name": "support.json",
        "formatting": "sharegpt",
        "columns": {"messages": "dialogue", "system": "system"},
        "tags": {"role_tag": "from", "user_tag": "customer"},
    }
}


def converted(text: str, tool: detect.Tool, **options: Any):
    return detect.convert(yaml.load(text, Loader=specs._Loader), tool, **options)


def fates(found) -> dict[str, str]:
    return {fate.key: fate.kind for fate in found.fates}


def checked(spec: Any):
    """Check the job as `lorad submit` does before it uploads."""
    return specs.validate(specs.with_dataset(spec, specs.PLACEHOLDER_DATASET))


def test_a_job_of_axolotls_says_the_same():
    found = converted(AXOLOTL, "axolotl")

    job = checked(found.spec)
    assert (job.adapter, job.lora.r, job.lora.lora_alpha) == ("qlora", 32, 16)
    assert job.lora.target_modules == "all-linear"
    assert job.training.learning_rate == 2e-4
    assert (job.training.warmup_steps, job.training.optim) == (0.1, "adamw_torch")
    assert (job.training.num_train_epochs, job.training.packing) == (3, True)
    assert (job.dataset.format, job.dataset.val_size) == ("sharegpt", 0.05)
    assert job.dataset.field_mapping == {"conversations": "dialogue"}
    assert job.dataset.on_too_long == "drop"
    assert found.spec["dataset"]["path"] == "./data/support.jsonl"


def test_what_a_job_cannot_say_is_lost_by_name_and_nothing_else_is():
    lost = {
        fate.key: fate.note for fate in converted(AXOLOTL, "axolotl").fates if fate.kind == "lost"
    }

    assert set(lost) == {
        "datasets[1]",
        "neftune_noise_alpha",
        "loraplus_lr_ratio",
        "micro_batchsize",
    }
    assert "did you mean micro_batch_size?" in lost["micro_batchsize"]


@pytest.mark.parametrize(
    ("text", "tool", "options"),
    [(AXOLOTL, "axolotl", {}), (LLAMAFACTORY, "llamafactory", {"datasets": INFO})],
)
def test_every_key_of_a_configuration_has_one_fate(text, tool, options):
    config = yaml.safe_load(text)

    found = converted(text, tool, **options)

    told = Counter(fate.key for fate in found.fates if fate.kind != "filled")
    for key, value in config.items():
        inside = [each for each in told if each.startswith((f"{key}.", f"{key}["))]
        assert told[key] == 1 or (inside and isinstance(value, list | dict)), key
    assert max(told.values()) == 1
    assert all(fate.note for fate in found.fates if fate.kind != "carried")


def test_a_job_of_llamafactorys_says_the_same_with_its_defaults():
    found = converted(LLAMAFACTORY, "llamafactory", datasets=INFO)

    job = checked(found.spec)
    assert job.base_model == "Meta-Llama-3-8B-Instruct"
    assert (job.lora.r, job.lora.lora_alpha) == (8, 16)
    assert job.lora.target_modules == ["q_proj", "v_proj"]
    assert (job.training.max_steps, job.training.eval_steps) == (100, 20)
    assert job.training.num_train_epochs == 1.0
    assert job.training.gradient_checkpointing is True
    assert job.training.save_steps == 500
    assert found.spec["dataset"]["path"] == "data/support.json"
    assert job.dataset.field_mapping == {"conversations": "dialogue"}
    told = fates(found)
    assert told["num_train_epochs"] == "dropped"
    assert (told["lora_alpha"], told["save_steps"]) == ("filled", "filled")
    assert told["max_samples"] == told["dataset_info.support.tags.user_tag"] == "lost"
    assert "lorad models add /models" in {f.key: f.note for f in found.fates}["model_name_or_path"]


@pytest.mark.parametrize(
    ("tool", "line", "path", "value"),
    [
        ("axolotl", "lr_scheduler: polynomial", "lr_scheduler_type", "cosine"),
        ("axolotl", "optimizer: lion_8bit", "optim", "adamw_torch"),
        ("axolotl", "load_in_8bit: true", "packing", False),
        ("axolotl", "weight_decay: 7", "weight_decay", 0.0),
        ("llamafactory", "quantization_bit: 8", "packing", False),
        ("llamafactory", "fp16: true", "dtype", "auto"),
        ("llamafactory", "use_galore: true", "packing", False),
    ],
)
def test_a_value_that_no_job_can_have_is_lost_and_the_job_stays_valid(tool, line, path, value):
    whole = {
        "axolotl": "base_model: m\nadapter: lora\nlearning_rate: 1e-4\ndatasets: [{path: a.csv}]\n",
        "llamafactory": "model_name_or_path: m\nfinetuning_type: lora\ndataset: a\n",
    }[tool]

    found = converted(whole + line, tool)

    assert [fate.key for fate in found.fates if fate.kind == "lost"] == [line.partition(":")[0]]
    assert getattr(checked(found.spec).training, path) == value


ODD = (True, 0, -1, 1.5, "x", "", [], ["a"], [None], {}, {"a": 1}, [{"a": 1}], [[1]])
ODD_AND_EMPTY = (False, "", [], {})


@pytest.mark.parametrize("tool", ["axolotl", "llamafactory"])
def test_whatever_a_key_holds_the_job_is_valid_or_refused_and_the_key_is_told(tool):
    rules, least = {
        "axolotl": (
            axolotl.RULES,
            {"base_model": "m", "learning_rate": 1, "datasets": [{"path": "a.csv"}]},
        ),
        "llamafactory": (llamafactory.RULES, {"model_name_or_path": "m", "dataset": "a"}),
    }[tool]
    num_valid = 0
    for key in rules:
        for value in ODD:
            config = {**least, key: value}
            try:
                found = detect.convert(config, tool)
            except InvalidInput:
                continue
            checked(found.spec)
            num_valid += 1
            told = [fate.key for fate in found.fates]
            assert any(each == key or each.startswith((f"{key}[", f"{key}.")) for each in told)
    assert num_valid > 0.8 * len(rules) * len(ODD)


def test_whatever_an_entry_of_a_data_set_holds_is_told_too():
    subkeys = [*axolotl_data.FIELDS, "path", "data_files", "no_such_key"]
    for name, value in itertools.product(subkeys, ODD):
        config = {"base_model": "m", "learning_rate": 1, "datasets": [{"path": "a", name: value}]}

        found = detect.convert(config, "axolotl")

        checked(found.spec)
        told = [fate.key for fate in found.fates]
        assert value in ODD_AND_EMPTY or any(
            each.startswith(f"datasets[0].{name}") for each in told
        ), (name, value)


@pytest.mark.parametrize(
    ("tool", "line"),
    [("axolotl", "rl: dpo"), ("llamafactory", "stage: dpo")],
)
def test_another_kind_of_training_is_refused(tool, line):
    with pytest.raises(InvalidInput, match="supervised"):
        converted(line, tool)


def test_training_without_an_adapter_is_a_loss():
    found = converted("base_model: m\nlearning_rate: 1e-4\ndatasets: [{path: a.csv}]", "axolotl")

    assert fates(found)["adapter"] == "lost"


def test_defaults_of_axolotl_that_are_not_ours_are_written_out():
    least = "base_model: m\nadapter: lora\nlearning_rate: 1e-4\ndatasets: [{path: a.csv}]"

    found = converted(least, "axolotl")

    job = checked(found.spec)
    assert {f.key for f in found.fates if f.kind == "filled"} == {
        "lora_target_modules",
        "micro_batch_size",
        "sequence_len",
        "excess_length_strategy",
    }
    assert (job.dataset.max_length, job.training.per_device_train_batch_size) == (512, 1)
    assert job.lora.target_modules == ["q_proj", "v_proj"]


def test_the_tool_is_told_by_the_keys():
    assert detect.tool_of(yaml.safe_load(AXOLOTL)) == "axolotl"
    assert detect.tool_of(yaml.safe_load(LLAMAFACTORY)) == "llamafactory"
    with pytest.raises(InvalidInput, match="--tool"):
        detect.tool_of({"learning_rate": 1})
    with pytest.raises(InvalidInput, match="job file already"):
        detect.tool_of({"base_model": "m", "training": {}})


def test_the_command_writes_a_job_file_and_reports_on_stderr(lorad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(AXOLOTL)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "support.jsonl").write_text("{}")

    done = lorad("convert", "config.yml", "-o", "job.yaml")

    assert (done.code, done.stdout) == (105, "")
    assert "neftune_noise_alpha" in done.stderr
    assert lorad("submit", "job.yaml", "--dry-run", "-o", "id").code == 0
    assert lorad("convert", "config.yml", "-o", "job.yaml").code == 2
    printed = lorad("convert", "config.yml")
    assert yaml.safe_load(printed.stdout) == yaml.safe_load((tmp_path / "job.yaml").read_text())


def test_nothing_lost_is_exit_code_0_and_json_has_every_fate(lorad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "b.json"}}))
    (tmp_path / "lf.yaml").write_text(
        "model_name_or_path: m\nfinetuning_type: lora\ndataset: a\nlora_rank: 8\n"
    )

    done = lorad("convert", "lf.yaml", "--json")

    said = json.loads(done.stdout)
    assert (done.code, said["tool"], said["is_whole"]) == (0, "LLaMA-Factory", True)
    assert said["spec"]["dataset"]["path"] == "data/b.json"
    assert {"lora_rank", "learning_rate"} <= {each["key"] for each in said["keys"]}
