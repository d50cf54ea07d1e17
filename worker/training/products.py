"""Products with frozen matrices, by the faster of the two libraries that come with torch.

torch multiplies float32 matrices on the CPU with MKL, which takes an old code path on processors
that are not Intel's: on a Zen 5 core it reached 100 GFLOP/s where oneDNN, which looks at the
instruction set only, reached 235. oneDNN is inside every torch build, but torch asks it for
lower precisions only. Both compute in float32; only the order of summation differs.
"""

from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn


def speed_up(model: nn.Module) -> None:
    """Let the frozen float32 linear layers of a model on the CPU use the faster product."""
    if not onednn_is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear and _is_frozen_float32(module):
            module.forward = MethodType(_frozen_forward, module)


def product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `x @ weight.T + bias`; outside of autograd."""
    if _is_onednn_for(x):
        return _onednn(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def plus_product(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return `out + x @ weight.T`, and perhaps overwrite `out` with it; outside of autograd."""
    if _is_onednn_for(x):
        return torch.ops.mkldnn._linear_pointwise.binary(x, out, weight, None, "add")
    return out.addmm_(x, weight.T)


def times_transposed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return `x @ weight.T`; outside of autograd."""
    if onednn_is_faster() and _is_suitable(weight):
        return _onednn(x, weight, None)
    return x @ weight.T


@lru_cache
def onednn_is_faster() -> bool:
    """Tell by the processor's maker; timing it would let two runs differ in their last bits."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class _FrozenProduct(torch.autograd.Function):
    """`x @ W.T + b` with a gradient for x alone: nothing of x is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _onednn(grad_outputs[0].contiguous(), weight.T, None), None, None


def _frozen_forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    product = _FrozenProduct.apply(x, layer.weight, layer.bias)
    assert isinstance(product, torch.Tensor)
    return product


def _is_frozen_float32(layer: nn.Linear) -> bool:
    # A trained bias needs a gradient, which the product here does not make.
    return _is_suitable(layer.weight) and not any(p.requires_grad for p in layer.parameters())


def _is_onednn_for(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and onednn_is_faster()


def _is_suitable(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.requires_grad
    )


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # The operation that torch's compiler emits for a linear layer.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
