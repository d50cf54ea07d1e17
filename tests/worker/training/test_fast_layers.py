"""Faster layers compute what the library's own do; plain PEFT and transformers are the oracle."""

import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from app.domain.options import LoraSpec
from tests.training_runs import Workplace
from worker.training import (
    adapters,
    attention,
    elementwise,
    fast_layers,
    loss,
    low_rank,
    merged,
    model,
    products,
)
from worker.training.adapters import Adapted
from worker.training.attention import Segments
from worker.training.batch import lay_end_to_end
from worker.training.encode import EncodedRow

CPU = torch.device("cpu")
MANY, FEW = 1e6, 1.0
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_row(length: int, seed: int) -> EncodedRow:
    ids = np.random.default_rng(seed).integers(0, 49152, length, dtype=np.int32)
    return EncodedRow(seed, ids, np.arange(length) >= 3)


ROWS = [make_row(9, 1), make_row(30, 2), make_row(17, 3)]


def load(folder: Path, **lora: Any) -> Adapted:
    base = model.load_model(folder, dtype=torch.float32, device=CPU)
    spec = LoraSpec(**{"r": 4, "lora_alpha": 12, "target_modules": "all-linear", **lora})
    adapted = adapters.attach(base, spec, seed=1, base_model="b")
    move(adapted)
    return adapted


def move(adapted: Adapted) -> None:
    """Give B values, so that A has a gradient."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def measure(adapted: Adapted) -> tuple[float, dict[str, torch.Tensor]]:
    total = loss.make_loss_sum(adapted.base)(lay_end_to_end(ROWS, device=CPU))
    total.backward()
    return total.item(), take_gradients(adapted)


def take_gradients(adapted: Adapted) -> dict[str, torch.Tensor]:
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in adapted.parameters.items():
        assert parameter.grad is not None, name
        gradients[name], parameter.grad = parameter.grad, None
    return gradients


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest relative difference of a gradient, by its norm."""
    assert ours.keys() == theirs.keys()
    return max(((ours[n] - g).norm() / g.norm()).item() for n, g in theirs.items())


