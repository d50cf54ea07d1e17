"""What a failure means: one that would repeat ends the job, others are tried again."""

import errno

import pytest
import torch

from app.domain import disk, errors
from app.domain.errors import LoradError
from worker import trainer

REPEATS = [
    errors.UnusableData("no row has a target"),
    errors.InvalidDataset("line 3 is not JSON"),
    errors.InvalidModel("the folder has no config.json"),
    errors.NoMatchingLayers("no layer is named q"),
    errors.UntrainableModule("lm_head shares its weight"),
    errors.NonFiniteStep("loss nan at step 3"),
    errors.AdapterUnhealthy("moved: 0 of 4 matrices"),
    errors.ResumeMismatch("another base model"),
    errors.OutOfMemory("one row does not fit"),
    errors.TrainingError("anything we know of"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError("out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]
MAY_PASS = [
    errors.Unavailable("the checkpoint cannot be read"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("NCCL error: unhandled system error"),
    RuntimeError("cuBLAS error: CUBLAS_STATUS_NOT_INITIALIZED"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EMFILE, "Too many open files"),
    PermissionError(errno.EACCES, "Permission denied"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    KeyError("a fault of ours"),
    AssertionError("a fault of ours"),
    ValueError("a fault of ours"),
]
WANTS_ROOM = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    disk.NotEnoughSpace(1000, "1.0 MB must be free"),
]


def name_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:60]


@pytest.mark.parametrize("error", REPEATS, ids=name_of)
def test_a_failure_that_would_repeat_ends_the_job_with_a_code_and_a_message(error: Exception):
    failure = trainer._deterministic(error, is_limited=False)

    assert isinstance(failure, LoradError)
    assert failure.code
    assert str(error) in failure.message
    assert not disk.is_full(error)


@pytest.mark.parametrize("error", MAY_PASS, ids=name_of)
def test_a_failure_that_may_pass_is_tried_again(error: Exception):
    assert trainer._deterministic(error, is_limited=False) is None
    assert not disk.is_full(error)


def test_what_onednn_says_of_a_lack_of_memory_counts_under_a_limit_only():
    error = RuntimeError("could not create a primitive")

    failure = trainer._deterministic(error, is_limited=True)

    assert failure is not None
    assert failure.code == "out_of_memory"
    assert trainer._deterministic(error, is_limited=False) is None


@pytest.mark.parametrize("error", WANTS_ROOM, ids=name_of)
def test_a_full_disk_is_neither(error: Exception):
    assert disk.is_full(error)
