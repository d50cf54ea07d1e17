"""SQLite on a network filesystem is refused before it is opened."""

from pathlib import Path

import pytest

from app.db import filesystem
from app.db.engine import Database
from app.domain.errors import StartupError


def write_mounts(folder: Path, *mounts: tuple[Path, str]) -> Path:
    escaped = [(str(point).replace(" ", "\\040"), kind) for point, kind in mounts]
    lines = [
        f"{number} 1 0:{number} / {point} rw,relatime shared:1 - {kind} dev rw"
        for number, (point, kind) in enumerate(escaped)
    ]
    file = folder / "mountinfo"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_sqlite_on_a_network_filesystem_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    mounts = write_mounts(tmp_path, (Path("/"), "ext4"), (tmp_path / "shared", kind))
    monkeypatch.setattr(filesystem, "MOUNTS", mounts)

    with pytest.raises(StartupError, match=f"{kind}.*LORAD_DATABASE_URL"):
        Database(f"sqlite:///{tmp_path}/shared/deep/lorad.db")

    assert not (tmp_path / "shared").exists()
    Database(f"sqlite:///{tmp_path}/local.db").close()


def test_the_innermost_and_newest_mount_counts(tmp_path: Path):
    inner = tmp_path / "a b" / "c"
    mounts = write_mounts(
        tmp_path,
        (Path("/"), "ext4"),
        (inner, "ext4"),
        (inner, "nfs"),
        (tmp_path / "a b", "xfs"),
    )

    assert filesystem.filesystem_of(inner / "lorad.db", mounts) == "nfs"
    assert filesystem.filesystem_of(tmp_path / "a b" / "cc", mounts) == "xfs"
    assert filesystem.filesystem_of(Path("/elsewhere"), mounts) == "ext4"


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    mounts = write_mounts(tmp_path, (Path("/"), "ext4"), (tmp_path / "shared", "nfs"))

    assert filesystem.filesystem_of(tmp_path / "link" / "lorad.db", mounts) == "nfs"


def test_a_system_that_does_not_tell_is_trusted(tmp_path: Path):
    assert filesystem.filesystem_of(tmp_path, tmp_path / "nothing") is None
