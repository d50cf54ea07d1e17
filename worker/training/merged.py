"""LoRA layers that multiply by `W + s * B @ A`, made once per optimizer step.

Forward is then one product, and so is backward to the input; the gradients of A and B come from
products that are `r` wide. It costs a float32 copy of every adapted matrix. Exact in float32 only:
lower precisions would round small updates away in the sum.
"""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from worker.training.low_rank import (
    ADAPTER,
    gradient_of_a,
    gradient_of_b,
    has_frozen_matrix,
    is_plain,
    is_usual_call,
)
from worker.training.products import product

_LEAST_SHARE = 0.5

# Shape suffixes: I and O = inputs and outputs of the layer, N = tokens, R = rank.


def speed_up(model: nn.Module, *, tokens_per_step: float) -> int:
    """Let plain float32 LoRA layers on the CPU multiply by one matrix; return how many do.

    None does where adapters are on less than half of the linear weights: there the whole step
    would gain less than 2 %, which is not worth a copy of the weights.

    Args:
        model: A model with adapters.
        tokens_per_step: Tokens of an average optimizer step; with few of them, making the sum
            costs more than it saves.
    """
    layers = [m for m in model.modules() if _is_exact(m) and _pays(m, tokens_per_step)]
    if _num_weights(layers) < _LEAST_SHARE * _num_linear_weights(model):
        return 0
    for layer in layers:
        layer.forward = MethodType(_Merged(layer).forward, layer)
    return len(layers)


def _is_exact(module: nn.Module) -> bool:
    if not is_plain(module):
        return False
    assert isinstance(module, LoraLayer)
    weight = module.get_base_layer().weight
    assert isinstance(weight, torch.Tensor)
    is_float32_on_cpu = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return has_frozen_matrix(module) and is_float32_on_cpu


def _pays(layer: Any, tokens_per_step: float) -> bool:
    """Compare the writes of making the sum with the sums of outputs and inputs that it saves.

    A layer of O outputs and I inputs writes O * I numbers once per step, and without the sum
    N * (O + I) for N tokens. Measured on SmolLM2, half of that many tokens lose about as much as
    they gain, and twice as many win; docs/training.md has the figures.
    """
    outputs, inputs = layer.base_layer.weight.shape
    return tokens_per_step * (outputs + inputs) >= 2 * outputs * inputs


def _num_weights(layers: Sequence[Any]) -> int:
    return sum(layer.base_layer.weight.numel() for layer in layers)


def _num_linear_weights(model: nn.Module) -> int:
    """Count the weights of the decoder's linear layers: frozen, and inside of adapted ones."""
    modules = dict(model.named_modules())
    return sum(
        module.weight.numel()
        for name, module in modules.items()
        if type(module) is nn.Linear and not name.endswith("lm_head") and "lora_" not in name
    )


class _Merged:
    """The sum for one layer, and the matrices that it was made of.

    It is made again when A or B are not what they were, bit by bit: version counters would not do,
    because fused optimizers change weights without counting. Reading two narrow matrices costs
    nothing beside a product, and the result is a function of the layer's state alone.
    """

    def __init__(self, layer: Any) -> None:
        self._a_RI = torch.full_like(layer.lora_A[ADAPTER].weight, torch.nan)
        self._b_OR = torch.full_like(layer.lora_B[ADAPTER].weight, torch.nan)
        self._sum_OI = torch.empty(0)

    def forward(self, layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not is_usual_call(layer, x, args, kwargs) or x.dtype != torch.float32:
            return type(layer).forward(layer, x, *args, **kwargs)
        base, scaling = layer.base_layer, layer.scaling[ADAPTER]
        a_RI, b_OR = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        sum_OI = self._sum(base.weight, a_RI, b_OR, scaling)
        out = _MergedProduct.apply(x, sum_OI, base.bias, a_RI, b_OR, scaling)
        assert isinstance(out, torch.Tensor)
        return out

    @torch.no_grad()
    def _sum(
        self, weight_OI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        if not (torch.equal(a_RI, self._a_RI) and torch.equal(b_OR, self._b_OR)):
            self._sum_OI = torch.addmm(weight_OI, b_OR, a_RI, alpha=scaling)
            self._a_RI.copy_(a_RI)
            self._b_OR.copy_(b_OR)
        return self._sum_OI


class _MergedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        sum_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, sum_OI, a_RI, b_OR)
        ctx.scaling = scaling
        return product(x, sum_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, sum_OI, a_RI, b_OR = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_NO = grad_outputs[0].reshape(-1, sum_OI.shape[0])
        grad_a = grad_b = None
        if needs_a:
            grad_low_NR = product(grad_NO, b_OR.T).mul_(ctx.scaling)
            grad_a = gradient_of_a(grad_low_NR, x, a_RI)
        if needs_b:
            low_NR = product(x.reshape(-1, x.shape[-1]), a_RI).mul_(ctx.scaling)
            grad_b = gradient_of_b(grad_NO, low_NR, b_OR)
        grad_x = product(grad_NO, sum_OI.T).reshape(x.shape) if needs_x else None
        return grad_x, None, None, grad_a, grad_b, None
