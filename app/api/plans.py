"""Plans: what a job would do and need, before it is submitted."""

from fastapi import APIRouter

from app.api.deps import Db, Project, Reach
from app.api.errors import answers
from app.api.strict import StrictRoute
from app.domain.plans import Plan
from app.domain.spec import JobSpec
from app.services import plans

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)


@router.post("/plan", responses=answers(404, 413))
def plan_job(spec: JobSpec, db: Db, reach: Reach, project: Project) -> Plan:
    """Say what a job would do and need: steps, memory, disk, time, warnings. Nothing is stored."""
    return plans.plan(db, reach, project, spec)
