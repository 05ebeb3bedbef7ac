"""Uploads in Litestar, for those who have a session.

    uvicorn --http h11 examples.litestar_app:app

Sign in: POST {"user": "alice", "password": "…"} to /sign-in, which sets a cookie. Upload to
/api/files with it. GET /my-files lists what is whole.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Router, get, post
from litestar.exceptions import NotAuthorizedException
from litestar.middleware.session.server_side import ServerSideSessionConfig

from tidegate.asgi import Tidegate
from tidegate.contrib.litestar import mount
from tidegate.hooks import Denied, Principal, Upload, UploadRequest, read_metadata
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import Delivery
from tidegate.protocol.model import EventType
from tidegate.stores.local import LocalStore

PASSWORDS = {"alice": "wonderland", "bob": "builder"}  # yours are hashed, in a database
FILES: dict[str, dict[str, str]] = {}


@dataclass
class SignIn:
    user: str
    password: str


def fits(user: str, password: str) -> bool:
    return user in PASSWORDS and secrets.compare_digest(PASSWORDS[user].encode(), password.encode())


def authorize(request: UploadRequest, _upload: Upload | None) -> Principal:
    """The session is what Litestar's middleware found, around what is mounted, too."""
    user = request.scope["session"].get("user")
    if user is None:
        raise Denied(401, "sign in first", headers={"WWW-Authenticate": "Session"})
    return Principal(id=user)


async def on_upload(delivery: Delivery) -> None:
    upload = delivery.event.upload
    if delivery.event.type is EventType.COMPLETED and upload.principal:
        name = read_metadata(upload).get("filename", b"").decode("utf-8", "replace")
        FILES.setdefault(upload.principal, {})[upload.id] = name  # may come more than once


@post("/sign-in", status_code=204)
async def sign_in(data: SignIn, request: Request[object, object, Any]) -> None:
    if not fits(data.user, data.password):
        raise NotAuthorizedException("wrong user or password")
    request.set_session({"user": data.user})


@get("/my-files")
async def my_files(request: Request[object, object, Any]) -> list[dict[str, str]]:
    if "user" not in request.session:
        raise NotAuthorizedException("sign in first")
    own = FILES.get(request.session["user"], {})
    return [{"id": upload_id, "name": name} for upload_id, name in own.items()]


folder = Path(os.environ.get("UPLOADS", "uploads"))
metadata = SQLiteMetadataStore(folder / "tidegate.db")
uploads = Tidegate(LocalStore(folder), metadata, authorize=authorize, on_event=[on_upload])
app = Litestar(
    [sign_in, my_files, Router("/api", route_handlers=[mount("/files", uploads)])],
    middleware=[ServerSideSessionConfig().middleware],
    lifespan=[uploads.lifespan],
)
