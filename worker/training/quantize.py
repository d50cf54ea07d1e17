"""QLoRA: base models whose linear layers are stored in 4 bits, and products with such layers.

Embeddings, layer norms and the LM head keep the data type of the model. Nothing is raised to
float32 beside the adapter, and no input is made to need a gradient: adapters need neither, and
checkpointing is the non-reentrant kind, which works without.
"""

import hashlib
import importlib
import logging
import math
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft import import_utils
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from app.domain.errors import InvalidModel, TrainingError
from app.domain.options import QuantizationSpec
from worker.training import products

_COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """How much of a model is quantized."""

    num_parameters: int
    """Frozen parameters, quantized ones counted as what they stand for."""
    num_quantized_parameters: int
    quantized_bytes: int
    """Bytes of the packed weights with the constants that belong to them."""


def load_bitsandbytes() -> Any:
    """Import bitsandbytes, and let peft and transformers see it.

    The warm server keeps it out (see `worker.trainer.preload`), and peft remembers that.

    Raises:
        TrainingError: It is not installed, or does not load on this machine.
    """
    try:
        with _alone():
            bitsandbytes = importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        raise TrainingError(
            f"bitsandbytes does not load on this worker ({error}); it is needed for adapter = qlora"
            " and the 8-bit optimizers",
            code="not_installed",
        ) from error
    for remembered in (
        import_utils.is_bnb_available,
        import_utils.is_bnb_4bit_available,
        is_bitsandbytes_available,
    ):
        remembered.cache_clear()
    return bitsandbytes


def configuration(spec: QuantizationSpec, *, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return what transformers needs to quantize a model of `dtype` while it loads it."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=spec.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=_COMPUTE_DTYPES.get(spec.bnb_4bit_compute_dtype, dtype),
    )


@contextmanager
def reproducible(device: torch.device) -> Generator[None]:
    """Quantize in one thread on the CPU: a mean over several threads depends on their number."""
    num_threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def finish(model: PreTrainedModel) -> None:
    """Check that a model was quantized, and take the better products where there are any.

    Raises:
        InvalidModel: None of its linear layers could be quantized.
    """
    layers = [module for _, module in quantized_layers(model)]
    if not layers:
        raise InvalidModel(
            f"{type(model).__name__} has no linear layer that can be quantized to 4 bits; use"
            " adapter = lora"
        )
    for layer in layers:
        if layer.weight.device.type == "cpu":
            # bitsandbytes packs weights anew, with bfloat16 constants, at the first evaluation.
            layer.support_avx512bf16_for_cpu = False
            layer.forward = MethodType(_forward, layer)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and module of every 4-bit linear layer, in the model's order.

    The name is that of the layer in the base model, whether or not peft wrapped it since.
    """
    for name, module in model.named_modules():
        if is_quantized(getattr(module, "weight", None)) and not hasattr(module, "base_layer"):
            yield name.removesuffix(".base_layer"), module


def is_quantized(weight: object) -> bool:
    return getattr(weight, "quant_state", None) is not None


def num_parameters(weight: nn.Parameter) -> int:
    """Return how many numbers a weight stands for: a packed one holds two in a byte."""
    quant_state = getattr(weight, "quant_state", None)
    return weight.numel() if quant_state is None else math.prod(quant_state.shape)


def sizes(model: nn.Module) -> Sizes:
    """Count the frozen parameters of a model."""
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    quantized = [weight for weight in frozen if is_quantized(weight)]
    # Layers share the code book of their constants.
    stored = {t.data_ptr(): t.nbytes for weight in quantized for _, t in _stored(weight)}
    return Sizes(
        num_parameters=sum(map(num_parameters, frozen)),
        num_quantized_parameters=sum(map(num_parameters, quantized)),
        quantized_bytes=sum(stored.values()),
    )


def start_digest(model: nn.Module) -> Future[str]:
    """Begin to hash the quantized weights in a thread, beside other work."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quantized")
    future = executor.submit(digest, model)
    executor.shutdown(wait=False)
    return future


def digest(model: nn.Module) -> str:
    """Hash the quantized layers: packed weights, constants, code book, types and shapes."""
    result = hashlib.sha256()
    for name, layer in quantized_layers(model):
        state = layer.weight.quant_state
        facts = (name, state.quant_type, state.blocksize, state.dtype, tuple(state.shape))
        result.update(repr(facts).encode())
        for key, tensor in _stored(layer.weight):
            result.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            result.update(data.numpy().data)
    return result.hexdigest()


def dequantized(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return the matrix that a packed weight stands for."""
    state = weight.quant_state
    absmax = state.absmax
    if state.nested:
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(
            absmax, state.state2.absmax, state.state2.code, state.state2.blocksize, torch.float32
        )
        absmax += state.offset
    return torch.ops.bitsandbytes.dequantize_4bit(
        weight.data, absmax, state.blocksize, state.quant_type, state.shape, dtype
    )


class _Product(torch.autograd.Function):
    """`x @ W.T` for a packed W, unpacked twice rather than kept from forward to backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any) -> torch.Tensor:
        ctx.weight = weight
        return products.times_transposed(x, dequantized(weight, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = grad_outputs[0].contiguous()
        matrix = dequantized(ctx.weight, gradient.dtype)
        return products.times_transposed(gradient, matrix.T), None


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Do what Linear4bit does, with the faster product and the same matrix in both directions."""
    compute_dtype = layer.compute_dtype or x.dtype
    product = _Product.apply(x.to(compute_dtype), layer.weight)
    assert isinstance(product, torch.Tensor)
    if layer.bias is not None:
        product = product + layer.bias.to(compute_dtype)
    return product.to(x.dtype)


def _stored(weight: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor that a packed weight consists of."""
    state = weight.quant_state
    yield "weight", weight.data
    for prefix, part in (("", state), ("state2.", state.state2)):
        for key in ("absmax", "code", "offset"):
            tensor = getattr(part, key, None)
            if isinstance(tensor, torch.Tensor):
                yield f"{prefix}{key}", tensor


@contextmanager
def _alone() -> Generator[None]:
    """Keep bitsandbytes from fetching a kernel from a hub as it is imported; we never use it."""
    name = "kernels"
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    before, level = sys.modules.get(name), logger.level
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    logger.setLevel(logging.ERROR)  # it warns that the kernel is not there
    try:
        yield
    finally:
        logger.setLevel(level)
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
