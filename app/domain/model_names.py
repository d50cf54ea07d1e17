"""Names of models that can be asked: a base model, what a job made of it, or a checkpoint of it."""

import re
from dataclasses import dataclass
from typing import Literal

from app.domain import ids
from app.domain.errors import NotFound
from app.domain.groups import shown

Which = Literal["final", "latest", "best"]

# Where OpenAI has the name of the organization.
_ORGANIZATION = "lorad"
_NOT_IN_SUFFIX = re.compile(r"[^a-z0-9._-]+")
_MAX_SUFFIX_CHARACTERS = 64
_TUNED = re.compile(
    r"ft:[^:]{1,160}:[^:]{1,64}:[^:]{0,64}:(?P<tail>[0-9a-f]{24})"
    r"(?::(?:ckpt-step-(?P<step>[0-9]{1,9})|(?P<which>latest|best)))?"
)
_JOB = re.compile(
    r"(?P<job>job-[0-9a-f]{24})(?::(?:(?P<step>[0-9]{1,9})|(?P<which>final|latest|best)))?"
)


@dataclass(frozen=True)
class TunedName:
    """The adapter of a job: its final one, the newest or best checkpoint, or that of a step."""

    job_id: str
    which: Which | int


def tuned(base_model: str, job_name: str | None, job_id: str) -> str:
    """Return the name of what a job makes, such as `ft:smollm2:lorad:my-name:0199c2f4...`.

    Only the last part counts when it is read. A slash in the base model's name becomes `--`, since
    clients encode it in paths.
    """
    base = base_model.replace("/", "--")
    return f"ft:{base}:{_ORGANIZATION}:{_suffix(job_name)}:{_tail(job_id)}"


def at_step(tuned_name: str, step: int) -> str:
    """Return the name of a checkpoint of a fine-tuned model."""
    return f"{tuned_name}:ckpt-step-{step}"


def parse(name: str) -> TunedName | None:
    """Read the name of a fine-tuned model, or a job's id with an optional `:STEP`; else None.

    Raises:
        NotFound: It starts as such a name does and goes on as none does.
    """
    found = _TUNED.fullmatch(name) or _JOB.fullmatch(name)
    if found is None:
        if name.startswith(("ft:", "job-")):
            raise NotFound(
                f"{shown(name)} is no name of a model here; it is"
                " ft:BASE:ORGANIZATION:SUFFIX:ID with an optional :ckpt-step-N, :latest or :best;"
                " see GET /v1/models",
                param="model",
                code="model_not_found",
            )
        return None
    parts = found.groupdict()
    job_id = parts.get("job") or f"job-{parts['tail']}"
    assert ids.is_id(job_id, "job")
    if parts["step"] is not None:
        return TunedName(job_id, int(parts["step"]))
    match parts["which"]:
        case "latest" | "best" as which:
            return TunedName(job_id, which)
        case _:
            return TunedName(job_id, "final")


def _suffix(job_name: str | None) -> str:
    plain = _NOT_IN_SUFFIX.sub("-", (job_name or "").lower()).strip("-.")
    return plain[:_MAX_SUFFIX_CHARACTERS]


def _tail(job_id: str) -> str:
    return job_id.partition("-")[2]
