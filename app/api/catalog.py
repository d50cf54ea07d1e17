"""What there is to train with: base models, presets, workers; and whether the service is well."""

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from app.api.deps import Config, Db, Parts
from app.api.errors import answers
from app.api.schemas import Page
from app.api.strict import StrictRoute
from app.db import migrate
from app.domain.errors import Unavailable
from app.domain.presets import PRESETS, Preset
from app.domain.workers import Worker
from app.services import catalog
from app.services.catalog import Model

router = APIRouter(tags=["catalog"], route_class=StrictRoute)


class Health(BaseModel):
    """Whether the process lives."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ok"] = "ok"
    """Always `ok`."""


class Readiness(BaseModel):
    """Whether what the API needs can be reached."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ok", "degraded"]
    """`degraded` when Redis or every worker is away: jobs are accepted and start later."""
    database: Literal["ok"]
    """The database answers and its tables are those of this version."""
    redis: Literal["ok", "away"]
    """Whether Redis answers."""
    workers: int
    """Workers that are alive."""


@router.get("/models", responses=answers())
def list_models(config: Config) -> Page[Model]:
    """List the base models in the models folder."""
    return Page(data=catalog.list_models(config), has_more=False)


@router.get("/presets", responses=answers())
def list_presets() -> Page[Preset]:
    """List the named starting points for the `lora` group."""
    return Page(data=list(PRESETS.values()), has_more=False)


@router.get("/workers", responses=answers())
def list_workers(db: Db, config: Config) -> Page[Worker]:
    """List the workers that are alive."""
    return Page(data=list(catalog.list_workers(db, config)), has_more=False)


@router.get("/healthz", responses={each: answers()[each] for each in (400, 413, 422)})
def healthz() -> Health:
    """Tell that the process lives; needs no key."""
    return Health()


@router.get("/readyz", responses=answers(), response_model=Readiness)
def readyz(request: Request, db: Db, config: Config) -> Readiness | JSONResponse:
    """Tell whether requests can be served."""
    parts: Parts = request.app.state.parts
    if not migrate.is_current(db):
        raise Unavailable("the database needs a migration; run `lorad migrate`", code="migration")
    num_workers = len(catalog.list_workers(db, config))
    has_redis = parts.outside.stream.is_available()
    return Readiness(
        status="ok" if has_redis and num_workers else "degraded",
        database="ok",
        redis="ok" if has_redis else "away",
        workers=num_workers,
    )
