"""The virtual environments of the peers, built once under `.cache/bench`."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_MARK = ".installed"


@dataclass(frozen=True)
class Recipe:
    """What an environment holds beside torch, which is of the version that lorad uses."""

    packages: tuple[str, ...]
    shown: tuple[str, ...]
    """Packages whose versions the tables name."""
    checks: str
    """Statement that works where the environment does."""
    left_out: tuple[str, ...] = ()
    """Packages that are taken out again where they cannot be loaded."""


def recipes() -> dict[str, Recipe]:
    """Return the recipe of each environment.

    The plain Trainer gets lorad's own versions; the others are pinned and bring what they pin.
    """
    same = {name: f"{name}=={version(name)}" for name in ("transformers", "peft", "accelerate")}
    return {
        "hf": Recipe(tuple(same.values()), ("transformers", "peft"), "import transformers, peft"),
        "trl": Recipe(
            ("trl==1.16.0", same["peft"]), ("trl", "transformers", "peft"), "import trl, peft"
        ),
        # torchvision and torchaudio come as CUDA builds only, which a CPU build of torch cannot
        # load; LLaMA-Factory wants them for pictures and sound.
        "llamafactory": Recipe(
            ("llamafactory==0.9.5",),
            ("llamafactory", "transformers", "peft"),
            "import transformers.trainer, peft, datasets",
            left_out=("torchvision", "torchaudio"),
        ),
    }


class CannotInstall(Exception):
    """An environment could not be built; the message is the reason to print."""


def ensure(name: str, folder: Path) -> Path:
    """Return the Python of an environment, building it first where it is missing or outdated.

    Raises:
        CannotInstall: pip or the check of the result failed.
    """
    recipe = recipes()[name]
    python = folder / "bin" / "python"
    torch = f"torch=={version('torch').partition('+')[0]}"
    wanted = "\n".join((torch, *recipe.packages))
    mark = folder / _MARK
    if mark.is_file() and mark.read_text() == wanted:
        return python
    print(f"building the environment of {name} in {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    # torch first and by itself, so that it comes from where the user's pip takes torch from.
    _run([str(python), "-m", "pip", "install", "--quiet", torch])
    _run([str(python), "-m", "pip", "install", "--quiet", torch, *recipe.packages])
    for package in recipe.left_out:
        if not _works(python, f"import {package}"):
            _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", package])
    _run([str(python), "-c", recipe.checks])
    mark.write_text(wanted)
    return python


def versions(name: str, python: Path) -> dict[str, str]:
    """Return the versions that an environment has of the packages worth naming."""
    names = ("torch", *recipes()[name].shown)
    code = f"from importlib.metadata import version\nfor n in {names}: print(version(n))"
    lines = _run([str(python), "-c", code]).splitlines()
    return dict(zip(names, lines, strict=True))


def _works(python: Path, statement: str) -> bool:
    done = subprocess.run([python, "-c", statement], capture_output=True, check=False)
    return done.returncode == 0


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise CannotInstall(f"`{' '.join(command[1:4])} ...` failed: {last[0]}")
    return done.stdout
