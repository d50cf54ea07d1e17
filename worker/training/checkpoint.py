"""Saving and loading checkpoints, and saving the final adapter; no pickle in either direction."""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import safetensors
import torch
import transformers
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from app.domain import checkpoints
from app.domain.checkpoints import BadCheckpoint, Manifest
from app.domain.errors import ResumeMismatch, Unavailable
from app.domain.runs import ResumePoint, RunFile
from worker.training import optim, saver, state
from worker.training.adapters import Adapted
from worker.training.commit import Committed, commit
from worker.training.state import TrainingState

_CONFIG, _WEIGHTS = checkpoints.ADAPTER_FILES
_OPTIMIZER, _STATE = checkpoints.STATE_FILES


@dataclass(frozen=True)
class Facts:
    """What a manifest says beside its files."""

    run: RunFile
    base_model_sha256: str

    def manifest(self, *, kind: Any, step: int) -> Manifest:
        return Manifest(
            kind=kind,
            job_id=self.run.job_id,
            attempt=self.run.attempt,
            fence=self.run.fence,
            step=step,
            base_model=self.run.spec.base_model,
            base_model_sha256=self.base_model_sha256,
            dataset_sha256=self.run.dataset.sha256,
            versions=versions(),
            files=(),
        )


def save(
    folder: Path,
    adapted: Adapted,
    optimizer: torch.optim.Optimizer,
    training_state: TrainingState,
    *,
    facts: Facts,
    device: torch.device,
) -> Committed:
    """Write a checkpoint that `load` continues from exactly; its `tensors_sha256` is filled in."""
    tensors = state.live_tensors(adapted.parameters, optimizer, device)
    own = _adapter_tensors(adapted)
    return _write(folder, tensors, own, adapted, training_state, facts)


def capture(
    adapted: Adapted,
    optimizer: torch.optim.Optimizer,
    training_state: TrainingState,
    *,
    facts: Facts,
    device: torch.device,
) -> Callable[[Path], Committed]:
    """Copy what a checkpoint holds; the result writes it as `save` does, whatever changes since."""
    tensors = state.live_tensors(adapted.parameters, optimizer, device)
    own = _adapter_tensors(adapted)
    copies, own_copies = saver.copy_to_host(tensors), saver.copy_to_host(own)

    def write(folder: Path) -> Committed:
        copies.arrived()
        own_copies.arrived()
        return _write(folder, copies.tensors, own_copies.tensors, adapted, training_state, facts)

    return write


def _write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    adapted: Adapted,
    training_state: TrainingState,
    facts: Facts,
) -> Committed:
    complete = training_state.model_copy(update={"tensors_sha256": state.digest(tensors)})
    kept = {
        name: tensor.cpu().contiguous()
        for name, tensor in tensors.items()
        if name not in adapted.parameters
    }
    contents = {
        **_adapter_contents(adapted, own),
        _OPTIMIZER: to_bytes(kept),
        _STATE: complete.model_dump_json().encode() + b"\n",
    }
    return commit(folder, contents, facts.manifest(kind="checkpoint", step=complete.progress.step))


def save_final(folder: Path, adapted: Adapted, *, step: int, facts: Facts) -> Committed:
    """Write the trained adapter alone."""
    contents = _adapter_contents(adapted, _adapter_tensors(adapted))
    return commit(folder, contents, facts.manifest(kind="final", step=step))


def load(
    point: ResumePoint,
    adapted: Adapted,
    optimizer: torch.optim.Optimizer,
    *,
    identity: dict[str, Any],
    job_id: str,
    device: torch.device,
) -> TrainingState:
    """Put a checkpoint's state into the live model, optimizer and generators.

    Raises:
        ResumeMismatch: The folder belongs to another run, or did not load completely.
        Unavailable: The folder is damaged.
    """
    manifest, saved, weights, others = _read(point)
    _require_identity(manifest, saved, point, job_id)
    state.require_same(saved.identity, identity)
    _restore_weights(adapted, weights)
    _restore_optimizer(adapted, optimizer, others)
    _restore_generators(others, saved, device)
    live = state.digest(state.live_tensors(adapted.parameters, optimizer, device))
    if live != saved.tensors_sha256 or state.capture_host_rng() != saved.host_rng:
        raise ResumeMismatch(f"checkpoint {point.step} did not load completely")
    return saved


