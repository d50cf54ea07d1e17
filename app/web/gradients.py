"""The page of a job's gradient flow: a heatmap of layers and steps, and the same in words."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict

from app.api.deps import Config, Db, JobId, Project
from app.db.engine import Database
from app.domain.errors import NotFound
from app.domain.gradient_flow import GradientFlow, MatrixFlow, MatrixState
from app.domain.jobs import Job
from app.services import jobs, reports
from app.web.job import frame
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

# A table has every matrix of the model, so a long run is looked at in as many places, no more.
_MOST_STEPS = 120
_MOST_NAMED = 20
_UNWELL = ("dead", "not_moving", "nonfinite")

Module = Annotated[
    str | None, Query(max_length=400, description="Module and matrix, as the page lists them.")
]


class Heat(BaseModel):
    """The gradient norms of one matrix of one module: a list for each step, with every layer."""

    model_config = ConfigDict(frozen=True)

    steps: Sequence[int]
    layers: Sequence[int | None]
    norms: Sequence[Sequence[float | None]]
    states: Sequence[Sequence[MatrixState | None]]


class ModuleFlow(BaseModel):
    """One matrix of one module over all layers, at the newest step."""

    model_config = ConfigDict(frozen=True)

    name: str
    lowest: float | None
    highest: float | None
    num_layers: int
    unwell: Sequence[str]
    """Each layer that is dead, does not move, or is not finite, in words."""


class Flow(BaseModel):
    """What the page says without a script."""

    model_config = ConfigDict(frozen=True)

    newest: GradientFlow
    modules: Sequence[ModuleFlow]
    module: str
    """The one that the heatmap shows."""
    num_unwell: int
    unwell: Sequence[str]
    """Its cells that are not well, at any step looked at, in words; the first few."""


@router.get("/jobs/{job_id}/gradients")
def gradients_page(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    job_id: JobId,
    module: Module = None,
) -> HTMLResponse:
    """Show the gradient of every layer at every sampled step."""
    job = jobs.get(db, config, project, job_id)
    flow = of_job(db, project, job, module)
    return frame.page(request, job, "gradients", "charts/gradients_page.html", flow=flow)


@router.get("/jobs/{job_id}/gradients.json")
def gradients_json(
    db: Db, config: Config, project: Project, job_id: JobId, module: Module = None
) -> Heat:
    """Answer what the script of the heatmap draws."""
    tables = _tables(db, project, jobs.get(db, config, project, job_id))
    return _heat(tables, _chosen(tables, module))


def of_job(db: Database, project_id: str, job: Job, module: str | None) -> Flow | None:
    """Return what templates/charts/gradients.html shows, as `flow`; None before the first sample.

    Raises:
        NotFound: The adapter has no such module and matrix.
    """
    tables = _tables(db, project_id, job)
    if not tables:
        return None
    groups: dict[str, list[MatrixFlow]] = {}
    for each in tables[-1].matrices:
        groups.setdefault(_name(each), []).append(each)
    module = _chosen(tables, module)
    unwell = [
        f"step {table.step}, {_unwell(each)}"
        for table in tables
        for each in table.matrices
        if _name(each) == module and each.state in _UNWELL
    ]
    return Flow(
        newest=tables[-1],
        modules=[_module(name, cells) for name, cells in groups.items()],
        module=module,
        num_unwell=len(unwell),
        unwell=unwell[:_MOST_NAMED],
    )


def _tables(db: Database, project_id: str, job: Job) -> Sequence[GradientFlow]:
    """Return the samples of a run in the order of their steps, evenly spread if there are many."""
    if job.step / job.spec.monitoring.gradient_flow_steps < _MOST_STEPS:
        limit = _MOST_STEPS + 8  # the first steps are sampled more often
        return reports.gradient_flow(db, project_id, job.id, after_step=0, limit=limit)
    found: dict[int, GradientFlow] = {}
    for number in range(_MOST_STEPS):
        after = (job.step - job.spec.monitoring.gradient_flow_steps) * number // (_MOST_STEPS - 1)
        for each in reports.gradient_flow(db, project_id, job.id, after_step=after, limit=1):
            found[each.step] = each
    return list(found.values())


def _chosen(tables: Sequence[GradientFlow], module: str | None) -> str:
    names = list(dict.fromkeys(_name(each) for each in tables[-1].matrices)) if tables else []
    if module is None:
        return names[0] if names else ""
    if module not in names:
        known = ", ".join(names) or "none before the first sample"
        raise NotFound(f"module {module[:100]!r} is none of this job's: {known}", param="module")
    return module


def _heat(tables: Sequence[GradientFlow], module: str) -> Heat:
    columns = [
        {each.layer: each for each in table.matrices if _name(each) == module} for table in tables
    ]
    # The last layer on top, as models are drawn; what belongs to no layer below all.
    known = {layer for column in columns for layer in column}
    layers = sorted(known, key=lambda layer: -1 if layer is None else layer, reverse=True)
    cells = [[column.get(layer) for layer in layers] for column in columns]
    return Heat(
        steps=[table.step for table in tables],
        layers=layers,
        norms=[[cell and cell.grad_norm for cell in column] for column in cells],
        states=[[cell and cell.state for cell in column] for column in cells],
    )


def _name(matrix: MatrixFlow) -> str:
    return f"{matrix.module} {matrix.matrix}"


def _unwell(matrix: MatrixFlow) -> str:
    return f"layer {matrix.layer}: {matrix.state.replace('_', ' ')}"


def _module(name: str, cells: Sequence[MatrixFlow]) -> ModuleFlow:
    norms = [each.grad_norm for each in cells if each.grad_norm is not None]
    return ModuleFlow(
        name=name,
        lowest=min(norms, default=None),
        highest=max(norms, default=None),
        num_layers=len(cells),
        unwell=[_unwell(each) for each in cells if each.state in _UNWELL],
    )
