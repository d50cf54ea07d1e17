"""Cross-entropy at label positions only: the logits of prompt tokens are never computed."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from worker.training.attention import Segments
from worker.training.batch import Batch
from worker.training.products import times_transposed

# Shape suffixes: B = 1, T = tokens of the micro-batch, N = labels, C = labels in a chunk,
# V = vocabulary, D = hidden size.

LossSum = Callable[[Batch], torch.Tensor]

# 1,024 rows of a 49,152-word vocabulary are 200 MB of float32 logits. Fewer rows make the matrix
# products less efficient, more rows only cost memory.
_CHUNK_ROWS = 1024
# Names of configuration values by which some architectures scale or cap their logits.
_LOGIT_SETTINGS = (
    "logit_scale",
    "logits_scaling",
    "final_logit_softcapping",
    "lm_head_multiplier",
    "dim_model_base",
)


class Score(NamedTuple):
    """What a model makes of the labels of a micro-batch; scalars on its device."""

    loss_sum: torch.Tensor
    """Summed cross-entropy in nats."""
    num_correct: torch.Tensor
    """Labels that are the model's most likely token."""


def make_loss_sum(model: PreTrainedModel) -> LossSum:
    """Return a function that gives the summed cross-entropy, in nats, over a micro-batch's labels.

    It is computed chunk by chunk where the LM head is a plain frozen matrix, else from the
    model's own logits at the label positions.

    Args:
        model: The base model with its adapters in place (not PEFT's wrapper).
    """
    head = plain_head(model)
    if head is None:
        return lambda batch: _loss_of_logits(model, batch)
    decoder = model.get_decoder()

    def loss_sum(batch: Batch) -> torch.Tensor:
        hidden_BTD = decoder(**_inputs(batch)).last_hidden_state
        hidden_ND = hidden_BTD[0].index_select(0, batch.label_positions_N)
        return chunked_cross_entropy_sum(hidden_ND, head.weight, batch.labels_N)

    return loss_sum


def make_scorer(model: PreTrainedModel) -> Callable[[Batch], Score]:
    """Return a function that scores a micro-batch without gradients, by the loss's own chunks.

    Args:
        model: The base model with its adapters in place (not PEFT's wrapper).
    """
    head = plain_head(model)
    decoder = model.get_decoder()

    @torch.no_grad()
    def score(batch: Batch) -> Score:
        if head is None:
            return _score(_label_logits(model, batch), batch.labels_N)
        hidden_BTD = decoder(**_inputs(batch)).last_hidden_state
        hidden_ND = hidden_BTD[0].index_select(0, batch.label_positions_N)
        chunks = [
            _score(times_transposed(hidden_CD, head.weight).float(), labels_C)
            for hidden_CD, labels_C in _chunks(hidden_ND, batch.labels_N)
        ]
        return Score(*(torch.stack(parts).sum() for parts in zip(*chunks, strict=True)))

    return score


def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """Return the LM head if logits are its product with the last hidden state and nothing else."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.requires_grad:
        return None
    if dict(head.named_parameters()).keys() != {"weight"}:
        return None
    settings = (getattr(model.config, name, None) for name in _LOGIT_SETTINGS)
    if any(value not in (None, 1, 1.0) for value in settings):
        return None
    return head


def chunked_cross_entropy_sum(
    hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor
) -> torch.Tensor:
    """Return the summed cross-entropy of `hidden_ND @ head_VD.T` against `labels_N` in nats.

    Gradients reach `hidden_ND` only; `head_VD` is frozen.
    """
    loss = _ChunkedCrossEntropy.apply(hidden_ND, head_VD, labels_N)
    assert isinstance(loss, torch.Tensor)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is made beside the loss, so logits are neither kept nor computed again.

    With p = softmax(h @ W.T), d loss / d h = p @ W - W[label]: linear in quantities at hand.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor
    ) -> torch.Tensor:
        loss = hidden_ND.new_zeros((), dtype=torch.float32)
        needs_gradient = ctx.needs_input_grad[0]
        gradients: list[torch.Tensor] = []
        for hidden_CD, labels_C in _chunks(hidden_ND, labels_N):
            chunk_loss, gradient_CD = _chunk(hidden_CD, head_VD, labels_C, needs_gradient)
            loss += chunk_loss
            gradients.append(gradient_CD)
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients))
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * grad_outputs[0].to(gradient_ND.dtype), None, None


def _chunks(
    hidden_ND: torch.Tensor, labels_N: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(hidden_ND.split(_CHUNK_ROWS), labels_N.split(_CHUNK_ROWS), strict=True)


def _score(logits_CV: torch.Tensor, labels_C: torch.Tensor) -> Score:
    highest_C, best_C = logits_CV.max(dim=-1)
    label_logits_C = logits_CV.gather(1, labels_C[:, None])[:, 0]
    # In place: a second copy of the logits would be the highest memory use of an evaluation.
    sums_C = logits_CV.sub_(highest_C[:, None]).exp_().sum(dim=-1)
    loss = (sums_C.log() + highest_C - label_logits_C).sum()
    return Score(loss, (best_C == labels_C).sum())


def _chunk(
    hidden_CD: torch.Tensor, head_VD: torch.Tensor, labels_C: torch.Tensor, needs_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_CV = times_transposed(hidden_CD, head_VD).float()
    highest_C = logits_CV.amax(dim=-1, keepdim=True)
    shifted_CV = logits_CV.sub_(highest_C)
    label_logits_C = shifted_CV.gather(1, labels_C[:, None])
    weights_CV = shifted_CV.exp_()
    sums_C = weights_CV.sum(dim=-1, keepdim=True)
    loss = (sums_C.log() - label_logits_C).sum()
    if not needs_gradient:
        return loss, hidden_CD
    # Dividing the D products instead of the V weights saves a pass over the logits.
    mean_CD = times_transposed(weights_CV.to(head_VD.dtype), head_VD.T).float() / sums_C
    return loss, (mean_CD - head_VD[labels_C].float()).to(hidden_CD.dtype)


def _loss_of_logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(_label_logits(model, batch), batch.labels_N, reduction="sum")


def _label_logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    logits_BNV = model(**_inputs(batch), logits_to_keep=batch.label_positions_N).logits
    return logits_BNV[0].float()


def _inputs(batch: Batch) -> dict[str, Any]:
    return {
        "input_ids": batch.input_ids_BT,
        "position_ids": batch.position_ids_BT,
        "segments": Segments(batch.lengths, batch.input_ids_BT.device),
        "use_cache": False,
    }
