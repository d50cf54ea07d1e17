"""One answer under way: its tokens become the events that are told of it."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from app.domain.inference import Event, Finished, FinishReason, Piece, Sampling, TokenLogprob
from worker.training.inference.prompts import Encoded
from worker.training.inference.sampling import Chooser, logprob_of
from worker.training.inference.stops import Stops
from worker.training.inference.texts import GrowingText


@dataclass(frozen=True)
class _Told:
    """A token's logprob, and where its text begins in the answer."""

    logprob: TokenLogprob
    start: int


class Answer:
    """One of the n answers to a request.

    Args:
        request_id: Whose answer.
        index: Which of the n, from 0.
        sampling: How tokens are chosen and when to stop.
        encoded: The prompt.
        room: Tokens that fit behind the prompt.
    """

    def __init__(
        self,
        request_id: str,
        index: int,
        sampling: Sampling,
        encoded: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        *,
        room: int,
        device: torch.device,
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.chooser = Chooser(sampling, index, device)
        self.is_over = False
        self.last_token = encoded.ids[-1]
        self._ends = encoded.ends
        self._tokenizer = tokenizer
        self._num_top = sampling.top_logprobs
        self._most_tokens = min(sampling.max_tokens or room, room)
        self._text = GrowingText(tokenizer, encoded.before)
        self._stops = Stops(sampling.stop)
        self._num_tokens = 0
        self._decoded = 0
        self._shown = 0
        self._held: list[_Told] = []

    def push(self, token: int, logits_V: torch.Tensor) -> list[Event]:
        """Take the next token; returns what is to be told now."""
        self._num_tokens += 1
        self.last_token = token
        if token in self._ends:
            return self._finish("stop")
        if self._num_top is not None:
            logprob = logprob_of(logits_V, token, self._num_top, self._tokenizer)
            self._held.append(_Told(logprob, self._decoded))
        new = self._text.push(token)
        self._decoded += len(new)
        shown = self._stops.push(new)
        if self._stops.is_found:
            return self._finish("stop", shown)
        if self._num_tokens == self._most_tokens:
            return self._finish("length", shown)
        return self._piece(shown)

    def _finish(self, reason: FinishReason, shown: str = "") -> list[Event]:
        self.is_over = True
        if not self._stops.is_found:
            rest = self._text.flush()
            self._decoded += len(rest)
            shown += self._stops.push(rest)
        if self._stops.is_found:
            reason = "stop"
        else:
            shown += self._stops.flush()
        finished = Finished(index=self.index, reason=reason, num_tokens=self._num_tokens)
        return [*self._piece(shown, is_last=not self._stops.is_found), finished]

    def _piece(self, shown: str, *, is_last: bool = False) -> list[Event]:
        """Tell of text, with the tokens that begin in it; a last piece has all that are left."""
        self._shown += len(shown)
        told = [each for each in self._held if is_last or each.start < self._shown]
        if not shown and not told:
            return []
        self._held = self._held[len(told) :]
        logprobs = tuple(each.logprob for each in told)
        return [Piece(index=self.index, text=shown, logprobs=logprobs)]
