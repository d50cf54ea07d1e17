"""Turning a GGUF file into plain float32 weights with a tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from app.domain.errors import InvalidModel


def convert(source: Path, folder: Path) -> None:
    """Write the model in `source` into `folder` as safetensors, with its tokenizer.

    Raises:
        InvalidModel: The architecture or its quantization cannot be read.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where, name = str(source.parent), source.name
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, local_files_only=True)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise InvalidModel(f"{source.name}: {error}") from error
    # The weights are plain float32 now; with the GGUF quantizer still attached, transformers
    # refuses to save them and would look for a GGUF file when loading the result.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = folder.name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
