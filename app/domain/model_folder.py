"""Base models are folders in Hugging Face's layout; here is what makes one safe and complete."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from app.domain.errors import InvalidModel

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
_MODEL_TYPE = re.compile(r"[a-z0-9_-]{1,64}")
_FORBIDDEN_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")
_CONFIG_FILES = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
)


@dataclass(frozen=True)
class ModelFolder:
    """What a look at a model folder's JSON files tells, without loading a tensor."""

    path: Path
    model_type: str
    architecture: str
    has_chat_template: bool
    bytes: int


def inspect(path: Path) -> ModelFolder:
    """Check that a folder holds a model that can be loaded without running code from it.

    Raises:
        InvalidModel: A file is missing, holds pickled weights, or asks for code of its own.
    """
    if not (path / "config.json").is_file():
        raise InvalidModel(
            f"model {path.name}: config.json is missing; a model is a folder in Hugging"
            " Face's layout with config.json, tokenizer.json and safetensors files"
        )
    configs = {name: _read_json(path / name) for name in _CONFIG_FILES if (path / name).is_file()}
    for name, config in configs.items():
        _refuse_code(path.name, name, config)
    _refuse_pickle(path)
    config = configs["config.json"]
    model_type = str(config.get("model_type", ""))
    if not _MODEL_TYPE.fullmatch(model_type):
        raise InvalidModel(
            f"model {path.name}: model_type {model_type[:80]!r} in config.json is not a plain name"
        )
    if not (path / "tokenizer.json").is_file():
        raise InvalidModel(
            f"model {path.name}: tokenizer.json is missing; a fast tokenizer is needed"
        )
    return ModelFolder(
        path=path,
        model_type=model_type,
        architecture=_architecture(config),
        has_chat_template=_has_chat_template(path, configs.get("tokenizer_config.json", {})),
        bytes=sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
    )


def fingerprint(path: Path) -> str:
    """Hash names, sizes and contents of the weights and configuration, as 64 hex digits.

    Reading the weights is slow, so the trainer keeps the result in its cache by size and mtime.
    """
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja") and file.is_file():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModel(
            f"model {path.parent.name}: {path.name} is not valid JSON: {error}"
        ) from error
    if not isinstance(value, dict):
        raise InvalidModel(f"model {path.parent.name}: {path.name} must hold a JSON object")
    return cast(dict[str, Any], value)


def _refuse_code(model: str, file: str, config: dict[str, Any]) -> None:
    for key in _FORBIDDEN_KEYS:
        if key in config:
            raise InvalidModel(
                f"model {model}: {file} has {key}, which asks for code from the folder;"
                " lorad never runs such code"
            )


def _refuse_pickle(path: Path) -> None:
    names = [file.name for file in path.iterdir()]
    pickled = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickled:
        raise InvalidModel(
            f"model {path.name}: {pickled[0]} may be pickled weights, which can run code;"
            " convert it to safetensors"
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise InvalidModel(
            f"model {path.name}: no .safetensors file; only safetensors weights are loaded"
        )


def _has_chat_template(path: Path, tokenizer_config: dict[str, Any]) -> bool:
    return bool(tokenizer_config.get("chat_template")) or (path / "chat_template.jinja").is_file()


def _architecture(config: dict[str, Any]) -> str:
    match config.get("architectures"):
        case [str(first), *_]:
            return first
        case _:
            return "unknown"
