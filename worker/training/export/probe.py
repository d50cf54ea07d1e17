"""Fixed prompts, the live adapter's greedy answers to them, and next-token distributions.

The prompts hold no digits: readers of GGUF files split digits differently, which says nothing of
the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from app.domain.rows import BadRow
from worker.training.templates import Template

PROMPTS = (
    "What is the capital of France?",
    "Name three animals that live in the sea.",
    "Explain in one sentence why the sky is blue.",
    "Translate 'good morning' into Spanish.",
    "Write a short greeting to a new colleague.",
    "What should I do when my computer does not start?",
    "Give me a recipe for pancakes.",
    "Is the earth larger than the moon?",
)
_CONVERSATIONS = (
    [
        {"role": "user", "content": "Hello, who are you?"},
        {"role": "assistant", "content": "I am a model.\nAsk me."},
        {"role": "user", "content": "  And what can you do? {}<>\u00e9"},
    ],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What colour is grass?"},
        {"role": "assistant", "content": "Green."},
    ],
)
_MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Track:
    """A prompt with the live adapter's greedy answer."""

    ids: tuple[int, ...]
    num_prompt_tokens: int

    @property
    def num_answer_tokens(self) -> int:
        return len(self.ids) - self.num_prompt_tokens


def renderings(template: Template) -> tuple[str | None, ...]:
    """Render fixed conversations; None is one that the template refuses."""
    if not template.exists:
        return ()
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return (
        *(_rendered(template, prompt, prompts_answer=True) for prompt in prompts),
        *(_rendered(template, each, prompts_answer=True) for each in _CONVERSATIONS),
        *(_rendered(template, each, prompts_answer=False) for each in _CONVERSATIONS),
    )


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str | None]
) -> list[tuple[int, ...]]:
    """Encode the prompts: as the template rendered them, or plain where there is none."""
    chats = [text for text in rendered[: len(PROMPTS)] if text is not None]
    if chats:
        return [_ids(tokenizer, text, special=False) for text in chats]
    return [_ids(tokenizer, text, special=True) for text in PROMPTS]


@torch.inference_mode()
def answer(
    live: Any, prompts: Sequence[tuple[int, ...]], *, ends: frozenset[int]
) -> tuple[Track, ...]:
    """Continue every prompt with the most likely tokens, up to and including an end of turn.

    All prompts go through the model at once, padded on the left: one pass per new token.

    Args:
        live: A causal language model.
        prompts: Token ids.
        ends: Tokens that end an answer.
    """
    width = max(map(len, prompts))
    device = live.device
    ids = torch.tensor([[0] * (width - len(each)) + list(each) for each in prompts], device=device)
    mask = torch.tensor(
        [[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device
    )
    answers: list[list[int]] = [[] for _ in prompts]
    is_open = [True] * len(prompts)
    cache, given = None, ids
    for _ in range(_MAX_NEW_TOKENS):
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -given.shape[1] :]
        output = live(
            input_ids=given,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache, given = output.past_key_values, output.logits[:, -1:].argmax(dim=-1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        for index, token in enumerate(given[:, 0].tolist()):
            if is_open[index]:
                answers[index].append(token)
                is_open[index] = token not in ends
        if not any(is_open):
            break
    return tuple(
        Track((*prompt, *said), len(prompt)) for prompt, said in zip(prompts, answers, strict=True)
    )


@torch.inference_mode()
def distributions(model: Any, tracks: Sequence[Track]) -> list[torch.Tensor]:
    """Return log-probabilities of each answer token's position, [tokens, vocabulary] per track."""
    result: list[torch.Tensor] = []
    for track in tracks:
        output = model(input_ids=torch.tensor([track.ids], device=model.device), use_cache=False)
        logits = output.logits[0, track.num_prompt_tokens - 1 : -1]
        result.append(F.log_softmax(logits.float(), dim=-1).cpu())
    return result


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: Any) -> frozenset[int]:
    """Return the tokens that end a turn, by tokenizer and generation configuration."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(each for each in (*several, tokenizer.eos_token_id) if isinstance(each, int))


def _rendered(
    template: Template, conversation: list[dict[str, str]], *, prompts_answer: bool
) -> str | None:
    try:
        return template.text(conversation, [], add_generation_prompt=prompts_answer)
    except BadRow:
        return None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])
