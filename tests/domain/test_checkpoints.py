"""Checkpoints: a folder that differs from its manifest in any way is refused by name."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import checkpoints
from app.domain.checkpoints import (
    ADAPTER_FILES,
    MANIFEST_NAME,
    STATE_FILES,
    BadCheckpoint,
    Manifest,
    ManifestFile,
    hash_file,
    verify,
)

FILES = (*ADAPTER_FILES, *STATE_FILES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "checkpoint-5")


@pytest.fixture(scope="module")
def shared_folder() -> Iterator[Path]:
    """A good checkpoint for the properties, each of which puts back what it changed."""
    with tempfile.TemporaryDirectory() as parent:
        yield write(Path(parent) / "checkpoint-5")


def write(folder: Path, *, names: tuple[str, ...] = FILES, kind: str = "checkpoint") -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(f"content of {name}".encode() * 20)
    seal(folder, kind=kind)
    return folder


def seal(folder: Path, *, kind: str = "checkpoint") -> None:
    """Write a manifest of what is in the folder now."""
    files = tuple(
        ManifestFile(name=path.name, bytes=path.stat().st_size, sha256=hash_file(path))
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    )
    manifest = Manifest.model_validate(
        {
            "kind": kind,
            "job_id": "job-" + "0" * 24,
            "attempt": 1,
            "fence": 1,
            "step": 5,
            "base_model": "m",
            "base_model_sha256": "0" * 64,
            "dataset_sha256": "0" * 64,
            "versions": {"torch": "2.13.0"},
            "files": files,
        }
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def link_elsewhere(path: Path) -> None:
    shutil.move(path, path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_an_untouched_checkpoint_verifies(folder: Path):
    recorded = hash_file(folder / MANIFEST_NAME)

    assert verify(folder).step == 5
    assert verify(folder, manifest_sha256=recorded) == verify(folder)


def test_a_final_folder_needs_only_the_adapter(tmp_path: Path):
    folder = write(tmp_path / "final", names=ADAPTER_FILES, kind="final")

    assert verify(folder).kind == "final"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", [Path.unlink, truncate, grow, empty, flip, link_elsewhere, make_folder]
)
def test_a_damaged_file_is_named(folder: Path, name: str, damage: Callable[[Path], None]):
    damage(folder / name)

    with pytest.raises(BadCheckpoint, match=rf"^checkpoint-5: .*{name}"):
        verify(folder)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, empty, link_elsewhere, make_folder])
def test_a_damaged_manifest_is_named(folder: Path, damage: Callable[[Path], None]):
    damage(folder / MANIFEST_NAME)

    with pytest.raises(BadCheckpoint, match=MANIFEST_NAME):
        verify(folder)


def test_a_manifest_that_was_rewritten_after_the_commit_is_refused(folder: Path):
    recorded = hash_file(folder / MANIFEST_NAME)
    flip(folder / "adapter_model.safetensors")
    seal(folder)

    assert verify(folder).step == 5
    with pytest.raises(BadCheckpoint, match="changed after the commit"):
        verify(folder, manifest_sha256=recorded)


@pytest.mark.parametrize("name", ["adapter_model.bin", "extra.json"])
def test_a_file_that_the_manifest_does_not_list_is_refused(folder: Path, name: str):
    (folder / name).write_bytes(b"")

    with pytest.raises(BadCheckpoint, match=f"does not list '{name}'"):
        verify(folder)


def test_a_link_that_the_manifest_does_not_list_is_refused(folder: Path):
    (folder / "more").symlink_to("/")

    with pytest.raises(BadCheckpoint, match="does not list 'more'"):
        verify(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_lists_all_that_is_needed_to_continue(tmp_path: Path, name: str):
    names = tuple(other for other in FILES if other != name)
    folder = write(tmp_path / "checkpoint-5", names=names)

    with pytest.raises(BadCheckpoint, match=f"the manifest lacks {name}"):
        verify(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/file", ".hidden", "..", ""])
def test_a_manifest_may_only_name_plain_files(folder: Path, name: str):
    manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    file = manifest.files[0].model_copy(update={"name": name})
    listed = manifest.model_copy(update={"files": (*manifest.files, file)})
    (folder / MANIFEST_NAME).write_text(listed.model_dump_json())

    with pytest.raises(BadCheckpoint, match=r"is not a plain file name|is missing"):
        verify(folder)


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(BadCheckpoint, match="is missing"):
        verify(tmp_path / "checkpoint-7")


@given(st.data())
def test_any_flipped_bit_of_any_file_is_found(shared_folder: Path, data: st.DataObject):
    path = shared_folder / data.draw(st.sampled_from((*FILES, MANIFEST_NAME)))
    recorded = hash_file(shared_folder / MANIFEST_NAME)
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    bit = 1 << data.draw(st.integers(0, 7))

    path.write_bytes(
        original[:position] + bytes([original[position] ^ bit]) + original[position + 1 :]
    )
    try:
        with pytest.raises(BadCheckpoint):
            verify(shared_folder, manifest_sha256=recorded)
    finally:
        path.write_bytes(original)


def test_hash_file_reads_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1000)
    monkeypatch.setattr(checkpoints, "_CHUNK_BYTES", 7)

    assert hash_file(path) == hashlib.sha256(b"abc" * 1000).hexdigest()
