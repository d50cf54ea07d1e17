"""Configurations of axolotl as jobs."""

from collections.abc import Mapping
from typing import Any, cast

from app.domain.converting import axolotl_data, shared
from app.domain.converting.draft import Conversion, Draft, Rule, apply, finish, not_here, to
from app.domain.converting.draft import without_effect as no_effect
from app.domain.errors import InvalidInput
from app.domain.presets import ALL_LINEAR

TOOL = "axolotl"
_HARMLESS_PLUGINS = ("liger", "cut_cross_entropy", "spectrum")


def convert(config: Mapping[str, Any]) -> Conversion:
    """Make a job of a configuration; every key gets its fate.

    Raises:
        InvalidInput: It trains in a way that no job can.
    """
    if config.get("rl"):
        raise InvalidInput(
            f"rl = {config['rl']}: only supervised fine-tuning is available", param="rl"
        )
    draft = Draft(TOOL, config)
    apply(draft, RULES)
    _fill(draft)
    shared.one_horizon(draft)
    return finish(draft)


def _fill(draft: Draft) -> None:
    """Write axolotl's defaults where they are not ours."""
    if not draft.given.get("adapter"):
        draft.fates = [fate for fate in draft.fates if fate.key != "adapter"]
        draft.lose("adapter", "no adapter: all weights are trained there; a job trains LoRA")
    draft.fill("lora.target_modules", ["q_proj", "v_proj"], key="lora_target_modules")
    if not draft.given.get("batch_size"):
        draft.fill("training.per_device_train_batch_size", 1, key="micro_batch_size")
    draft.fill("dataset.max_length", 512, key="sequence_len")
    draft.fill(
        "dataset.on_too_long",
        "drop",
        key="excess_length_strategy",
        why="not given; rows that are too long are left out in axolotl. Above"
        " dataset.max_dropped_fraction (5 %) the job fails, and says so",
    )
    if draft.get("training.learning_rate") is None:
        raise InvalidInput("learning_rate is missing; axolotl needs it too", param="learning_rate")


def _adapter(draft: Draft, key: str, value: Any) -> None:
    if value == "lora" and draft.given.get("load_in_4bit"):
        draft.drop(key, "load_in_4bit makes it qlora")
    elif value in ("lora", "qlora"):
        draft.put(key, "adapter", value)
    else:
        draft.lose(key, f"{value} is not available; a job trains lora or qlora")


def _load_in_4bit(draft: Draft, key: str, value: Any) -> None:
    if draft.given.get("adapter") == "qlora":
        draft.drop(key, "it follows from adapter: qlora")
    elif value:
        shared.four_bits(draft, key)
    else:
        draft.drop(key, "it is off")


def _target_modules(draft: Draft, key: str, value: Any) -> None:
    if draft.given.get("lora_target_linear"):
        draft.drop(key, "lora_target_linear names all linear layers")
    elif value == ALL_LINEAR or isinstance(value, list):
        draft.put(key, "lora.target_modules", cast(Any, value))
    else:
        draft.lose(key, "a pattern of names; give lora.target_modules as a list of layers")


def _target_linear(draft: Draft, key: str, value: Any) -> None:
    if value:
        draft.put(key, "lora.target_modules", ALL_LINEAR, note=f"target_modules: {ALL_LINEAR}")
    else:
        draft.drop(key, "it is off")


