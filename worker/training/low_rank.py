"""The product of a LoRA layer in one autograd function: PEFT's arithmetic in fewer passes.

PEFT makes `x @ W.T + (x @ A.T @ B.T) * s` of five operations, each of which writes, and in backward
reads again, a tensor as large as the layer's output. Here the low-rank part is scaled while it is
`r` wide and added inside the product that makes it; on CUDA the matrices are cast to the type of
the input, where PEFT casts the input to theirs. They stay float32, and so do their gradients.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import layer as peft_layer
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from worker.training.products import plus_product, product

# Shape suffixes: N = tokens, I and O = inputs and outputs of the layer, R = rank.

ADAPTER = "default"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def speed_up(model: nn.Module) -> int:
    """Let the plain LoRA layers of a model run as one function each; return how many do."""
    layers: list[Any] = [module for module in model.modules() if is_plain(module)]
    for layer in layers:
        forward = _linear_forward if has_frozen_matrix(layer) else _any_base_forward
        layer.forward = MethodType(forward, layer)
    return len(layers)


def is_plain(module: nn.Module) -> bool:
    """Tell whether a layer adds `(x @ A.T @ B.T) * s` to its base and does nothing else."""
    if not isinstance(module, LoraLayer) or type(module).__name__ not in ("Linear", "Linear4bit"):
        return False
    if list(module.lora_A) != [ADAPTER] or ADAPTER in module.lora_variant:
        return False
    matrices: list[Any] = [module.lora_A[ADAPTER], module.lora_B[ADAPTER]]
    return (
        isinstance(module.lora_dropout[ADAPTER], nn.Identity)
        and not getattr(module, "fan_in_fan_out", False)
        and all(type(m) is nn.Linear and len(list(m.parameters())) == 1 for m in matrices)
        and all(m.weight.dtype == torch.float32 for m in matrices)
        and _is_known_base(module.get_base_layer(), matrices[0].weight.device)
    )


def has_frozen_matrix(layer: LoraLayer) -> bool:
    """Tell whether the layer's base is a matrix, and perhaps a bias, that are not trained."""
    base = layer.get_base_layer()
    return (
        type(layer) is peft_layer.Linear
        and type(base) is nn.Linear
        and not any(p.requires_grad for p in base.parameters())
    )


def _is_known_base(base: nn.Module, device: torch.device) -> bool:
    """Leave half precision on the CPU to PEFT: nobody trains that way to save time."""
    if type(base) is nn.Linear:
        return base.weight.dtype in (_FLOATS if device.type == "cuda" else _FLOATS[:1])
    return type(base).__name__ == "Linear4bit"


class LowRankProduct(torch.autograd.Function):
    """`x @ W.T + b + (x @ A.T @ B.T) * s` with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = product(x_NI, a_RI.to(x.dtype)).mul_(scaling)
        out_NO = plus_product(product(x_NI, weight_OI, bias_O), low_NR, b_OR.to(x.dtype))
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR, low_NR)
        ctx.scaling = scaling
        return out_NO.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_NO = grad_outputs[0].reshape(-1, weight_OI.shape[0])
        grad_low_NR = product(grad_NO, b_OR.to(x.dtype).T).mul_(ctx.scaling)
        grad_a = gradient_of_a(grad_low_NR, x, a_RI) if needs_a else None
        grad_b = gradient_of_b(grad_NO, low_NR, b_OR) if needs_b else None
        if not needs_x:  # the lowest layers read the embeddings, which are frozen
            return None, None, None, grad_a, grad_b, None
        grad_NI = plus_product(product(grad_NO, weight_OI.T), grad_low_NR, a_RI.to(x.dtype).T)
        return grad_NI.reshape(x.shape), None, None, grad_a, grad_b, None


class _LowRankSum(torch.autograd.Function):
    """`base + (x @ A.T @ B.T) * s`, where the base layer's own product is in `base` already."""

    @staticmethod
    def forward(
        ctx: Any,
        base: torch.Tensor,
        x: torch.Tensor,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        low_NR = product(x.reshape(-1, x.shape[-1]), a_RI.to(x.dtype)).mul_(scaling)
        ctx.save_for_backward(x, a_RI, b_OR, low_NR)
        ctx.scaling = scaling
        # Not in place: the base layer may have kept its output for its own backward.
        return base + product(low_NR, b_OR.to(x.dtype)).reshape(base.shape).to(base.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a_RI, b_OR, low_NR = ctx.saved_tensors
        _, needs_x, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_NO = grad_outputs[0].reshape(-1, b_OR.shape[0]).to(x.dtype)
        grad_low_NR = product(grad_NO, b_OR.to(x.dtype).T).mul_(ctx.scaling)
        grad_a = gradient_of_a(grad_low_NR, x, a_RI) if needs_a else None
        grad_b = gradient_of_b(grad_NO, low_NR, b_OR) if needs_b else None
        grad_x = product(grad_low_NR, a_RI.to(x.dtype).T).reshape(x.shape) if needs_x else None
        return grad_outputs[0], grad_x, grad_a, grad_b, None


def gradient_of_a(grad_low_NR: torch.Tensor, x: torch.Tensor, a_RI: torch.Tensor) -> torch.Tensor:
    """Return the gradient of A from that of the low-rank output."""
    return product(grad_low_NR.T, x.reshape(-1, x.shape[-1]).T).to(a_RI.dtype)


def gradient_of_b(grad_NO: torch.Tensor, low_NR: torch.Tensor, b_OR: torch.Tensor) -> torch.Tensor:
    """Return the gradient of B from that of the layer's output."""
    # Made as (r, outputs): oneDNN is several times slower at the other way round.
    return product(low_NR.T, grad_NO.T).T.to(b_OR.dtype)


def is_usual_call(layer: LoraLayer, x: torch.Tensor, args: Any, kwargs: Any) -> bool:
    """Tell whether the one adapter is on and nothing special is asked for."""
    is_special = args or kwargs or layer.disable_adapters or layer.merged
    return not is_special and layer.active_adapters == [ADAPTER] and x.dtype in _FLOATS


def _linear_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    base = layer.base_layer
    if not is_usual_call(layer, x, args, kwargs) or x.dtype != base.weight.dtype:
        return type(layer).forward(layer, x, *args, **kwargs)
    out = LowRankProduct.apply(x, base.weight, base.bias, *_matrices(layer))
    assert isinstance(out, torch.Tensor)
    return out


def _any_base_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if not is_usual_call(layer, x, args, kwargs):
        return type(layer).forward(layer, x, *args, **kwargs)
    out = _LowRankSum.apply(layer.base_layer(x), x, *_matrices(layer))
    assert isinstance(out, torch.Tensor)
    return out


def _matrices(layer: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]
