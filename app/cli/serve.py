"""The command that runs the API in this process, and the check of its address."""

import errno
import socket
from typing import Annotated

import typer

from app.cli import local
from app.cli.local import Home
from app.domain.errors import StartupError

Host = Annotated[str | None, typer.Option("--host", help="Address. Default: 127.0.0.1")]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65_535, help="TCP port. Default: 8000")
]


def serve(host: Host = None, port: Port = None, home: Home = None) -> None:
    """Run the API alone; workers, database and Redis are started elsewhere."""
    settings = local.settings(host=host, port=port, home=home)
    require_free(settings.host, settings.port)
    # Loaded by the command that runs: FastAPI and uvicorn are too slow to load for `lorad --help`.
    from app import main

    main.serve(settings)


def require_free(host: str, port: int) -> int:
    """Return the port if it can be listened on; for port 0 one that is free now.

    Raises:
        StartupError: It is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server will: a port that is only winding down does not count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is in use; choose another with --port"
            raise StartupError(message, param="--port") from error
        raise StartupError(
            f"cannot listen on {host} port {port}: {error.strerror or error}", param="--host"
        ) from error
