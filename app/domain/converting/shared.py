"""Rules for keys that mean the same in all trainers built on transformers."""

import re
from collections.abc import Mapping
from typing import Any, cast

from app.domain.converting.draft import Draft, Rule, not_here, to, without_effect

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_OPTIMIZERS = {
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_NEAREST_OPTIMIZER = {"paged_adamw_32bit": "adamw_torch", "paged_adamw": "adamw_torch"}
_SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")

MACHINE = without_effect("where and how it runs is the worker's affair")
LOGS = without_effect("lorad measures every step itself: `lorad watch`, `lorad metrics`")
OUTPUT = without_effect("a job's files have their place in lorad's home: `lorad download`")
SPEED = without_effect("it makes training faster, not other; lorad chooses by itself")
EVALUATING = without_effect("evaluation takes the batch size that fits")
SHARDING = without_effect(
    "a job runs on one GPU; with several, their number multiplied the batch: raise"
    " training.gradient_accumulation_steps by it"
)
PREPARING = without_effect("lorad prepares and caches the data itself")


def base_model(draft: Draft, key: str, value: Any) -> None:
    """Carry the name of a model; a folder elsewhere becomes the name of that folder."""
    name = str(value)
    if _MODEL.fullmatch(name):
        draft.put(key, "base_model", name)
        return
    short = name.rstrip("/").rpartition("/")[2]
    draft.put(
        key, "base_model", short, note=f"add the folder: lorad models add {name} --name {short}"
    )


def optimizer(draft: Draft, key: str, value: Any) -> None:
    name = str(value)
    path = "training.optim"
    if name in _OPTIMIZERS:
        ours = _OPTIMIZERS[name]
        draft.put(key, path, ours, note="" if ours == name else f"{ours} does the same")
    elif name in _NEAREST_OPTIMIZER:
        ours = _NEAREST_OPTIMIZER[name]
        draft.put(key, path, ours, note=f"{ours}: the same numbers, without paging")
    else:
        draft.lose(
            key,
            f"{name} is not available; adamw_torch is used (also: adamw_8bit, paged_adamw_8bit)",
        )


def schedule(draft: Draft, key: str, value: Any) -> None:
    name = str(value)
    if name in _SCHEDULES:
        draft.put(key, "training.lr_scheduler_type", name)
    else:
        draft.lose(key, f"{name} is not available; cosine is used (also: {', '.join(_SCHEDULES)})")


def warmup_ratio(draft: Draft, key: str, value: Any) -> None:
    if draft.given.get("warmup_steps"):
        draft.drop(key, "warmup_steps is given, and it wins there too")
    else:
        draft.put(key, "training.warmup_steps", value, note="below 1, warmup_steps is a share")


def max_steps(draft: Draft, key: str, value: Any) -> None:
    if isinstance(value, int | float) and value <= 0:
        draft.drop(key, "it says that epochs decide")
    else:
        to("training.max_steps", whole=True)(draft, key, value)


def val_size(draft: Draft, key: str, value: Any) -> None:
    if value == 0:
        draft.drop(key, "nothing is held out without it")
    else:
        draft.put(key, "dataset.val_size", value)


def steps_between(path: str, strategy: str) -> Rule:
    """Make a rule for `save_steps` and `eval_steps`, which may be a share of all steps."""

    def carry(draft: Draft, key: str, value: Any) -> None:
        kind = draft.given.get(strategy)
        if kind in ("no", "epoch", "best"):
            draft.drop(key, f"{strategy} = {kind} makes it idle")
        elif isinstance(value, float) and value < 1:
            total = draft.given.get("max_steps") or 0
            if total > 0:
                steps = max(1, round(value * total))
                draft.put(key, path, steps, note=f"{value:g} of max_steps")
            else:
                draft.drop(key, f"a share of all steps; give {path} in steps (see `lorad plan`)")
        else:
            to(path, whole=True)(draft, key, value)

    return carry


def strategy(path: str) -> Rule:
    def decide(draft: Draft, key: str, value: Any) -> None:
        match str(value):
            case "steps":
                draft.drop(key, f"{path} says it")
            case "no":
                draft.drop(key, f"without {path} it happens at the end only")
            case other:
                draft.drop(
                    key, f"{other}: give {path} in steps; `lorad plan` tells the steps of an epoch"
                )

    return decide


def per_epoch(path: str) -> Rule:
    return without_effect(f"give {path} in steps; `lorad plan` tells the steps of an epoch")


def precision(dtype: str) -> Rule:
    """Make a rule for a switch of a data type."""

    def choose(draft: Draft, key: str, value: Any) -> None:
        if value in (False, "auto", "false"):
            draft.drop(key, "auto is bfloat16 on CUDA, float32 on CPU")
        elif dtype == "float16":
            draft.lose(key, "float16 is not available; bfloat16 is used on CUDA, float32 on CPU")
        elif draft.get("training.dtype") is not None:
            draft.drop(key, "the data type is given already")
        else:
            draft.put(key, "training.dtype", dtype, note=f"the base model in {dtype}")

    return choose


def four_bits(draft: Draft, key: str) -> None:
    """Train on a base model in 4 bits."""
    draft.put(key, "adapter", "qlora", note="adapter: qlora")


def one_horizon(draft: Draft) -> None:
    """Let max_steps win over epochs, as it does in transformers; here they contradict."""
    if draft.get("training.max_steps") is not None:
        draft.remove("training.num_train_epochs", "dropped", "max_steps wins, as it does there")
    if draft.get("training.lr_scheduler_type") == "constant":
        draft.remove(
            "training.warmup_steps", "dropped", "a constant rate has no warm-up there either"
        )


def as_mapping(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


ADAM = {
    "adam_beta1": not_here("0.9 is used", harmless=[0.9]),
    "adam_beta2": not_here("0.999 is used", harmless=[0.999]),
    "adam_epsilon": not_here("1e-8 is used", harmless=[1e-8]),
}

TRANSFORMERS: Mapping[str, Rule] = {
    **ADAM,
    "seed": to("seed", whole=True),
    "learning_rate": to("training.learning_rate"),
    "weight_decay": to("training.weight_decay"),
    "max_grad_norm": to("training.max_grad_norm"),
    "gradient_accumulation_steps": to("training.gradient_accumulation_steps", whole=True),
    "max_steps": max_steps,
    "warmup_steps": to("training.warmup_steps"),
    "warmup_ratio": warmup_ratio,
    "save_steps": steps_between("training.save_steps", "save_strategy"),
    "eval_steps": steps_between("training.eval_steps", "eval_strategy"),
    "save_strategy": strategy("training.save_steps"),
    "eval_strategy": strategy("training.eval_steps"),
    "evaluation_strategy": strategy("training.eval_steps"),
    "save_total_limit": to("training.save_total_limit", whole=True),
    "logging_steps": to("training.logging_steps", whole=True),
    "early_stopping_patience": to("training.early_stopping_patience", whole=True),
    "load_best_model_at_end": without_effect(
        "the best checkpoint is kept and named: `lorad download JOB best`"
    ),
    "metric_for_best_model": not_here("the best is the lowest eval loss", harmless=["eval_loss"]),
    "greater_is_better": not_here("the best is the lowest eval loss"),
    "bf16": precision("bfloat16"),
    "fp16": precision("float16"),
    "lr_scheduler_kwargs": not_here("the schedules have no other arguments"),
    "optim_args": not_here("the optimizers have no other arguments"),
    "neftune_noise_alpha": not_here("noise on embeddings (NEFTune) is not available"),
    "label_smoothing_factor": not_here("label smoothing is not available"),
    "group_by_length": without_effect("batches hold no padding, so length does not matter"),
    "resume_from_checkpoint": not_here(
        "checkpoints of other tools are not read; here it is `lorad resume JOB --from STEP`"
    ),
    "gradient_checkpointing_kwargs": SPEED,
    "torch_compile": SPEED,
    "tf32": SPEED,
    "deepspeed": SHARDING,
    "fsdp": SHARDING,
    "fsdp_config": SHARDING,
    "ddp_timeout": MACHINE,
    "ddp_find_unused_parameters": MACHINE,
    "dataloader_num_workers": MACHINE,
    "dataloader_pin_memory": MACHINE,
    "dataloader_prefetch_factor": MACHINE,
    "dataloader_drop_last": not_here("the last, smaller batch of an epoch is trained on too"),
    "low_cpu_mem_usage": MACHINE,
    "remove_unused_columns": PREPARING,
    "output_dir": OUTPUT,
    "save_only_model": without_effect("a checkpoint always holds all that a resume needs"),
    "save_safetensors": without_effect("it is always safetensors"),
    "hub_model_id": OUTPUT,
    "hub_strategy": OUTPUT,
    "push_to_hub": OUTPUT,
    "trust_remote_code": without_effect("no code that comes with a model is ever run"),
}