def _read(
    point: ResumePoint,
) -> tuple[Manifest, TrainingState, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return what a checkpoint holds: manifest, state, weights, optimizer and generators."""
    try:
        manifest = checkpoints.verify(point.folder, manifest_sha256=point.manifest_sha256)
        _require_kind(manifest, point)
        saved = state.read((point.folder / _STATE).read_bytes())
        return (
            manifest,
            saved,
            load_file(point.folder / _WEIGHTS),
            load_file(point.folder / _OPTIMIZER),
        )
    except (BadCheckpoint, OSError) as error:
        # It verified before this process began; the next attempt looks again and takes another.
        raise Unavailable(f"checkpoint {point.step} cannot be read: {error}") from error
    except (SafetensorError, ValueError) as error:
        raise ResumeMismatch(f"checkpoint {point.step} cannot be read: {error}") from error


def versions() -> dict[str, str]:
    """Return the versions of everything that takes part in the arithmetic."""
    return {
        "numpy": np.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "safetensors": safetensors.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _adapter_contents(adapted: Adapted, own: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    tensors = {name: t.detach().cpu().contiguous() for name, t in own.items()}
    return {_CONFIG: _config_json(adapted), _WEIGHTS: to_bytes(tensors, metadata={"format": "pt"})}


def _adapter_tensors(adapted: Adapted) -> dict[str, torch.Tensor]:
    """Return all that is trained, live, under the keys that plain PEFT uses in its files."""
    trained = {name: parameter.detach() for name, parameter in adapted.parameters.items()}
    # Without the last argument peft would look the base model up to see whether its vocabulary
    # grew; without the first it would pack every quantized weight.
    tensors = get_peft_model_state_dict(
        adapted.model, state_dict=dict(trained), save_embedding_layers=False
    )
    kept = {tensor.data_ptr() for tensor in tensors.values()}
    lost = [name for name, t in trained.items() if t.data_ptr() not in kept]
    assert not lost, f"peft would not save {lost}"
    return tensors


def _config_json(adapted: Adapted) -> bytes:
    """Write PEFT's configuration with sorted lists: peft itself writes sets in any order."""
    config = adapted.model.peft_config["default"].to_dict()
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    plain["inference_mode"] = True
    return json.dumps(plain, indent=2, sort_keys=True, default=str).encode() + b"\n"


def _require_kind(manifest: Manifest, point: ResumePoint) -> None:
    if manifest.kind != "checkpoint":
        raise ResumeMismatch(f"{point.folder.name} is a {manifest.kind} adapter, no checkpoint")


def _require_identity(
    manifest: Manifest, saved: TrainingState, point: ResumePoint, job_id: str
) -> None:
    if not manifest.step == saved.progress.step == point.step:
        raise ResumeMismatch(
            f"{point.folder.name} is of step {saved.progress.step}, not of step {point.step}"
        )
    if manifest.job_id != job_id:
        raise ResumeMismatch(f"{point.folder.name} belongs to {manifest.job_id}, not to {job_id}")


def _restore_weights(adapted: Adapted, saved: dict[str, torch.Tensor]) -> None:
    live = _adapter_tensors(adapted)
    _require_names("adapter", live, saved)
    with torch.no_grad():
        for name, tensor in live.items():
            _require_shape(name, tensor, saved[name])
            tensor.copy_(saved[name])


def _restore_optimizer(
    adapted: Adapted, optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]
) -> None:
    moments = {n: t for n, t in saved.items() if not n.startswith(state.RNG_PREFIX)}
    blank: dict[str, Any] = {}
    for name, parameter in adapted.parameters.items():
        # A parameter that was never updated has no state, also when it goes on.
        if any(key.rpartition(".")[0] == name for key in moments):
            values = optim.blank_state(optimizer, parameter)
            blank |= {optim.state_name(name, key): (values, key) for key in values}
    _require_names("optimizer", blank, moments)
    for name, (values, key) in blank.items():
        if isinstance(values[key], torch.Tensor):
            _require_shape(name, values[key], moments[name])
            values[key].copy_(moments[name])
        else:
            values[key] = type(values[key])(moments[name].item())


def _restore_generators(
    saved: dict[str, torch.Tensor], training_state: TrainingState, device: torch.device
) -> None:
    generators = {n: t for n, t in saved.items() if n.startswith(state.RNG_PREFIX)}
    expected = ["rng.torch", *(["rng.cuda"] if device.type == "cuda" else [])]
    _require_names("generator", expected, generators)
    torch.set_rng_state(generators["rng.torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(generators["rng.cuda"], device)
    state.restore_host_rng(training_state.host_rng)


def _require_names(what: str, expected: Any, saved: dict[str, torch.Tensor]) -> None:
    if wrong := sorted(set(expected) ^ set(saved)):
        where = "missing from the checkpoint" if wrong[0] in set(expected) else "not in this run"
        raise ResumeMismatch(f"{what} tensor {wrong[0]} is {where} ({len(wrong)} differ)")


def _require_shape(name: str, live: torch.Tensor, saved: torch.Tensor) -> None:
    if live.shape != saved.shape or live.dtype != saved.dtype:
        raise ResumeMismatch(
            f"{name} is {tuple(saved.shape)} {saved.dtype} in the checkpoint and"
            f" {tuple(live.shape)} {live.dtype} in this run"
        )
