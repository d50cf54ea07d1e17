"""Models of other makes answer together as each does alone, windows of attention included."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.domain.errors import InvalidModel
from app.domain.inference import HostKey
from tests.worker.inference.conftest import LONG, SHORT, Answers, ask
from worker.training.inference import prompts
from worker.training.inference.engine import Engine

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
WINDOW = {"sliding_window": 8}
KINDS: dict[str, dict[str, Any]] = {
    "mistral": {**SMALL, **WINDOW},
    "qwen3": SMALL,
    "gemma3_text": {
        **SMALL,
        **WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.5},
}


def make(kind: str, options: dict[str, Any], tokenizer: Path, folder: Path) -> Path:
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.for_model(
        kind, vocab_size=49152, bos_token_id=1, eos_token_id=2, pad_token_id=2, **options
    )
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_answers_together_are_those_of_generate_alone(kind: str, tiny_llama: Path, tmp_path: Path):
    folder = make(kind, KINDS[kind], tiny_llama, tmp_path / kind)
    answers = Answers()
    engine = Engine(
        HostKey(model_folder=folder),
        device=torch.device("cpu"),
        most_adapters=1,
        emit=answers.take,
    )
    texts = (LONG, SHORT, "Hi")

    for number, text in enumerate(texts):
        engine.submit(ask(str(number), text, max_tokens=20 - number))
        engine.step()
    while not engine.is_idle:
        engine.step()

    model: Any = engine.base
    for number, text in enumerate(texts):
        ids = prompts.encode(ask("x", text).prompt, engine.tokenizer, frozenset()).ids
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=20 - number,
            do_sample=False,
            pad_token_id=2,
        )
        tokenizer: Any = engine.tokenizer
        expected = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        assert answers.text(str(number)) == expected
        assert len(set(expected)) > 3


def test_a_model_with_a_state_of_another_kind_is_refused(tiny_llama: Path, tmp_path: Path):
    options = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "expand": 1}
    folder = make("mamba", options, tiny_llama, tmp_path / "mamba")

    with pytest.raises(InvalidModel, match="mamba"):
        Engine(
            HostKey(model_folder=folder),
            device=torch.device("cpu"),
            most_adapters=1,
            emit=Answers().take,
        )
