"""Small models with a small tokenizer of their own, whose answers are anything but uniform."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.training_runs import CHAT_ROWS

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXTS = [message["content"] for row in CHAT_ROWS for message in row["messages"]]
# Random weights of this size give distributions that a wrong merge changes.
_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer of a few hundred tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=SPECIALS[0],
        bos_token=SPECIALS[1],
        eos_token=SPECIALS[2],
        pad_token=SPECIALS[2],
    )
    made.chat_template = TEMPLATE
    return made


def llama(folder: Path, *, seed: int = 0, tied: bool = True) -> Path:
    made = tokenizer()
    config = LlamaConfig(vocab_size=len(made), tie_word_embeddings=tied, head_dim=16, **_SHAPE)
    return _save(LlamaForCausalLM, config, folder, seed)


def qwen2(folder: Path) -> Path:
    made = tokenizer()
    config = Qwen2Config(vocab_size=len(made), tie_word_embeddings=False, **_SHAPE)
    return _save(Qwen2ForCausalLM, config, folder, 0)


def _save(kind: type[PreTrainedModel], config: Any, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        for name, parameter in model.named_parameters():
            # They start at zero, and a zero hides that it was left out.
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
