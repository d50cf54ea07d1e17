"""Attention over sequences laid end to end: a token sees its own sequence, and no mask is built."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

from app.domain.errors import TrainingError

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

# Shape suffixes: B = 1 (the sequences of a micro-batch are one long row), H = heads, K = key and
# value heads, T = tokens of the micro-batch, D = features of a head.

NAME = "lorad_segments"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
_Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Segments:
    """Lengths of the sequences that were laid end to end."""

    lengths: tuple[int, ...]
    device: torch.device

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def boundaries(self) -> torch.Tensor:
        """Cumulative lengths from 0, made once per micro-batch because every layer asks for it."""
        ends = torch.tensor((0, *self.lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        if self.device.type == "cuda":
            ends = ends.pin_memory()  # else the copy would wait for the device
        return ends.to(self.device, non_blocking=True)


def register() -> None:
    """Make the attention known to transformers under `NAME`.

    transformers builds no mask for an attention whose name it does not know.
    """
    AttentionInterface.register(NAME, segment_attention)


def segment_attention(
    module: nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Segments,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each segment, causally; called by the model's layers.

    Shapes:
        Returns: (B, T, H, D)

    Raises:
        TrainingError: The model asks for a kind of attention that is not available here.
    """
    _refuse_unsupported(module, extra)
    window = sliding_window if sliding_window and segments.longest > sliding_window else None
    if varlen_attn is not None and _suits_varlen_kernel(query_BHTD, dropout):
        heads = (query_BHTD, key_BKTD, value_BKTD)
        return varlen_attention(*heads, segments, scaling, window, varlen_attn), None
    groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    if query_BHTD.device.type != "cpu":
        # On the CPU the kernel reads a key head once per group; on CUDA not every kernel can.
        key_BKTD, value_BKTD = _repeat_heads(key_BKTD, groups), _repeat_heads(value_BKTD, groups)
        groups = 1
    parts = (_split(x, segments.lengths) for x in (query_BHTD, key_BKTD, value_BKTD))
    pieces = [
        F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if window is None else _band(query.shape[2], window, query.device),
            dropout_p=dropout,
            is_causal=window is None,
            scale=scaling,
            enable_gqa=groups > 1,
        ).transpose(1, 2)
        for query, key, value in zip(*parts, strict=True)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1), None


def _refuse_unsupported(module: nn.Module, extra: dict[str, Any]) -> None:
    asked = [name for name in _UNSUPPORTED if extra.get(name) is not None]
    if not getattr(module, "is_causal", True):
        asked.append("bidirectional attention")
    if asked:
        raise TrainingError(f"{type(module).__name__} needs {asked[0]}, which is not available")


def _suits_varlen_kernel(query_BHTD: torch.Tensor, dropout: float) -> bool:
    return (
        query_BHTD.is_cuda
        and query_BHTD.dtype in (torch.bfloat16, torch.float16)
        and query_BHTD.shape[-1] <= 256
        and dropout == 0.0
    )


def varlen_attention(
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
    kernel: _Kernel,
) -> torch.Tensor:
    """Attend within all segments by one call of torch's kernel for sequences laid end to end.

    Args:
        query_BHTD: Queries.
        key_BKTD: Keys.
        value_BKTD: Values.
        segments: Where the sequences begin.
        scaling: Factor of the scores; None is 1 / sqrt(D).
        window: How many tokens a token sees, itself included; None is all before it.
        kernel: `torch.nn.attention.varlen.varlen_attn`, or what stands in for it.

    Shapes:
        Returns: (B, T, H, D)
    """
    grouping: dict[str, bool] = {}
    num_groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    if _can_group_heads(kernel):
        grouping["enable_gqa"] = num_groups > 1
    else:  # torch before 2.12
        key_BKTD = _repeat_heads(key_BKTD, num_groups)
        value_BKTD = _repeat_heads(value_BKTD, num_groups)
    out = kernel(
        query_BHTD[0].transpose(0, 1),
        key_BKTD[0].transpose(0, 1),
        value_BKTD[0].transpose(0, 1),
        segments.boundaries,
        segments.boundaries,
        segments.longest,
        segments.longest,
        scale=scaling,
        # The token itself is always seen: a window of one token reaches 0 tokens to the left.
        window_size=(-1 if window is None else window - 1, 0),
        **grouping,
    )
    assert isinstance(out, torch.Tensor)
    return out.unsqueeze(0)


@cache
def _can_group_heads(kernel: _Kernel) -> bool:
    return "enable_gqa" in inspect.signature(kernel).parameters


def _split(x_BHTD: torch.Tensor, lengths: Sequence[int]) -> Sequence[torch.Tensor]:
    # split(), because its backward is one concatenation; each slice would add a full-size tensor.
    return x_BHTD.split(list(lengths), dim=2)


def _repeat_heads(x_BKTD: torch.Tensor, num_groups: int) -> torch.Tensor:
    if num_groups == 1:
        return x_BKTD
    batch, heads, length, size = x_BKTD.shape
    grouped = x_BKTD[:, :, None].expand(batch, heads, num_groups, length, size)
    return grouped.reshape(batch, heads * num_groups, length, size)


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)
