"""The token cache: every data set is encoded once, however many jobs ask for it at once."""

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from app.domain import checkpoints, failpoints
from app.domain.errors import UnusableData
from app.domain.runs import TOKENS_FOLDER
from worker.training import encode, reading
from worker.training.reading import Source
from worker.training.tokens import MANIFEST, DamagedTokens, Tokens, Writer, open_folder

FOLDER = TOKENS_FOLDER
_OURS = ("app.", "worker.")
_LIBRARIES = (jinja2, tokenizers, transformers)


@dataclass(frozen=True)
class Found:
    """The tokens of a data set, and whether a damaged cache of them was found and built anew."""

    tokens: Tokens
    was_damaged: bool = False


def fingerprint_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash all of a loaded tokenizer that decides how text becomes tokens, its template included.

    Ask before its first use, which may change settings that are part of it.
    """
    backend: Any = tokenizer.backend_tokenizer
    facts = {
        "class": type(tokenizer).__name__,
        "backend": backend.to_str(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "starts_with": encode.first_token(tokenizer),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def tokens_of(
    source: Source, tokenizer: PreTrainedTokenizerBase, *, cache_folder: Path, tokenizer_sha256: str
) -> Found:
    """Return the tokens of a data set: from the cache, or encoded now and kept there.

    One process encodes while others that ask for the same wait for it.

    Raises:
        UnusableData: The file as a whole cannot be used, or is not the one that was uploaded.
    """
    made_of = _made_of(source, tokenizer_sha256)
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    folder = cache_folder / FOLDER / key
    with suppress(FileNotFoundError, DamagedTokens):
        return Found(_open(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    was_damaged = False
    with _one_builder(folder):
        try:
            return Found(_open(folder))
        except FileNotFoundError:
            pass
        except DamagedTokens:
            was_damaged = True
            _put_aside(folder)
        _build(folder, source, tokenizer, made_of)
        return Found(_open(folder), was_damaged)


def _open(folder: Path) -> Tokens:
    opened = open_folder(folder)
    with suppress(OSError):
        os.utime(folder / MANIFEST)  # the sweeper removes what was not used for long
    return opened


def _made_of(source: Source, tokenizer_sha256: str) -> dict[str, Any]:
    """Return everything that decides the tokens; a change of any of it makes another cache."""
    options = source.options.model_dump(mode="json")
    names = ("chat_template", "field_mapping", "train_on_inputs", "max_length")
    return {
        "data": source.file.model_dump(mode="json", exclude={"path", "format"}),
        "format": source.row_format,
        **{name: options[name] for name in names},
        "truncate": options["on_too_long"] == "truncate",
        "tokenizer_sha256": tokenizer_sha256,
        "code_sha256": _code_sha256(),
        "libraries": {library.__name__: library.__version__ for library in _LIBRARIES},
    }


def _code_sha256() -> str:
    """Hash our code that reads and encodes, so that nobody has to remember a version number."""
    modules = _reached_from(reading)
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(inspect.getsource(modules[name]).encode())
    return digest.hexdigest()


def _reached_from(start: ModuleType) -> dict[str, ModuleType]:
    """Return a module and those of ours that it uses, and so on."""
    found = {start.__name__: start}
    waiting = [start]
    while waiting:
        for value in vars(waiting.pop()).values():
            owner = value.__name__ if isinstance(value, ModuleType) else _home_of(value)
            if owner.startswith(_OURS) and owner in sys.modules and owner not in found:
                found[owner] = sys.modules[owner]
                waiting.append(found[owner])
    return found


def _home_of(value: object) -> str:
    home = getattr(value, "__module__", "")
    return home if isinstance(home, str) else ""


@contextmanager
def _one_builder(folder: Path) -> Generator[None]:
    """Hold the lock of a cache; whoever waited finds what the one before built."""
    path = folder.with_name(f"{folder.name}.lock")
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Those who wait for this very file find the cache. If it was not built, two may build
            # at once, and the second uses what the first put in place.
            path.unlink(missing_ok=True)


def _put_aside(folder: Path) -> None:
    trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    with suppress(FileNotFoundError):
        folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _build(
    folder: Path, source: Source, tokenizer: PreTrainedTokenizerBase, made_of: dict[str, Any]
) -> None:
    if checkpoints.hash_file(source.file.path) != source.file.sha256:
        raise UnusableData("the data set's file is not the one that was uploaded (SHA-256 differs)")
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name[:16]}-", dir=folder.parent))
    try:
        with Writer(temporary, num_ids=len(tokenizer)) as writer:
            for line in reading.examine(source, tokenizer):
                writer.add(line, reading.fate_of(line, source.options))
            writer.commit(made_of)
        _sync(temporary)
        failpoints.hit("tokens.rename")
        _rename(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        # Where locks do not reach other machines, somebody may have been faster.
        if not (folder / MANIFEST).is_file():
            raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
