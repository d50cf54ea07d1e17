"""Checkpoints: the manifest that makes a folder trustworthy, and its verification."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

MANIFEST_NAME = "MANIFEST.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
STATE_FILES = ("optimizer.safetensors", "training_state.json")
_CHUNK_BYTES = 1 << 20


class ManifestFile(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """File name inside the folder."""
    bytes: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the content, hexadecimal."""


class Manifest(BaseModel):
    """Content of MANIFEST.json, written last: a folder without it is no checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: Literal[1] = 1
    """Version of this format."""
    kind: Literal["checkpoint", "final"]
    """`checkpoint` can be resumed; `final` is the adapter alone."""
    job_id: str
    """Job that wrote it."""
    attempt: int
    """Attempt that wrote it."""
    fence: int
    """Fence of that attempt."""
    step: int
    """Optimizer steps done."""
    base_model: str
    """Name of the base model."""
    base_model_sha256: str
    """SHA-256 over the base model's weight and configuration files."""
    dataset_sha256: str
    """SHA-256 of the data set's file."""
    versions: dict[str, str]
    """Library -> version at the time of writing."""
    files: tuple[ManifestFile, ...]
    """Every file of the folder but this one."""


class Checkpoint(BaseModel):
    """A committed checkpoint of a job."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["checkpoint"] = "checkpoint"
    """Always `checkpoint`."""
    id: str
    """Id of the checkpoint; may be given wherever a step is."""
    job_id: str
    """Job it belongs to."""
    attempt: int
    """Attempt that wrote it."""
    step: int
    """Optimizer steps done."""
    status: Literal["committed", "corrupt", "deleting"]
    """`committed` can be resumed; `corrupt` failed verification (see corrupt_reason)."""
    corrupt_reason: str | None = None
    """What did not verify."""
    superseded: bool
    """True when the job was resumed from an earlier step, so that this is no longer its history."""
    pinned: bool
    """Pinned checkpoints are never removed by save_total_limit."""
    loss: float | None
    """Training loss of its last step in nats per target token."""
    eval_loss: float | None = None
    """Evaluation loss at its step in nats per target token; null when none was made there."""
    bytes: int
    """Size on disk in bytes."""
    manifest_sha256: str
    """SHA-256 of its MANIFEST.json, hexadecimal."""
    created_at: datetime
    """Time of the commit, UTC."""


class BadCheckpoint(Exception):
    """The folder is not what its manifest, or the database, says it is."""


def verify(folder: Path, *, manifest_sha256: str | None = None) -> Manifest:
    """Hash every file of `folder` against its manifest.

    Args:
        folder: A checkpoint or final folder.
        manifest_sha256: What the database recorded for the manifest itself.

    Raises:
        BadCheckpoint: A file is missing, unlisted, or differs; the message names it.
    """
    path = folder / MANIFEST_NAME
    if path.is_symlink() or not path.is_file():
        raise BadCheckpoint(f"{folder.name}: {MANIFEST_NAME} is missing")
    content = path.read_bytes()
    if manifest_sha256 is not None and hashlib.sha256(content).hexdigest() != manifest_sha256:
        raise BadCheckpoint(f"{folder.name}: {MANIFEST_NAME} was changed after the commit")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValueError as error:
        raise BadCheckpoint(f"{folder.name}: {MANIFEST_NAME} is not readable") from error
    _require_names(folder, manifest)
    for file in manifest.files:
        _verify_file(folder, file)
    return manifest


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _require_names(folder: Path, manifest: Manifest) -> None:
    required = ADAPTER_FILES + (STATE_FILES if manifest.kind == "checkpoint" else ())
    listed = {file.name for file in manifest.files}
    missing = set(required) - listed
    if missing:
        raise BadCheckpoint(f"{folder.name}: the manifest lacks {', '.join(sorted(missing))}")
    # Hidden files are nobody's content: file systems and their tools leave them anywhere.
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    unlisted = found - listed - {MANIFEST_NAME}
    if unlisted:
        raise BadCheckpoint(f"{folder.name}: the manifest does not list {sorted(unlisted)[0]!r}")


def _verify_file(folder: Path, file: ManifestFile) -> None:
    if file.name != Path(file.name).name or file.name.startswith("."):
        raise BadCheckpoint(f"{folder.name}: {file.name!r} is not a plain file name")
    path = folder / file.name
    if path.is_symlink() or not path.is_file():
        raise BadCheckpoint(f"{folder.name}: {file.name} is missing")
    size = path.stat().st_size
    if size != file.bytes:
        raise BadCheckpoint(f"{folder.name}: {file.name} has {size} bytes instead of {file.bytes}")
    if hash_file(path) != file.sha256:
        raise BadCheckpoint(f"{folder.name}: {file.name} does not have the SHA-256 of its manifest")
