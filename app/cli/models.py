"""Commands about base models: `add` works on this machine's home, `list` asks the API."""

import subprocess
import sys
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


@app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(help=f"Model folder, GGUF file, or {SMOLLM2} for the bundled small model."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model. Default: the file's.")
    ] = None,
    home: Home = None,
) -> None:
    """Add a base model to the home's models folder."""
    settings = local.settings(home=home)
    local.prepare_home(settings.home)
    target = settings.models_folder / _checked_name(name or _default_name(source))
    if target.exists():
        raise InvalidInput(f"there is a model {target.name} already; give another --name")
    # In a process of its own, because it loads torch, which no command may.
    code = subprocess.call([sys.executable, "-m", "worker.models", *_arguments(source, target)])
    if code != 0:
        raise typer.Exit(code)
    output.say(f"added; use it with: base_model: {target.name}")


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
    if not name[:1].isalnum() or not all(char.isalnum() or char in "._-" for char in name):
        raise InvalidInput(
            f"{name!r} is no model name; use letters, digits, dots, dashes and underscores",
            param="--name",
        )
    return name
