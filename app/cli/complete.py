"""What a shell offers to complete: ids of live jobs and data sets, states, presets, checkpoints."""

import contextlib
import json
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

# Whoever presses Tab waits for it, and an API that is away must not be noticed.
_SECONDS = 1.0
_DEFAULT_URL = "http://127.0.0.1:8000"
_JOB = re.compile(r"\bjob-[0-9a-f]{24}\b")
_NAMED_CHECKPOINTS = ("latest", "best", "final")

Offer = tuple[str, str]


def jobs(incomplete: str) -> list[Offer]:
    """Offer the newest jobs, with their state and name."""
    return [(job["id"], _about(job)) for job in _list("/jobs?limit=100") if _fits(job, incomplete)]


def jobs_and_steps(incomplete: str) -> list[Offer]:
    """Offer jobs, and behind the colon their checkpoints."""
    job_id, colon, _ = incomplete.partition(":")
    if not colon:
        return jobs(incomplete)
    return [(f"{job_id}:{name}", about) for name, about in _steps_of(job_id)]


def checkpoints(incomplete: str) -> list[Offer]:
    """Offer the checkpoints of the job that the command line names already."""
    # What is typed so far is no whole command, so it cannot be parsed; shells hand it over here.
    line = " ".join(os.environ.get(name, "") for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS"))
    job = _JOB.search(line)
    found = _steps_of(job.group()) if job else []
    return [each for each in found if each[0].startswith(incomplete)]


def states(incomplete: str) -> list[str]:
    from app.domain.jobs import JobState

    return [state.value for state in JobState if state.value.startswith(incomplete)]


def presets(incomplete: str) -> list[Offer]:
    from app.domain.presets import PRESETS

    return [
        (preset.name, preset.description)
        for preset in PRESETS.values()
        if preset.name.startswith(incomplete)
    ]


def models(incomplete: str) -> list[Offer]:
    return [
        (model["id"], str(model.get("architecture") or ""))
        for model in _list("/models")
        if model.get("usable") and _fits(model, incomplete)
    ]


def datasets(incomplete: str) -> list[Offer]:
    """Offer the newest data sets, with their names."""
    found = _list("/datasets?limit=100")
    return [(each["id"], _plain(each.get("name"))) for each in found if _fits(each, incomplete)]


def keys(incomplete: str) -> list[str]:
    """Offer the dotted keys of a job, for `--set`."""
    from app.domain.spec import GROUPS, JobSpec

    paths = [key for key in JobSpec.model_fields if key not in GROUPS]
    paths += [f"{name}.{key}" for name, group in GROUPS.items() for key in group.model_fields]
    return [f"{path}=" for path in paths if path.startswith(incomplete)]


def _steps_of(job_id: str) -> list[Offer]:
    path = f"/jobs/{urllib.parse.quote(job_id, safe='')}/checkpoints"
    steps = [(str(each.get("step")), _loss(each)) for each in _list(path) if _is_usable(each)]
    return [*steps, *((name, "") for name in _NAMED_CHECKPOINTS if steps)]


def _is_usable(checkpoint: dict[str, Any]) -> bool:
    return checkpoint.get("status") == "committed" and not checkpoint.get("superseded")


def _loss(checkpoint: dict[str, Any]) -> str:
    loss = checkpoint.get("loss")
    return "" if loss is None else f"loss {loss:.4g}"


def _about(job: dict[str, Any]) -> str:
    total = job.get("total_steps") or "?"
    return f"{job.get('state')} {job.get('step')}/{total} {_plain(job.get('name'))}".rstrip()


def _plain(text: object) -> str:
    # Names are users' text, and shells take some characters for their own.
    return "".join(char for char in str(text or "") if char.isalnum() or char in " ._-")[:40]


def _fits(thing: dict[str, Any], incomplete: str) -> bool:
    return str(thing.get("id", "")).startswith(incomplete)


def _list(path: str) -> Iterator[dict[str, Any]]:
    """Yield a list of the API; nothing where it does not answer, whatever the reason."""
    url = (os.environ.get("LORAD_API_URL") or _DEFAULT_URL).rstrip("/") + path
    key = os.environ.get("LORAD_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    opener: Callable[..., Any] = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        request = urllib.request.Request(url, headers=headers)
        with opener(request, timeout=_SECONDS) as answer:
            yield from (each for each in json.load(answer)["data"] if isinstance(each, dict))
