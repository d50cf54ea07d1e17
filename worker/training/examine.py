"""Examining a saved adapter as a user would: plain transformers, plain PEFT, files from disk."""

import math
import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import PreTrainedModel

from app.domain.checkpoints import ADAPTER_FILES
from app.domain.runs import RunFile
from worker.training import model

_WEIGHTS = ADAPTER_FILES[1]


class Row(BaseModel):
    """Tokens of one row, and the positions whose output predicts a label: the token after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: tuple[int, ...]
    label_positions: tuple[int, ...]


class Question(BaseModel):
    """What to examine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: RunFile
    adapter_folder: Path
    rows: tuple[Row, ...]


class Findings(BaseModel):
    """What was found; losses are sums over a row in nats, None where not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str | None = None
    """Why the adapter does not load at all."""
    num_tensors: int = 0
    missing: tuple[str, ...] = ()
    """Names that PEFT looks for and the file does not have."""
    unexpected: tuple[str, ...] = ()
    """Names in the file that PEFT does not look for."""
    different: tuple[str, ...] = ()
    """Names of tensors that are not in the model what they are in the file."""
    base_losses: tuple[float | None, ...] = ()
    """Of the model without the adapter."""
    losses: tuple[float | None, ...] = ()
    """Of the model with it."""
    max_logit_difference: float | None = None
    """Largest difference of a logit at the labels of the first row, with and without."""


@torch.no_grad()
def examine(question: Question) -> Findings:
    """Load the base model and the adapter, and measure both on the rows."""
    run = question.run
    # More threads than were in use before the fork would wait for some that a fork leaves behind.
    torch.set_num_threads(min(run.num_threads, torch.get_num_threads()))
    device = torch.device(f"cuda:{run.device_index}" if run.device == "cuda" else "cpu")
    base = _load_base(run, device)
    before = _losses(base, question.rows, device)
    plain_logits = _logits(base, question.rows[0], device)
    try:
        adapted = _load_adapter(base, question.adapter_folder)
        file = load_file(question.adapter_folder / _WEIGHTS)
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return Findings(problem=f"{type(error).__name__}: {error}", base_losses=before)
    expected, live = _arrived(adapted, file)
    difference = (_logits(adapted, question.rows[0], device) - plain_logits).abs().max().item()
    return Findings(
        num_tensors=len(file),
        missing=tuple(sorted(expected - file.keys())),
        unexpected=tuple(sorted(file.keys() - live.keys())),
        different=tuple(
            name for name in sorted(live.keys() & file.keys()) if not _equal(live[name], file[name])
        ),
        base_losses=before,
        losses=_losses(adapted, question.rows, device),
        max_logit_difference=_finite(difference),
    )


def _load_base(run: RunFile, device: torch.device) -> PreTrainedModel:
    spec = run.spec
    dtype = model.resolve_dtype(spec.training.dtype, device=device.type)
    base = model.load_plain(
        run.model_folder, dtype=dtype, device=device, quantization=spec.quantization
    )
    return base.eval()


def _load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        # What it warns of (missing keys) is looked at more closely here.
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, folder, local_files_only=True).eval()


def _arrived(
    adapted: PeftModel, file: Mapping[str, torch.Tensor]
) -> tuple[Set[str], dict[str, torch.Tensor]]:
    """Return the names that PEFT looks for, and the live tensor of each name that it knows."""
    # Without the argument peft would look the base model up to see whether its vocabulary grew.
    live = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # A bias of an adapted layer goes by its full name.
    biases = {n: t for n, t in adapted.named_parameters() if n in file and n.endswith(".bias")}
    return live.keys(), {**live, **biases}


def _losses(
    tested: PreTrainedModel | PeftModel, rows: Sequence[Row], device: torch.device
) -> tuple[float | None, ...]:
    sums = [
        F.cross_entropy(_logits(tested, row, device), _labels(row, device), reduction="sum").item()
        for row in rows
    ]
    return tuple(map(_finite, sums))


def _logits(tested: PreTrainedModel | PeftModel, row: Row, device: torch.device) -> torch.Tensor:
    ids = torch.tensor([row.ids], device=device)
    positions = torch.tensor(row.label_positions, device=device)
    output = tested(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        logits_to_keep=positions,
        use_cache=False,
    )
    return output.logits[0].float()


def _labels(row: Row, device: torch.device) -> torch.Tensor:
    return torch.tensor([row.ids[position + 1] for position in row.label_positions], device=device)


def _equal(live: torch.Tensor, saved: torch.Tensor) -> bool:
    """Compare to the last bit; NaN equals NaN, because it is another check's business."""
    if live.shape != saved.shape:
        return False
    return torch.allclose(live.cpu(), saved.to(live.dtype), rtol=0.0, atol=0.0, equal_nan=True)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
