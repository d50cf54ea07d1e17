"""A run that is ready to step: its parts, how far it is, and what identifies it."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from app.domain.runs import RunFile
from worker.training import checkpoint, products, quantize, state
from worker.training.adapters import Adapted
from worker.training.batch import Batch, lay_end_to_end
from worker.training.data import TrainingData
from worker.training.encode import EncodedRow
from worker.training.frozen import FrozenWeights
from worker.training.gradients import FlowWatch
from worker.training.loss import LossSum
from worker.training.memory import MemoryMeter
from worker.training.optim import Schedule
from worker.training.sampler import Sampler
from worker.training.saver import Saver
from worker.training.state import Cursor, Progress, TrainingState

# Keys that may change between attempts of one run; all others make it another run.
_CHANGEABLE = {
    "name": True,
    "priority": True,
    "metadata": True,
    "resources": True,
    "monitoring": True,
    "preset": True,
    "training": {
        "max_steps": True,
        "num_train_epochs": True,
        "learning_rate": True,
        "save_steps": True,
        "save_total_limit": True,
        "eval_steps": True,
        "logging_steps": True,
        "dtype": True,
    },
}


@dataclass
class Saved:
    """Which checkpoints there are."""

    step: int = 0
    """Step of the newest one; 0 also while there is none, because step 0 needs none."""


@dataclass(frozen=True)
class Session:
    """Everything that the loop needs; only `progress` and `saved` change."""

    run: RunFile
    device: torch.device
    dtype: torch.dtype
    adapted: Adapted
    loss_sum: LossSum
    data: TrainingData
    sampler: Sampler
    schedule: Schedule
    optimizer: torch.optim.Optimizer
    model_sha256: Future[str]
    quantized_sha256: Future[str]
    """Of the layers that are stored in 4 bits; of nothing where there are none."""
    fingerprints: Mapping[str, str]
    memory: MemoryMeter
    flow: FlowWatch
    frozen: FrozenWeights
    progress: Progress = field(default_factory=Progress)
    saved: Saved = field(default_factory=Saved)
    saver: Saver = field(default_factory=lambda: Saver(is_beside=False))

    @property
    def total_steps(self) -> int:
        return self.schedule.total_steps

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        return list(self.adapted.parameters.values())

    @property
    def micro_batch_size(self) -> int:
        """Rows in a micro-batch: as the spec says, or fewer since memory ran out."""
        given = self.run.spec.training.per_device_train_batch_size
        return self.progress.micro_batch_size or given

    def is_done(self) -> bool:
        return self.progress.step >= self.total_steps or self.progress.is_stopped_early

    def batches_of(self, step: int) -> Sequence[Batch]:
        """Return the micro-batches of an optimizer step, on the device."""
        units, size = self.sampler.units_of(step), self.micro_batch_size
        return [
            lay_end_to_end(self.rows_of(units[start : start + size]), device=self.device)
            for start in range(0, len(units), size)
        ]

    def rows_of(self, units: Sequence[int]) -> Sequence[EncodedRow]:
        """Return the rows in units: a unit is one row, or with packing as many as fit together."""
        return [self.data.rows[row] for unit in units for row in self.data.units[unit]]

    def lines_of(self, step: int) -> Sequence[int]:
        """Return the lines of the data set that a step trains on, in their order."""
        return [row.line for row in self.rows_of(self.sampler.units_of(step))]

    def is_save_due(self, step: int) -> bool:
        every = self.run.spec.training.save_steps
        return self.is_done() or (every is not None and step % every == 0)

    def is_logged(self, step: int) -> bool:
        every = self.run.spec.training.logging_steps
        return step in (1, self.total_steps) or step % every == 0

    def facts(self) -> checkpoint.Facts:
        return checkpoint.Facts(self.run, self.model_sha256.result())

    def summary(self) -> dict[str, Any]:
        """Return what the `ready` event says."""
        sizes = quantize.sizes(self.adapted.model)
        return {
            "step": self.progress.step,
            "total_steps": self.total_steps,
            "num_rows": self.data.receipt.num_lines,
            "num_trained_rows": self.data.receipt.num_train_rows,
            "num_truncated_rows": self.data.receipt.num_truncated,
            "num_dropped_rows": self.data.receipt.num_dropped,
            "dropped_reasons": self.data.receipt.dropped_reasons,
            "num_units": self.data.receipt.num_units,
            "num_parameters": sizes.num_parameters,
            "num_quantized_parameters": sizes.num_quantized_parameters,
            "quantized_bytes": sizes.quantized_bytes,
            "num_trainable_parameters": sum(p.numel() for p in self.parameters),
            "target_modules": self.adapted.target_modules,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "num_skipped_steps": self.progress.num_skipped,
        }

    def identity(self) -> dict[str, Any]:
        """Return the facts that a checkpoint and the run that continues it must share."""
        spec = self.run.spec.model_dump(mode="json", exclude=_CHANGEABLE)
        is_quantized = self.run.spec.quantization.load_in_4bit
        quantized = {"base_quantized_sha256": self.quantized_sha256} if is_quantized else {}
        return {
            **_flat(spec),
            **{name: digest.result() for name, digest in quantized.items()},
            **self.fingerprints,
            "base_model_sha256": self.model_sha256.result(),
            "target_modules": list(self.adapted.target_modules),
            "dtype": str(self.dtype),
        }

    def surroundings(self) -> dict[str, Any]:
        """Return the facts that change the last bits of a result, but not what is trained."""
        return {
            "device": self.device.type,
            "num_threads": self.run.num_threads,
            "matrix products by oneDNN": products.onednn_is_faster(),
            **{f"{name} version": version for name, version in checkpoint.versions().items()},
        }

    def state(self) -> TrainingState:
        """Return the state after the newest step, all but its tensors."""
        epoch, step_in_epoch = divmod(self.progress.step, self.sampler.steps_per_epoch)
        return TrainingState(
            progress=self.progress.model_copy(),
            epoch=self.sampler.epoch_after(self.progress.step),
            total_steps=self.total_steps,
            seed=self.run.spec.seed,
            schedule=vars(self.schedule),
            cursor=Cursor(epoch=epoch, step_in_epoch=step_in_epoch),
            identity=self.identity(),
            surroundings=self.surroundings(),
            host_rng=state.capture_host_rng(),
            tensors_sha256="",
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested groups into dotted names, so that a difference can be named."""
    result: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            result.update(_flat(item, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = item
    return result
