"""All routes of the dashboard."""

from app.web import (
    charts,
    compare,
    gradients,
    home,
    job,
    jobs,
    live,
    new_job,
    playground,
    settings,
    sign_in,
    static_files,
    token_preview,
)

ROUTERS = (
    home.router,
    sign_in.router,
    jobs.router,
    live.router,
    job.router,
    settings.router,
    static_files.router,
    charts.router,
    compare.router,
    gradients.router,
    new_job.router,
    playground.router,
    token_preview.router,
)
