"""Saving beside the training: a checkpoint is copied off the device, and a thread writes it."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from worker.training.commit import Committed


@dataclass(frozen=True)
class HostCopies:
    """Tensors on their way to the host; what they are copies of may change at once."""

    tensors: Mapping[str, torch.Tensor]
    arrived: Callable[[], None]
    """Returns when the copies are complete."""


def copy_to_host(tensors: Mapping[str, torch.Tensor]) -> HostCopies:
    """Begin to copy tensors to the host; the device does it in order with what it does else."""
    copies = {name: _copy(tensor.detach()) for name, tensor in tensors.items()}
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return HostCopies(copies, arrived=lambda: None)
    event = torch.cuda.Event()
    event.record()
    return HostCopies(copies, arrived=event.synchronize)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


@dataclass
class Saver:
    """Runs writes one after another: in a thread beside the training, or at once.

    What is told of a write is told by the thread of the training, after the write: an event of a
    checkpoint that is not on disk yet would be a lie, and the log has one writer.
    """

    is_beside: bool
    _executor: ThreadPoolExecutor | None = field(default=None, init=False)
    _under_way: tuple[Future[Committed], Callable[[Committed], None]] | None = field(
        default=None, init=False
    )

    def save(self, write: Callable[[], Committed], then: Callable[[Committed], None]) -> None:
        """Start a write when the one before has ended; `then` is told of what it made.

        Raises:
            Exception: What the write before raised, or this one where it runs at once.
        """
        self.settle()
        if not self.is_beside:
            then(write())
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._under_way = self._executor.submit(write), then

    def poll(self) -> None:
        """Tell of the write under way if it has ended; raises what it raised."""
        if self._under_way is not None and self._under_way[0].done():
            self.settle()

    def settle(self) -> None:
        """Wait for the write under way and tell of it; raises what it raised."""
        if self._under_way is None:
            return
        (future, then), self._under_way = self._under_way, None
        then(future.result())
