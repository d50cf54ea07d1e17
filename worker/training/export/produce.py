"""One export from its request to its proof: ask the live adapter, write, read back, compare."""

import contextlib
import ctypes
import gc
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from app.domain import checkpoints, disk, failpoints
from app.domain.checkpoints import ADAPTER_FILES, MANIFEST_NAME, BadCheckpoint, Manifest, hash_file
from app.domain.errors import CheckpointUnusable, InvalidModel, TrainingError
from app.domain.exports import (
    FILES_FOLDER,
    GGUF_NAME,
    PROGRESS_FILE,
    ExportFile,
    ExportManifest,
    Parity,
)
from app.domain.tools import ExportProgress, ExportRequest, ExportResult
from worker.training import fingerprint, model
from worker.training.export import beside, gguf_writer, live, merge, parity, probe
from worker.training.templates import Template


def produce(request: ExportRequest, folder: Path) -> ExportResult:
    """Write an export into `folder`/files and prove it there.

    A proof that fails is a result too: it carries the measurement, and the files are gone.

    Raises:
        InvalidModel: The base model is not the one of training, or cannot be exported so.
        CheckpointUnusable: The adapter's files are not what was committed.
        TrainingError: The disk is full.
    """
    began = time.monotonic()
    _prepare(request)
    manifest = _require_sources(request)
    _tell(folder, "listening to the live adapter", 0.05)
    said = live.listen(request, live.load(request, request.adapter_folder))
    _free()
    files = folder / FILES_FOLDER
    files.mkdir()
    dtype = dtype_of(request)
    _tell(folder, "writing the files", 0.35)
    try:
        write(request, files, dtype=dtype)
    except OSError as error:
        if not disk.is_full(error):
            raise
        raise TrainingError(
            f"the disk is full: {error.strerror}; free space and export again", code="disk_full"
        ) from error
    failpoints.hit("export.written")
    _free()
    _tell(folder, "reading them back", 0.65)
    proof = prove(request, files, said, dtype=dtype)
    _tell(folder, "hashing", 0.95)
    listed: tuple[ExportFile, ...] = ()
    if proof.is_proven:
        listed = _finish(request, manifest, files, proof, dtype)
    else:
        shutil.rmtree(files)
    return ExportResult(parity=proof, files=listed, dtype=dtype, seconds=time.monotonic() - began)


def dtype_of(request: ExportRequest) -> str:
    """Return the data type of the files: as trained, and f16 for GGUF, where none was chosen."""
    if request.format == "adapter":
        return "float32"
    if request.dtype != "auto":
        return request.dtype
    return "f16" if request.format == "gguf" else request.live_dtype


def write(request: ExportRequest, files: Path, *, dtype: str) -> None:
    """Write the files of the format, and what lies beside them."""
    if request.format == "adapter":
        for name in ADAPTER_FILES:
            shutil.copyfile(request.adapter_folder / name, files / name)
    else:
        merged = merge.merge(request)
        if request.format == "merged":
            merge.save(merged, files, dtype=dtype)
            merge.save_tokenizer(request, files)
        else:
            tokenizer = merge.tokenizer_of(request)
            gguf_writer.write(merged, tokenizer, files, dtype=dtype, name=request.name)
    beside.write(request, files)


def prove(request: ExportRequest, files: Path, said: parity.Live, *, dtype: str) -> Parity:
    """Load the export from its files alone, as a user would, and compare it with the live adapter.

    Raises:
        InvalidModel: It does not load.
    """
    if request.format == "adapter":
        _require_equal_files(request, files)
    tokenizer, template = _read_tokenizer(request, files)
    rendered = probe.renderings(Template(tokenizer, template))
    return parity.compare(
        said,
        probe.distributions(_read_model(request, files), said.tracks),
        renderings=rendered,
        prompts=probe.prompt_tokens(tokenizer, rendered),
        bounds=parity.bounds_of(request, dtype),
    )


