"""Answers of one adapter that are decoded together, and prompts on their way to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from app.domain.errors import LoradError
from app.domain.inference import Event, InferenceRequest
from worker.training.inference import caches
from worker.training.inference.answers import Answer
from worker.training.inference.prompts import Encoded
from worker.training.inference.sampling import choose

# Shape suffixes: B = answers, T = tokens, V = vocabulary.

Told = list[tuple[Answer, list[Event] | LoradError]]


@dataclass
class Prefill:
    """A prompt that is read piece by piece, so that others go on between the pieces."""

    request: InferenceRequest
    encoded: Encoded
    answers: list[Answer]
    cache: Cache = field(default_factory=caches.empty)
    num_read: int = 0

    @property
    def is_done(self) -> bool:
        return self.num_read == len(self.encoded.ids)

    def read(self, model: PreTrainedModel, num_tokens: int) -> torch.Tensor:
        """Read the next tokens; returns the logits after the last of them, one row per answer."""
        piece = self.encoded.ids[self.num_read : self.num_read + num_tokens]
        places = range(self.num_read, self.num_read + len(piece))
        output = model(
            input_ids=torch.tensor([piece], device=model.device),
            position_ids=torch.tensor([list(places)], device=model.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.num_read += len(piece)
        return output.logits[:, -1].float().expand(len(self.answers), -1)

    def first_tokens(self, logits_BV: torch.Tensor) -> "tuple[Told, Batch | None]":
        """Choose the first token of each answer; returns also the batch of those that go on."""
        caches.repeat(self.cache, len(self.answers))
        length = self.num_read
        batch = Batch(self.cache, list(self.answers), [length] * len(self.answers))
        told = batch.take(logits_BV)
        return told, (batch if batch.answers else None)


class Batch:
    """Answers that get their next tokens together.

    Args:
        cache: Keys and values, right-aligned.
        answers: Whose rows.
        lengths: Tokens of each that are in the cache.
    """

    def __init__(self, cache: Cache, answers: list[Answer], lengths: list[int]) -> None:
        self._cache = cache
        self.answers = answers
        self._lengths = lengths

    def add(self, other: "Batch") -> None:
        """Let answers of another batch go on in this one."""
        caches.join(self._cache, other._cache)
        self.answers += other.answers
        self._lengths += other._lengths

    def step(self, model: PreTrainedModel) -> Told:
        """Give every answer its next token; those that end leave.

        Returns:
            What is to be told of each answer.
        """
        device = model.device
        output = model(
            input_ids=torch.tensor([[each.last_token] for each in self.answers], device=device),
            attention_mask=self._mask(device),
            position_ids=torch.tensor([[length] for length in self._lengths], device=device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._lengths = [length + 1 for length in self._lengths]
        return self.take(output.logits[:, -1].float())

    def take(self, logits_BV: torch.Tensor) -> Told:
        """Choose a token for each answer; those that end leave."""
        told: Told = []
        chosen = choose(logits_BV, [answer.chooser for answer in self.answers])
        for row, (answer, token) in enumerate(zip(self.answers, chosen, strict=True)):
            if isinstance(token, LoradError):
                answer.is_over = True
                told.append((answer, token))
            else:
                told.append((answer, answer.push(token, logits_BV[row])))
        self.leave()
        return told

    def leave(self) -> None:
        """Let answers go that are over."""
        rows = [row for row, answer in enumerate(self.answers) if not answer.is_over]
        if len(rows) == len(self.answers):
            return
        self.answers = [self.answers[row] for row in rows]
        self._lengths = [self._lengths[row] for row in rows]
        if rows:
            pad = self._cache.get_seq_length() - max(self._lengths)
            caches.select(self._cache, rows, drop_left=pad)

    def _mask(self, device: torch.device) -> torch.Tensor | None:
        """Mark the places that hold tokens, the coming one included; None where all do."""
        width = self._cache.get_seq_length()
        if all(length == width for length in self._lengths):
            return None
        first_B1 = torch.tensor(_pads(self._lengths, width), device=device)[:, None]
        return torch.arange(width + 1, device=device)[None] >= first_B1


def _pads(lengths: Sequence[int], width: int) -> list[int]:
    return [width - length for length in lengths]
