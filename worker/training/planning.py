"""Plans: what a job would do and need, found out without loading a weight."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from app.domain.plans import PlanFacts, Warned, Work
from app.domain.runs import RunFile
from app.domain.tools import PlanRequest, PlanResult
from worker.training import data, limits, model, planned_warnings
from worker.training.data import TrainingData
from worker.training.footprint import Footprint, MicroBatch
from worker.training.prepare import plan_steps
from worker.training.sampler import Sampler

# Weights and state have names and a few facts beside them.
_FILES_BYTES = 100_000
# As many as per_device_train_batch_size may be.
_LARGEST = 4096
_MAX_CORRECTIONS = 4


def plan(request: PlanRequest, scratch: Path) -> PlanResult:
    """Read the data as a trainer would, and count what the model would need.

    Args:
        request: The job as a trainer would be told.
        scratch: An empty folder; nothing is written anywhere else but the token cache.

    Raises:
        UnusableData: The data cannot be trained on.
        NoMatchingLayers: The adapters fit no layer of the model.
    """
    torch.set_num_threads(request.num_threads)
    run = request.run.model_copy(update={"attempt_folder": scratch, "device": request.device})
    dtype = model.resolve_dtype(run.spec.training.dtype, device=run.device)
    rows = data.load(run, model.load_tokenizer(run.model_folder))
    data.require_usable(rows)
    sampler, schedule = plan_steps(run.spec, num_units=len(rows.units))
    footprint = Footprint(
        run.spec,
        run.model_folder,
        device=run.device,
        dtype=dtype,
        tokens_per_step=limits.tokens_per_step(run.spec, rows),
    )
    work = _work(run, rows, sampler, total_steps=schedule.total_steps, footprint=footprint)
    return PlanResult(facts=_facts(run, rows, sampler, footprint, work))


def _work(
    run: RunFile,
    rows: TrainingData,
    sampler: Sampler,
    *,
    total_steps: int,
    footprint: Footprint,
) -> Work:
    receipt = rows.receipt
    return Work(
        num_rows=len(rows.rows),
        num_eval_rows=len(rows.eval_rows),
        steps=total_steps,
        steps_per_epoch=sampler.steps_per_epoch,
        tokens_per_epoch=receipt.num_tokens,
        target_tokens_per_epoch=receipt.num_target_tokens,
        tokens_per_step=limits.tokens_per_step(run.spec, rows),
        longest_row_tokens=receipt.longest_tokens,
        num_trainable_parameters=footprint.num_trained,
    )


def _facts(
    run: RunFile, rows: TrainingData, sampler: Sampler, footprint: Footprint, work: Work
) -> PlanFacts:
    device = torch.device(f"cuda:{run.device_index}" if run.device == "cuda" else "cpu")
    limit_bytes = limits.of_run(run, device) or limits.memory_of(device)

    def batch_of(size: int) -> MicroBatch:
        other = replace(sampler, units_per_step=size)
        return limits.longest(rows, other, size=size, total_steps=other.steps_per_epoch)

    size = run.spec.training.per_device_train_batch_size
    given = limits.longest(rows, sampler, size=size, total_steps=work.steps)
    memory = footprint.estimate(given)
    warnings: tuple[Warned, ...] = planned_warnings.of(run.spec, work, rows)
    return PlanFacts(
        work=work,
        memory=memory,
        limit_bytes=limit_bytes,
        fits=memory.expected_bytes <= limit_bytes,
        largest_micro_batch_size=_largest(
            footprint, batch_of, given, limit_bytes, at_most=min(_LARGEST, sampler.num_units)
        ),
        checkpoint_bytes=footprint.adapter_bytes + footprint.optimizer_bytes + _FILES_BYTES,
        adapter_bytes=footprint.adapter_bytes + _FILES_BYTES,
        warnings=warnings,
    )


def _largest(
    footprint: Footprint,
    batch_of: Callable[[int], MicroBatch],
    given: MicroBatch,
    limit_bytes: int,
    *,
    at_most: int,
) -> int:
    """Return the largest micro-batch within the limit; 0 when one row is too much.

    Memory is nearly a straight line over the tokens, so two micro-batches tell all others; what
    comes of it is looked at, and is lowered where it would be too much after all.
    """
    larger = MicroBatch(given.lengths * 4, given.num_targets * 4)
    few, many = (footprint.estimate(each).expected_bytes for each in (given, larger))
    per_token = (many - few) / (larger.num_tokens - given.num_tokens)
    most_tokens = given.num_tokens + (limit_bytes - few) / per_token
    low, high = 0, at_most + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = batch_of(middle).num_tokens <= most_tokens
        low, high = (middle, high) if fits else (low, middle)
    for _ in range(_MAX_CORRECTIONS):
        if low == 0 or footprint.estimate(batch_of(low)).expected_bytes <= limit_bytes:
            break
        low -= 1
    return low
