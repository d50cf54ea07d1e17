"""What an SQLite file lies on: its log of changes needs memory that all its users share."""

from pathlib import Path

from app.domain.errors import StartupError

MOUNTS = Path("/proc/self/mountinfo")
_NETWORKS = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs"),
        *("fuse.ceph", "fuse.davfs2", "fuse.glusterfs", "fuse.gcsfuse", "fuse.rclone"),
        *("fuse.s3fs", "fuse.sshfs"),
    }
)


def require_local(database: Path) -> None:
    """Check that an SQLite file lies, or would lie, on a disk of this machine.

    Write-ahead logging does not work over a network (sqlite.org/wal.html): two machines would
    corrupt the file without an error.

    Raises:
        StartupError: It is on a network filesystem; the message says what to do.
    """
    found = filesystem_of(database, MOUNTS)
    if found in _NETWORKS:
        raise StartupError(
            f"the SQLite database {database} is on a network filesystem ({found}), where it can be"
            " corrupted; set LORAD_DATABASE_URL to an SQLite file on a local disk, or to PostgreSQL"
            " when workers run on several machines"
        )


def filesystem_of(path: Path, mounts: Path) -> str | None:
    """Return the type of the filesystem that a path is on; None where the system does not tell.

    Args:
        path: A file that need not exist.
        mounts: The kernel's list of mounts, in the format of proc(5).
    """
    try:
        lines = mounts.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    real = path.absolute().resolve()
    # The last mount at a point covers those before it.
    best, kind = -1, None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if real.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind
