"""Settings of commands that run on this machine: options first, then `LORAD_*`, then defaults."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output
from app.domain.errors import InvalidInput, StartupError

if TYPE_CHECKING:
    from app.settings import Settings

# Read elsewhere: by the client, and by tests.
_NO_SETTINGS = (
    "LORAD_API_URL",
    "LORAD_API_KEY",
    "LORAD_FAILPOINTS",
    "LORAD_REQUIRE_POSTGRES",
    "LORAD_REQUIRE_BROWSER",
)


def _folder(text: str) -> Path:
    if not text:  # an unset variable of a shell, which pathlib takes for the current folder
        raise typer.BadParameter("--home is empty; give a folder, or leave it out")
    return Path(text)


Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        parser=_folder,
        metavar="PATH",
        help="Folder of models, data sets and jobs. Default: ~/.lorad",
    ),
]


def settings(**options: object) -> "Settings":
    """Read the settings; options that were given go into the environment, so that children agree.

    Raises:
        InvalidInput: A value is out of range, or two contradict each other; the message names the
            variables.
    """
    # Loaded here, because pydantic takes as long as `lorad --help` may take.
    from pydantic import ValidationError

    from app.settings import Settings

    for name, value in options.items():
        if value is not None:
            os.environ[f"LORAD_{name.upper()}"] = str(value)
    _warn_of_unknown_variables(Settings.model_fields)
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # it is about several variables, which its message names
            raise InvalidInput(first["msg"].removeprefix("Value error, ")) from error
        variable = f"LORAD_{str(first['loc'][0]).upper()}"
        message = f"{variable} is {first['input']!r}: {first['msg']}"
        raise InvalidInput(message, param=variable) from error


def _warn_of_unknown_variables(known: Iterable[str]) -> None:
    """Say that a `LORAD_*` variable is none of ours; another program's, or a slip of the pen."""
    from app.domain.groups import nearest

    names = [*(f"LORAD_{name.upper()}" for name in known), *_NO_SETTINGS]
    for name in sorted(os.environ):
        if name.startswith("LORAD_") and name not in names:
            output.warn(f"{name} is not read; {nearest(name, names)}")


def prepare_home(home: Path) -> None:
    """Make the home and prove that files can be written there.

    Raises:
        StartupError: They cannot.
    """
    probe = home / f".write-test-{os.getpid()}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StartupError(
            f"cannot write to the home {home}: {error.strerror}; "
            "choose another with --home or LORAD_HOME"
        ) from error
