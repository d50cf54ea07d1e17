"""Which layers of a model run faster code of ours: chosen by what they compute, type and device.

Every replacement has the library's own layer as its oracle in the tests, and is left out where it
would not compute the same: the library's layer then runs as it is.
"""

import importlib.util

import torch
from transformers import PreTrainedModel

from worker.training import elementwise, low_rank, merged, products


def speed_up(model: PreTrainedModel, *, tokens_per_step: float) -> None:
    """Replace the layers of a model, with its adapters in place, that have a faster form.

    Args:
        model: The transformers model under PEFT's wrapper.
        tokens_per_step: Tokens of an average optimizer step, which decide whether adding the
            adapter's product to a weight once per step costs less than adding it per token.
    """
    low_rank.speed_up(model)
    if model.device.type == "cpu":
        products.speed_up(model)
        merged.speed_up(model, tokens_per_step=tokens_per_step)
        elementwise.speed_up(model)
    elif can_use_liger(model.device):
        use_liger(model)


def can_use_liger(device: torch.device) -> bool:
    """Tell whether Liger's kernels are installed and run on a device: Triton needs CUDA."""
    return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def use_liger(model: PreTrainedModel) -> None:
    """Replace norms, rotary embeddings and gated activations by Liger's kernels."""
    from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
        _apply_liger_kernel_to_instance,
    )

    # The loss stays ours: it is computed at label positions, without a synchronisation per call.
    _apply_liger_kernel_to_instance(
        model=model,
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
    )
