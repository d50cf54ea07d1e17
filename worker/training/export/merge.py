"""The merged model: the adapter's update added to the base's matrices, in float32."""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain import disk
from app.domain.tools import ExportRequest
from worker.training import model, quantize
from worker.training.export import live

_MAX_SHARD = "5GB"
_LICENSES = ("LICENSE", "NOTICE")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge(request: ExportRequest) -> PreTrainedModel:
    """Return the base model in float32 with the adapter in its weights.

    PEFT does it, so scaling, DoRA, fully trained modules and biases are what they were in training.

    Raises:
        InvalidModel: The adapter does not fit.
    """
    base = model.load_plain(request.model_folder, dtype=torch.float32, device=live.CPU)
    if request.base == "dequantized":
        _take_dequantized(base, request)
    merged = live.attach(base, request.adapter_folder).merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    # The folder that it was loaded from means nothing elsewhere.
    merged.config.name_or_path = request.name
    return merged


@torch.no_grad()
def _take_dequantized(base: PreTrainedModel, request: ExportRequest) -> None:
    """Put what the packed weights stand for into the linear layers that training quantized."""
    packed = model.load_plain(
        request.model_folder,
        dtype=live.torch_dtype(request),
        device=live.CPU,
        quantization=request.spec.quantization,
    )
    for name, layer in quantize.quantized_layers(packed):
        compute_dtype = layer.compute_dtype or live.torch_dtype(request)
        matrix = quantize.dequantized(layer.weight, compute_dtype)
        base.get_parameter(f"{name}.weight").copy_(matrix)


def save(merged: PreTrainedModel, folder: Path, *, dtype: str) -> None:
    """Write weights and configuration as transformers does, in shards of at most 5 GB.

    Raises:
        NotEnoughSpace: There is no room for it; nothing was written.
    """
    converted = merged.to(_DTYPES[dtype])  # pyright: ignore[reportArgumentType]
    disk.require(folder, sum(each.nbytes for each in converted.parameters()))
    converted.save_pretrained(folder, max_shard_size=_MAX_SHARD)


def save_tokenizer(request: ExportRequest, folder: Path) -> None:
    """Write the tokenizer with the chat template that training used, and the base's licences."""
    tokenizer = tokenizer_of(request)
    tokenizer.save_pretrained(folder)
    for name in _LICENSES:
        if (request.model_folder / name).is_file():
            shutil.copyfile(request.model_folder / name, folder / name)


def tokenizer_of(request: ExportRequest) -> PreTrainedTokenizerBase:
    tokenizer = model.load_tokenizer(request.model_folder)
    if request.spec.dataset.chat_template is not None:
        tokenizer.chat_template = request.spec.dataset.chat_template
    tokenizer.name_or_path = request.name
    return tokenizer
