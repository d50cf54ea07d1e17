"""A micro-batch: rows laid end to end without padding, and where their labels are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worker.training.encode import EncodedRow

# Shape suffixes: B = 1 (one long row), T = tokens of the micro-batch, N = labels.


@dataclass(frozen=True)
class Batch:
    """Rows laid end to end.

    `label_positions_N[i]` is the token whose output predicts `labels_N[i]`, the token after it.
    """

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    lengths: tuple[int, ...]
    label_positions_N: torch.Tensor
    labels_N: torch.Tensor

    @property
    def num_tokens(self) -> int:
        return self.input_ids_BT.shape[1]

    @property
    def num_targets(self) -> int:
        return self.labels_N.shape[0]


def lay_end_to_end(rows: Sequence[EncodedRow], *, device: torch.device) -> Batch:
    """Join rows into one micro-batch on `device`."""
    lengths = tuple(len(row.ids) for row in rows)
    ids = np.concatenate([row.ids for row in rows])
    positions = np.concatenate([np.arange(length) for length in lengths])
    is_target = np.concatenate([row.is_target for row in rows])
    # The first token of a row has no token before it in the row that could predict it.
    targets = np.flatnonzero(is_target & (positions > 0))
    return Batch(
        input_ids_BT=_tensor(ids, device)[None],
        position_ids_BT=_tensor(positions, device)[None],
        lengths=lengths,
        label_positions_N=_tensor(targets - 1, device),
        labels_N=_tensor(ids[targets], device),
    )


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(values.astype(np.int64))
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # else the copy would wait for the device
    return tensor.to(device, non_blocking=True)
