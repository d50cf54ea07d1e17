"""The proof of an export: the model in its files against the live adapter, token by token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from app.domain.exports import Bounds, Parity
from app.domain.tools import ExportRequest
from worker.training.export.probe import Track

# Largest mean divergence in nats by the type that weights are rounded to. Measured: on SmolLM2-135M
# float32 1e-8, float16 2e-6, bfloat16 2e-4; on small models of random weights, which forgive least,
# bfloat16 1e-4 and q8_0 7e-3. tests/exports/test_sabotage.py holds that a forgotten scaling or one
# tensor that was not merged is beyond them.
_MAX_KL = {
    "float32": 1e-4,
    "f32": 1e-4,
    "float16": 1e-3,
    "f16": 1e-3,
    "bfloat16": 1e-2,
    "bf16": 1e-2,
    "q8_0": 2e-2,
}
_MIN_AGREEMENT = 0.99
# What 8 bits round away turns choices between tokens that are about as likely: 9 % of them on
# models of random weights, whose choices are all close.
_MIN_ROUNDED_AGREEMENT = {"bfloat16": 0.97, "bf16": 0.97, "q8_0": 0.9}
# An adapter trained on 4-bit weights meets the weights before that rounding here. The difference is
# that of the quantization, so these bounds tell a working merge from a broken one and no more.
_ORIGINAL_BASE = Bounds(name="original-base-of-qlora", min_greedy_agreement=0.5, max_mean_kl=1.0)


@dataclass(frozen=True)
class Live:
    """What the live adapter says, and what it is said with."""

    tracks: tuple[Track, ...]
    logprobs: list[torch.Tensor]
    renderings: tuple[str | None, ...]
    prompts: list[tuple[int, ...]]


def bounds_of(request: ExportRequest, dtype: str) -> Bounds:
    """Return what an export has to reach, by its format, data type and base."""
    if request.format != "adapter" and request.base_differs:
        return _ORIGINAL_BASE
    # Half-precision training computes the live side in that precision too.
    rounded = dtype if request.live_dtype != "bfloat16" else _coarser(dtype)
    return Bounds(
        name=f"{request.format}-{rounded}",
        min_greedy_agreement=_MIN_ROUNDED_AGREEMENT.get(rounded, _MIN_AGREEMENT),
        max_mean_kl=_MAX_KL[rounded],
    )


def compare(
    live: Live,
    logprobs: Sequence[torch.Tensor],
    *,
    renderings: Sequence[str | None],
    prompts: Sequence[tuple[int, ...]],
    bounds: Bounds,
) -> Parity:
    """Measure what an export says along the live adapter's answers.

    Args:
        live: The live adapter.
        logprobs: Of the export, [tokens, vocabulary] per track.
        renderings: The fixed conversations as the export renders them.
        prompts: The prompts' tokens by the export's tokenizer.
        bounds: What has to be reached.
    """
    agreed, divergence, num_tokens = 0, 0.0, 0
    for ours, theirs in zip(live.logprobs, logprobs, strict=True):
        num_tokens += len(ours)
        # Rows of a padded vocabulary that only one side has are no tokens.
        width = min(ours.shape[-1], theirs.shape[-1])
        agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        ours, theirs = ours[:, :width].double(), theirs[:, :width].double()
        divergence += float(F.kl_div(theirs, ours, reduction="sum", log_target=True))
    parity = Parity(
        num_prompts=len(live.tracks),
        num_tokens=num_tokens,
        greedy_agreement=agreed / num_tokens,
        # Rounding can bring a sum of differences of equal things below zero.
        mean_kl=max(divergence / num_tokens, 0.0) if math.isfinite(divergence) else None,
        template_identical=tuple(renderings) == live.renderings,
        tokens_identical=list(prompts) == live.prompts,
        bounds=bounds,
    )
    return parity.model_copy(update={"problems": tuple(_problems(parity))})


def _problems(parity: Parity) -> list[str]:
    bounds = parity.bounds
    found: list[str] = []
    if parity.greedy_agreement < bounds.min_greedy_agreement:
        found.append(
            f"it chooses the live adapter's token at {parity.greedy_agreement:.1%} of"
            f" {parity.num_tokens} positions, and {bounds.min_greedy_agreement:.0%} are needed"
        )
    if parity.mean_kl is None:
        found.append("its next-token distributions are not finite")
    elif parity.mean_kl > bounds.max_mean_kl:
        found.append(
            f"its next-token distributions are {parity.mean_kl:.2g} nats from the live adapter's,"
            f" and {bounds.max_mean_kl:.2g} are allowed"
        )
    if not parity.template_identical:
        found.append("it renders conversations differently from training")
    if not parity.tokens_identical:
        found.append("its tokenizer makes other tokens of the prompts")
    return found


def _coarser(dtype: str) -> str:
    """Return what bounds hold when the live side computes in bfloat16."""
    return dtype if dtype in ("bf16", "q8_0") else "bfloat16"
