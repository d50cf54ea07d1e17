"""Writing GGUF files with the `gguf` library: weights, tokenizer, chat template."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import MODEL_ARCH_NAMES, GGMLQuantizationType, LlamaFileType, TokenType
from gguf.gguf_writer import GGUFWriter
from gguf.quants import quantize
from gguf.tensor_mapping import get_tensor_name_map
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain import disk
from app.domain.errors import InvalidModel
from app.domain.exports import GGUF_ARCHITECTURES, GGUF_NAME

_Q = GGMLQuantizationType
_TYPES = {"f32": _Q.F32, "f16": _Q.F16, "bf16": _Q.BF16, "q8_0": _Q.Q8_0}
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
_BLOCK = 32  # numbers that share a scale in q8_0
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is split before merges -> llama.cpp's name for it.
_SPLITS: dict[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_WORDS % r"\p{N}{1,3}", "ByteLevel"): "llama-bpe",
    (_WORDS % r"\p{N}", "ByteLevel"): "qwen2",
}


def write(
    merged: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: str,
    name: str,
) -> None:
    """Write `model.gguf` with everything that llama.cpp and its users need.

    Args:
        merged: The model in float32.
        tokenizer: Its tokenizer, with the chat template to write.
        folder: Where the file goes.
        dtype: `f32`, `f16`, `bf16` or `q8_0`; vectors stay float32 in each.
        name: Name of the model, for people.

    Raises:
        InvalidModel: The architecture, its positions or its tokenizer cannot be written.
        NotEnoughSpace: There is no room for it; nothing was written.
    """
    architecture = require_architecture(merged)
    num_bytes = sum(each.numel() for each in merged.parameters()) * (4 if dtype == "f32" else 2)
    disk.require(folder, num_bytes)
    writer = GGUFWriter(folder / GGUF_NAME, architecture)
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[dtype])
    _write_shape(writer, merged.config)
    _write_tokenizer(writer, tokenizer, vocab_size=merged.config.vocab_size)
    _write_weights(writer, merged, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def require_architecture(merged: PreTrainedModel) -> str:
    """Return the name that GGUF has for a model's architecture.

    Raises:
        InvalidModel: It is none that can be written.
    """
    config: Any = merged.config
    known = GGUF_ARCHITECTURES.get(type(merged).__name__)
    if known is None:
        raise _refused(
            f"the architecture {type(merged).__name__}; possible: {', '.join(GGUF_ARCHITECTURES)}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise _refused(f"scaled positions (rope_type {rope['rope_type']})")
    if getattr(config, "use_sliding_window", False):
        raise _refused("a sliding window of attention")
    return known


def split_name(tokenizer_json: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer splits text before its merges.

    Raises:
        InvalidModel: It is no byte-level BPE, or splits in a way that has no name here.
    """
    kind = (tokenizer_json.get("model") or {}).get("type")
    if kind != "BPE" or tokenizer_json["model"].get("byte_fallback"):
        raise _refused(f"a tokenizer of the kind {kind} that is no byte-level BPE")
    normalizer = tokenizer_json.get("normalizer")
    splits = tuple(map(_split, _flat(tokenizer_json.get("pre_tokenizer"))))
    name = _SPLITS.get(splits)
    # llama.cpp's reading of Qwen2 takes text in normal form as well.
    is_plain = normalizer is None or (name == "qwen2" and normalizer.get("type") == "NFC")
    if name is None or not is_plain:
        raise _refused(f"a tokenizer that splits text as {splits} does")
    return name


def _flat(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer]


def _split(part: dict[str, Any]) -> str:
    match part:
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
            return pattern
        case {"type": "Digits", "individual_digits": True}:
            return "Digits"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "ByteLevel"
        case _:
            return json.dumps(part)


def _write_shape(writer: GGUFWriter, config: Any) -> None:
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _write_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int
) -> None:
    backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    described = json.loads(backend.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(described))
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {each["id"]: each["special"] for each in described["added_tokens"]}
    tokens: list[str] = []
    types: list[int] = []
    for number in range(vocab_size):
        kind = TokenType.NORMAL
        if number not in by_id:
            kind = TokenType.UNUSED
        elif number in added:
            kind = TokenType.CONTROL if added[number] else TokenType.USER_DEFINED
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        types.append(int(kind))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = described["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    _write_special_tokens(writer, tokenizer)


def _write_special_tokens(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if isinstance(number, int):
            add(number)
    sample = tokenizer("a")["input_ids"]
    assert isinstance(sample, list)
    writer.add_add_bos_token(sample[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(sample[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _write_weights(writer: GGUFWriter, merged: PreTrainedModel, dtype: str) -> None:
    config: Any = merged.config
    kind = next(each for each, name in MODEL_ARCH_NAMES.items() if name == writer.arch)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    is_tied = config.tie_word_embeddings
    for name, tensor in merged.state_dict().items():
        if is_tied and name == "lm_head.weight":
            continue  # llama.cpp takes the embeddings where there is no head
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if ours is None:
            raise _refused(f"the tensor {name}")
        data = tensor.detach().to(torch.float32)
        if writer.arch == "llama":
            data = _permuted(data, ours, config)
        _add(writer, ours, data.contiguous().numpy(), dtype)


def _permuted(data: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    """Reorder the rows of queries and keys: GGUF's Llama turns neighbours, ours turns halves.

    Source: `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py.
    """
    if ".attn_q." in name:
        num_heads = config.num_attention_heads
    elif ".attn_k." in name:
        num_heads = config.num_key_value_heads
    else:
        return data
    rows = data.shape[0] // num_heads // 2
    return data.reshape(num_heads, 2, rows, *data.shape[1:]).transpose(1, 2).reshape(data.shape)


def _add(writer: GGUFWriter, name: str, data: np.ndarray[Any, Any], dtype: str) -> None:
    kind = _TYPES[dtype]
    if data.ndim == 1:
        kind = _Q.F32
    elif kind is _Q.Q8_0 and data.shape[-1] % _BLOCK:
        kind = _Q.F16
    writer.add_tensor(name, quantize(data, kind), raw_dtype=kind)


def _refused(what: str) -> InvalidModel:
    return InvalidModel(
        f"GGUF files cannot hold {what} in this version; export it as merged, and convert that"
        " with llama.cpp's own converter",
        param="format",
        code="gguf_unsupported",
    )
