"""Memory that a run needs, part by part, from the model's shapes and the longest micro-batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from app.domain.memory import MemoryEstimate, MemoryPart
from app.domain.options import QuantizationSpec
from app.domain.spec import JobSpec
from worker.training import adapters
from worker.training.adapters import Adapted
from worker.training.rehearsal import Live, Rehearsal, skeleton

# The constants are measured, not derived: bench/memory.py, and docs/memory.md has the figures.
# Resident memory of a trainer without a model: interpreter, libraries, tokenizer.
_RUNTIME_BYTES = {"cpu": (380e6, 450e6, 560e6), "cuda": (0.0, 0.0, 0.0)}
# What tensors take of the allocator beside their own bytes, because freed pieces are too small
# for what comes next: glibc on the CPU, much less where a limit makes it give large ones back;
# torch's cache on CUDA, where used bytes are measured.
_FRAGMENTATION = {
    "cpu": (1.05, 1.3, 1.55),
    "limited cpu": (1.0, 1.05, 1.15),
    "cuda": (1.0, 1.05, 1.2),
}
_BLOCK, _BLOCKS_PER_GROUP = 64, 256
_SMALLEST_8BIT = 4096


@dataclass(frozen=True)
class MicroBatch:
    """Rows that are trained on at once."""

    lengths: tuple[int, ...]
    num_targets: int

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


class Footprint:
    """Estimates of one run, for micro-batches of any size.

    Args:
        spec: The run.
        folder: The base model.
        device: cpu or cuda.
        dtype: Data type of the base model.
        tokens_per_step: Tokens of an average optimizer step.
    """

    def __init__(
        self,
        spec: JobSpec,
        folder: Path,
        *,
        device: str,
        dtype: torch.dtype,
        tokens_per_step: float,
    ) -> None:
        self._device = device
        self._allocator = _allocator(spec, device)
        adapted = skeleton(spec, folder, dtype=dtype)
        trained = list(adapted.parameters.values())
        self.num_trained = sum(p.numel() for p in trained)
        self.adapter_bytes = sum(p.nbytes for p in trained)
        self.optimizer_bytes = sum(_optimizer_bytes(p, spec.training.optim) for p in trained)
        packed = _packed(adapted) if spec.quantization.load_in_4bit else {}
        self._weights = _weight_bytes(adapted, spec.quantization, packed)
        # The embeddings are used where their file is mapped, which keeps all of it in sight: the
        # matrices that were read to be packed stay resident until somebody needs the memory.
        self._mapped = sum(weight.nbytes for weight in packed.values()) if device == "cpu" else 0
        self._rehearsal = Rehearsal(adapted, spec, tokens_per_step=tokens_per_step)

    def estimate(self, batch: MicroBatch) -> MemoryEstimate:
        """Return the memory while a micro-batch is trained on."""
        return self._estimate(self._rehearsal.step(batch.lengths, batch.num_targets), batch)

    def _estimate(self, live: Live, batch: MicroBatch) -> MemoryEstimate:
        spread = _FRAGMENTATION[self._allocator]
        # The loss and the backward pass hold gradients already, which are a part of their own.
        loss = max(0, live.loss - self.adapter_bytes)
        return MemoryEstimate(
            device="cuda" if self._device == "cuda" else "cpu",
            micro_batch_size=len(batch.lengths),
            num_tokens=batch.num_tokens,
            parts=(
                _exactly("weights", self._weights),
                _between("mapped_file", (0, self._mapped, self._mapped)),
                _exactly("adapter", self.adapter_bytes),
                _exactly("gradients", self.adapter_bytes),
                _exactly("optimizer", self.optimizer_bytes),
                _between("activations", [live.activations * factor for factor in spread]),
                _between("loss", [loss * factor for factor in spread]),
                _between("runtime", _RUNTIME_BYTES[self._device]),
            ),
        )


def _allocator(spec: JobSpec, device: str) -> str:
    if device == "cpu" and spec.resources.max_memory_gb is not None:
        return "limited cpu"
    return device


def memory_of(device: torch.device) -> int:
    """Return the memory that a device has, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _packed(adapted: Adapted) -> dict[int, nn.Parameter]:
    """Return the matrices that are kept in 4 bits, by identity."""
    head = adapted.base.get_output_embeddings()
    layers = adapters.linear_layers(adapted.base).values()
    weights = [p for layer in layers if layer is not head for p in layer.parameters(recurse=False)]
    return {id(p): p for p in weights if p.dim() == 2 and not p.requires_grad}


def _weight_bytes(
    adapted: Adapted, quantization: QuantizationSpec, packed: Mapping[int, nn.Parameter]
) -> int:
    """Return the bytes of all frozen tensors."""
    total = sum(b.nbytes for b in adapted.model.buffers())
    for weight in adapted.model.parameters():
        if id(weight) in packed:
            total += _packed_bytes(weight.numel(), quantization)
        elif not weight.requires_grad:
            total += weight.nbytes
    return total


def _packed_bytes(num_weights: int, quantization: QuantizationSpec) -> int:
    """Count 4-bit weights with a constant per block of 64.

    Double quantization keeps that constant in 8 bits, with a float32 per 256 blocks.

    Source:
        Dettmers et al. 2023, arXiv:2305.14314, section 3.
    """
    blocks = math.ceil(num_weights / _BLOCK)
    if quantization.bnb_4bit_use_double_quant:
        return num_weights // 2 + blocks + 4 * math.ceil(blocks / _BLOCKS_PER_GROUP)
    return num_weights // 2 + 4 * blocks


def _optimizer_bytes(parameter: nn.Parameter, kind: str) -> int:
    if kind == "adamw_torch" or parameter.numel() < _SMALLEST_8BIT:
        return 2 * parameter.numel() * 4
    # Two moments of a byte, and a float32 for every 256 of each.
    return 2 * (parameter.numel() + 4 * math.ceil(parameter.numel() / _BLOCKS_PER_GROUP))


def _exactly(name: str, num_bytes: int) -> MemoryPart:
    return _between(name, (num_bytes, num_bytes, num_bytes))


def _between(name: str, bounds: Sequence[float]) -> MemoryPart:
    low, expected, high = (int(value) for value in bounds)
    return MemoryPart(name=name, low_bytes=low, expected_bytes=expected, high_bytes=high)
