"""Running out of memory: the step is done again in smaller micro-batches."""

import ctypes
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from app.domain.errors import OutOfMemory
from worker.training import limits, optim
from worker.training.batch import Batch, lay_end_to_end
from worker.training.reporting import EventLog
from worker.training.session import Session
from worker.training.step import StepResult

# torch and the libraries under it have no type for a lack of memory on the CPU.
_SIGNS = ("DefaultCPUAllocator", "bad_alloc", "out of memory", "could not create a memory")
# oneDNN says this of a product that it cannot do as well, so it counts under a limit only.
_SIGNS_UNDER_A_LIMIT = ("could not create a primitive", "could not execute a primitive")


def heal(
    session: Session, log: EventLog, step: int, run_step: Callable[[Sequence[Batch]], StepResult]
) -> StepResult:
    """Run a step; when memory runs out, halve the micro-batch and run the same step again.

    The step is then as it would have been with that size from its start: partial gradients are
    gone and the generators stand where they stood. The size stays for the rest of the run.

    Raises:
        OutOfMemory: One row at a time does not fit.
    """
    while True:
        generators = _Generators.captured(session.device)
        try:
            return run_step(session.batches_of(step))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error, is_limited=session.memory.limit_bytes is not None):
                raise
            cause = f"{type(error).__name__}: {error}"
        # Outside of the handler: the error holds the frames that hold the tensors.
        _start_over(session, generators)
        _halve(session, log, step, session.sampler.units_of(step), cause)


def make_room(session: Session, log: EventLog) -> None:
    """Try the longest micro-batch that is to come before the first step, where a limit applies.

    Forward and backward, and nothing of it stays: no gradient, no draw of a generator. Only the
    micro-batch is halved until it fits.

    Raises:
        OutOfMemory: One row at a time does not fit.
    """
    if session.memory.limit_bytes is None or session.is_done():
        return
    with session.memory.phase("probe"):
        # An optimizer that ran out of memory halfway through its first update could not go back.
        _make_optimizer_state(session)
        while (units := _probe(session, log)) is not None:
            _halve(session, log, session.progress.step + 1, units[0], units[1])


def is_out_of_memory(error: BaseException, *, is_limited: bool) -> bool:
    """Tell a lack of memory, of the GPU or under the CPU's limit, from any other error."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = (*_SIGNS, *_SIGNS_UNDER_A_LIMIT) if is_limited else _SIGNS
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def return_freed(device: torch.device) -> None:
    """Give back what allocators keep of freed memory, so that other libraries can take it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        # glibc keeps what was freed; libraries that map memory of their own could not get any.
        trim(0)


@dataclass(frozen=True)
class _Generators:
    """State of every generator that a step may draw from."""

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def captured(cls, device: torch.device) -> Self:
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),  # noqa: NPY002, RUF100 - libraries draw from this one
            cpu=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        )

    def restore(self, device: torch.device) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002, RUF100
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


def _probe(session: Session, log: EventLog) -> tuple[Sequence[int], str] | None:
    """Return the units that did not fit and why; None when they did."""
    units = limits.longest_units(
        session.data,
        session.sampler,
        size=session.micro_batch_size,
        total_steps=session.total_steps,
        after_step=session.progress.step,
    )
    generators = _Generators.captured(session.device)
    try:
        batch = lay_end_to_end(session.rows_of(units), device=session.device)
        (session.loss_sum(batch) / batch.num_targets).backward()
        cause = None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error, is_limited=True):
            raise
        cause = f"{type(error).__name__}: {error}"
    _start_over(session, generators)
    return None if cause is None else (units, cause)


def _start_over(session: Session, generators: _Generators) -> None:
    session.optimizer.zero_grad(set_to_none=True)
    generators.restore(session.device)
    return_freed(session.device)


def _halve(session: Session, log: EventLog, step: int, units: Sequence[int], cause: str) -> None:
    """Halve the micro-batch and tell, or give up with advice.

    Raises:
        OutOfMemory: It has one row only.
    """
    before = min(session.micro_batch_size, len(units))
    with limits.with_reserve(session.memory.limit_bytes, session.device):
        if before <= 1:
            raise _too_long(session, units, cause)
        session.progress.micro_batch_size = after = before // 2
        log.notice(
            step=session.progress.step,
            code="healed",
            message=f"step {step} ran out of memory with {before} rows at once ({_short(cause)});"
            f" it runs again, and the run goes on, with {after} at once and the same rows per step",
            at_step=step,
            from_micro_batch_size=before,
            to_micro_batch_size=after,
            rows_per_step=session.sampler.units_per_step,
        )


def _too_long(session: Session, units: Sequence[int], cause: str) -> OutOfMemory:
    longest = max(len(row.ids) for row in session.rows_of(units))
    return OutOfMemory(
        f"a row of {longest} tokens alone does not fit into the memory ({_short(cause)});"
        f" {limits.advice(session.run, longest_row=longest)}"
    )


def _make_optimizer_state(session: Session) -> None:
    for parameter in session.parameters:
        if not session.optimizer.state.get(parameter):
            optim.blank_state(session.optimizer, parameter)


def _short(cause: str) -> str:
    first = cause.strip().splitlines()[0]
    return first if len(first) <= 200 else f"{first[:197]}..."
