"""The memory that a run may use: finding, enforcing and checking it before anything is loaded."""

import ctypes
import resource
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from app.domain.errors import OutOfMemory
from app.domain.memory import MemoryEstimate
from app.domain.runs import RunFile
from app.domain.spec import JobSpec
from worker.training.data import TrainingData
from worker.training.footprint import Footprint, MicroBatch, memory_of
from worker.training.sampler import Sampler

GB = 1e9
# Kept back from a run on the CPU, so that what handles a lack of memory has some itself.
_RESERVE_BYTES = 32_000_000
# A run of more steps is looked at this far; by then every row has been in many micro-batches.
_MAX_STEPS = 20_000
# From malloc.h.
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK_BYTES = 1 << 20


def of_run(run: RunFile, device: torch.device) -> int | None:
    """Return the bytes that a run may use; None on a CPU without max_memory_gb."""
    wanted = run.spec.resources.max_memory_gb
    if device.type == "cuda":
        total = memory_of(device)
        return total if wanted is None else min(total, int(wanted * GB))
    return None if wanted is None else int(wanted * GB)


def enforce(limit_bytes: int | None, device: torch.device) -> None:
    """Let allocations past the limit fail instead of taking memory from others."""
    if limit_bytes is None:
        return
    if device.type == "cuda":
        share = min(1.0, limit_bytes / memory_of(device))
        torch.cuda.set_per_process_memory_fraction(share, device)
    elif sys.platform == "linux":  # elsewhere the limit means nothing, or something else
        _return_what_is_freed()
        _set_data_limit(limit_bytes - _RESERVE_BYTES)


@contextmanager
def with_reserve(limit_bytes: int | None, device: torch.device) -> Generator[None]:
    """Lift the limit by its reserve while a lack of memory is handled."""
    if limit_bytes is None or device.type == "cuda" or sys.platform != "linux":
        yield
        return
    _set_data_limit(limit_bytes)
    try:
        yield
    finally:
        _set_data_limit(limit_bytes - _RESERVE_BYTES)


def expect(
    run: RunFile, data: TrainingData, sampler: Sampler, *, dtype: torch.dtype, total_steps: int
) -> int | None:
    """Return the bytes that a run with `max_memory_gb` is expected to need; None without it.

    Raises:
        OutOfMemory: Even one row at a time certainly does not fit.
    """
    if run.spec.resources.max_memory_gb is None:
        return None
    footprint = Footprint(
        run.spec,
        run.model_folder,
        device=run.device,
        dtype=dtype,
        tokens_per_step=tokens_per_step(run.spec, data),
    )
    one, given = (
        footprint.estimate(longest(data, sampler, size=size, total_steps=total_steps))
        for size in (1, run.spec.training.per_device_train_batch_size)
    )
    limit_bytes = int(run.spec.resources.max_memory_gb * GB)
    if one.low_bytes > limit_bytes:
        raise OutOfMemory(_does_not_fit(run, one, limit_bytes), param="resources.max_memory_gb")
    return given.expected_bytes


def tokens_per_step(spec: JobSpec, data: TrainingData) -> float:
    """Return the tokens of an average optimizer step."""
    training = spec.training
    units = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return data.receipt.num_tokens / len(data.units) * units


def longest(
    data: TrainingData, sampler: Sampler, *, size: int, total_steps: int, after_step: int = 0
) -> MicroBatch:
    """Return the micro-batch with the most tokens among the steps that are still to be done."""
    return micro_batch(
        data,
        longest_units(data, sampler, size=size, total_steps=total_steps, after_step=after_step),
    )


def longest_units(
    data: TrainingData, sampler: Sampler, *, size: int, total_steps: int, after_step: int = 0
) -> Sequence[int]:
    """The same, as units of the data."""
    tokens = _tokens_of_units(data)
    best, units_of_best = -1, tuple[int, ...]()
    for step in range(after_step + 1, min(total_steps, after_step + _MAX_STEPS) + 1):
        units = sampler.units_of(step)
        for start in range(0, len(units), size):
            part = units[start : start + size]
            if (count := int(tokens[list(part)].sum())) > best:
                best, units_of_best = count, part
    return units_of_best


def _tokens_of_units(data: TrainingData) -> np.ndarray:
    known = getattr(data.rows, "lengths", None)
    lengths = np.array([len(row.ids) for row in data.rows]) if known is None else np.asarray(known)
    if len(data.units) == len(lengths):
        return lengths
    return np.array([lengths[list(unit)].sum() for unit in data.units])


def micro_batch(data: TrainingData, units: Sequence[int]) -> MicroBatch:
    rows = [data.rows[row] for unit in units for row in data.units[unit]]
    return MicroBatch(tuple(len(row.ids) for row in rows), sum(row.num_targets for row in rows))


def advice(run: RunFile, *, longest_row: int) -> str:
    """Say what makes a run need less memory, with its own numbers; what is done already is not."""
    spec = run.spec
    ways = [f"lower dataset.max_length (now {spec.dataset.max_length}, the longest row here has"]
    ways[0] += f" {longest_row} tokens)"
    if spec.training.gradient_checkpointing is not True:
        ways.append("set training.gradient_checkpointing to true")
    if spec.adapter != "qlora":
        ways.append("use adapter = qlora")
    if spec.resources.max_memory_gb is not None:
        ways.append(f"raise resources.max_memory_gb (now {spec.resources.max_memory_gb:g})")
    return ", or ".join(ways)


def _does_not_fit(run: RunFile, one: MemoryEstimate, limit_bytes: int) -> str:
    parts = ", ".join(f"{part.name} {part.expected_bytes / GB:.2f}" for part in one.parts)
    return (
        f"resources.max_memory_gb = {limit_bytes / GB:.2f} is less than a run needs even with one"
        f" row at a time: at least {one.low_bytes / GB:.2f} GB, {one.expected_bytes / GB:.2f} GB"
        f" expected (in GB: {parts}); {advice(run, longest_row=one.num_tokens)}"
    )


def _return_what_is_freed() -> None:
    """Let glibc give large blocks back at once, at the price of faulting them in again.

    What it keeps counts against the limit but is of no use to oneDNN, which maps memory of its own:
    measured, after one lack of memory not even the smallest product found room.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _set_data_limit(num_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = max(num_bytes, 0)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
