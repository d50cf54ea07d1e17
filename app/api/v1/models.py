"""Models: base models, and what jobs made of them."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.api.deps import Config, Db, Project
from app.api.errors import answers
from app.api.strict import StrictRoute
from app.domain.openai.objects import NamedModel, NamedModels, Removed
from app.services.openai import models

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=StrictRoute)

ModelName = Annotated[
    str,
    Path(
        description="A base model, also `org/name`, or the name of a fine-tuned one or of one of"
        " its checkpoints.",
        max_length=400,
    ),
]


@router.get("", responses=answers())
def list_named_models(db: Db, config: Config, project: Project) -> NamedModels:
    """List all models that can be asked."""
    return models.list_all(db, config, project)


@router.get("/{model:path}", responses=answers(404, 409))
def get_named_model(model: ModelName, db: Db, config: Config, project: Project) -> NamedModel:
    """Show a model."""
    return models.get(db, config, project, model)


@router.delete("/{model:path}", responses=answers(404, 409))
def delete_named_model(model: ModelName, db: Db, config: Config, project: Project) -> Removed:
    """Remove the adapter and the checkpoints of a job that has ended; the job stays."""
    return models.delete(db, config, project, model)
