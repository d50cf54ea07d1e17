"""Writing a folder so that it is either complete and on disk, or not there at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.domain import disk, failpoints
from app.domain.checkpoints import MANIFEST_NAME, Manifest, ManifestFile


@dataclass(frozen=True)
class Committed:
    """A folder that is safely on disk."""

    manifest_sha256: str
    bytes: int


def commit(folder: Path, contents: Mapping[str, bytes], manifest: Manifest) -> Committed:
    """Write the files and then the manifest beside `folder`, and rename them into place.

    Args:
        folder: Where the result goes; it must not exist.
        contents: File name -> content.
        manifest: Everything but its list of files, which is made here.

    Raises:
        NotEnoughSpace: There is no room for it; nothing was written.
    """
    disk.require(folder.parent, sum(map(len, contents.values())))
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        files = tuple(_write(temporary / name, content) for name, content in contents.items())
        complete = manifest.model_copy(update={"files": files})
        failpoints.hit("checkpoint.manifest")
        listed = _write(
            temporary / MANIFEST_NAME, complete.model_dump_json(indent=2).encode() + b"\n"
        )
        failpoints.hit("checkpoint.fsync")
        _sync(temporary)
        failpoints.hit("checkpoint.rename")
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    failpoints.hit("checkpoint.fsync_parent")
    _sync(folder.parent)
    return Committed(listed.sha256, listed.bytes + sum(file.bytes for file in files))


def _write(path: Path, content: bytes) -> ManifestFile:
    failpoints.hit("checkpoint.write")
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        failpoints.hit("checkpoint.fsync")
        os.fsync(file.fileno())
    return ManifestFile(
        name=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
