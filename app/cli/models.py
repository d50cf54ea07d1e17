"""Commands about base models: `add` and `import` work on this home, `list` asks the API."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from app.cli import local, output, views
from app.cli.local import Home
from app.cli.output import Mode, Output
from app.domain.errors import InvalidInput

app = typer.Typer(help="Add and list base models.", no_args_is_help=True)

SMOLLM2 = "smollm2"
_SMOLLM2_NAME = "smollm2-135m-instruct"
_MAX_NAME = 128
_ADAPTER_CONFIG = "adapter_config.json"


@app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(help=f"Model folder, GGUF file, or {SMOLLM2} for the bundled small model."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model, or ORG/NAME. Default: the file's.")
    ] = None,
    home: Home = None,
) -> None:
    """Add a base model to the home's models folder."""
    settings = local.settings(home=home)
    local.prepare_home(settings.home)
    target = _free_folder(settings.models_folder, name or _default_name(source))
    _make(settings.models_folder, target, _arguments(source, target))


@app.command("import")
def import_model(
    source: Annotated[
        Path, typer.Argument(help="Folder of a model, of a merged export, or of a PEFT adapter.")
    ],
    base: Annotated[
        str | None,
        typer.Option(help="Base model of an adapter. Default: the one that the adapter names."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model, or ORG/NAME. Default: the folder's.")
    ] = None,
    home: Home = None,
) -> None:
    """Register a model made elsewhere; an adapter is merged into its base, which must be here."""
    settings = local.settings(home=home)
    local.prepare_home(settings.home)
    folder = source.expanduser()
    target = _free_folder(settings.models_folder, name or _default_name(str(source)))
    if not (folder / _ADAPTER_CONFIG).is_file():
        if base is not None:
            raise InvalidInput(f"{source} is no PEFT adapter; leave out --base", param="--base")
        _make(settings.models_folder, target, _arguments(str(source), target))
        return
    base_folder = _base_folder(settings.models_folder, folder, base)
    arguments = ["add-adapter", str(folder), str(target), "--base", str(base_folder)]
    _make(settings.models_folder, target, arguments)


def _free_folder(models: Path, name: str) -> Path:
    chosen = _checked_name(name)
    target = models / chosen
    if target.exists():
        raise InvalidInput(f"there is a model {chosen} already; give another --name")
    if (target.parent / "config.json").exists():
        raise InvalidInput(f"{chosen} would be inside of a model; give another --name")
    return target


def _make(models: Path, target: Path, arguments: Sequence[str]) -> None:
    # In a process of its own, because it loads torch, which no command may.
    code = subprocess.call([sys.executable, "-m", "worker.models", *arguments])
    if code != 0:
        raise typer.Exit(code)
    output.say(f"added; use it with: base_model: {target.relative_to(models)}")


def _base_folder(models: Path, adapter: Path, given: str | None) -> Path:
    """Return the folder of an adapter's base model: the one given, or the one that it names."""
    if given is not None:
        names = [_checked_name(given)]
    else:
        config = json.loads((adapter / _ADAPTER_CONFIG).read_text("utf-8"))
        named = str(config.get("base_model_name_or_path") or "")
        names = [named, named.rpartition("/")[2]]
    for each in names:
        if all(map(_is_plain, each.split("/"))) and (models / each / "config.json").is_file():
            return models / each
    raise InvalidInput(
        f"the base model of the adapter, {names[0] or 'which it does not name'}, is not in the"
        " models folder; add it with `lorad models add`, or name the one it belongs to with --base",
        param="--base",
    )


@app.command("list")
def list_models(mode: Output = Mode.TABLE) -> None:
    """List the base models that jobs can use."""
    # Loaded by the command that runs: the HTTP client is too slow to load for `lorad --help`.
    from app.cli.client import Client

    with Client.from_environment() as client:
        output.show_list(client.models(), views.MODEL, mode)


def _arguments(source: str, target: Path) -> list[str]:
    if source == SMOLLM2:
        return ["add-smollm2", str(target)]
    path = Path(source).expanduser()
    if path.is_dir():
        return ["add-folder", str(path), str(target)]
    if path.is_file() and path.suffix == ".gguf":
        return ["add-gguf", str(path), str(target)]
    raise InvalidInput(
        f"{source} is no folder and no .gguf file; hub names are not available in this version",
        param="SOURCE",
    )


def _default_name(source: str) -> str:
    path = Path(source).expanduser().absolute()
    if source == SMOLLM2:
        return _SMOLLM2_NAME
    return path.stem if path.suffix == ".gguf" else path.name


def _checked_name(name: str) -> str:
    parts = name.split("/")
    if len(parts) > 2 or len(name) > _MAX_NAME or not all(map(_is_plain, parts)):
        raise InvalidInput(
            f"{name!r} is no model name; use letters, digits, dots, dashes and underscores, with"
            " at most one slash between organization and name",
            param="--name",
        )
    return name


def _is_plain(part: str) -> bool:
    return part[:1].isalnum() and all(char.isalnum() or char in "._-" for char in part)
