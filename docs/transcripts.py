"""Writes the parts of cli.md that are made: transcripts of real commands, and the reference.

    python docs/transcripts.py               runs every command on a real `lorad up`
    python docs/transcripts.py --reference   writes the reference alone, in a second

A transcript stands between `<!-- run: COMMAND -->` and `<!-- end -->`; the command is run as it is
written there, in the order of the page, and what it prints replaces what was there. A block behind
`<!-- file: NAME -->` is written to that file first. Ids, times and paths are made the same every
time.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import typer.main

from app.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
MODEL = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
_BLOCK = re.compile(r"<!-- run: (?P<command>.+?) -->\n.*?<!-- end -->", re.DOTALL)
_FILE = re.compile(r"<!-- file: (?P<name>[\w.]+) -->\n```\w*\n(?P<text>.*?)^```", re.DOTALL | re.M)
_REFERENCE = re.compile(r"<!-- reference -->\n.*<!-- end of the reference -->", re.DOTALL)
_ID = re.compile(r"\b(job|ds|ckpt|req|exp)-[0-9a-f]{24}\b")
_TIME = re.compile(r"\b20\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?")
_WIDTH = "100"


def reference() -> str:
    """Describe every command with its arguments and options, as the commands themselves do."""
    lines: list[str] = []
    for path, command in commands():
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        options = [each for each in command.params if each.param_type_name == "option"]
        usage = " ".join([path, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
        lines += [f"### {path}", "", f"`{usage}`", "", _text(command.help), ""]
        rows = [(_argument(each), _meaning(each)) for each in arguments if each.help]
        rows += [(_option(each), _meaning(each)) for each in options if not each.hidden]
        if rows:
            lines += ["| | |", "|---|---|"]
            lines += [f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows]
            lines.append("")
    return "\n".join(lines)


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with what is typed for it, in the order of the help."""
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield f"lorad {name}", command
            continue
        for inner_name, inner_command in inner.items():
            yield f"lorad {name} {inner_name}", inner_command


def with_reference(page: str) -> str:
    made = f"<!-- reference -->\n\n{reference()}\n<!-- end of the reference -->"
    return _REFERENCE.sub(lambda _: made, page)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.is_flag:
        return names
    choices = parameter.type_descriptor.choices
    value = parameter.metavar or ("|".join(each.value for each in choices) if choices else "")
    return f"{names} {value or parameter.name.upper()}"


def _meaning(parameter: Any) -> str:
    """Return the help with the default, where the help does not name one."""
    text, default = _text(parameter.help), parameter.default
    if default in (None, False, "", ()) or "efault" in text:
        return text
    return f"{text} Default: {getattr(default, 'value', default)}"


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def with_transcripts(page: str) -> str:
    """Run every command of the page on a real service, and put in what it prints."""
    with tempfile.TemporaryDirectory(prefix="lorad-docs-") as name:
        folder = Path(name)
        work = folder / "work"
        (folder / ".lorad" / "models").mkdir(parents=True)
        (folder / ".lorad" / "models" / MODEL.name).symlink_to(MODEL)
        shutil.copytree(ROOT / "examples" / "data", work / "data")
        for file in _FILE.finditer(page):
            (work / file["name"]).write_text(file["text"], "utf-8")
        with service(folder) as environment:
            session = _Session(work, environment, folder)
            return _BLOCK.sub(lambda block: session.transcript(block["command"]), page)


class _Session:
    """A shell in which commands are run one after another."""

    def __init__(self, work: Path, environment: dict[str, str], home: Path) -> None:
        self._work, self._environment, self._home = work, environment, home
        self._names: dict[str, str] = {}

    def transcript(self, command: str) -> str:
        sys.stderr.write(f"$ {command}\n")
        done = subprocess.run(
            ["bash", "-c", self._expanded(command)],
            cwd=self._work,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        code = f"\n(exit code {done.returncode})" if done.returncode else ""
        said = self._settled(done.stdout).rstrip() + code
        lines = [f"<!-- run: {command} -->", "```console", f"$ {self._shown(command)}"]
        return "\n".join([*lines, *([said] if said else []), "```", "<!-- end -->"])

    def _expanded(self, command: str) -> str:
        """Put the newest jobs in the place of FIRST and SECOND."""
        listed = subprocess.run(
            ["lorad", "ls", "-o", "id"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()[::-1]
        for word, job_id in zip(("FIRST", "SECOND"), listed, strict=False):
            command = command.replace(word, job_id)
        return command

    def _shown(self, command: str) -> str:
        return self._settled(self._expanded(command))

    def _settled(self, text: str) -> str:
        text = _ID.sub(self._named, text)
        text = _TIME.sub("2026-01-02 03:04:05", text)
        port = self._environment["LORAD_PORT"]
        text = text.replace(f"127.0.0.1:{port}", "127.0.0.1:8000")
        text = text.replace(str(self._work), "/home/me").replace(str(self._home), "/home/me")
        return text.replace(socket.gethostname(), "workstation")

    def _named(self, found: "re.Match[str]") -> str:
        number = len(self._names) + 1
        return self._names.setdefault(found.group(), f"{found.group(1)}-{number:024x}")


@contextlib.contextmanager
def service(folder: Path) -> Generator[dict[str, str]]:
    """Run `lorad up` on a home of its own; yield the environment of its users."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    environment = {
        "HOME": str(folder),
        "LORAD_PORT": port,
        "LORAD_API_URL": f"http://127.0.0.1:{port}",
        "COLUMNS": _WIDTH,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONUTF8": "1",
        "LANG": "C.UTF-8",
    }
    up = subprocess.Popen(
        ["lorad", "up"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert up.stdout is not None
        assert up.stdout.readline(), "lorad up did not start"
        yield environment
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)


def main() -> None:
    """Write docs/cli.md again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reference", action="store_true", help="write the reference alone")
    page = with_reference(PAGE.read_text("utf-8"))
    if not parser.parse_args().reference:
        page = with_transcripts(page)
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
