"""All routes of the dashboard."""

from app.web import (
    charts,
    compare,
    gradients,
    home,
    jobs,
    live,
    new_job,
    playground,
    settings,
    sign_in,
    static_files,
    token_preview,
)
from app.web.job import (
    actions,
    checkpoints,
    config,
    data,
    exports,
    overview,
    proofs,
    timeline,
)
from app.web.job import live as job_live

ROUTERS = (
    home.router,
    sign_in.router,
    jobs.router,
    live.router,
    overview.router,
    actions.router,
    job_live.router,
    checkpoints.router,
    exports.router,
    data.router,
    timeline.router,
    config.router,
    proofs.router,
    settings.router,
    static_files.router,
    charts.router,
    compare.router,
    gradients.router,
    new_job.router,
    playground.router,
    token_preview.router,
)
