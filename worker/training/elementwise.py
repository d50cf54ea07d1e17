"""Norms and gated activations in fewer passes over memory than autograd needs for their formulas.

Used for frozen weights on the CPU, where such a pass costs as much as a share of a product. A
layer is replaced only if it computes exactly the formula here, which is tried on random numbers.
"""

from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# Shape suffixes: N = tokens, D = features.

_EPSILON = "variance_epsilon"
_MLP_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


def speed_up(model: nn.Module) -> int:
    """Replace what can be replaced in a model on the CPU; return how many layers were."""
    num_replaced = 0
    for module in model.modules():
        if is_plain_norm(module):
            module.forward = MethodType(_norm_forward, module)
            num_replaced += 1
        elif is_plain_mlp(module):
            module.forward = MethodType(_mlp_forward, module)
            num_replaced += 1
    return num_replaced


def is_plain_norm(module: nn.Module) -> bool:
    """Tell whether a layer is a frozen root mean square norm that multiplies by its weight."""
    if dict(module.named_parameters()).keys() != {"weight"} or not hasattr(module, _EPSILON):
        return False
    weight_D = module.weight
    assert isinstance(weight_D, torch.Tensor)
    if weight_D.requires_grad or weight_D.device.type != "cpu" or weight_D.dim() != 1:
        return False
    x_ND = torch.randn(3, len(weight_D), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return _agree(module(x_ND), _norm_forward(module, x_ND))


def is_plain_mlp(module: nn.Module) -> bool:
    """Tell whether a layer is `down(silu(gate(x)) * up(x))` on the CPU.

    Its code is run on stand-ins, because the real projections may draw random numbers.
    """
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in _MLP_PARTS):
        return False
    stand_in = SimpleNamespace(
        gate_proj=lambda x: 2 * x + 1,
        up_proj=lambda x: x - 3,
        down_proj=lambda x: x / 2 + 1,
        act_fn=module.act_fn,
    )
    x_N = torch.linspace(-3, 3, 13)
    try:
        with torch.no_grad():
            theirs = type(module).forward(stand_in, x_N)  # pyright: ignore[reportArgumentType]
            return _agree(theirs, _mlp_forward(stand_in, x_N))
    except (AttributeError, TypeError):  # it uses more of itself than the three projections
        return False


class _RootMeanSquareNorm(torch.autograd.Function):
    """`w * x / rms(x)`; with r = 1 / rms(x), dx = r * (w * g) - x * r^3 * mean(w * g * x)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return (x * inverse).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, weight_D, inverse = ctx.saved_tensors
        scaled = grad_outputs[0] * weight_D
        along = (scaled * x).sum(dim=-1, keepdim=True)
        along.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return scaled.mul_(inverse).addcmul_(x, along), None, None


class _GatedSilu(torch.autograd.Function):
    """`silu(gate) * up`; silu(gate) is computed again in backward instead of being kept."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad_outputs[0])
        grad_gate = torch.ops.aten.silu_backward(grad_outputs[0] * up, gate)
        return grad_gate, grad_up


def _norm_forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
    out = _RootMeanSquareNorm.apply(x, norm.weight, norm.variance_epsilon)
    assert isinstance(out, torch.Tensor)
    return out


def _mlp_forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    gated = _GatedSilu.apply(mlp.gate_proj(x), mlp.up_proj(x))
    return mlp.down_proj(gated)


def _agree(theirs: torch.Tensor, ours: torch.Tensor) -> bool:
    return theirs.dtype == ours.dtype and torch.allclose(theirs, ours, rtol=1e-5, atol=1e-6)
