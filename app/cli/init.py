"""The command that writes a commented job file to start from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from app.cli import complete, local, output
from app.domain.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

app = typer.Typer()

_SMALL_MODEL = "smollm2-135m-instruct"
# Keys that are not for a file to start from: they are refused, or say what others say.
_LEFT_OUT = ("method", "resume_from", "num_gpus", "id", "load_in_4bit")
_WIDTH = 98


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="File to write; - is stdout.")] = Path("job.yaml"),
    preset: Annotated[
        str, typer.Option(help="Which layers get an adapter.", autocompletion=complete.presets)
    ] = "all-linear",
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Model to train. Default: the first of the home's.",
            autocompletion=complete.models,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="File of the rows, as seen from the job file.")
    ] = "data.jsonl",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Give a key a value; may be given often.",
            autocompletion=complete.keys,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write a job file with every key explained; what is commented out has its default."""
    from app.cli import specs  # here, so that `lorad --help` stays quick

    is_file = str(file) != "-"
    if is_file and file.exists() and not force:
        raise InvalidInput(f"{file} exists already; choose another, or --force", param="FILE")
    given: dict[str, Any] = {
        "base_model": base_model or _a_model(),
        "preset": preset,
        "dataset": {"path": data},
    }
    specs.override(given, overrides or [])
    checked = specs.validate(specs.with_dataset(given, specs.PLACEHOLDER_DATASET))
    text = _job_file(given)
    if not is_file:
        typer.echo(text, nl=False)
        return
    file.write_text(text, "utf-8")
    output.say(f"wrote {file}: {checked.base_model}, preset {checked.preset}")
    output.say(f"look what it needs: lorad plan {file}; start it: lorad submit {file} --watch")


def _a_model() -> str:
    from app.services import catalog

    names = catalog.model_names(local.settings())
    return names[0] if names else _SMALL_MODEL


def _job_file(given: Mapping[str, Any]) -> str:
    from app.domain.spec import GROUPS, JobSpec

    lines = ["# A job for lorad. What is commented out has its default.", ""]
    for name, field in JobSpec.model_fields.items():
        if name in _LEFT_OUT:
            continue
        if name not in GROUPS:
            lines += _key(name, field, given)
            continue
        inside = cast(Mapping[str, Any], given.get(name) or {})
        if name == "quantization" and given.get("adapter") != "qlora" and not inside:
            continue
        lines += _group(name, GROUPS[name], inside)
    return "\n".join(lines) + "\n"


def _group(name: str, group: "type[BaseModel]", given: Mapping[str, Any]) -> list[str]:
    lines = ["", f"{name}:" if given else f"# {name}:"]
    if "path" in given:
        lines += [
            "  # File of the rows; `lorad submit` uploads it.",
            f"  path: {_yaml(given['path'])}",
        ]
    for key, field in group.model_fields.items():
        if key not in _LEFT_OUT:
            lines += _key(key, field, given, indent="  ")
    return lines


def _key(name: str, field: "FieldInfo", given: Mapping[str, Any], *, indent: str = "") -> list[str]:
    """Return what a key means, then the key: as it is given, or as a comment with its default."""
    meaning = " ".join((field.description or "").split()).replace("`", "")
    lines = [f"{indent}# {part}" for part in _folded(meaning, _WIDTH - len(indent) - 2)]
    if name in given:
        return [*lines, f"{indent}{name}: {_yaml(given[name])}"]
    default = field.get_default(call_default_factory=True)
    return [*lines, f"{indent}# {name}: {_yaml(default)}"]


def _folded(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, break_long_words=False) or [""]


def _yaml(value: object) -> str:
    """Write a value in one line; JSON is YAML, and plain words need no quotes."""
    if isinstance(value, str) and value and all(c.isalnum() or c in "._-/" for c in value):
        import yaml

        return value if yaml.safe_load(value) == value else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)
