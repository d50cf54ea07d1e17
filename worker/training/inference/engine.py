"""Answers of one base model and its adapters, many at once, a token of each at a time."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain import failpoints
from app.domain.errors import InvalidInput, InvalidModel, LoradError
from app.domain.inference import Adapter, Began, Event, Failed, HostKey, InferenceRequest
from worker.training import model as models
from worker.training.inference import caches, prompts, room
from worker.training.inference.answers import Answer
from worker.training.inference.batches import Batch, Prefill, Told
from worker.training.inference.failures import failure_of
from worker.training.inference.shelf import Shelf

Emit = Callable[[str, list[Event]], None]

# Tokens of a prompt that are read before others get their next token.
_PIECE_TOKENS = 256
# Tokens that the answers of one adapter get before those of another have their turn.
_TURN_TOKENS = 8
# Tokens of an answer that room is kept for; few answers are longer, and those take what there is.
_EXPECTED_TOKENS = 1024


class Engine:
    """Answers requests to one base model; all of its methods belong to one thread.

    Args:
        key: The base model.
        device: Where to compute.
        most_adapters: Adapters to keep attached.
        emit: Is told the events of a request as they come.

    Raises:
        InvalidModel: The model does not load.
        OutOfMemory: There is no memory for it (code `no_memory`).
    """

    def __init__(
        self, key: HostKey, *, device: torch.device, most_adapters: int, emit: Emit
    ) -> None:
        room.require(key, device, free_bytes=room.free_bytes(device))
        base = models.load_plain(
            key.model_folder,
            dtype=models.resolve_dtype(key.dtype, device=device.type),
            device=device,
            quantization=key.quantization,
        ).eval()
        base.requires_grad_(requires_grad=False)
        self.tokenizer: PreTrainedTokenizerBase = models.load_tokenizer(key.model_folder)
        self.base: PreTrainedModel = base
        self.shelf = Shelf(base, most=most_adapters)
        self._emit = emit
        self._ends = prompts.ends_of(base, self.tokenizer)
        self._context = models.context_length(key.model_folder)
        self._new: deque[InferenceRequest] = deque()
        self._prefills: deque[Prefill] = deque()
        self._batches: OrderedDict[str | None, tuple[Adapter | None, Batch]] = OrderedDict()
        self._left_in_turn = _TURN_TOKENS
        self._reserved: dict[str, int] = {}
        self._token_bytes = _warm_up(base, key.model_folder)
        self._cache_bytes = room.free_bytes(device) // 2

    def submit(self, request: InferenceRequest) -> None:
        """Take a request; its events are told by the steps that follow."""
        self._new.append(request)

    def cancel(self, request_id: str) -> None:
        """Give a request up, if it is under way; it is told as failed with code `cancelled`."""
        if request_id in self._active():
            self._fail(request_id, Failed(code="cancelled", message="the request was cancelled"))

    @property
    def is_idle(self) -> bool:
        return not (self._new or self._prefills or self._batches)

    @torch.inference_mode()
    def step(self) -> None:
        """Read a piece of one prompt, and give the answers whose turn it is a token each."""
        failpoints.hit("host.step")
        while self._new and self._admit(self._new[0]):
            self._new.popleft()
        if self._prefills:
            self._read_on()
        if self._batches:
            self._decode()

    def _admit(self, request: InferenceRequest) -> bool:
        """Begin a request, or refuse it; False when it has to wait for others to end."""
        try:
            encoded = prompts.encode(request.prompt, self.tokenizer, self._ends)
            left = self._tokens_left(request, encoded)
            expected = min(left, request.sampling.max_tokens or left, _EXPECTED_TOKENS)
            bytes_per_token = self._token_bytes * request.sampling.n
            needed = (len(encoded.ids) + int(expected)) * bytes_per_token
            if self._reserved and not self._has_room(request, needed):
                return False
            if (len(encoded.ids) + 1) * bytes_per_token > self._cache_bytes:
                raise room.no_memory(needed, self._cache_bytes, "the prompt and its answers")
        except Exception as error:  # noqa: BLE001 (an edge: the others go on)
            self._emit(request.id, [failure_of(error)])
            return True
        answers = [
            Answer(
                request.id,
                index,
                request.sampling,
                encoded,
                self.tokenizer,
                room=left,
                device=self.base.device,
            )
            for index in range(request.sampling.n)
        ]
        self._reserved[request.id] = needed
        self._prefills.append(Prefill(request, encoded, answers))
        return True

    def _tokens_left(self, request: InferenceRequest, encoded: prompts.Encoded) -> int:
        """Return how many tokens fit behind a prompt.

        Raises:
            InvalidInput: None do.
        """
        if self._context is None:
            return request.sampling.max_tokens or _EXPECTED_TOKENS
        left = self._context - len(encoded.ids)
        if left < 1:
            is_chat = request.prompt.kind == "chat"
            raise InvalidInput(
                f"the {'messages have' if is_chat else 'prompt has'} {len(encoded.ids)} tokens, and"
                f" the model was made for {self._context} with its answer; shorten"
                f" {'them' if is_chat else 'it'}",
                param="messages" if is_chat else "prompt",
                code="context_length_exceeded",
            )
        return left

    def _has_room(self, request: InferenceRequest, needed_bytes: int) -> bool:
        fits = sum(self._reserved.values()) + needed_bytes <= self._cache_bytes
        return fits and self.shelf.has_place(request.adapter, self._names_in_use())

    def _read_on(self) -> None:
        """Read a piece of the prompt whose turn it is; after the last one its answers begin."""
        prefill = self._prefills.popleft()
        request_id, adapter = prefill.request.id, prefill.request.adapter
        try:
            self.shelf.use(adapter, {*self._names_in_use(), *_name_of(adapter)})
            logits_BV = prefill.read(self.base, _PIECE_TOKENS)
            if not prefill.is_done:
                self._prefills.append(prefill)
                return
            self._emit(request_id, [Began(num_prompt_tokens=len(prefill.encoded.ids))])
            told, batch = prefill.first_tokens(logits_BV)
        except Exception as error:  # noqa: BLE001 (an edge: the others go on)
            self._fail(request_id, failure_of(error))
            return
        if batch is not None:
            name = None if adapter is None else adapter.name
            if name in self._batches:
                self._batches[name][1].add(batch)
            else:
                self._batches[name] = (adapter, batch)
        self._tell(told)

    def _decode(self) -> None:
        """Give the answers of the adapter whose turn it is their next tokens."""
        name = next(iter(self._batches))
        adapter, batch = self._batches[name]
        try:
            self.shelf.use(adapter, self._names_in_use())
            self._tell(batch.step(self.base))
        except Exception as error:  # noqa: BLE001 (an edge: the other adapters go on)
            for request_id in {answer.request_id for answer in batch.answers}:
                self._fail(request_id, failure_of(error))
        self._left_in_turn -= 1
        if name in self._batches and not batch.answers:
            del self._batches[name]
            self._left_in_turn = _TURN_TOKENS
        elif self._left_in_turn <= 0:
            self._batches.move_to_end(name)
            self._left_in_turn = _TURN_TOKENS

    def _tell(self, told: Told) -> None:
        """Report what became of answers; a request without any that go on is over."""
        for answer, events in told:
            if answer.request_id not in self._reserved:
                continue
            if isinstance(events, LoradError):
                self._fail(answer.request_id, failure_of(events))
            elif events:
                self._emit(answer.request_id, events)
        going_on = self._active()
        for request_id in [each for each in self._reserved if each not in going_on]:
            del self._reserved[request_id]

    def _fail(self, request_id: str, failed: Failed) -> None:
        """End a request, wherever it is."""
        self._new = deque(each for each in self._new if each.id != request_id)
        self._prefills = deque(each for each in self._prefills if each.request.id != request_id)
        for name, (_, batch) in list(self._batches.items()):
            for answer in batch.answers:
                answer.is_over = answer.is_over or answer.request_id == request_id
            batch.leave()
            if not batch.answers:
                del self._batches[name]
        self._reserved.pop(request_id, None)
        self._emit(request_id, [failed])

    def _active(self) -> set[str]:
        batches = (batch for _, batch in self._batches.values())
        return {
            *(each.id for each in self._new),
            *(each.request.id for each in self._prefills),
            *(answer.request_id for batch in batches for answer in batch.answers),
        }

    def _names_in_use(self) -> set[str]:
        waiting = (each.request.adapter for each in self._prefills)
        adapters = [*waiting, *(adapter for adapter, _ in self._batches.values())]
        return {name for adapter in adapters for name in _name_of(adapter)}


def _name_of(adapter: Adapter | None) -> Iterator[str]:
    if adapter is not None:
        yield adapter.name


@torch.inference_mode()
def _warm_up(base: PreTrainedModel, folder: Path) -> int:
    """Run the model once, as its first pass is slow; returns the bytes that a token is kept in.

    Raises:
        InvalidModel: It does not take what the engine gives it.
    """
    cache = caches.empty()
    try:
        base(
            input_ids=torch.zeros((1, 2), dtype=torch.long, device=base.device),
            position_ids=torch.tensor([[0, 1]], device=base.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise InvalidModel(
            f"model {folder.name} cannot be asked token by token: {error}"
        ) from error
    caches.require_plain(cache, 2, folder.name)
    return max(1, math.ceil(caches.bytes_per_token(cache)))
