"""Choosing the next token from logits, and how likely each was."""

import secrets
from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.logits_process import TopPLogitsWarper

from app.domain.errors import TrainingError
from app.domain.inference import Sampling, TokenLogprob
from worker.training.inference.texts import token_text

# Shape suffixes: B = answers, V = vocabulary.

_LOWEST_TEMPERATURE = 1e-5
_SEEDS = 2**63
# Distance between the generators of the n answers to one prompt. Source: 2**64 / golden ratio.
_STRIDE = 0x9E3779B97F4A7C15


class NonFiniteLogits(TrainingError):
    """The model computes nothing that tokens can be chosen from."""

    default_code = "nonfinite_logits"


class Chooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: How.
        index: Which of the n answers it is; each has a generator of its own.
        device: Where the logits are.
    """

    def __init__(self, sampling: Sampling, index: int, device: torch.device) -> None:
        self._temperature = max(sampling.temperature, _LOWEST_TEMPERATURE)
        self.is_greedy = sampling.temperature == 0
        self._warper = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None
        seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed
        self._generator = torch.Generator(device).manual_seed((seed + index * _STRIDE) % _SEEDS)

    def sample(self, logits_V: torch.Tensor) -> int:
        scores_BV = ((logits_V - logits_V.max()) / self._temperature)[None]
        if self._warper is not None:
            scores_BV = self._warper(cast(Any, None), cast(Any, scores_BV))
        probabilities_BV = scores_BV.softmax(-1)
        return int(torch.multinomial(probabilities_BV[0], 1, generator=self._generator).item())


def choose(logits_BV: torch.Tensor, choosers: Sequence[Chooser]) -> list[int | NonFiniteLogits]:
    """Choose one token for each answer.

    Returns:
        The tokens; for an answer whose logits are not finite, what is to be told.
    """
    best_B, ids_B = logits_BV.max(-1)
    # One answer from the device for all greedy ones.
    ids, finite = torch.stack([ids_B, best_B.isfinite().long()]).tolist()
    return [
        NonFiniteLogits("the model's output is not finite; its weights or its adapter are broken")
        if not finite[row]
        else (ids[row] if chooser.is_greedy else chooser.sample(logits_BV[row]))
        for row, chooser in enumerate(choosers)
    ]


def logprob_of(
    logits_V: torch.Tensor, token: int, num_top: int, tokenizer: PreTrainedTokenizerBase
) -> TokenLogprob:
    """Tell how likely a token was before temperature and top_p, in nats, and the best others."""
    logprobs_V = logits_V.log_softmax(-1)
    text, token_bytes = token_text(tokenizer, token)
    top: tuple[tuple[str, float], ...] = ()
    if num_top:
        values, ids = logprobs_V.topk(min(num_top, logprobs_V.shape[-1]))
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        top = tuple((token_text(tokenizer, each)[0], value) for each, value in pairs)
    return TokenLogprob(
        token=text, logprob=logprobs_V[token].item(), token_bytes=token_bytes, top=top
    )
