"""Configurations of LLaMA-Factory as jobs."""

from collections.abc import Mapping
from typing import Any, cast

from app.domain.converting import shared
from app.domain.converting.draft import Conversion, Draft, Rule, apply, finish, not_here, to
from app.domain.converting.draft import without_effect as no_effect
from app.domain.errors import InvalidInput
from app.domain.presets import ALL_LINEAR

TOOL = "LLaMA-Factory"
_FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "chat"}
_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
    "tools": "tools",
}
# What a turn looks like where the file says nothing else.
_TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call",),
    "system_tag": ("system",),
}


def convert(config: Mapping[str, Any], datasets: Mapping[str, Any] | None = None) -> Conversion:
    """Make a job of a configuration; every key gets its fate.

    Args:
        config: The configuration.
        datasets: Content of `dataset_info.json`, where it was found.

    Raises:
        InvalidInput: It trains in a way that no job can.
    """
    stage = config.get("stage", "sft")
    if stage != "sft":
        raise InvalidInput(
            f"stage = {stage}: only supervised fine-tuning (sft) is available", param="stage"
        )
    draft = Draft(TOOL, config)

    def dataset(draft: Draft, key: str, value: Any) -> None:
        _dataset(draft, key, value, datasets or {})

    apply(draft, {**RULES, "dataset": dataset})
    _fill(draft)
    shared.one_horizon(draft)
    return finish(draft)


def _fill(draft: Draft) -> None:
    """Write the defaults of LLaMA-Factory where they are not ours."""
    given = draft.get("lora.r")
    rank = given if isinstance(given, int) and given > 0 else 8
    draft.fill("lora.r", 8, key="lora_rank")
    draft.fill("lora.lora_alpha", 2 * rank, key="lora_alpha")
    if draft.get("training.max_steps") is None:
        draft.fill("training.num_train_epochs", 3.0, key="num_train_epochs")
    draft.fill("training.per_device_train_batch_size", 8, key="per_device_train_batch_size")
    draft.fill("training.learning_rate", 5e-5, key="learning_rate")
    draft.fill("training.lr_scheduler_type", "linear", key="lr_scheduler_type")
    draft.fill("training.warmup_steps", 0, key="warmup_steps")
    draft.fill(
        "training.gradient_checkpointing",
        True,
        key="gradient_checkpointing",
        why="LLaMA-Factory recomputes activations unless disable_gradient_checkpointing is given",
    )
    if draft.given.get("save_strategy") not in ("no", "epoch"):
        draft.fill("training.save_steps", 500, key="save_steps")


def _dataset(draft: Draft, key: str, value: Any, infos: Mapping[str, Any]) -> None:
    """Find the file behind a data set's name; a job has one."""
    folder = str(draft.given.get("dataset_dir") or "data").rstrip("/")
    for index, name in enumerate(_names(value)):
        if index:
            draft.lose(f"{key}[{index}]", "a job trains on one file; put them together", value=name)
            continue
        info = shared.as_mapping(infos.get(name))
        file = info.get("file_name")
        if file:
            note = "its file, as dataset_info.json has it"
        else:
            file = f"{name}.jsonl"
            note = f"dataset_info.json names no file of {name}: save the data as {file} there"
        draft.put(key, "dataset.path", f"{folder}/{file}", note=note, given=name)
        _described(draft, f"dataset_info.{name}", info)


def _described(draft: Draft, place: str, info: Mapping[str, Any]) -> None:
    """Carry what dataset_info.json says of a data set."""
    formatting = str(info.get("formatting", "alpaca"))
    for name, value in info.items():
        key = f"{place}.{name}"
        match name:
            case "file_name":
                draft.drop(key, "dataset.path names it", value=value)
            case "formatting" if formatting in _FORMATS:
                draft.put(key, "dataset.format", _FORMATS[formatting], note="its rows", given=value)
            case "columns":
                _columns(draft, key, shared.as_mapping(value), formatting)
            case "tags":
                for tag, word in shared.as_mapping(value).items():
                    _tag(draft, f"{key}.{tag}", tag, word)
            case _:
                draft.lose(key, "put what it chooses into the file", value=value)


def _columns(draft: Draft, place: str, columns: Mapping[str, Any], formatting: str) -> None:
    turns = "messages" if formatting == "openai" else "conversations"
    renamed: dict[str, str] = {}
    for name, theirs in columns.items():
        key = f"{place}.{name}"
        ours = turns if name == "messages" else _COLUMNS.get(name)
        if ours is None:
            draft.lose(key, "rows have no such column here", value=theirs)
        elif ours == theirs:
            draft.drop(key, "the column has the same name here", value=theirs)
        else:
            renamed[ours] = str(theirs)
            draft.put(
                key, "dataset.field_mapping", renamed, note=f"{ours} <- {theirs}", given=theirs
            )


