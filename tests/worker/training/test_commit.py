"""A folder is complete and on disk, or not there."""

import os
from collections import namedtuple
from pathlib import Path

import pytest

from app.domain import checkpoints, disk, failpoints
from app.domain.checkpoints import Manifest
from worker.training.commit import Committed, commit

CONTENTS = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"weights",
    "optimizer.safetensors": b"moments",
    "training_state.json": b"{}",
}


def make_manifest() -> Manifest:
    return Manifest(
        kind="checkpoint",
        job_id="job-1",
        attempt=1,
        fence=1,
        step=5,
        base_model="tiny",
        base_model_sha256="b" * 64,
        dataset_sha256="d" * 64,
        versions={},
        files=(),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint-5"


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch):
    def set_failpoint(name: str) -> None:
        monkeypatch.setenv(failpoints.VARIABLE, f"{name}=raise:ENOSPC")

    return set_failpoint


def test_what_was_committed_verifies(folder: Path):
    committed = commit(folder, CONTENTS, make_manifest())

    manifest = checkpoints.verify(folder, manifest_sha256=committed.manifest_sha256)
    assert [file.name for file in manifest.files] == list(CONTENTS)
    assert committed.bytes == sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize(
    "point", ["checkpoint.write", "checkpoint.fsync", "checkpoint.manifest", "checkpoint.rename"]
)
def test_a_failure_before_the_end_leaves_nothing(folder: Path, fail_at, point: str):
    fail_at(point)

    with pytest.raises(OSError, match=f"failpoint {point}"):
        commit(folder, CONTENTS, make_manifest())

    assert list(folder.parent.iterdir()) == []


def test_without_room_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    size = sum(map(len, CONTENTS.values()))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk, "disk_usage", lambda _: usage(0, 0, size))

    with pytest.raises(disk.NotEnoughSpace, match="must be free to save") as refused:
        commit(folder, CONTENTS, make_manifest())

    assert disk.is_full(refused.value)
    assert refused.value.needed_bytes > size
    assert list(folder.parent.iterdir()) == []
    monkeypatch.setattr(disk, "disk_usage", lambda _: usage(0, 0, refused.value.needed_bytes))
    commit(folder, CONTENTS, make_manifest())


def test_after_the_rename_the_folder_is_whole_even_if_the_rest_fails(folder: Path, fail_at):
    fail_at("checkpoint.fsync_parent")

    with pytest.raises(OSError, match="fsync_parent"):
        commit(folder, CONTENTS, make_manifest())

    assert checkpoints.verify(folder).step == 5


def test_every_file_and_both_folders_are_synced_before_the_commit_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[str] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)

    commit(folder, CONTENTS, make_manifest())

    *files, temporary, parent = synced
    assert files == [*CONTENTS, "MANIFEST.json"]
    assert temporary.startswith(".tmp-")
    assert parent == folder.parent.name


def test_an_existing_checkpoint_is_never_overwritten(folder: Path):
    first: Committed = commit(folder, CONTENTS, make_manifest())

    with pytest.raises(OSError, match="not empty"):
        commit(folder, {**CONTENTS, "training_state.json": b"other"}, make_manifest())

    checkpoints.verify(folder, manifest_sha256=first.manifest_sha256)
