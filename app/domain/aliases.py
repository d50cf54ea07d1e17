"""Names that other trainers use for our keys, so that their configurations are understood."""

from collections.abc import Mapping

from app.domain.presets import ALL_LINEAR, PRESETS

# Other name -> our dotted path. Each is accepted at the top of a spec and inside its own group.
# Sources: axolotl (axolotl), LLaMA-Factory (lf), OpenAI fine-tuning (openai), scripts for Unsloth
# and TRL (trl).
ALIASES: Mapping[str, str] = {
    "model": "base_model",  # openai
    "model_name_or_path": "base_model",  # lf, trl
    "model_name": "base_model",
    "training_file": "dataset.id",  # openai
    "dataset_id": "dataset.id",
    "lora_rank": "lora.r",  # lf
    "lora_r": "lora.r",  # axolotl, trl
    "rank": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lora_target": "lora.target_modules",  # lf
    "lora_target_modules": "lora.target_modules",  # axolotl, trl
    "target": "lora.target_modules",
    "rslora": "lora.use_rslora",
    "dora": "lora.use_dora",
    "peft_use_dora": "lora.use_dora",  # axolotl
    "peft_use_rslora": "lora.use_rslora",  # axolotl
    "lora_modules_to_save": "lora.modules_to_save",  # axolotl, trl
    "additional_target": "lora.modules_to_save",  # lf
    "quantization_bit": "quantization.load_in_4bit",  # lf
    "quantization_type": "quantization.bnb_4bit_quant_type",  # lf
    "double_quantization": "quantization.bnb_4bit_use_double_quant",  # lf
    "use_bnb_nested_quant": "quantization.bnb_4bit_use_double_quant",  # trl
    "cutoff_len": "dataset.max_length",  # lf
    "sequence_len": "dataset.max_length",  # axolotl
    "max_seq_length": "dataset.max_length",  # trl, Unsloth
    "template": "dataset.chat_template",  # lf
    "val_set_size": "dataset.val_size",  # axolotl
    "train_on_prompt": "dataset.train_on_inputs",  # lf
    "num_epochs": "training.num_train_epochs",  # axolotl
    "n_epochs": "training.num_train_epochs",  # openai
    "epochs": "training.num_train_epochs",
    "micro_batch_size": "training.per_device_train_batch_size",  # axolotl
    "batch_size": "training.per_device_train_batch_size",  # openai
    "gradient_accumulation": "training.gradient_accumulation_steps",
    "lr": "training.learning_rate",
    "lr_scheduler": "training.lr_scheduler_type",  # axolotl
    "warmup_ratio": "training.warmup_steps",
    "optimizer": "training.optim",  # axolotl
    "max_norm": "training.max_grad_norm",
    "sample_packing": "training.packing",  # axolotl
    "neat_packing": "training.packing",  # lf
    "save_every": "training.save_steps",
    "saves_total_limit": "training.save_total_limit",
    "eval_every": "training.eval_steps",
}


class AliasConflict(Exception):
    """An alias contradicts another name of its key, or has a value that the key cannot take."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


def translate(name: str, value: object) -> object:
    """Turn the value given under the alias `name` into a value of our key.

    Raises:
        AliasConflict: `warmup_ratio` is 1 or more, which our `warmup_steps` would read as a
            number of steps; or `quantization_bit` is a number of bits other than 4.
    """
    if name == "quantization_bit":
        return _is_4_bit(value)
    if name == "warmup_ratio" and isinstance(value, int | float) and value >= 1:
        raise AliasConflict(
            name, f"warmup_ratio must be below 1, got {value}; give steps as training.warmup_steps"
        )
    if name == "lora_target" and value == "all":
        return ALL_LINEAR
    if name in ("lora_target", "target") and isinstance(value, str) and value not in PRESETS:
        return [part.strip() for part in value.split(",")]
    if name == "additional_target" and isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if name == "lr_scheduler" and isinstance(value, str):
        return value.removesuffix("_scheduler")
    return value


def of_group(group: str) -> dict[str, str]:
    """Return alias -> key for one group of the spec; `""` is the top."""
    pairs = ((alias, path.rpartition(".")) for alias, path in ALIASES.items())
    return {alias: key for alias, (owner, _, key) in pairs if owner == group}


def _is_4_bit(bits: object) -> object:
    if isinstance(bits, bool) or not isinstance(bits, int | None):
        return bits
    if bits not in (4, None):
        raise AliasConflict(
            "quantization_bit", f"quantization_bit must be 4, got {bits}: qlora stores 4 bits"
        )
    return bits == 4
