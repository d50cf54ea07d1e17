"""Make a Llama of a given size with random weights, for runs in which only the shapes matter.

Weights are bfloat16 and written one layer at a time, so that 7B takes the memory of a layer. The
tokenizer is SmolLM2's; the vocabulary is at least as large as it, so LLaMA's 32,000 become 49,152.

    python bench/make_model.py llama-7b models/llama-7b-random
    python bench/make_model.py llama-7b models/llama-7b-8-layers --layers 8
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TOKENIZER = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_DEVIATION = 0.02
_VOCABULARY = 49152


@dataclass(frozen=True)
class Size:
    """What the shapes of a Llama follow from."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_key_value_heads: int


SIZES = {
    "tiny": Size(2, 64, 128, 4, 2),
    "tinyllama": Size(22, 2048, 5632, 32, 4),
    "llama-7b": Size(32, 4096, 11008, 32, 32),
}


def make_model(
    name: str, folder: Path, *, num_layers: int | None = None, tokenizer: Path = TOKENIZER
) -> Path:
    """Write a model folder; the same name and layers give the same weights.

    Args:
        name: A key of `SIZES`.
        folder: Where it goes; it must not exist.
        num_layers: Decoder layers, if not those of the size.
        tokenizer: Model folder whose tokenizer is copied.

    Returns:
        The folder.
    """
    if not (tokenizer / "tokenizer.json").is_file():
        raise SystemExit(
            f"{tokenizer} has no tokenizer.json; add SmolLM2 there first:"
            f" python -m worker.models add-smollm2 {tokenizer}"
        )
    size = SIZES[name]
    layers = size.num_layers if num_layers is None else num_layers
    temporary = folder.with_name(f".tmp-{folder.name}")
    temporary.mkdir(parents=True)
    try:
        _write_config(temporary, size, layers)
        _write_weights(temporary, size, layers)
        for file in TOKENIZER_FILES:
            if (tokenizer / file).is_file():
                shutil.copy(tokenizer / file, temporary / file)
        return temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _write_config(folder: Path, size: Size, num_layers: int) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_key_value_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)


def _write_weights(folder: Path, size: Size, num_layers: int) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shards = list(_shards(size, num_layers))
    placed: dict[str, str] = {}
    total = 0
    for index, shapes in enumerate(shards, 1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            key: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.empty(shape, dtype=torch.bfloat16).normal_(std=_DEVIATION)
            for key, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        placed.update(dict.fromkeys(tensors, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    listing = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing, indent=1))


def _shards(size: Size, num_layers: int) -> Iterator[Mapping[str, tuple[int, ...]]]:
    """Yield names and shapes of the weights, one file at a time."""
    hidden, inner = size.hidden, size.intermediate
    key_value = hidden // size.num_heads * size.num_key_value_heads
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        yield {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (key_value, hidden),
            f"{prefix}.self_attn.v_proj.weight": (key_value, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}.mlp.up_proj.weight": (inner, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, inner),
        }
    yield {"model.embed_tokens.weight": (_VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    yield {"lm_head.weight": (_VOCABULARY, hidden)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    given = parser.parse_args()
    if given.folder.exists():
        raise SystemExit(f"{given.folder} exists already; remove it or give another folder")
    folder = make_model(
        given.size, given.folder, num_layers=given.layers, tokenizer=given.tokenizer
    )
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