def _batch_size(draft: Draft, key: str, value: Any) -> None:
    micro = draft.given.get("micro_batch_size")
    if draft.given.get("gradient_accumulation_steps"):
        draft.drop(key, "micro_batch_size and gradient_accumulation_steps say it")
    elif isinstance(value, int) and isinstance(micro, int) and micro and value % micro == 0:
        path = "training.gradient_accumulation_steps"
        draft.put(key, path, value // micro, note=f"{value} rows are {value // micro} of {micro}")
    else:
        draft.put(
            key,
            "training.per_device_train_batch_size",
            value,
            note="as one micro-batch; give gradient_accumulation_steps to split it",
        )


def _checkpointing(draft: Draft, key: str, value: Any) -> None:
    path = "training.gradient_checkpointing"
    if isinstance(value, bool):
        draft.put(key, path, value)
    else:
        draft.put(key, path, True, note="without moving activations off the GPU")


def _chat_template(draft: Draft, key: str, value: Any) -> None:
    if value == "jinja":
        draft.drop(key, "chat_template_jinja is the template")
    else:
        axolotl_data.named_template(draft, key, value)


def _bnb_options(draft: Draft, key: str, value: Any) -> None:
    known = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")
    for name, setting in shared.as_mapping(value).items():
        if name in known:
            draft.put(f"{key}.{name}", f"quantization.{name}", setting)
        else:
            draft.lose(f"{key}.{name}", "the quantization has no such option", value=setting)


def _plugins(draft: Draft, key: str, value: Any) -> None:
    named = cast(list[Any], value if isinstance(value, list) else [value])
    for index, name in enumerate(named):
        if any(part in str(name).lower() for part in _HARMLESS_PLUGINS):
            draft.drop(f"{key}[{index}]", "it makes training faster, not other", value=name)
        else:
            draft.lose(f"{key}[{index}]", "plugins of axolotl do not run here", value=name)


def _special_tokens(draft: Draft, key: str, value: Any) -> None:
    for name, token in shared.as_mapping(value).items():
        if name == "pad_token":
            draft.drop(f"{key}.{name}", "batches hold no padding", value=token)
        else:
            draft.lose(
                f"{key}.{name}", "the tokenizer is used as it is in the model's folder", value=token
            )


def _too_long(draft: Draft, key: str, value: Any) -> None:
    ours = {"drop": "drop", "truncate": "truncate", "raise": "fail"}.get(str(value))
    if ours is None:
        draft.lose(key, f"{value} is none of drop, truncate, raise")
    else:
        draft.put(key, "dataset.on_too_long", ours, note="" if ours == value else f"{ours} here")


_SPEED = """
flash_attention sdp_attention xformers_attention flex_attention eager_attention attn_implementation
sage_attention flex_attn_compile_kwargs flash_attn_cross_entropy flash_attn_rms_norm flash_optimum
flash_attn_fuse_qkv flash_attn_fuse_mlp unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_rope
unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm lora_mlp_kernel lora_qkv_kernel lora_o_kernel
torch_compile_backend torch_compile_mode liger_rope liger_rms_norm liger_glu_activation
liger_layer_norm liger_fused_linear_cross_entropy liger_cross_entropy cut_cross_entropy
sample_packing_group_size sample_packing_bin_size sample_packing_sequentially sample_packing_eff_est
eval_sample_packing pad_to_sequence_len multipack_real_batches batch_flattening use_kernels
activation_offloading layer_offloading gc_steps tiled_mlp fused_attn_kernel embeddings_skip_upcast
"""
_MACHINE = """
device device_map world_size local_rank ddp ddp_bucket_cap_mb ddp_broadcast_buffers max_memory
gpu_memory_limit accelerator_config lora_on_cpu qlora_sharded_model_loading use_ray dp_shard_size
ray_num_workers ray_run_name resources_per_worker tensor_parallel_size fsdp_version
fsdp_final_state_dict_type dp_replicate_size experimental_skip_move_to_device
"""
_LOGS = """
wandb_project wandb_entity wandb_watch wandb_run_id wandb_log_model wandb_mode use_wandb use_mlflow
mlflow_tracking_uri mlflow_experiment_name mlflow_run_name use_comet comet_project_name
comet_workspace use_tensorboard profiler_steps include_tokens_per_second include_tkps
eval_table_size eval_max_new_tokens loss_watchdog_threshold loss_watchdog_patience
"""
_PREPARING = """
dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory skip_prepare_dataset
push_dataset_to_hub hf_use_auth_token model_type tokenizer_type tokenizer_use_fast tokenizer_legacy
is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model
base_model_config cls_model_config tokenizer_save_jinja_files is_preprocess preprocess_iterable
axolotl_config_path total_num_tokens total_supervised_tokens
"""
_LOST = {
    "load_in_8bit": "8-bit base models are not available; adapter: qlora takes 4 bits",
    "gptq": "GPTQ models are not read; adapter: qlora quantizes a plain model",
    "lora_model_dir": "a job starts with a new adapter; merge it first: `lorad models import`",
    "lora_fan_in_fan_out": "models with Conv1D layers are not adapted",
    "lora_target_parameters": "only layers are adapted, not single parameters",
    "peft_layers_to_transform": "name the layers in lora.target_modules",
    "peft_layers_pattern": "name the layers in lora.target_modules",
    "peft_layer_replication": "layers are not replicated",
    "peft_trainable_token_indices": "single tokens are not trained; see lora.modules_to_save",
    "loraplus_lr_ratio": "LoRA+ is not available; A and B have one learning rate",
    "relora": "ReLoRA is not available",
    "relora_steps": "ReLoRA is not available",
    "unfrozen_parameters": "only adapters and lora.modules_to_save are trained",
    "peft": "such options of PEFT are not available",
    "tokens": "tokens are not added; add them to the model's folder first",
    "added_tokens_overrides": "tokens are not added; add them to the model's folder first",
    "resize_token_embeddings_to_32x": "the embeddings keep their size",
    "overrides_of_model_config": "the model is used as its folder says",
    "overrides_of_model_kwargs": "the model is used as its folder says",
    "rope_scaling": "the model is used as its folder says",
    "tokenizer_config": "the tokenizer is that of the model's folder",
    "revision_of_model": "add the model in that revision: `lorad models add FOLDER`",
    "use_pose": "PoSE is not available",
    "s2_attention": "shifted sparse attention is not available",
    "embedding_lr": "there is one learning rate",
    "embedding_lr_scale": "there is one learning rate",
    "lr_groups": "there is one learning rate",
    "lr_quadratic_warmup": "warm-up is linear",
    "cosine_min_lr_ratio": "the cosine ends at 0",
    "cosine_constant_lr_ratio": "the cosine ends at 0",
    "optim_target_modules": "what is adapted is what is trained",
    "pretraining_dataset": "a job trains on an uploaded file",
    "streaming": "a job trains on an uploaded file",
    "curriculum_sampling": "rows come in an order drawn from the seed",
    "min_sample_len": "rows are not left out for being short",
    "dataset_exact_deduplication": "rows are not compared; remove doubles from the file",
    "dataset_shard_num": "a job trains on the whole file",
    "default_system_message": "put a system message into the rows, or into dataset.chat_template",
    "eot_tokens": "the end of a turn is what the template writes there",
    "fix_untrained_tokens": "embeddings are not changed",
    "reward_model": "only supervised fine-tuning is available",
    "process_reward_model": "only supervised fine-tuning is available",
    "qat": "quantization-aware training is not available",
    "sequence_parallel_degree": "a sequence is not split over GPUs",
    "context_parallel_size": "a sequence is not split over GPUs",
    "auto_find_batch_size": "`lorad plan` tells the largest batch; memory errors heal themselves",
}

RULES: Mapping[str, Rule] = {
    **shared.TRANSFORMERS,
    **dict.fromkeys(_SPEED.split(), shared.SPEED),
    **dict.fromkeys(_MACHINE.split(), shared.MACHINE),
    **dict.fromkeys(_LOGS.split(), shared.LOGS),
    **dict.fromkeys(_PREPARING.split(), shared.PREPARING),
    **{key: not_here(why) for key, why in _LOST.items()},
    "base_model": shared.base_model,
    "adapter": _adapter,
    "load_in_4bit": _load_in_4bit,
    "bnb_config_kwargs": _bnb_options,
    "lora_r": to("lora.r", whole=True),
    "lora_alpha": to("lora.lora_alpha", whole=True),
    "lora_dropout": to("lora.lora_dropout"),
    "lora_target_modules": _target_modules,
    "lora_target_linear": _target_linear,
    "lora_modules_to_save": to("lora.modules_to_save"),
    "peft_use_dora": to("lora.use_dora"),
    "peft_use_rslora": to("lora.use_rslora"),
    "peft_init_lora_weights": not_here("A is random and B is zero", harmless=[True]),
    "loraplus_lr_embedding": no_effect("it belongs to loraplus_lr_ratio"),
    "datasets": axolotl_data.datasets,
    "test_datasets": axolotl_data.test_datasets,
    "shuffle_merged_datasets": not_here("rows come shuffled by the seed", harmless=[True]),
    "val_set_size": shared.val_size,
    "sequence_len": to("dataset.max_length", whole=True),
    "excess_length_strategy": _too_long,
    "train_on_inputs": to("dataset.train_on_inputs"),
    "chat_template": _chat_template,
    "chat_template_jinja": axolotl_data.jinja_template,
    "sample_packing": to("training.packing"),
    "micro_batch_size": to("training.per_device_train_batch_size", whole=True),
    "batch_size": _batch_size,
    "eval_batch_size": shared.EVALUATING,
    "num_epochs": to("training.num_train_epochs"),
    "optimizer": shared.optimizer,
    "lr_scheduler": shared.schedule,
    "evals_per_epoch": shared.per_epoch("training.eval_steps"),
    "saves_per_epoch": shared.per_epoch("training.save_steps"),
    "bfloat16": shared.precision("bfloat16"),
    "float16": shared.precision("float16"),
    "float32": shared.precision("float32"),
    "fp8": shared.precision("float16"),
    "gradient_checkpointing": _checkpointing,
    "special_tokens": _special_tokens,
    "plugins": _plugins,
    "wandb_name": to("name"),
    "auto_resume_from_checkpoints": no_effect("a job goes on by itself after a crash"),
    "strict": no_effect("a job file is always checked strictly"),
    "debug": no_effect("`lorad preview` shows the rows as the model sees them"),
    "merge_lora": no_effect("`lorad export JOB --format merged` does it"),
    "do_causal_lm_eval": no_effect("the eval loss and token accuracy are measured"),
}
