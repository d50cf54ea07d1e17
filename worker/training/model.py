"""The base model and its tokenizer, loaded from a folder without running code from it."""

import gc
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from app.domain import model_folder
from app.domain.errors import InvalidModel
from app.domain.options import QuantizationSpec
from worker.training import attention, quantize

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Layers of these kinds carry state from token to token, so rows laid end to end would mix.
_STATEFUL_LAYERS = ("linear_attention", "mamba", "conv", "recurrent", "chunked_attention")


def resolve_dtype(name: str, *, device: str) -> torch.dtype:
    """Return the data type for `training.dtype`; `auto` is bfloat16 on CUDA and float32 on CPU."""
    if name == "auto":
        return torch.bfloat16 if device == "cuda" else torch.float32
    return _DTYPES[name]


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: QuantizationSpec | None = None,
) -> PreTrainedModel:
    """Load a causal language model for training on rows laid end to end.

    Raises:
        InvalidModel: The folder is unsafe or incomplete, or the architecture cannot be trained.
    """
    attention.register()
    model = load_plain(
        folder,
        dtype=dtype,
        device=device,
        quantization=quantization,
        attention_name=attention.NAME,
    )
    _require_separable_rows(model)
    model.requires_grad_(requires_grad=False)
    model.train()
    return model


def load_plain(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: QuantizationSpec | None = None,
    attention_name: str = "sdpa",
) -> PreTrainedModel:
    """Load a causal language model with one of transformers' registered attentions.

    Args:
        folder: A model folder.
        dtype: Data type of what is not quantized.
        device: Where to put it.
        quantization: Quantizes the linear layers if it says `load_in_4bit`.
        attention_name: Name of the attention.

    Raises:
        InvalidModel: The folder is unsafe or incomplete, or the model does not load.
    """
    model_folder.inspect(folder)
    _require_full_weights(folder)
    if quantization is None or not quantization.load_in_4bit:
        return _load(folder, dtype, device, attention_name)
    quantize.load_bitsandbytes()
    with quantize.reproducible(device):
        configuration = quantize.configuration(quantization, dtype=dtype)
        model = _load(folder, dtype, device, attention_name, quantization_config=configuration)
    quantize.finish(model)
    return model


def _load(
    folder: Path, dtype: torch.dtype, device: torch.device, attention_name: str, **options: Any
) -> PreTrainedModel:
    logging.disable_progress_bar()
    with _no_garbage_collection():
        try:
            return AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention_name,
                use_safetensors=True,
                local_files_only=True,
                device_map=None if device.type == "cpu" and not options else {"": device},
                **options,
            )
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise InvalidModel(f"model {folder.name} does not load: {error}") from error


def _require_full_weights(folder: Path) -> None:
    """Refuse weights that are stored quantized: adapters would fit that rounding only."""
    stored = json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config")
    if stored:
        method = stored.get("quant_method", "unknown") if isinstance(stored, dict) else "unknown"
        raise InvalidModel(
            f"model {folder.name} is stored quantized (quant_method {method}); add the model with"
            " its full weights, and let adapter = qlora quantize it"
        )


def context_length(folder: Path) -> int | None:
    """Return how many tokens a sequence may have for the model; None where it has no limit.

    Raises:
        InvalidModel: The configuration does not load.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise InvalidModel(
            f"model {folder.name}: its config.json does not load: {error}"
        ) from error
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a model folder.

    Raises:
        InvalidModel: There is none, or it cannot say where its tokens are in the text.
    """
    with _no_garbage_collection():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (ValueError, KeyError, OSError) as error:
            raise InvalidModel(
                f"model {folder.name}: its tokenizer does not load: {error}"
            ) from error
    if not tokenizer.is_fast:
        raise InvalidModel(f"model {folder.name}: a fast tokenizer (tokenizer.json) is needed")
    return tokenizer


def enable_checkpointing(base: PreTrainedModel) -> None:
    """Let the backward pass compute activations again instead of keeping them."""
    # transformers 5.2x renamed the method and warns about the old name.
    enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    # It also makes the embeddings' output need a gradient, for the reentrant kind only.
    base.disable_input_require_grads()


def _require_separable_rows(model: PreTrainedModel) -> None:
    """Refuse architectures whose layers would see across the rows of a micro-batch."""
    kinds = set(getattr(model.config, "layer_types", None) or ())
    stateful = sorted(kind for kind in kinds if any(name in kind for name in _STATEFUL_LAYERS))
    # transformers' own flag says whether the layers call a registered attention at all.
    if stateful or not getattr(model, "_supports_attention_backend", False):
        what = f"{stateful[0]} layers" if stateful else "an attention of its own"
        raise InvalidModel(
            f"{type(model).__name__} has {what}, which is not available in this version"
        )


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    """Loading makes a million small objects that live on; scanning them repeatedly is waste."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