def _tag(draft: Draft, key: str, tag: str, word: Any) -> None:
    if word in _TAGS.get(tag, ()):
        draft.drop(key, "turns are read so here too", value=word)
    else:
        draft.lose(key, f"turns have {' or '.join(_TAGS.get(tag, ('no such tag',)))}", value=word)


def _finetuning(draft: Draft, key: str, value: Any) -> None:
    if value == "lora":
        if not draft.given.get("quantization_bit"):
            draft.put(key, "adapter", "lora")
        else:
            draft.drop(key, "quantization_bit makes it qlora")
    else:
        draft.lose(key, f"{value} is not available; a job trains a LoRA adapter")


def _target(draft: Draft, key: str, value: Any) -> None:
    names = _names(value)
    if names == ["all"]:
        draft.put(key, "lora.target_modules", ALL_LINEAR, note=f"{ALL_LINEAR} here")
    else:
        draft.put(key, "lora.target_modules", names)


def _names(value: Any) -> list[str]:
    """Read a list of names, which may be written with commas between them."""
    listed = cast(list[Any], value) if isinstance(value, list) else str(value).split(",")
    return [str(each).strip() for each in listed]


def _saved_modules(draft: Draft, key: str, value: Any) -> None:
    names = _names(value)
    draft.put(key, "lora.modules_to_save", names)


def _bits(draft: Draft, key: str, value: Any) -> None:
    if value == 4:
        shared.four_bits(draft, key)
    else:
        draft.lose(key, f"{value} bits are not available; adapter: qlora takes 4")


def _of_4_bits(path: str) -> Rule:
    def carry(draft: Draft, key: str, value: Any) -> None:
        if draft.given.get("quantization_bit") == 4:
            draft.put(key, path, value)
        else:
            draft.drop(key, "nothing is quantized")

    return carry


def _template(draft: Draft, key: str, value: Any) -> None:
    draft.drop(
        key,
        f"the chat template of the model's tokenizer is used instead of {value}; look at it with"
        " `lorad preview`",
    )


def _packing(draft: Draft, key: str, value: Any) -> None:
    if value and not draft.given.get("neat_packing"):
        draft.put(key, "training.packing", True, note="packed samples do not see each other here")
    elif draft.given.get("neat_packing"):
        draft.drop(key, "neat_packing says it")
    else:
        draft.put(key, "training.packing", bool(value))


def _checkpointing(draft: Draft, key: str, value: Any) -> None:
    draft.put(
        key,
        "training.gradient_checkpointing",
        not value,
        note=str(not value).lower() + ": on or off",
    )


def _early_stopping(draft: Draft, key: str, value: Any) -> None:
    draft.put(key, "training.early_stopping_patience", value)


def _eval_dataset(draft: Draft, key: str, value: Any) -> None:
    draft.lose(
        key, "upload its file with `lorad datasets upload` and give the id as dataset.eval_id"
    )


