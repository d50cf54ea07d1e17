"""The page of settings: keys, sessions, workers, storage, versions and licences."""

import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
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

# A requirement as a package states it: name, extras in brackets, and a marker behind a semicolon.
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


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


@router.post("/sessions/{session_id}/end")
def end_session(db: Db, project: Project, session_id: str) -> RedirectResponse:
    """Sign one browser out."""
    sessions.end(db, project, session_id)
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
        own=sessions.public_id(request.cookies.get(SESSION_COOKIE, "")),
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
        packages=packages(),
    )


def vendored() -> Sequence[Mapping[str, Any]]:
    """Return the files of others that pages load, as vendor.lock.json names them."""
    return json.loads((render.STATIC / "vendor" / "vendor.lock.json").read_text("utf-8"))["files"]


@lru_cache
def packages() -> Sequence[tuple[str, str, str]]:
    """Return name, version and licence of everything that the service stands on, by name."""
    found: dict[str, tuple[str, str, str]] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [("lorad", frozenset[str]())]
    while left:
        name, extras = left.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if (key, extras) in seen:
            continue
        seen.add((key, extras))
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system or another Python
        found[key] = (package.metadata["Name"], package.version, _licence(package.metadata))
        left += _requirements(package, extras)
    del found["lorad"]
    return sorted(found.values(), key=lambda each: each[0].lower())


def _requirements(
    package: importlib.metadata.Distribution, extras: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    for text in package.requires or []:
        required, _, marker = text.partition(";")
        wanted = _EXTRA.findall(marker)
        match = _REQUIREMENT.match(required)
        if match and (not wanted or extras & set(wanted)):
            own = {each.strip() for each in (match[2] or "").split(",")} - {""}
            yield match[1], frozenset(own)


def _licence(about: importlib.metadata.PackageMetadata) -> str:
    names = ("License-Expression", "License")
    stated = next((about[name] for name in names if name in about), "")
    classified = [
        each.rpartition(" :: ")[2]
        for each in about.get_all("Classifier") or []
        if each.startswith("License ::")
    ]
    # Some put the whole text of their licence there; its name is among the classifiers then.
    is_name = stated and "\n" not in stated and len(stated) <= 60
    return (stated if is_name else ", ".join(classified)) or stated[:60].strip() or "see its files"
