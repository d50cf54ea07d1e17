"""A copy of a project: it is changed, tested and put back, and the original is never touched."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.mutants import guard
from bench.mutants.mutant import Mutant, mutated

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_PLUGIN = "mutants_guard"
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "results", ".*")
# A test that reads one of these would look for the product that the caller works with.
_NOT_PASSED = ("LORAD_", "PYTEST_", "PYTHON", "COVERAGE")
_LOG_LINES = 15


@dataclass(frozen=True)
class Project:
    """What tests need of a project."""

    root: Path
    copied: Sequence[str]
    """Files and folders that are copied where they exist."""
    linked: Sequence[str]
    """Folders that are used where they are."""
    packages: Sequence[str]
    """What has to be imported from the copy."""


LORAD = Project(
    root=_ROOT,
    copied=(
        *("app", "worker", "migrations", "tests", "bench", "examples"),
        *("pyproject.toml", "constraints.txt", "README.md"),
    ),
    linked=(".cache/models",),
    packages=("app", "worker"),
)


class CannotRun(Exception):
    """The tests cannot be run in the copy; the message holds the end of their output."""


class Stopped(Exception):
    """The tests were ended from outside, so there is no outcome."""


@dataclass(frozen=True)
class Run:
    """What became of some tests."""

    exit_code: int
    """That of pytest, or of `confined.py`."""
    seconds: float
    outcomes: Mapping[str, str]
    """Node id -> passed, failed or skipped, in the order of their ends."""
    last_started: str | None
    why: str
    """What the first test that failed said."""
    log: str
    """The end of the output."""

    @property
    def first_failed(self) -> str | None:
        return next((name for name, each in self.outcomes.items() if each == "failed"), None)


class Copy:
    """A copy of a project in a folder of its own.

    Args:
        project: What to copy.
        folder: An empty folder; its path should be short, tests put unix sockets below it.
    """

    def __init__(self, project: Project, folder: Path) -> None:
        self.root = folder / "project"
        self._project = project
        self._folder = folder
        self._plugins = folder / "plugins"
        self._outcomes = folder / "outcomes"
        self._changed_at = int(time.time())
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False
        self._fill()

    def require_own_packages(self) -> None:
        """Check that processes started by tests import the copy, wherever they run.

        Raises:
            CannotRun: They would import an installed package, or another folder.
        """
        for name in self._project.packages:
            done = subprocess.run(
                [sys.executable, "-c", f"import {name}; print({name}.__file__)"],
                cwd="/",
                env=self._environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            found = Path(done.stdout.strip() or "/")
            if self.root.resolve() not in found.resolve().parents:
                raise CannotRun(f"{name} is not imported from the copy: {found}\n{done.stderr}")

    @contextmanager
    def changed(self, mutant: Mutant) -> Generator[None]:
        """Put a fault in, and take it out at the end of the block.

        Raises:
            Stale: The text to change is not there once.
        """
        contents = mutated(self.root, mutant)
        before = {path: path.read_text("utf-8") for path in contents}
        try:
            for path, text in contents.items():
                self._write(path, text)
            yield
        finally:
            for path, text in before.items():
                self._write(path, text)

    def run(
        self, tests: Sequence[str], *, select: str, seconds: float, stops_at_first: bool
    ) -> Run:
        """Run tests in a process of their own, of which nothing is left afterwards.

        Raises:
            Stopped: `stop` was called meanwhile.
        """
        self._outcomes.unlink(missing_ok=True)
        began = time.monotonic()
        with (self._folder / "log").open("w+", encoding="utf-8", errors="replace") as log:
            exit_code = self._ended(
                self._command(tests, select, seconds, stops_at_first=stops_at_first), log
            )
            log.seek(0)
            end = "".join(log.readlines()[-_LOG_LINES:])
        seconds = time.monotonic() - began
        outcomes, last_started, why = self._read_outcomes()
        return Run(exit_code, seconds, outcomes, last_started, why, end)

    def stop(self) -> None:
        """End the tests that run, if any, and let none begin."""
        self._is_stopped = True
        if self._process is not None:
            self._process.terminate()

    def _ended(self, command: Sequence[str], log: IO[str]) -> int:
        """Run a command and return its exit code; ends it when this is interrupted."""
        if self._is_stopped:
            raise Stopped
        self._process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            exit_code = self._process.wait()
        finally:
            self._process.terminate()  # does nothing where it has ended
            self._process.wait()
        if self._is_stopped:
            raise Stopped
        return exit_code

    def _fill(self) -> None:
        for name in self._project.copied:
            source, target = self._project.root / name, self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=_NOT_COPIED)
            elif source.is_file():
                shutil.copyfile(source, target)
        for name in self._project.linked:
            if (self._project.root / name).is_dir():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).symlink_to(self._project.root / name)
        self._plugins.mkdir()
        shutil.copyfile(_HERE / "guard.py", self._plugins / f"{_PLUGIN}.py")

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, "utf-8")
        # Compiled files are taken for current by the second of the change and the size: without a
        # second of its own, a fault may run on after it was taken out.
        self._changed_at += 1
        os.utime(path, (self._changed_at, self._changed_at))

    def _command(
        self, tests: Sequence[str], select: str, seconds: float, *, stops_at_first: bool
    ) -> list[str]:
        confined = [sys.executable, "-P", str(_HERE / "confined.py"), str(seconds)]
        options = ["-q", "--tb=short", "-p", _PLUGIN, "-p", "no:cacheprovider", "-o", "timeout=0"]
        if stops_at_first:
            options.append("-x")
        if select:
            options += ["-k", select]
        temporary = ["--basetemp", str(self._folder / "t")]
        return [*confined, sys.executable, "-m", "pytest", *options, *temporary, *tests]

    def _environment(self) -> dict[str, str]:
        passed = {name: v for name, v in os.environ.items() if not name.startswith(_NOT_PASSED)}
        return {
            **passed,
            "PYTHONPATH": os.pathsep.join(map(str, (self.root, self._plugins))),
            guard.PACKAGES: " ".join(self._project.packages),
            guard.OUTCOMES: str(self._outcomes),
        }

    def _read_outcomes(self) -> tuple[dict[str, str], str | None, str]:
        outcomes: dict[str, str] = {}
        last_started, why = None, ""
        lines = self._outcomes.read_text("utf-8").splitlines() if self._outcomes.is_file() else []
        for line in map(json.loads, lines):
            name, outcome = line["id"], line["outcome"]
            if outcome == "started":
                last_started = name
            elif outcomes.get(name) != "failed":
                outcomes[name] = outcome
                why = why or (line["why"] if outcome == "failed" else "")
        return outcomes, last_started, why
