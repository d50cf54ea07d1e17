"""Keys and values of the tokens so far, of several answers that grow together."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicLayer

from app.domain.errors import InvalidModel

# Shape suffixes: B = answers, H = heads of keys and values, T = tokens, D = width of a head.

_LEAST_ROOM = 64


class GrowingLayer(DynamicLayer):
    """One layer of the model: a token's keys are written behind the last, not copied with all."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._buffers_BHTD: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens; returns keys and values of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers_BHTD is None or self._buffers_BHTD[0].shape[-2] < end:
            self._grow((key_states, value_states), start, end)
        keys_BHTD, values_BHTD = cast(tuple[torch.Tensor, torch.Tensor], self._buffers_BHTD)
        keys_BHTD[:, :, start:end] = key_states
        values_BHTD[:, :, start:end] = value_states
        self.keys = keys_BHTD[:, :, :end]
        self.values = values_BHTD[:, :, :end]
        return self.keys, self.values

    def replace(self, keys_BHTD: torch.Tensor, values_BHTD: torch.Tensor) -> None:
        """Take other keys and values; room is made when the next token comes."""
        self.dtype, self.device = keys_BHTD.dtype, keys_BHTD.device
        self.keys, self.values = keys_BHTD, values_BHTD
        self.is_initialized = True
        self._buffers_BHTD = None

    def _grow(self, states: Sequence[torch.Tensor], start: int, end: int) -> None:
        grown: list[torch.Tensor] = []
        for state, now in zip(states, (self.keys, self.values), strict=True):
            batch, heads, _, width = state.shape
            size = (batch, heads, end + max(_LEAST_ROOM, end // 4), width)
            # Zeros, because what is masked is still multiplied, and 0 times NaN is NaN.
            buffer_BHTD = state.new_zeros(size)
            if start:
                assert now is not None
                buffer_BHTD[:, :, :start] = now
            grown.append(buffer_BHTD)
        self._buffers_BHTD = (grown[0], grown[1])


def empty() -> Cache:
    return Cache(layer_class_to_replicate=GrowingLayer)


def require_plain(cache: Cache, num_tokens: int, model_name: str) -> None:
    """Check after a forward pass that keys and values are all that a model remembers.

    Raises:
        InvalidModel: It keeps a state of another kind, which this cache does not.
    """
    lengths = {layer.get_seq_length() for layer in layers(cache)}
    if lengths != {num_tokens}:
        raise InvalidModel(
            f"model {model_name} remembers more than keys and values of its tokens; answering with"
            " such models is not available in this version"
        )


def bytes_per_token(cache: Cache) -> int:
    """Return the bytes of one token of one answer."""
    total = sum(each.nbytes for layer in layers(cache) for each in _states(layer))
    return total // max(1, cache.get_seq_length())


def repeat(cache: Cache, times: int) -> None:
    """Let several answers go on from one prompt."""
    if times > 1:
        for layer in layers(cache):
            keys_BHTD, values_BHTD = _states(layer)
            layer.replace(
                keys_BHTD.repeat_interleave(times, 0), values_BHTD.repeat_interleave(times, 0)
            )


def select(cache: Cache, rows: Sequence[int], *, drop_left: int) -> None:
    """Keep only some of the answers, without the first `drop_left` places, which none of them uses.

    Args:
        rows: Indices of the answers to keep.
    """
    for layer in layers(cache):
        keys_BHTD, values_BHTD = _states(layer)
        index = torch.tensor(rows, device=keys_BHTD.device)
        layer.replace(
            keys_BHTD[:, :, drop_left:].index_select(0, index),
            values_BHTD[:, :, drop_left:].index_select(0, index),
        )


def join(cache: Cache, other: Cache) -> None:
    """Add the answers of `other` behind those of `cache`; the shorter ones are padded left."""
    for layer, newcomer in zip(layers(cache), layers(other), strict=True):
        pairs = zip(_states(layer), _states(newcomer), strict=True)
        layer.replace(*[_stacked(ours, theirs) for ours, theirs in pairs])


def layers(cache: Cache) -> list[GrowingLayer]:
    return cast(list[GrowingLayer], cache.layers)


def _states(layer: GrowingLayer) -> tuple[torch.Tensor, torch.Tensor]:
    return cast(torch.Tensor, layer.keys), cast(torch.Tensor, layer.values)


def _stacked(one_BHTD: torch.Tensor, other_BHTD: torch.Tensor) -> torch.Tensor:
    longest = max(one_BHTD.shape[-2], other_BHTD.shape[-2])
    batch = one_BHTD.shape[0] + other_BHTD.shape[0]
    stacked_BHTD = one_BHTD.new_zeros((batch, one_BHTD.shape[1], longest, one_BHTD.shape[3]))
    stacked_BHTD[: one_BHTD.shape[0], :, longest - one_BHTD.shape[-2] :] = one_BHTD
    stacked_BHTD[one_BHTD.shape[0] :, :, longest - other_BHTD.shape[-2] :] = other_BHTD
    return stacked_BHTD