_SPEED = """
flash_attn use_unsloth use_unsloth_gc enable_liger_kernel use_reentrant_gc upcast_layernorm
upcast_lmhead_output use_v1_kernels bf16_full_eval optim_target_modules use_mca
"""
_MACHINE = """
ddp_backend ddp_bucket_cap_mb local_rank cache_dir offload_folder use_cpu no_cuda ray_run_name
ray_storage_path ray_num_workers resources_per_worker placement_strategy ray_init_kwargs
quantization_device_map hf_hub_token ms_hub_token om_hub_token low_cpu_mem_usage
"""
_LOGS = """
plot_loss report_to logging_dir logging_first_step logging_strategy disable_tqdm log_level
include_num_input_tokens_seen include_effective_tokens_per_second print_param_status
use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key
swanlab_logdir compute_accuracy predict_with_generate do_eval do_predict
"""
_PREPARING = """
overwrite_cache preprocessing_num_workers preprocessing_batch_size tokenized_path media_dir
dataset_dir data_shared_file_system use_fast_tokenizer buffer_size ignore_pad_token_for_loss
"""
_OUTPUT = """
overwrite_output_dir export_dir export_size export_device export_legacy_format export_hub_model_id
export_quantization_bit infer_backend infer_dtype use_kv_cache
"""
_LOST = {
    "adapter_name_or_path": "a job starts with a new adapter; merge it first: lorad models import",
    "mask_history": "all turns of the model are learned; give the others a weight of 0 in the file",
    "streaming": "a job trains on an uploaded file",
    "mix_strategy": "a job trains on one file",
    "interleave_probs": "a job trains on one file",
    "max_samples": "all rows of the file are trained on; cut the file",
    "tool_format": "tools are rendered by the chat template",
    "loraplus_lr_ratio": "LoRA+ is not available; A and B have one learning rate",
    "pissa_init": "A is random and B is zero; PiSSA is not available",
    "create_new_adapter": "a job starts with a new adapter",
    "use_galore": "GaLore is not available",
    "use_apollo": "APOLLO is not available",
    "use_badam": "BAdam is not available",
    "use_adam_mini": "Adam-mini is not available",
    "use_muon": "Muon is not available",
    "use_dft_loss": "the loss is cross-entropy",
    "use_llama_pro": "blocks are not added to a model",
    "train_from_scratch": "a job adapts a trained model",
    "disable_shuffling": "rows come in an order drawn from the seed",
    "resize_vocab": "the embeddings keep their size",
    "add_tokens": "tokens are not added; add them to the model's folder first",
    "add_special_tokens": "tokens are not added; add them to the model's folder first",
    "new_special_tokens_config": "tokens are not added; add them to the model's folder first",
    "rope_scaling": "the model is used as its folder says",
    "shift_attn": "shifted sparse attention is not available",
    "mixture_of_depths": "the model is used as its folder says",
    "moe_aux_loss_coef": "the loss is cross-entropy alone",
    "enable_thinking": "the chat template decides; give dataset.chat_template",
    "default_system": "put a system message into the rows",
    "fp8": "fp8 is not available",
    "image_max_pixels": "only text is trained on",
    "video_max_pixels": "only text is trained on",
    "freeze_vision_tower": "only text is trained on",
    "freeze_multi_modal_projector": "only text is trained on",
    "freeze_language_model": "only text is trained on",
}

RULES: Mapping[str, Rule] = {
    **shared.TRANSFORMERS,
    **dict.fromkeys(_SPEED.split(), shared.SPEED),
    **dict.fromkeys(_MACHINE.split(), shared.MACHINE),
    **dict.fromkeys(_LOGS.split(), shared.LOGS),
    **dict.fromkeys(_PREPARING.split(), shared.PREPARING),
    **dict.fromkeys(_OUTPUT.split(), shared.OUTPUT),
    **{key: not_here(why) for key, why in _LOST.items()},
    "model_name_or_path": shared.base_model,
    "model_revision": not_here("add the model in that revision", harmless=["main"]),
    "stage": no_effect("supervised fine-tuning is what a job does"),
    "do_train": no_effect("a job trains"),
    "finetuning_type": _finetuning,
    "quantization_bit": _bits,
    "quantization_method": not_here("bitsandbytes is used", harmless=["bitsandbytes", "bnb"]),
    "quantization_type": _of_4_bits("quantization.bnb_4bit_quant_type"),
    "double_quantization": _of_4_bits("quantization.bnb_4bit_use_double_quant"),
    "lora_rank": to("lora.r", whole=True),
    "lora_alpha": to("lora.lora_alpha", whole=True),
    "lora_dropout": to("lora.lora_dropout"),
    "lora_target": _target,
    "additional_target": _saved_modules,
    "use_rslora": to("lora.use_rslora"),
    "use_dora": to("lora.use_dora"),
    "loraplus_lr_embedding": no_effect("it belongs to loraplus_lr_ratio"),
    "pissa_iter": no_effect("it belongs to pissa_init"),
    "pissa_convert": no_effect("it belongs to pissa_init"),
    "dataset": not_here("named below"),
    "eval_dataset": _eval_dataset,
    "template": _template,
    "cutoff_len": to("dataset.max_length", whole=True),
    "train_on_prompt": to("dataset.train_on_inputs"),
    "val_size": shared.val_size,
    "packing": _packing,
    "neat_packing": to("training.packing"),
    "num_train_epochs": to("training.num_train_epochs"),
    "per_device_train_batch_size": to("training.per_device_train_batch_size", whole=True),
    "per_device_eval_batch_size": shared.EVALUATING,
    "eval_on_each_dataset": shared.EVALUATING,
    "eval_accumulation_steps": shared.EVALUATING,
    "lr_scheduler_type": shared.schedule,
    "optim": shared.optimizer,
    "pure_bf16": shared.precision("bfloat16"),
    "disable_gradient_checkpointing": _checkpointing,
    "gradient_checkpointing": to("training.gradient_checkpointing"),
    "early_stopping_steps": _early_stopping,
    "run_name": to("name"),
    "data_seed": not_here("seed draws the order of the rows too"),
}
