"""Job files: YAML or JSON, changed by `--set`, checked without an API."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from app.domain import consistency, faults
from app.domain.errors import InvalidInput
from app.domain.spec import JobSpec
from app.domain.strict_json import DuplicateKey, unique_keys

# Stands for the data set that a dry run does not upload.
PLACEHOLDER_DATASET = "ds-" + "0" * 24
# YAML 1.1 reads 2e-4 as text, because it wants a dot and a signed exponent; people mean a number.
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.[\d_]+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """The safe loader, with numbers as people write them and without silent surprises."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen and key != "<<":
                line = key_node.start_mark.line + 1
                raise InvalidInput(f"line {line}: the key {key} is given twice", param=key)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# Dates stay text: no key of a job takes one, but a name or a metadata value may look like one.
_Loader.yaml_implicit_resolvers = {
    first: [
        *([("tag:yaml.org,2002:float", _FLOAT)] if first in set("-+.0123456789") else []),
        *((tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")),
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(source: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a job file and apply `key=value` overrides; `dataset.path` becomes absolute.

    Args:
        source: Path of a YAML or JSON file, or `-` for standard input.
        overrides: Such as `training.max_steps=20`; values are read as YAML.

    Raises:
        InvalidInput: The file cannot be read, or is no mapping; the message says where.
    """
    folder = Path.cwd() if source == "-" else Path(source).absolute().parent
    spec = read_mapping(source)
    _resolve_path(spec, folder)
    override(spec, overrides)
    _resolve_path(spec, Path.cwd())
    return spec


def read_mapping(source: str) -> dict[str, Any]:
    """Read a YAML or JSON file that holds a mapping, whatever its keys mean.

    Raises:
        InvalidInput: The file cannot be read, or is no mapping; the message says where.
    """
    return _parse(_text(source), source)


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` pairs alone.

    Raises:
        InvalidInput: A pair cannot be read.
    """
    values: dict[str, Any] = {}
    override(values, overrides)
    return values


def override(spec: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply `key=value` pairs to a spec.

    Raises:
        InvalidInput: A pair cannot be read.
    """
    for pair in overrides:
        _apply(spec, pair)


def place_of(source: str, overrides: Sequence[str], param: str | None) -> str | None:
    """Say where a key was written: in an override, or in which line of the file; None if nowhere.

    Args:
        source: Path of the job file; standard input cannot be read twice.
        overrides: As given to `read`.
        param: Dotted path of the key, as errors have it.
    """
    if param is None:
        return None
    for pair in reversed(overrides):
        if f"{pair.partition('=')[0].strip()}.".startswith(f"{param}."):
            return f"--set {pair}"
    if source == "-" or not Path(source).is_file():
        return None
    line = _line_of(_text(source), param.split("."))
    return None if line is None else f"{source} line {line}"


def dataset_path(spec: Mapping[str, Any]) -> Path | None:
    """Return the file that has to be uploaded before the job can be sent.

    Raises:
        InvalidInput: There is no such file, or an id is given as well.
    """
    dataset = _group(spec, "dataset")
    path = dataset.get("path")
    if path is None:
        return None
    if "id" in dataset:
        raise InvalidInput("dataset has both path and id; give one of them", param="dataset.path")
    if not Path(str(path)).is_file():
        raise InvalidInput(f"dataset.path: there is no file {path}", param="dataset.path")
    return Path(str(path))


def with_dataset(spec: Mapping[str, Any], dataset_id: str) -> dict[str, Any]:
    """Return the spec with an id in place of the path."""
    dataset = {**spec["dataset"], "id": dataset_id}
    del dataset["path"]
    return {**spec, "dataset": dataset}


def validate(spec: Mapping[str, Any]) -> JobSpec:
    """Check a spec as the API would, as far as that needs no data set and no model.

    Raises:
        InvalidInput: The first fault, with its field; the message says how many there are.
    """
    try:
        valid = JobSpec.model_validate_json(json.dumps(spec))
    except ValidationError as error:
        found = faults.of(error.errors()[0], whole="the job")
        num_more = error.error_count() - 1
        more = f" (and {num_more} more)" if num_more else ""
        raise InvalidInput(f"{found.message}{more}", param=found.param) from error
    consistency.require(valid)
    return valid


def _text(source: str) -> str:
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot read {source}: {error.strerror}", param="FILE") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source} is not UTF-8 (byte {error.start})", param="FILE") from error


def _parse(text: str, source: str) -> dict[str, Any]:
    # YAML reads most of JSON, but not its tabs; what starts like JSON is tried as JSON first.
    value = _json(text) if text.lstrip().startswith("{") else None
    if value is None:
        value = _yaml(text, source)
    if not isinstance(value, dict):
        raise InvalidInput(f"{source} must hold a mapping such as `base_model: ...`", param="FILE")
    spec = cast(dict[str, Any], value)
    try:
        json.dumps(spec, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{source} holds what JSON cannot: {error}", param="FILE") from error
    return spec


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except DuplicateKey as error:
        raise InvalidInput(str(error), param=error.key) from error
    except (ValueError, RecursionError):
        return None


def _yaml(text: str, source: str, *, param: str = "FILE") -> object:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidInput(f"{source}{where}: {error.problem}", param=param) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{source} is no valid YAML: {error}", param=param) from error


def _line_of(text: str, path: Sequence[str]) -> int | None:
    """Return the line of a key, or of the innermost group on the way to it."""
    try:
        node: Any = cast(Any, yaml).compose(text, Loader=_Loader)
    except yaml.YAMLError:
        return None
    line: int | None = None
    for part in path:
        pairs: list[tuple[Any, Any]] = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(key, value) for key, value in pairs if key.value == part]
        if not found:
            return line
        key, node = found[-1]
        line = int(key.start_mark.line) + 1
    return line


def _apply(spec: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    *groups, key = path.strip().split(".")
    if not separator or not key or not all(groups):
        raise InvalidInput(f"--set {override}: write it as key=value", param="--set")
    target = spec
    for group in groups:
        inner = target.setdefault(group, {})
        if not isinstance(inner, dict):
            raise InvalidInput(f"--set {override}: {group} is no group of keys", param="--set")
        target = cast(dict[str, Any], inner)
    if not text.strip():
        raise InvalidInput(
            f"--set {override}: there is no value; write null to clear {path.strip()}",
            param="--set",
        )
    target[key] = _yaml(text, f"--set {path}", param="--set")


def _resolve_path(spec: dict[str, Any], folder: Path) -> None:
    dataset = _group(spec, "dataset")
    if isinstance(dataset.get("path"), str):
        try:
            dataset["path"] = str(folder / Path(dataset["path"]).expanduser())
        except RuntimeError as error:
            raise InvalidInput(f"dataset.path: {error}", param="dataset.path") from error


def _group(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = spec.get(name)
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}
