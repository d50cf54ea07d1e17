"""The page of settings: keys, sessions, workers, storage, versions and licences."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from app.api.deps import Config, Db, Project
from app.api.guard import SESSION_COOKIE
from app.db import migrate
from app.db.engine import Database
from app.domain.errors import NotFound
from app.services import catalog, keys, sessions, storage
from app.services.keys import NewKey
from app.settings import Settings
from app.web import render
from app.web.routing import PageRoute
from app.web.sign_in import keep

router = APIRouter(prefix="/ui/settings", include_in_schema=False, route_class=PageRoute)

_PACKAGES = (
    "fastapi",
    "starlette",
    "uvicorn",
    "jinja2",
    "pydantic",
    "sqlalchemy",
    "alembic",
    "celery",
    "redis",
    "typer",
    "rich",
)


@router.get("")
def settings_page(request: Request, db: Db, config: Config, project: Project) -> HTMLResponse:
    """Show what there is to set and to know about this service."""
    return _page(request, db, config, project)


@router.post("/keys")
def create_key(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    name: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Create a key and show it this once; the first one locks the door, so it also signs in."""
    is_first = not keys.are_required(db)
    made = keys.create(db, config, name=name.strip())
    token = sessions.sign_in(db, config, made.secret) if is_first else None
    answer = _page(request, db, config, project, made=made, is_first=is_first)
    if token is not None:
        keep(request, answer, token)
    return answer


@router.post("/keys/{key_id}/revoke")
def revoke_key(db: Db, project: Project, key_id: str) -> RedirectResponse:
    """End a key and the sessions that came by it."""
    if key_id not in {key.id for key in keys.list_all(db) if key.project_id == project}:
        raise NotFound("there is no such key; see the list on the page of settings", param="key_id")
    keys.revoke(db, key_id)
    return RedirectResponse("/ui/settings", status_code=303)


@router.post("/sign-out-everywhere")
def sign_out_everywhere(db: Db, project: Project) -> RedirectResponse:
    """End every session of the project."""
    sessions.sign_out_everywhere(db, project)
    return RedirectResponse("/ui/settings", status_code=303)


def _page(
    request: Request,
    db: Database,
    config: Settings,
    project: str,
    *,
    made: NewKey | None = None,
    is_first: bool = False,
) -> HTMLResponse:
    return render.page(
        request,
        "settings.html",
        active="settings",
        made=made,
        is_first=is_first,
        keys_are_required=keys.are_required(db),
        keys=[key for key in keys.list_all(db) if key.project_id == project],
        sessions=sessions.list_all(db, project),
        is_session=SESSION_COOKIE in request.cookies,
        workers=catalog.list_workers(db, config),
        disk=storage.disk(config),
        usage=storage.usage(config),
        home=config.home,
        versions={
            "lorad": importlib.metadata.version("lorad"),
            "Python": platform.python_version(),
            "Schema of the database": migrate.revision(),
            "Database": db.url.get_backend_name(),
        },
        vendored=vendored(),
        packages=_packages(),
    )


def vendored() -> Sequence[Mapping[str, Any]]:
    """Return the files of others that pages load, as vendor.lock.json names them."""
    return json.loads((render.STATIC / "vendor" / "vendor.lock.json").read_text("utf-8"))["files"]


def _packages() -> Sequence[tuple[str, str, str]]:
    """Return name, version and licence of what this process stands on."""
    found: list[tuple[str, str, str]] = []
    for name in _PACKAGES:
        about = importlib.metadata.metadata(name)
        named = [
            each.rpartition(" :: ")[2]
            for each in about.get_all("Classifier") or []
            if each.startswith("License ::")
        ]
        fields = [each for each in ("License-Expression", "License") if each in about]
        licence = about[fields[0]] if fields else ", ".join(named)
        found.append((name, about["Version"], licence.partition("\n")[0][:60] or "see its files"))
    return found