def _prepare(request: ExportRequest) -> None:
    torch.set_num_threads(request.num_threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _require_sources(request: ExportRequest) -> Manifest:
    """Check that adapter and base model are those of training."""
    folder = request.adapter_folder
    try:
        manifest = checkpoints.verify(folder, manifest_sha256=request.adapter_manifest_sha256)
    except (BadCheckpoint, OSError) as error:
        raise CheckpointUnusable(f"the adapter failed verification: {error}") from error
    found = fingerprint.cached(request.model_folder, request.cache_folder)
    if found != manifest.base_model_sha256:
        raise InvalidModel(
            f"base model {request.spec.base_model} is not the one that the adapter was trained on:"
            f" its files hash to {found[:12]}, and training saw {manifest.base_model_sha256[:12]};"
            " put the old files back",
            code="base_model_changed",
        )
    return manifest


def _require_equal_files(request: ExportRequest, files: Path) -> None:
    for name in ADAPTER_FILES:
        if hash_file(files / name) != hash_file(request.adapter_folder / name):
            raise InvalidModel(f"{name} is not what the checkpoint holds", code="parity_failed")


def _read_model(request: ExportRequest, files: Path) -> Any:
    if request.format == "adapter":
        return live.load(request, files)
    options = {"gguf_file": GGUF_NAME} if request.format == "gguf" else {}
    try:
        read = AutoModelForCausalLM.from_pretrained(
            files, dtype=torch.float32, local_files_only=True, **options
        )
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise InvalidModel(f"the export does not load: {error}", code="parity_failed") from error
    return read.eval()


def _read_tokenizer(request: ExportRequest, files: Path) -> tuple[Any, str | None]:
    """Return the export's tokenizer, and the template that lies beside it instead of in it."""
    if request.format == "adapter":
        path = files / beside.TEMPLATE_FILE
        template = path.read_text("utf-8") if path.is_file() else None
        return model.load_tokenizer(request.model_folder), template
    options = {"gguf_file": GGUF_NAME} if request.format == "gguf" else {}
    return AutoTokenizer.from_pretrained(files, local_files_only=True, **options), None


def _finish(
    request: ExportRequest, manifest: Manifest, files: Path, proof: Parity, dtype: str
) -> tuple[ExportFile, ...]:
    """Hash the files, write the manifest and bring all of it to the disk."""
    listed = tuple(_listed(path) for path in sorted(files.iterdir()))
    adapter = next(each.sha256 for each in manifest.files if each.name == ADAPTER_FILES[1])
    written = ExportManifest(
        export_id=request.export_id,
        job_id=manifest.job_id,
        step=manifest.step,
        format=request.format,
        dtype=dtype,
        base=request.base,
        base_model=request.spec.base_model,
        base_model_sha256=manifest.base_model_sha256,
        adapter_sha256=adapter,
        parity=proof,
        files=listed,
    )
    path = files / MANIFEST_NAME
    path.write_text(written.model_dump_json(indent=2) + "\n", "utf-8")
    result = (*listed, _listed(path))
    _sync(files)
    return result


def _listed(path: Path) -> ExportFile:
    path.chmod(0o644)  # safetensors writes 0600, which the API could not read
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return ExportFile(name=path.name, bytes=path.stat().st_size, sha256=hash_file(path))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tell(folder: Path, phase: str, progress: float) -> None:
    """Leave how far it is where the worker looks; it never sees half of it."""
    temporary = folder / f".tmp-{PROGRESS_FILE}"
    temporary.write_text(ExportProgress(phase=phase, progress=progress).model_dump_json(), "utf-8")
    temporary.replace(folder / PROGRESS_FILE)
    failpoints.hit("export.phase")


def _free() -> None:
    """Give the memory of a model that is not needed any more back."""
    gc.collect()
    # Only glibc keeps what is freed; others have no such function.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
