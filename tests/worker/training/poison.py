"""A model that cannot stand one token: what a row with it costs is not a number."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer


def poisoned(model_folder: Path, target: Path, *, row: dict[str, Any], rows: Any) -> Path:
    """Copy a tied Llama, untie it, and make the embedding of a token that only `row` has NaN."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)

    def ids(each: dict[str, Any]) -> set[int]:
        return set(tokenizer("".join(message["content"] for message in each["messages"])).input_ids)

    token = min(ids(row) - set().union(*(ids(each) for each in rows if each is not row)))
    shutil.copytree(model_folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = load_file(target / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding.clone()
    embedding[token] = torch.nan
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target