def reference(folder: Path, weights: Adapted) -> tuple[float, dict[str, torch.Tensor]]:
    """Sum the losses of the rows, one by one, with plain PEFT, transformers and all logits."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with adapters.without_peft_warnings():
        peft = get_peft_model(plain, LoraConfig(r=4, lora_alpha=12, target_modules=PROJECTIONS))
    live = {n: p for n, p in peft.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(weights.parameters[name])
    total = torch.zeros(())
    for row in ROWS:
        ids = torch.tensor(row.ids, dtype=torch.long)
        logits = peft(ids[None]).logits[0, :-1]
        targets = torch.tensor(row.is_target[1:])
        total = total + nn.functional.cross_entropy(
            logits[targets], ids[1:][targets], reduction="sum"
        )
    total.backward()
    return total.item(), {n: p.grad for n, p in live.items() if p.grad is not None}


@pytest.mark.parametrize("tokens_per_step", [MANY, FEW], ids=["merged", "low rank"])
def test_all_levers_together_give_the_loss_and_gradients_of_plain_peft(
    tiny_llama: Path, tokens_per_step: float
):
    fast = load(tiny_llama)
    fast_layers.speed_up(fast.base, tokens_per_step=tokens_per_step)

    ours, our_gradients = measure(fast)

    theirs, their_gradients = reference(tiny_llama, fast)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert largest_difference(our_gradients, their_gradients) < 1e-4


@pytest.mark.parametrize("is_merged", [True, False], ids=["merged", "low rank"])
def test_one_function_per_lora_layer_gives_pefts_loss_and_gradients(
    tiny_llama: Path, *, is_merged: bool
):
    plain, fast = load(tiny_llama), load(tiny_llama)
    num_layers = (
        merged.speed_up(fast.model, tokens_per_step=MANY)
        if is_merged
        else low_rank.speed_up(fast.model)
    )

    (ours, our_gradients), (theirs, their_gradients) = measure(fast), measure(plain)

    assert num_layers == 14
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert largest_difference(our_gradients, their_gradients) < 1e-5


def test_the_merged_weight_follows_every_update(tiny_llama: Path):
    plain, fast = load(tiny_llama), load(tiny_llama)
    merged.speed_up(fast.model, tokens_per_step=MANY)

    for step in range(3):
        (ours, our_gradients), (theirs, their_gradients) = measure(fast), measure(plain)
        assert ours == pytest.approx(theirs, rel=1e-6), step
        assert largest_difference(our_gradients, their_gradients) < 1e-4
        for adapted in (plain, fast):
            update(adapted, their_gradients)


def update(adapted: Adapted, gradients: dict[str, torch.Tensor]) -> None:
    parameters = list(adapted.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=0.05, fused=True)
    for name, parameter in adapted.parameters.items():
        parameter.grad = gradients[name].clone()
    optimizer.step()
    optimizer.zero_grad()


def test_micro_batches_and_evaluation_do_not_merge_again(tiny_llama: Path):
    fast = load(tiny_llama)
    merged.speed_up(fast.model, tokens_per_step=MANY)
    loss_sum = loss.make_loss_sum(fast.base)
    sums: list[torch.Tensor] = []
    layer = fast.model.get_submodule(f"base_model.model.{fast.target_modules[0]}")
    cell = layer.forward.__func__.__self__  # the merged weight behind the layer

    for _ in range(2):
        loss_sum(lay_end_to_end(ROWS, device=CPU)).backward()
        sums.append(cell._sum_OI)
    with torch.no_grad():
        loss_sum(lay_end_to_end(ROWS, device=CPU))
    sums.append(cell._sum_OI)
    move_one(fast)
    loss_sum(lay_end_to_end(ROWS, device=CPU))

    assert sums[0] is sums[1] is sums[2]
    assert cell._sum_OI is not sums[0]


def move_one(adapted: Adapted) -> None:
    next(iter(adapted.parameters.values())).data.view(-1)[0] += 1.0


def test_a_switched_off_adapter_leaves_the_base_model(tiny_llama: Path):
    plain, fast = load(tiny_llama), load(tiny_llama)
    fast_layers.speed_up(fast.base, tokens_per_step=MANY)
    batch = loss._inputs(lay_end_to_end(ROWS, device=CPU))

    with torch.no_grad(), plain.model.disable_adapter(), fast.model.disable_adapter():
        torch.testing.assert_close(fast.base(**batch).logits, plain.base(**batch).logits)
    with torch.no_grad():
        tuned = fast.base(**batch).logits
        torch.testing.assert_close(tuned, plain.base(**batch).logits, rtol=1e-4, atol=1e-5)
    assert (tuned - base_logits(fast, batch)).abs().max() > 1e-3


def base_logits(adapted: Adapted, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad(), adapted.model.disable_adapter():
        return adapted.base(**batch).logits


@pytest.mark.parametrize(
    "special", [{"lora_dropout": 0.1}, {"use_dora": True}], ids=["dropout", "DoRA"]
)
def test_layers_that_do_more_stay_with_peft(tiny_llama: Path, special: dict[str, Any]):
    base = model.load_model(tiny_llama, dtype=torch.float32, device=CPU)
    with adapters.without_peft_warnings():
        peft = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], **special))

    assert merged.speed_up(peft, tokens_per_step=MANY) == 0
    assert low_rank.speed_up(peft) == 0


def test_a_trained_bias_keeps_its_gradient():
    layer = nn.Sequential(nn.Linear(8, 4))
    layer[0].weight.requires_grad_(requires_grad=False)

    products.speed_up(layer)
    layer(torch.ones(2, 8)).sum().backward()

    assert torch.equal(layer[0].bias.grad, torch.full((4,), 2.0))  # type: ignore[arg-type]


def test_weights_are_merged_only_where_a_step_has_enough_tokens_and_most_are_adapted(
    tiny_llama: Path,
):
    # The widest layers have 64 inputs and 128 outputs: 2 * 64 * 128 / (64 + 128) tokens pay.
    assert merged.speed_up(load(tiny_llama).model, tokens_per_step=FEW) == 0
    assert merged.speed_up(load(tiny_llama).model, tokens_per_step=85) == 0
    assert merged.speed_up(load(tiny_llama).model, tokens_per_step=86) == 14
    few_layers = load(tiny_llama, target_modules=["q_proj", "v_proj"])
    assert merged.speed_up(few_layers.model, tokens_per_step=MANY) == 0


def test_half_precision_adds_the_low_rank_part_without_casting_the_input():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 40, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(24, 32, generator=generator).bfloat16()
    a = (torch.randn(4, 32, generator=generator) * 0.2).requires_grad_()
    b = (torch.randn(24, 4, generator=generator) * 0.2).requires_grad_()
    upstream = torch.randn(1, 40, 24, generator=generator)

    out = low_rank.LowRankProduct.apply(x, weight, None, a, b, 2.0)
    assert isinstance(out, torch.Tensor)
    out.backward(upstream.bfloat16())
    ours = [out, x.grad, a.grad, b.grad]

    exact = [t.detach().float().requires_grad_() for t in (x, a, b)]
    expected = exact[0] @ weight.float().T + 2.0 * (exact[0] @ exact[1].T @ exact[2].T)
    expected.backward(upstream.bfloat16().float())
    assert out.dtype == torch.bfloat16
    assert [t.grad.dtype for t in (a, b) if t.grad is not None] == [torch.float32] * 2
    for tensor, reference_ in zip(ours, [expected, *(t.grad for t in exact)], strict=True):
        assert tensor is not None
        assert reference_ is not None
        assert ((tensor.float() - reference_).norm() / reference_.norm()).item() < 1e-2


def test_norms_and_gated_activations_give_autograds_gradients():
    norm, mlp = make_norm(), make_mlp()
    x, other = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    expected = gradient_through(nn.Sequential(norm, mlp), x, other)

    fast = nn.Sequential(norm, mlp)
    num_replaced = elementwise.speed_up(fast)

    assert num_replaced == 2
    for ours, theirs in zip(gradient_through(fast, x, other), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def gradient_through(
    layers: nn.Module, x: torch.Tensor, upstream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    out = layers(leaf)
    out.backward(upstream)
    assert leaf.grad is not None
    return out.detach(), leaf.grad


def make_norm() -> LlamaRMSNorm:
    norm = LlamaRMSNorm(24)
    norm.weight.data = torch.rand(24) + 0.5
    return norm.requires_grad_(requires_grad=False)


def make_mlp() -> LlamaMLP:
    config = LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=4)
    return LlamaMLP(config).requires_grad_(requires_grad=False)


def test_a_layer_of_another_formula_is_left_alone():
    gemma = GemmaRMSNorm(24)  # multiplies by 1 + weight
    gemma.requires_grad_(requires_grad=False).variance_epsilon = 1e-6
    trained = LlamaRMSNorm(24)
    gelu = make_mlp()
    gelu.act_fn = nn.GELU()

    assert elementwise.speed_up(nn.ModuleList([gemma, trained, gelu])) == 0


@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_for_joined_sequences_gets_what_torch_asks_for(window: int | None):
    query, key, value = (torch.randn(1, heads, 12, 8) for heads in (4, 2, 2))
    segments = Segments((5, 7), CPU)
    expected, _ = attention.segment_attention(
        nn.Module(), query, key, value, None, segments=segments, sliding_window=window
    )

    out = attention.varlen_attention(query, key, value, segments, None, window, StandIn())

    torch.testing.assert_close(out, expected)


class StandIn:
    """Computes on the CPU what the CUDA kernel does, and accepts exactly its arguments."""

    __signature__ = inspect.signature(varlen_attn)

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        given = self.__signature__.bind(*args, **kwargs)
        given.apply_defaults()
        names = given.arguments
        assert names["max_q"] == max(names["cu_seq_q"].diff())
        ends = names["cu_seq_q"].tolist()
        parts = [
            self.attend(*(names[n][a:b] for n in ("query", "key", "value")), names)
            for a, b in pairwise(ends)
        ]
        return torch.cat(parts)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, names: dict[str, Any]
    ) -> torch.Tensor:
        left, right = names["window_size"]
        position = torch.arange(len(query))
        distance = position[:, None] - position[None, :]
        seen = (distance >= -right) & ((distance <= left) | (left < 0))
        return nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in (query, key, value)),
            attn_mask=seen,
            enable_gqa=names["enable_gqa"],
        )[0].transpose(0, 1)


def test_liger_is_asked_for_on_cuda_only():
    assert not fast_layers.can_use_liger(CPU)


def test_a_stopped_run_with_merged_weights_resumes_to_the_last_bit(workplace: Workplace):
    arguments: dict[str, Any] = {
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        "training": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 6,
        },
    }
    whole = workplace.train(**arguments)

    stopped = workplace.train_until(3, "pause", **arguments)
    rest = workplace.train(**arguments, resume=stopped.checkpoint(3))

    assert stopped.losses | rest.losses == whole.losses
    assert rest.final_adapter == whole.final_adapter
