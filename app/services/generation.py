"""Answers of a job's checkpoints, its final adapter or its base model, given by a worker."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.db import checkpoints as checkpoint_queries
from app.db.engine import Database
from app.domain.errors import InvalidInput, NotFound
from app.domain.groups import Label
from app.domain.rows import Message
from app.domain.spec import JobSpec
from app.domain.tools import GenerateRequest, GenerateResult
from app.services import catalog, checkpoints, jobs, tools
from app.services.jobs import Outside
from app.settings import Settings

BASE = "base"
_MAX_PROMPTS = 16


class Turn(BaseModel):
    """One turn of a conversation to continue."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who speaks."""
    content: Label = Field(min_length=1)
    """What is said."""


class GenerateBody(BaseModel):
    """Conversations to continue with a job's adapter or with its base model."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    messages: list[list[Turn]] = Field(min_length=1, max_length=_MAX_PROMPTS)
    """Conversations; each ends with a user turn and gets one answer."""
    checkpoint: int | str = checkpoints.LATEST
    """A step, `latest`, `best`, the id of a checkpoint, `final`, or `base`: the model without
    adapter."""
    max_new_tokens: int = Field(default=64, ge=1, le=1024)
    """Longest answer in tokens."""


class Generation(BaseModel):
    """Answers of a model."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: str = "generation"
    """Always `generation`."""
    checkpoint: str
    """What answered: `base`, `final`, or `step N`."""
    answers: list[str]
    """One answer for each conversation, in their order."""
    seconds: float
    """Time the worker took in seconds."""


def generate(
    db: Database, outside: Outside, project_id: str, job_id: str, body: GenerateBody
) -> Generation:
    """Let a worker answer conversations, also while it trains.

    Raises:
        NotFound: No such job or checkpoint.
        CheckpointUnusable: The checkpoint does not verify.
        NoWorker: No worker is running.
        Unavailable: The worker failed or took too long, or enough others are being answered.
    """
    settings = outside.settings
    _require_user_turns(body.messages)
    with db.read() as session:
        spec = JobSpec.model_validate(jobs.require(session, project_id, job_id).spec)
    model = catalog.require_model(settings, spec.base_model)
    with tools.place_for_a_call():
        adapter, label = _adapter(db, settings, project_id, job_id, str(body.checkpoint))
        request = GenerateRequest(
            model_folder=model.path,
            adapter_folder=adapter,
            dtype=spec.training.dtype,
            quantization=spec.quantization,
            prompts=tuple(
                tuple(Message(turn.role, turn.content) for turn in prompt)
                for prompt in body.messages
            ),
            max_new_tokens=body.max_new_tokens,
        )
        result = tools.ask(db, outside, request, GenerateResult)
    return Generation(checkpoint=label, answers=list(result.answers), seconds=result.seconds)


def _require_user_turns(prompts: Sequence[Sequence[Turn]]) -> None:
    """Refuse conversations that leave nothing to answer.

    Raises:
        InvalidInput: A conversation is empty or does not end with a user turn.
    """
    for index, prompt in enumerate(prompts):
        if not prompt or prompt[-1].role != "user":
            raise InvalidInput(
                "a conversation must end with a user turn", param=f"messages.{index}"
            )


def _adapter(
    db: Database, settings: Settings, project_id: str, job_id: str, which: str
) -> tuple[Path | None, str]:
    if which == BASE:
        return None, BASE
    if which == checkpoints.FINAL:
        return checkpoints.adapter_folder(db, settings, project_id, job_id, which), which
    if which == checkpoints.LATEST:
        with db.read() as session:
            newest = checkpoint_queries.latest(session, job_id)
        if newest is None:
            raise NotFound(
                f"job {job_id} has no checkpoint yet; ask `base`, or wait for its first",
                param="checkpoint",
                code="no_checkpoint",
            )
    found = checkpoints.get(db, project_id, job_id, which)
    checkpoints.require_good(db, settings, found)
    return checkpoints.folder_of(settings, found), f"step {found.step}"
