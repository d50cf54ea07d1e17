"""Rows laid end to end are computed as if each were alone, and losses need only label positions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.domain.errors import InvalidModel, TrainingError
from app.domain.options import LoraSpec
from worker.training import adapters, attention, loss, model, products
from worker.training.attention import Segments
from worker.training.batch import lay_end_to_end
from worker.training.encode import EncodedRow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> PreTrainedModel:
    return model.load_model(tiny_llama, dtype=torch.float32, device=CPU)


def make_row(length: int, *, num_prompt_tokens: int, seed: int) -> EncodedRow:
    ids = np.random.default_rng(seed).integers(0, 49152, length, dtype=np.int32)
    return EncodedRow(seed, ids, np.arange(length) >= num_prompt_tokens)


ROWS = [
    make_row(7, num_prompt_tokens=3, seed=1),
    make_row(1, num_prompt_tokens=0, seed=2),
    make_row(12, num_prompt_tokens=0, seed=3),
]


def test_a_row_has_the_same_logits_as_when_it_is_alone(tiny: PreTrainedModel, tiny_llama: Path):
    batch = lay_end_to_end(ROWS, device=CPU)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)

    with torch.no_grad():
        together = tiny(**loss._inputs(batch)).logits[0].split(list(batch.lengths))
        alone = [plain(torch.tensor(row.ids[None], dtype=torch.long)).logits[0] for row in ROWS]

    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_sliding_window_limits_what_a_token_sees(tiny: PreTrainedModel):
    query, key, value = (torch.randn(1, 4, 9, 8) for _ in range(3))
    segments = Segments((9,), CPU)

    windowed, _ = attention.segment_attention(
        tiny, query, key, value, None, segments=segments, sliding_window=3
    )

    distance = torch.arange(9)[:, None] - torch.arange(9)[None, :]
    seen = (distance >= 0) & (distance < 3)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    torch.testing.assert_close(windowed, expected.transpose(1, 2))


def test_an_attention_that_caps_its_scores_is_refused(tiny: PreTrainedModel):
    query = torch.randn(1, 4, 9, 8)

    with pytest.raises(TrainingError, match="softcap"):
        attention.segment_attention(
            tiny, query, query, query, None, segments=Segments((9,), CPU), softcap=50.0
        )


def test_layers_that_carry_state_from_row_to_row_are_refused(tiny: PreTrainedModel):
    tiny.config.layer_types = ["full_attention", "linear_attention"]
    try:
        with pytest.raises(InvalidModel, match="linear_attention"):
            model._require_separable_rows(tiny)
    finally:
        del tiny.config.layer_types


def test_labels_are_the_tokens_after_their_positions_and_never_cross_rows():
    batch = lay_end_to_end(ROWS, device=CPU)

    # Row 1 has targets 3..6, row 2 none that can be predicted, row 3 (from 8) targets 1..11.
    assert batch.label_positions_N.tolist() == [2, 3, 4, 5, *range(8, 19)]
    assert batch.labels_N.tolist() == [*ROWS[0].ids[3:], *ROWS[2].ids[1:]]
    assert batch.position_ids_BT[0].tolist() == [*range(7), 0, *range(12)]
    assert batch.num_targets == sum(row.num_targets for row in ROWS)


def test_the_loss_and_its_gradient_equal_those_of_all_logits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "_CHUNK_ROWS", 4)  # several chunks and a rest
    hidden = torch.randn(10, 16, dtype=torch.float64, requires_grad=True)
    head, labels = torch.randn(50, 16, dtype=torch.float64), torch.randint(0, 50, (10,))

    ours = loss.chunked_cross_entropy_sum(hidden, head, labels)
    (gradient,) = torch.autograd.grad(ours * 0.5, hidden)

    expected = F.cross_entropy(hidden @ head.T, labels, reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected * 0.5, hidden)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_logits_of_any_size_give_a_finite_loss():
    hidden = torch.full((2, 4), 1e3)
    head = torch.randn(9, 4)

    value = loss.chunked_cross_entropy_sum(hidden, head, torch.tensor([0, 1]))

    assert torch.isfinite(value)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_model_that_scales_its_logits_is_not_short_cut(
    tiny: PreTrainedModel, scale: float | None
):
    tiny.config.logit_scale = scale
    try:
        assert (loss.plain_head(tiny) is None) == (scale is not None)
    finally:
        del tiny.config.logit_scale


def test_an_adapted_head_gives_the_loss_of_its_own_logits(tiny_llama: Path):
    base = model.load_model(tiny_llama, dtype=torch.float32, device=CPU)
    spec = LoraSpec(r=2, target_modules=["lm_head", "q_proj"])
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        adapted = adapters.attach(base, spec, seed=1, base_model="tiny")
    batch = lay_end_to_end(ROWS, device=CPU)

    loss_sum = loss.make_loss_sum(adapted.base)

    assert loss.plain_head(adapted.base) is None
    logits = adapted.base(**loss._inputs(batch)).logits[0][batch.label_positions_N]
    expected = F.cross_entropy(logits, batch.labels_N, reduction="sum")
    torch.testing.assert_close(loss_sum(batch), expected)


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_faster_product_has_the_same_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, has_bias: bool
):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    layer = torch.nn.Linear(24, 40, bias=has_bias).requires_grad_(requires_grad=False)
    x = torch.randn(1, 13, 24, requires_grad=True)
    weights = torch.randn(1, 13, 40)
    expected = layer(x)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), x)

    products.speed_up(layer)

    torch.testing.assert_close(layer(x), expected)
    (gradient,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_trained_layer_keeps_its_own_product(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    layer = torch.nn.Linear(3, 3)

    products.speed_up(layer)

    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None
