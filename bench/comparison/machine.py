"""This machine and what runs on it: its name, versions, and the speed of its matrix products."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.comparison.processes import ROOT, Surroundings

_LIBRARIES = ("torch", "transformers", "peft")


def facts() -> dict[str, str]:
    """Return date and machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }


def own_versions() -> dict[str, str]:
    return {name: version(name) for name in ("lorad", *_LIBRARIES)}


def matrix_speeds(surroundings: Surroundings, size: tuple[int, int]) -> dict[str, float]:
    """Return GFLOP/s of products of the model's shapes, by library.

    Args:
        surroundings: The comparison.
        size: Tokens and targets of a step.
    """
    numbers = (*size, surroundings.num_threads)
    out = run_module(
        "gemm",
        [surroundings.folder / "shape.json", *map(str, numbers)],
        surroundings.lorad_variables,
    )
    return {name: speed / 1e9 for name, speed in json.loads(out).items()}


def run_module(name: str, arguments: Sequence[Path | str], variables: Mapping[str, str]) -> str:
    """Run a module of the comparison in a process, so that torch does not stay loaded here.

    Raises:
        SystemExit: It failed; its last line says why.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"bench.comparison.{name}", *arguments],
        cwd=ROOT,
        env=dict(variables),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit((done.stderr.strip().splitlines() or [f"{name} failed"])[-1])
    return done.stdout


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
