"""Settings of commands that run on this machine: options first, then `LORAD_*`, then defaults."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.domain.errors import InvalidInput, StartupError

if TYPE_CHECKING:
    from app.settings import Settings

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of models, data sets and jobs. Default: ~/.lorad"),
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
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # it is about several variables, which its message names
            raise InvalidInput(first["msg"].removeprefix("Value error, ")) from error
        variable = f"LORAD_{str(first['loc'][0]).upper()}"
        message = f"{variable} is {first['input']!r}: {first['msg']}"
        raise InvalidInput(message, param=variable) from error


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
